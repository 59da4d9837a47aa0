import gzip
import io
import os
import random
import tarfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archives import gzips as gzips_module
from pipelines.archives import list_inputs, read_inputs
from pipelines.archives.gzips import GzipStream
from pipelines.errors import UserError
from tests.factories import traced
from tests.pipelines.containers import Outcome, growth, member, publish, read, tar

FILES = {"b/2 _01.jpg": b"two", "a/1.JPG": b"one" * 1000, "c.heic": b"", "notes.txt": b"no", "a/1.pts": b"no"}
KINDS = ["photos.tar", "photos.tar.gz"]


def _read(folder: Path, data: bytes, kind: str = "photos.tar") -> list[tuple[str, Outcome]]:
    (folder / kind).write_bytes(gzip.compress(data, 1) if kind.endswith("gz") else data)
    return read(str(folder / kind))


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("kind", ["in.TAR", "in.tar.gz", "in.TGZ"])
@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_read_in_its_own_order(
    place: str, kind: str, style: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    folder = member("./b", kind=tarfile.DIRTYPE)
    data = tar(folder, *(member(f"./{name}", data) for name, data in FILES.items()), style=style)
    publish(url, {kind: data if kind.endswith("TAR") else gzip.compress(data)})
    listing = list_inputs(f"{url}/{kind}")
    items = list(listing)
    assert [(item.uri, item.container, item.size, item.packed) for item in items] == [
        ("b/2 _01.jpg", kind, 3, 3),
        ("a/1.JPG", kind, 3000, 3000),
        ("c.heic", kind, 0, 0),
    ]
    assert listing.ignored == 2
    assert [data[item.offset : item.offset + item.size] for item in items] == [b"two", b"one" * 1000, b""]
    rows = [("b/2 _01.jpg", b"two"), ("a/1.JPG", b"one" * 1000), ("c.heic", b"")]
    assert read(f"{url}/{kind}", items) == rows
    assert read(f"{url}/{kind}", items[::-1]) == rows[::-1]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_tar_is_packed_or_not_whatever_its_name_says(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    data = tar(member("a.jpg", b"one"), member("b.jpg", b"two"))
    publish(url, {"packed.tar": gzip.compress(data), "plain.tar.gz": data})
    rows = [("a.jpg", b"one"), ("b.jpg", b"two")]
    assert read(f"{url}/packed.tar") == read(f"{url}/plain.tar.gz") == rows
    listed = list(list_inputs(url))
    assert read(url, listed[::-1]) == [
        (f"{kind}/{a}", b) for kind in ("plain.tar.gz", "packed.tar") for a, b in rows[::-1]
    ]


def test_zeros_that_are_named_as_packed_are_a_broken_archive(tmp_path: Path) -> None:
    """As where room was made for a download that never came: as a tar it would have no members, and no row."""
    data = gzip.compress(tar(member("a.jpg", b"one")))
    publish(str(tmp_path), {"b.tar.gz": bytes(10_240), "c.tgz": bytes(512) + data, "d.jpg": b"two"})
    assert read(str(tmp_path)) == [("b.tar.gz", "broken_archive"), ("c.tgz", "broken_archive"), ("d.jpg", b"two")]


def test_a_tar_is_found_by_its_file_url(tmp_path: Path) -> None:
    place = tmp_path / "100% #1.tar"
    place.write_bytes(tar(member("a.jpg", b"one")))
    assert read(place.as_uri()) == [("a.jpg", b"one")]


@settings(max_examples=40)
@given(
    files=st.lists(
        st.tuples(st.text("aä写/.-", min_size=1, max_size=150), st.binary(max_size=2000)), min_size=1, max_size=8
    ).map(lambda files: [*files, ("last", b"one")]),
    kind=st.sampled_from(KINDS),
    style=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    order=st.randoms(use_true_random=False),
)
def test_what_goes_in_comes_out(
    files: list[tuple[str, bytes]],
    kind: str,
    style: int,
    order: random.Random,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    files = [(f"{number}{name}.jpg", data) for number, (name, data) in enumerate(files)]
    data = tar(*(member(name, content) for name, content in files), style=style)
    path = tmp_path_factory.getbasetemp() / kind
    path.write_bytes(data if kind == KINDS[0] else gzip.compress(data, 1))
    listing = list_inputs(str(path))
    items = list(listing)
    wanted = [content for name, content in files if ".." not in name.split("/") and "/." not in name]
    assert len(items) + listing.ignored == len(files)
    order.shuffle(items)
    found = sorted(content for item, content in read_inputs(str(path), items) if isinstance(content, bytes))
    assert [content for content in sorted(wanted) if content not in found] == []


def test_members_of_one_name_are_inputs_of_their_own(tmp_path: Path) -> None:
    twice = tar(member("a.jpg", b"first"), member("b.jpg", b"b"), member("a.jpg", b"2nd"))
    for kind in KINDS:
        assert _read(tmp_path, twice, kind) == [("a.jpg", b"first"), ("b.jpg", b"b"), ("a.jpg", b"2nd")]


def test_a_member_that_was_replaced_has_another_version(tmp_path: Path) -> None:
    versions = []
    for time in (1, 2):
        info, data = member("a.jpg", b"a")
        info.mtime = time
        (tmp_path / "x.tar").write_bytes(tar((info, data)))
        versions += [item.version for item in list_inputs(str(tmp_path / "x.tar"))]
    assert versions[0] != versions[1]


def test_long_and_foreign_names(tmp_path: Path) -> None:
    long = "d/" * 90 + "Änne.jpg"
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert _read(tmp_path, tar(member(long, b"x"), style=style)) == [(long, b"x")]
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        longer = tar(
            member("n" * 4092 + ".jpg", b"x"),
            member("n" * 900_000 + ".png", b"x"),
            member("z.jpg", b"z"),
            style=style,
        )
        rows = [("n" * 4092 + ".jpg", b"x"), ("n" * 4031 + "…" + "n" * 60 + ".png", "unreadable"), ("z.jpg", b"z")]
        assert _read(tmp_path, longer) == rows
    raw = tar(member("nXme.jpg", b"x"), style=tarfile.USTAR_FORMAT)
    info = tarfile.TarInfo("n\udcffme.jpg")
    info.size = 1
    raw = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape") + raw[512:]
    assert _read(tmp_path, raw) == [("n\\xffme.jpg", b"x")]


@pytest.mark.parametrize("letter", "xgXLK")
@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_is_no_header(style: int, letter: str, tmp_path: Path) -> None:
    """It has a block of its own, in which a letter of it is where headers have their type."""
    long = f"{letter * 200}/{letter * 200}.jpg"
    assert _read(tmp_path, tar(member(long, b"x"), member("z.jpg", b"z"), style=style)) == [
        (long, b"x"),
        ("z.jpg", b"z"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_unsafe_members_become_rows_and_touch_nothing(tmp_path: Path, kind: str) -> None:
    names = {
        "link.jpg": tarfile.SYMTYPE,
        "hard.jpg": tarfile.LNKTYPE,
        "device.jpg": tarfile.CHRTYPE,
        "pipe.jpg": tarfile.FIFOTYPE,
        "/etc/absolute.jpg": tarfile.REGTYPE,
        "../up.jpg": tarfile.REGTYPE,
        "a/../../up.jpg": tarfile.REGTYPE,
    }
    members = [member(name, b"", type_) for name, type_ in names.items()]
    found = _read(
        tmp_path, tar(*members, member("good.jpg", b"good"), member("link.txt", b"", tarfile.SYMTYPE)), kind
    )
    assert found == [*((name, "unsafe_member") for name in names), ("good.jpg", b"good")]
    assert [path.name for path in tmp_path.iterdir()] == [kind]


@pytest.mark.parametrize("name", ["photos/a.jpg", "d/" * 90 + "a.jpg", "12345670123/a.jpg"])
def test_times_in_a_backup_are_no_part_of_a_name(tmp_path: Path, name: str) -> None:
    """Of `tar -g changes`: a picture and its annotation seemed to lie in folders of the times of their last use."""
    data = bytearray(tar(member(name, b"a"), style=tarfile.GNU_FORMAT))
    start = data.rindex(b"ustar  ") - 257  # of the header that a long name may precede
    data[start + 345 : start + 369] = b"15303140337\0" * 2
    data[start : start + 512] = _checked(data[start : start + 512])
    assert _read(tmp_path, bytes(data)) == [(name, b"a")]


def test_labels_and_lists_of_folders_are_no_files(tmp_path: Path) -> None:
    """Of `tar -V Backup -g changes`: they were pictures that leave the archive."""
    members = member("Backup", b"", b"V"), member("photos", b"Ya.jpg\0\0", b"D"), member("photos/a.jpg", b"a")
    assert _read(tmp_path, tar(*members, style=tarfile.GNU_FORMAT)) == [("photos/a.jpg", b"a")]


def test_another_name_of_a_member_says_so(tmp_path: Path) -> None:
    first, second = member("a.jpg", b"a"), member("b.jpg", b"", tarfile.LNKTYPE)
    second[0].linkname = "a.jpg"
    assert _read(tmp_path, tar(first, second)) == [("a.jpg", b"a"), ("b.jpg", "hard_link")]


def test_a_file_that_was_packed_twice_is_one_picture(tmp_path: Path) -> None:
    """What `tar cf all.tar . a.jpg` makes."""
    first, second = member("./a.jpg", b"a"), member("a.jpg", b"", tarfile.LNKTYPE)
    second[0].linkname = "./a.jpg"
    assert _read(tmp_path, tar(first, second, member("b.jpg", b"b"))) == [("a.jpg", b"a"), ("b.jpg", b"b")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tar_that_ends_inside_a_member(tmp_path: Path, kind: str) -> None:
    whole = tar(member("a.jpg", b"a" * 600), member("b.jpg", b"b" * 600), style=tarfile.USTAR_FORMAT)
    rows = [("a.jpg", b"a" * 600), ("b.jpg", "truncated")]
    assert _read(tmp_path, whole[: 512 + 1024 + 512 + 100], kind) == rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [512 + 1024, 512 + 1024 + 200])
def test_a_tar_that_ends_between_members(tmp_path: Path, left: int, kind: str) -> None:
    whole = tar(member("a.jpg", b"a" * 600), member("b.jpg", b"b" * 600))
    rows = [("a.jpg", b"a" * 600), ("(end of archive)", "truncated")]
    assert _read(tmp_path, whole[:left], kind) == rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_tar_damaged_in_the_middle(tmp_path: Path, kind: str) -> None:
    whole = bytearray(tar(member("a.jpg", b"a" * 600), member("b.jpg", b"b" * 600)))
    whole[512 + 1024 : 512 + 1024 + 300] = b"\x55" * 300
    assert _read(tmp_path, bytes(whole), kind) == [("a.jpg", b"a" * 600), ("(end of archive)", "corrupt")]


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_the_end_of_a_tar_is_told(tmp_path: Path, kind: str) -> None:
    """As `cat a.tar b.tar` makes it; zeros alone are padding."""
    first, second = tar(member("a.jpg", b"a")), tar(member("b.jpg", b"b"))
    assert _read(tmp_path, first + second, kind) == [("a.jpg", b"a"), ("(end of archive)", "corrupt")]
    assert _read(tmp_path, first + bytes(1 << 20), kind) == [("a.jpg", b"a")]


def test_every_cut_short_tar_says_so(tmp_path: Path) -> None:
    whole = tar(member("a.jpg", b"a" * 600), member("b.jpg", b"b" * 10))
    content = 512 + 1024 + 512 + 512
    for cut in range(512, content, 97):
        assert "truncated" in dict(_read(tmp_path, whole[:cut])).values(), cut
    assert "truncated" not in dict(_read(tmp_path, whole[: content + 512])).values()


def test_a_compressed_tar_keeps_what_precedes_the_break(tmp_path: Path) -> None:
    pictures = {f"{n}.jpg": os.urandom(30_000) for n in range(20)}
    path = tmp_path / "x.tar.gz"
    whole = gzip.compress(tar(*(member(name, data) for name, data in pictures.items())))
    path.write_bytes(whole[: len(whole) // 2])
    found = read(str(path))
    assert found[-1][1] == "truncated"
    assert 8 <= len(found) - 1 <= 10
    assert found[:-1] == list(pictures.items())[: len(found) - 1]
    damaged = bytearray(gzip.compress(tar(*(member(name, b"abc" * 9999) for name in pictures)), 9))
    damaged[len(damaged) // 2] ^= 0x55
    path.write_bytes(damaged)
    found = read(str(path))
    assert found[-1][1] == "corrupt"
    assert all(data == b"abc" * 9999 for _, data in found[:8])
    path.write_bytes(whole[:-4])  # of the checksum and the length alone
    assert dict(read(str(path))) == pictures


def test_compressed_in_pieces_with_padding_or_something_behind(tmp_path: Path) -> None:
    data = tar(member("a.jpg", b"a" * 600), member("b.jpg", b"b" * 600))
    rows = [("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600)]
    pieces = b"".join(gzip.compress(data[start : start + 700]) for start in range(0, len(data), 700))
    for behind in (b"", bytes(1000), b"something else"):
        (tmp_path / "x.tgz").write_bytes(pieces + behind)
        assert read(str(tmp_path / "x.tgz")) == rows


def test_going_back_in_a_stream_unpacks_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzips_module, "SPACING", 1 << 17)
    monkeypatch.setattr(gzips_module, "MAX_POINTS", 8)
    draw = random.Random(0)
    data = draw.randbytes(3_000_000)
    file = io.BytesIO(gzip.compress(data[:1_000_000]) + gzip.compress(data[1_000_000:]))
    stream = GzipStream(file)
    for _ in range(200):
        place, size = draw.randrange(3_100_000), draw.choice([0, 1, 500, 200_000])
        stream.seek(place)
        assert stream.read(size) == data[place : place + size]
        assert stream.tell() == min(place + size, max(place, 3_000_000)) or place > 3_000_000
    assert 2 < len(stream._points) <= 8


def test_a_stream_of_nothing_but_zeros_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzips_module, "MAX_UNPACKED", 1 << 22)
    bomb = tar(member("a.jpg", b"a"), member("bomb.jpg", bytes(1 << 23)), member("b.jpg", b"b"))
    assert _read(tmp_path, bomb, "bomb.tar.gz") == [("a.jpg", b"a"), ("bomb.jpg", "too_large")]
    assert _read(tmp_path, bomb) == [("a.jpg", b"a"), ("bomb.jpg", bytes(1 << 23)), ("b.jpg", b"b")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_is_not_believed(tmp_path: Path, kind: str) -> None:
    huge = tarfile.TarInfo("huge.jpg")
    huge.size = 1 << 70
    negative = bytearray(tarfile.TarInfo("negative.jpg").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 10 + b"\xfc\x00"
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    chain = b"".join(tarfile.TarInfo.create_pax_global_header({"a": "b"}) for _ in range(900))
    good = tar(member("a.jpg", b"a"))[:1024]
    headers = {
        "huge.jpg": huge.tobuf(tarfile.GNU_FORMAT),
        "(end of archive)": bytes(_checked(negative)),
        "a": long.tobuf(tarfile.GNU_FORMAT),
        "b": chain,
    }
    for name, header in headers.items():
        found, peak = traced(partial(_read, tmp_path, good + header + bytes(2048), kind))
        assert peak < 8 << 20
        assert found[0] == ("a.jpg", b"a")
        assert len(found) == 2, name
        assert found[1][1] in {"truncated", "corrupt"}
        assert found[1][0] == (name if len(name) > 1 else "(end of archive)")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_all_members_is_bounded(tmp_path: Path, kind: str) -> None:
    parts = [tarfile.TarInfo.create_pax_global_header({f"a{part}": "a" * 900_000}) for part in range(40)]
    pieces = [part + tar(member(f"{number}.jpg", b"a"))[:1024] for number, part in enumerate(parts)]
    found, peak = traced(partial(_read, tmp_path, b"".join(pieces) + bytes(2048), kind))
    assert peak < 16 << 20
    assert found == [("0.jpg", b"a"), ("(end of archive)", "corrupt")]


@pytest.mark.parametrize(
    "attributes",
    [b"3 \n" * 8_000 + b"x=", b"5 a=\n6000 b=" + b"9" * 5000 + b"\n", b"10 b=" + b"9" * 5000 + b"\n"],
    ids=["shared", "beyond", "short"],
)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_attributes_that_are_none_cost_nothing(attributes: bytes, kind: bytes, tmp_path: Path) -> None:
    """Parsed as older versions of Python do, 24 kB take 100 MB, and digits so many steps as their square."""
    parts = [tar(member(name, b"a"))[:1024] for name in ("a.jpg", "b.jpg")]
    told = tar(member("told", attributes, kind), style=tarfile.USTAR_FORMAT)
    header = told[: 512 * (1 - -len(attributes) // 512)]
    found, peak = traced(partial(_read, tmp_path, parts[0] + header + parts[1] + bytes(2048)))
    assert found == [("a.jpg", b"a"), ("(end of archive)", "corrupt")]
    assert peak < 4 << 20


def test_many_digits_in_attributes_are_none(tmp_path: Path) -> None:
    told = [
        tarfile.TarInfo.create_pax_global_header({"comment": "9" * count}) + tar(member(name, b"a"))[:1024]
        for name, count in (("a.jpg", 255), ("b.jpg", 256))
    ]
    assert _read(tmp_path, b"".join(told) + bytes(2048)) == [("a.jpg", b"a"), ("(end of archive)", "corrupt")]


def _checked(header: bytearray) -> bytearray:
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return header


@given(
    kind=st.sampled_from(KINDS),
    cut=st.integers(1, 4096),
    flips=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=4),
)
def test_damage_is_a_row_or_a_plain_error(
    kind: str, cut: int, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(tar(member("a.jpg", b"a" * 600), member("x/" * 60 + "b.jpg", b"b" * 600)))
    if kind == "photos.tar.gz":
        damaged = bytearray(gzip.compress(bytes(damaged), 1, mtime=0))
        cut = 1 + cut % len(damaged)
    for place, value in flips:
        damaged[place % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / kind
    path.write_bytes(damaged[:cut])
    try:
        items = list(list_inputs(str(path)))
    except UserError:
        return
    assert len(read(str(path), items)) == len(items) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"not a tar" * 100, b"\x1f\x8b" + b"x" * 2000])
def test_a_file_that_is_no_tar(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / kind).write_bytes(data)
    with pytest.raises(UserError, match=r"photos\.tar"):
        list_inputs(str(tmp_path / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tar_that_shrinks_after_the_listing(tmp_path: Path, kind: str) -> None:
    whole = tar(member("a.jpg", b"a"), member("b.jpg", b"b"))
    assert _read(tmp_path, whole, kind) == [("a.jpg", b"a"), ("b.jpg", b"b")]
    items = list(list_inputs(str(tmp_path / kind)))
    (tmp_path / kind).write_bytes(gzip.compress(whole[:1024]) if kind.endswith("gz") else whole[:1024])
    assert read(str(tmp_path / kind), items) == [("a.jpg", b"a"), ("b.jpg", "corrupt")]
    moved = tar(member("a.txt", b"longer than before" * 100), member("b.jpg", b"b"))
    (tmp_path / kind).write_bytes(gzip.compress(moved) if kind.endswith("gz") else moved)
    assert [data for _, data in read(str(tmp_path / kind), items)] == ["corrupt", "corrupt"]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_not_that_of_the_members(tmp_path: Path, kind: str) -> None:
    header = bytearray(tarfile.TarInfo("000000.jpg").tobuf(tarfile.USTAR_FORMAT))
    with gzip.open(tmp_path / kind, "wb", 1) if kind.endswith("gz") else (tmp_path / kind).open("wb") as file:
        for number in range(50_000):
            header[:6] = b"%06d" % number
            file.write(_checked(header))
        file.write(bytes(1024))
    count, grown = growth(str(tmp_path / kind))
    assert count == 50_000
    assert grown < 8_000_000
