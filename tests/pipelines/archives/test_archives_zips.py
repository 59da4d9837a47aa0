import os
import random
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archives import list_inputs, read_inputs
from pipelines.archives import zips as zips_module
from pipelines.errors import UserError
from tests.factories import traced
from tests.pipelines.containers import growth, link, publish, read, zipped

FILES = {"b/2 _01.jpg": b"two", "a/1.JPG": b"one" * 1000, "c.heic": b"", "notes.txt": b"no", "写真/顔.jpg": b"face"}


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_in_its_own_order(
    place: str, method: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    data = zipped(("folder/", b""), *FILES.items(), ("__MACOSX/._a.jpg", b"x"), method=method)
    publish(url, {"in.ZIP": data})
    listing = list_inputs(f"{url}/in.ZIP")
    items = list(listing)
    rows = [(name, content) for name, content in FILES.items() if name != "notes.txt"]
    assert [(item.uri, item.container, item.size, item.problem) for item in items] == [
        (name, "in.ZIP", len(content), "") for name, content in rows
    ]
    assert (items[1].packed < 100) == (method == zipfile.ZIP_DEFLATED)
    assert all(data[item.offset :].startswith(b"PK\3\4") for item in items)
    assert listing.ignored == 2
    assert read(f"{url}/in.ZIP", items) == rows
    assert read(f"{url}/in.ZIP", items[::-1]) == rows[::-1]


def test_a_name_that_is_longer_than_any_path_is_told_by_its_beginning_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    path.write_bytes(zipped(("n" * 4092 + ".jpg", b"a"), ("n" * 60_000 + ".png", b"b"), ("z.jpg", b"z")))
    told = "n" * 4031 + "…" + "n" * 60 + ".png"
    assert read(str(path)) == [("n" * 4092 + ".jpg", b"a"), (told, "unreadable"), ("z.jpg", b"z")]


@settings(max_examples=40)
@given(
    files=st.lists(st.tuples(st.text("aä写/.-", max_size=150), st.binary(max_size=2000)), max_size=8),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    before=st.binary(max_size=100),
    comment=st.binary(max_size=100),
    block=st.sampled_from([1000, zips_module._BLOCK]),
)
def test_what_goes_in_comes_out(
    files: list[tuple[str, bytes]],
    method: int,
    before: bytes,
    comment: bytes,
    block: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    files = [(f"{number}{name}.jpg", data) for number, (name, data) in enumerate(files)] + [("last", b"one")]
    path = tmp_path_factory.getbasetemp() / "x.zip"
    path.write_bytes(zipped(*files, method=method))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    path.write_bytes(before + path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zips_module, "_BLOCK", block)
        listing = list_inputs(str(path))
        items = list(listing)
    wanted = [content for name, content in files if ".." not in name.split("/") and "/." not in name]
    assert len(items) + listing.ignored == len(files)
    found = [content for _, content in read_inputs(str(path), items) if isinstance(content, bytes)]
    assert [content for content in wanted if content not in found] == []


def test_a_member_that_was_replaced_has_another_version(tmp_path: Path) -> None:
    versions = []
    for data in (b"one", b"two", b"one"):
        (tmp_path / "x.zip").write_bytes(zipped(("a.jpg", data)))
        versions += [item.version for item in list_inputs(str(tmp_path / "x.zip"))]
    assert versions[0] == versions[2] != versions[1]


def test_a_large_zip_has_its_numbers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    files = [(f"{n}.jpg", os.urandom(200)) for n in range(5)]
    data = zipped(*files)
    assert b"PK\6\6" in data
    for before in (b"", b"a program that unpacks it"):
        (tmp_path / "x.zip").write_bytes(before + data)
        assert read(str(tmp_path / "x.zip")) == files


def test_unsafe_members_become_rows_and_touch_nothing(tmp_path: Path) -> None:
    bzip = zipfile.ZipInfo("bz.jpg")
    bzip.compress_type = zipfile.ZIP_BZIP2
    data = zipped(
        ("../up.jpg", b"x"),
        ("/etc/absolute.jpg", b"x"),
        ("x\\..\\..\\up.jpg", b"x"),
        (link("link.jpg"), b"/etc/passwd"),
        (bzip, b"x"),
        ("a\\b.jpg", b"windows"),
        ("twice.jpg", b"first"),
        ("twice.jpg", b"second"),
        ("a.zip", b"x"),
    )
    (tmp_path / "in.zip").write_bytes(data)
    unsafe = ["../up.jpg", "/etc/absolute.jpg", "x/../../up.jpg", "link.jpg"]
    assert read(str(tmp_path / "in.zip")) == [
        *((name, "unsafe_member") for name in unsafe),
        ("bz.jpg", "compression"),
        ("a/b.jpg", b"windows"),
        ("twice.jpg", b"first"),
        ("twice.jpg", b"second"),
        ("a.zip", "nested_archive"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["in.zip"]


def test_a_password_is_a_reason(tmp_path: Path) -> None:
    data = bytearray(zipped(("a.jpg", b"a")))
    for header, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(header) + place] |= 1
    (tmp_path / "in.zip").write_bytes(data)
    assert read(str(tmp_path / "in.zip")) == [("a.jpg", "encrypted")]


def test_names_without_their_flag(tmp_path: Path) -> None:
    """macOS writes UTF-8 without saying so, old programs wrote the code page of DOS; a flag may lie."""
    for raw, name in (
        ("顔.jpg".encode(), "顔.jpg"),
        ("ü.jpg".encode("cp437"), "ü.jpg"),
        ("予.jpg".encode("shift_jis"), "ù\\.jpg"),  # no hidden file of a folder
        ("ü\\b\\c.jpg".encode("cp437"), "ü\\b/c.jpg"),
    ):
        data = zipped(("?" * len(raw), b"x")).replace(b"?" * len(raw), raw)
        (tmp_path / "x.zip").write_bytes(data)
        assert read(str(tmp_path / "x.zip")) == [(name, b"x")]
    data = zipped(("üü.jpg", b"x")).replace("üü".encode(), b"\xff\xfe\xff\xfe")
    (tmp_path / "x.zip").write_bytes(data)
    assert read(str(tmp_path / "x.zip")) == [("\\xff\\xfe\\xff\\xfe.jpg", b"x")]
    info = zipfile.ZipInfo("x.jpg")
    unicode = "лицо.jpg".encode()
    info.extra = struct.pack("<2HBL", 0x7075, 5 + len(unicode), 1, zlib.crc32(b"x.jpg")) + unicode
    (tmp_path / "x.zip").write_bytes(zipped((info, b"x")))
    assert read(str(tmp_path / "x.zip")) == [("лицо.jpg", b"x")]


def _saying(data: bytes, size: int | None = None, packed: int | None = None, crc: int | None = None) -> bytes:
    """The zip with other numbers in its directory and in the header of its first member."""
    changed = bytearray(data)
    for header, place in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        for number, at in ((crc, 0), (packed, 4), (size, 8)):
            if number is not None:
                start = changed.index(header) + place + at
                changed[start : start + 4] = number.to_bytes(4, "little")
    return bytes(changed)


def test_no_number_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    bomb = zipped(("bomb.jpg", bytes(1 << 26)), ("good.jpg", b"good"))
    assert len(bomb) < 1 << 17
    for data in (bomb, _saying(bomb, size=100), _saying(bomb, size=100, packed=0xFFFFFFFE)):
        path.write_bytes(data)
        items = list(list_inputs(str(path)))
        found, peak = traced(partial(read, str(path), items, 1 << 20))
        assert peak < 8 << 20
        assert found[0][1] in {"too_large", "corrupt"}
        assert found[1] == ("good.jpg", b"good")
    path.write_bytes(_saying(bomb, size=100))
    assert read(str(path), max_bytes=1 << 20)[0] == ("bomb.jpg", "too_large")
    assert read(str(path), max_bytes=1 << 27)[0] == ("bomb.jpg", "corrupt")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        sound = zipped(("a.jpg", b"abc" * 99), method=method)
        for lie in (_saying(sound, size=296), _saying(sound, size=298), _saying(sound, crc=1)):
            path.write_bytes(lie)
            assert read(str(path)) == [("a.jpg", "corrupt")]


def test_members_share_no_bytes(tmp_path: Path) -> None:
    """Else an archive of 300 kB holds 65,000 pictures of 190 MB."""
    data = zipped(*((f"{number}.jpg", random.Random(number).randbytes(1000)) for number in range(4)))
    start = data.index(b"PK\1\2")
    entry = data[start : data.index(b"PK\1\2", start + 1)]
    end = bytearray(data[data.index(b"PK\5\6") :])
    again = b"".join(entry.replace(b"0.jpg", f"{number}.jpg".encode()) for number in range(9))
    end[8:12] = struct.pack("<2H", 9, 9)
    end[12:16] = struct.pack("<L", len(again))
    (tmp_path / "x.zip").write_bytes(data[:start] + again + end)
    found = read(str(tmp_path / "x.zip"))
    assert [isinstance(content, bytes) for _, content in found] == [True] * 4 + [False] * 5
    assert found[4:] == [(f"{number}.jpg", "corrupt") for number in range(4, 9)]


def test_a_place_outside_the_archive_is_not_gone_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
    data = zipped(("good.jpg", b"good"), ("far.jpg", b"far"))
    far = data.rindex(b"PK\1\2")
    extra = data.index(struct.pack("<2H", 1, 24), far)
    for offset in (len(data), (1 << 62) - 1, (1 << 63) - 1, (1 << 64) - 1):
        changed = bytearray(data)
        changed[extra + 20 : extra + 28] = offset.to_bytes(8, "little")
        (tmp_path / "x.zip").write_bytes(changed)
        assert read(str(tmp_path / "x.zip")) == [("good.jpg", b"good"), ("far.jpg", "corrupt")]
    (tmp_path / "x.zip").write_bytes(b"PK\6\7" + bytes(16) + b"PK\5\6" + bytes(18))
    with pytest.raises(UserError, match="has no pictures"):
        list_inputs(str(tmp_path / "x.zip"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_are_noticed(tmp_path: Path, method: int) -> None:
    data = bytearray(zipped(("a.jpg", random.Random(0).randbytes(999)), ("b.jpg", b"b"), method=method))
    data[500] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert read(str(tmp_path / "x.zip")) == [("a.jpg", "corrupt"), ("b.jpg", b"b")]


def test_a_damaged_directory_keeps_what_precedes(tmp_path: Path) -> None:
    data = bytearray(zipped(("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c")))
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[second] = 0
    (tmp_path / "x.zip").write_bytes(data)
    assert read(str(tmp_path / "x.zip")) == [("a.jpg", b"a"), ("(end of archive)", "corrupt")]


def test_an_archive_cut_short_says_so(tmp_path: Path) -> None:
    data = zipped(("a.jpg", os.urandom(5000)))
    for cut in (0, 1, 3000, len(data) - 1):
        (tmp_path / "x.zip").write_bytes(data[:cut])
        with pytest.raises(UserError, match="was cut short"):
            list_inputs(str(tmp_path / "x.zip"))


def test_an_archive_that_changes_after_the_listing(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zipped(("a.jpg", b"first" * 100), ("b.jpg", b"b")))
    items = list(list_inputs(str(path)))
    path.write_bytes(zipped(("a.jpg", b"other" * 100), ("longer.jpg", b"b")))
    assert [data for _, data in read(str(path), items)] == ["corrupt", b"b"]
    path.write_bytes(zipped(("x.jpg", b"")))
    assert [data for _, data in read(str(path), items)] == ["corrupt", "corrupt"]


@given(cut=st.integers(0, 900), flips=st.lists(st.tuples(st.integers(0, 899), st.integers(0, 255)), max_size=4))
def test_damage_is_a_row_or_a_plain_error(
    cut: int, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    damaged = bytearray(zipped(("a.jpg", b"a" * 600), ("b.jpg", bytes(range(200)))))
    for place, value in flips:
        damaged[place % len(damaged)] = value
    path.write_bytes(damaged[: max(cut, 1)] if cut < 100 else damaged)
    try:
        items = list(list_inputs(str(path)))
    except UserError:
        return
    assert len(read(str(path), items, 10_000)) == len(items) > 0


def test_memory_is_not_that_of_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    entry, entries = zipped(("000000.jpg", b"x")), 50_000
    start = entry.index(b"PK\1\2")
    local, central, end = entry[:start], bytearray(entry[start:-22]), bytearray(entry[-22:])
    with path.open("wb") as file:
        file.write(local)
        for number in range(entries):
            central[46:52] = b"%06d" % number
            file.write(central)
        struct.pack_into("<2H2L", end, 8, entries, entries, entries * len(central), len(local))
        file.write(end)
    count, grown = growth(str(path))
    assert count == entries
    assert grown < 4_000_000
