import errno
import io
import os
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archives.containers import Container, open_container
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.sources import files as files_module
from pipelines.sources import held as held_module
from pipelines.sources import open_annotated, rejected_files
from pipelines.sources.files import Files, open_files
from pipelines.storage import Store
from tests.factories import refuse, refuse_entry
from tests.pipelines.containers import link, packed, publish, put, tangle, zipped

FILES = {"a/1.jpg": b"one" * 100, "b/2 _01.jpg": b"two", "c.pts": b""}
KINDS = ["folder", "faces.tar", "faces.tar.gz", "faces.TGZ", "faces.zip"]


def placed(url: str, kind: str, members: Mapping[str, bytes]) -> str:
    """The members as a folder or an archive below `url`; its URL."""
    prefix = "" if kind == "folder" or kind.endswith(".zip") else "./"
    return put(f"{url}/{kind}", {prefix + name: data for name, data in members.items()})


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_place_shows_the_same_files(
    place: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    junk = {"__MACOSX/._1.jpg": b"x", "a/._1.jpg": b"x", ".hidden/x.jpg": b"x"}
    root = placed(url, kind, {**FILES, **junk})
    files = pickle.loads(pickle.dumps(open_files(f"{root}/")))  # noqa: S301
    assert files == Files(root)
    assert files.sizes() == {name: len(data) for name, data in sorted(FILES.items())}
    assert {name: files.read(name) for name in FILES} == FILES
    assert files.read("./a//1.jpg") == FILES["a/1.jpg"]
    assert not files.problems()
    with files.open("a/1.jpg") as file:
        file.seek(3)
        assert file.read(3) == b"one"
    for absent in ("x.jpg", "a", "../c.pts", "/c.pts", "", "a/\0", "a\udcff", "x" * 5000):
        assert not files.exists(absent)
        with pytest.raises(UserError):
            files.read(absent)
    with pytest.raises(UserError, match="larger than the limit of 299"):
        files.read("a/1.jpg", 299)
    assert files.read("a/1.jpg", 300)


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_archive_that_was_replaced_is_read_anew(
    place: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    files = Files(placed(url, kind, {"a.jpg": b"old" * 100_000, "b.jpg": b"b"}))
    assert files.read("b.jpg") == b"b"
    placed(url, kind, {"b.jpg": b"b2" * 70_000, "c.jpg": b"new"})
    assert files.read("b.jpg") == b"b2" * 70_000
    assert files.read("c.jpg") == b"new"
    assert not files.exists("a.jpg")


def test_an_archive_is_listed_once_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [placed(str(tmp_path), f"{number}.tar", {"a.jpg": b"%d" % number}) for number in range(3)]
    listed: list[str] = []

    def opening(store: Store, name: str, *, through: bool) -> Container:
        listed.append(store.child(name).url)
        return open_container(store, name, through=through)

    monkeypatch.setattr(held_module, "open_container", opening)
    monkeypatch.setattr(held_module, "MAX_OPEN", 2)
    for url in urls[:2] * 5:
        assert Files(url).read("a.jpg")
    assert listed == urls[:2]
    assert [Files(url).read("a.jpg") for url in (*urls, *urls)] == [b"0", b"1", b"2"] * 2


def test_one_file_is_shown_with_its_neighbours_to_look_up(tmp_path: Path) -> None:
    placed(str(tmp_path), "folder", FILES)
    files = open_files(str(tmp_path / "folder" / "c.pts"))
    assert (files.url, list(files.sizes())) == (str(tmp_path / "folder"), ["c.pts"])
    assert files.exists("a/1.jpg")
    assert files.read("a/1.jpg") == FILES["a/1.jpg"]
    assert open_files((tmp_path / "folder" / "c.pts").as_uri()).sizes() == {"c.pts": 0}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_archives_in_a_folder_without_pictures_are_folders(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    placed(f"{url}/in", "afw.zip", {"1.jpg": b"one"})
    placed(f"{url}/in", "helen.tar", {"testset/1.jpg": b"two"})
    Store(url).publish("in/lfpw.zip", b"half a download")
    Store(url).publish("in/val.txt", b"")
    files = open_files(f"{url}/in")
    names = ["afw.zip/1.jpg", "helen.tar/testset/1.jpg", "lfpw.zip", "val.txt"]
    assert list(files.sizes()) == names
    assert files.problems() == {"lfpw.zip": "broken_archive"}
    assert [files.read(name) for name in names[:2]] == [b"one", b"two"]
    assert files.exists(names[0])
    assert not files.exists("afw.zip/2.jpg")
    Store(url).publish("in/own.jpg", b"")
    assert list(open_files(f"{url}/in").sizes()) == ["afw.zip", "helen.tar", "lfpw.zip", "own.jpg", "val.txt"]


def test_what_is_not_entered_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packed(".tar", {f"{index}.jpg": bytes(600) for index in range(4)})
    files = {
        "cut/faces.tar": whole[: 2 * 1536],
        "in/faces.zip": zipped(("a.jpg", b"a"), ("more.zip", zipped(("b.jpg", b"b")))),
        "beside/a.jpg": b"a",
        "beside/more/faces.tar": whole,
        "beside/more/faces.7z": b"7z",
        "shut/a.jpg": b"a",
        "shut/more/b.jpg": b"b",
    }
    publish(str(tmp_path), files)

    def rows(folder: str) -> dict[str, str]:
        return {row.uri: row.reason for row in rejected_files(open_files(str(tmp_path / folder)))}

    assert rows("cut") == {"faces.tar/(end of archive)": "truncated"}
    assert rows("in") == {"faces.zip/more.zip": "nested_archive"}
    assert rows("beside") == {"more/faces.tar": "nested_archive", "more/faces.7z": "unsupported_archive"}
    assert rows("shut") == {}
    (tmp_path / "shut" / "linked").symlink_to(tmp_path / "cut" / "more")
    Store(str(tmp_path)).publish("cut/more/c.jpg", b"c")
    refuse(monkeypatch, more=errno.EACCES, linked=errno.EACCES)
    assert rows("shut") == {"more": "forbidden", "linked": "forbidden"}
    refuse(monkeypatch, shut=errno.EACCES)
    with pytest.raises(UserError, match="shut may not be opened: check its rights"):
        rows("shut")


def test_a_folder_that_may_be_listed_and_no_more_is_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(str(tmp_path)).publish("a.jpg", b"a")
    Store(str(tmp_path)).publish("listed/b.jpg", b"b")
    (tmp_path / "listed" / "link.jpg").symlink_to(tmp_path / "a.jpg")
    refuse_entry(monkeypatch, "listed")
    files = open_files(str(tmp_path))
    assert files.sizes() == {"a.jpg": 1, "listed/b.jpg": None, "listed/link.jpg": None}
    assert files.problems() == dict.fromkeys(["listed/b.jpg", "listed/link.jpg"], "forbidden")


def test_an_outage_is_no_broken_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed(str(tmp_path), "afw.zip", {"1.jpg": b"one"})

    def outage(url: str) -> held_module.HeldArchive:
        raise OutageError(f"{url}: S3 failed")

    monkeypatch.setattr(files_module, "held", outage)
    with pytest.raises(OutageError):
        open_files(str(tmp_path)).sizes()


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    files = open_files(str(tangle(tmp_path)))
    assert [name for name, size in files.sizes().items() if size is not None] == ["a.jpg", "again/deep/a.jpg"]
    assert files.problems() == {
        **dict.fromkeys(["again/loop", "folder", "self"], "linked_folder"),
        **dict.fromkeys(["gone.jpg", "pipe.jpg", "round.jpg"], "unsafe_member"),
    }
    assert files.read("again/deep/a.jpg") == files.read("a.jpg") == b"a"
    for name in ("gone.jpg", "pipe.jpg", "round.jpg"):
        assert not files.exists(name)
        with pytest.raises(UserError, match="is no file"):
            files.read(name)


def test_thousands_of_links_are_not_each_compared_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PurePath.__hash__
    looked = 0

    def counted(path: PurePath) -> int:
        nonlocal looked
        looked += 1
        return plain(path)

    def effort(links: int) -> int:
        nonlocal looked
        root = tmp_path / f"{links}"
        for index in range(links):
            Store(str(root)).publish(f"real/{index}/a.jpg", b"a")
            (root / "in").mkdir(exist_ok=True)
            (root / "in" / f"{index}").symlink_to(root / "real" / f"{index}")
        looked = 0
        assert len(Files(str(root / "in")).sizes()) == links
        return looked

    monkeypatch.setattr(PurePath, "__hash__", counted)
    assert effort(200) < 3 * effort(100)


def test_unsafe_members_of_a_zip(tmp_path: Path) -> None:
    stored = zipfile.ZipInfo("bz.jpg")
    stored.compress_type = zipfile.ZIP_BZIP2
    data = zipped(
        ("../up.jpg", b"x"),
        ("/etc/absolute.jpg", b"x"),
        ("a\\b.jpg", b"windows"),
        ("x\\..\\..\\up.jpg", b"x"),
        (link("link.jpg"), b"/etc/passwd"),
        (stored, b"x"),
        ("twice.jpg", b"first"),
        ("twice.jpg", b"second"),
        ("gr\xfc\xdf.jpg", b"utf-8"),
    )
    (tmp_path / "in.zip").write_bytes(data)
    files = open_files(str(tmp_path / "in.zip"))
    unsafe = ["../up.jpg", "/etc/absolute.jpg", "link.jpg", "x/../../up.jpg"]
    assert files.problems() == {**dict.fromkeys(unsafe, "unsafe_member"), "bz.jpg": "compression"}
    good = {name: files.read(name) for name, size in files.sizes().items() if size is not None}
    assert good == {"a/b.jpg": b"windows", "twice.jpg": b"second", "gr\xfc\xdf.jpg": b"utf-8"}
    for name in files.problems():
        with pytest.raises(UserError):
            files.read(name)
    assert [path.name for path in tmp_path.iterdir()] == ["in.zip"]


def test_unsafe_members_of_a_tar(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("dev.jpg", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name, data in (
            ("../up.jpg", b"x"),
            ("twice.jpg", b"first"),
            ("n\udcff.jpg", b"x"),
            ("twice.jpg", b"2nd"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "in.tar").write_bytes(buffer.getvalue())
    files = open_files(str(tmp_path / "in.tar"))
    assert files.problems() == dict.fromkeys(["../up.jpg", "dev.jpg", "hard.jpg", "link.jpg"], "unsafe_member")
    assert {name: files.read(name) for name, size in files.sizes().items() if size is not None} == {
        "n\\xff.jpg": b"x",
        "twice.jpg": b"2nd",
    }


def test_a_password_is_named(tmp_path: Path) -> None:
    data = bytearray(zipped(("a.jpg", b"a")))
    for header, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(header) + place] |= 1
    (tmp_path / "in.zip").write_bytes(data)
    files = open_files(str(tmp_path / "in.zip"))
    assert files.problems() == {"a.jpg": "encrypted"}
    with pytest.raises(UserError, match="without a password"):
        files.read("a.jpg")


def test_no_header_is_believed(tmp_path: Path) -> None:
    bomb = zipped(("bomb.jpg", bytes(1 << 24)))
    assert len(bomb) < 1 << 15
    (tmp_path / "honest.zip").write_bytes(bomb)
    with pytest.raises(UserError, match="larger than the limit"):
        Files(str(tmp_path / "honest.zip")).read("bomb.jpg", 1 << 20)
    lying = bytearray(bomb)
    for header, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = lying.index(header) + place
        lying[start : start + 4] = (100).to_bytes(4, "little")
    (tmp_path / "lying.zip").write_bytes(lying)
    files = Files(str(tmp_path / "lying.zip"))
    assert files.sizes() == {"bomb.jpg": 100}
    with pytest.raises(UserError, match="larger than the limit"):
        files.read("bomb.jpg", 1 << 20)
    with pytest.raises(UserError, match="is damaged"):
        files.read("bomb.jpg")


def test_a_compressed_tar_takes_no_space(tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(1 << 20)
    put(f"{tmp_path}/in.tar.gz", {"a.jpg": data})
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    assert open_files(str(tmp_path / "in.tar.gz")).read("a.jpg") == data


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_archive_cut_short_says_so(kind: str, tmp_path: Path) -> None:
    path = Path(placed(str(tmp_path), kind, {"a.jpg": b"a" * 5000, "b.jpg": os.urandom(20_000)}))
    path.write_bytes(path.read_bytes()[:12_000])
    if kind.endswith(".zip"):
        with pytest.raises(UserError, match="was cut short"):
            open_files(str(path))
    else:
        files = open_files(str(path))
        assert files.problems() == {"b.jpg": "truncated"}
        assert files.read("a.jpg") == b"a" * 5000


@given(
    kind=st.sampled_from(["x.zip", "x.tar.gz"]),
    cut=st.integers(0, 900),
    flips=st.lists(st.tuples(st.integers(0, 899), st.integers(0, 255)), max_size=4),
)
def test_damage_is_a_plain_error(
    kind: str, cut: int, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / kind
    members = {"a.jpg": b"a" * 600, "b.jpg": bytes(range(200))}
    data = packed(kind, members)
    damaged = bytearray(data[: max(cut, 1)])
    for place, value in flips:
        damaged[place % len(damaged)] = value
    path.write_bytes(damaged)
    try:
        files = open_files(str(path))
        names = files.sizes()
    except UserError:
        return
    for name, size in names.items():
        try:
            assert len(files.read(name)) == size
        except UserError:
            continue


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff.jpg")).write_bytes(b"x")
    assert open_files(str(tmp_path)).problems() == {"n\\xff.jpg": "unreadable"}
    bad = bytearray(zipped(("n\xfc.jpg", b"x")))
    for _ in range(2):
        bad[bad.index("\xfc".encode())] = 0xFF
    (tmp_path / "in.zip").write_bytes(bad)
    assert open_files(str(tmp_path / "in.zip")).read("n\\xff\\xbc.jpg") == b"x"


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    for name in ("absent", "absent.zip", "absent.tar.gz", "absent/coco.json"):
        with pytest.raises(UserError, match="does not exist"):
            open_files(str(tmp_path / name))


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar" / "a.jpg").write_bytes(b"a")
    assert open_files(str(tmp_path / "x.tar")).read("a.jpg") == b"a"
    assert open_files(str(tmp_path)).read("x.tar/a.jpg") == b"a"


def test_a_format_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no format 'voc': choose one of auto, 300w"):
        open_annotated(str(tmp_path), "voc")
