import errno
import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decoding import Undecodable
from pipelines.errors import UserError
from pipelines.sources.archive import Archive, ArchiveItem, open_archive
from pipelines.storage import Store

FILES = {"b/2 _01.jpg": b"two", "a/1.JPG": b"one" * 1000, "c.heic": b"", "notes.txt": b"no", "a/1.pts": b"no"}


def _member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
        info.linkname = "/etc/passwd"
    return info, data


def _tar(*members: tuple[tarfile.TarInfo, bytes], style: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _read(archive: Archive) -> dict[str, bytes | str]:
    """What each item gives: its bytes, or the reason why there are none."""
    read = archive.read(archive.items)
    return {item.uri: data.reason if isinstance(data, Undecodable) else data for item, data in read}


def _opened(tmp_path: Path, data: bytes) -> Archive:
    (tmp_path / "photos.tar").write_bytes(data)
    return open_archive(str(tmp_path / "photos.tar"))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_folder_is_read_by_name(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "in") if place == "local" else f"{request.getfixturevalue('s3')}/in"
    for name, data in {**FILES, ".DS_Store": b"x", ".thumbs/a.jpg": b"x"}.items():
        Store(url).publish(name, data)
    archive = open_archive(f"{url}/")
    assert [item.uri for item in archive.items] == ["a/1.JPG", "b/2 _01.jpg", "c.heic"]
    assert archive.ignored == 4
    assert _read(archive) == {"a/1.JPG": b"one" * 1000, "b/2 _01.jpg": b"two", "c.heic": b""}


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_read_in_its_own_order(
    place: str, style: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    folder = _member("b", kind=tarfile.DIRTYPE)
    members = [folder, *(_member(name, data) for name, data in FILES.items())]
    Store(url).publish("in.TAR", _tar(*members, style=style))
    archive = open_archive(f"{url}/in.TAR")
    assert [(item.uri, item.size) for item in archive.items] == [
        ("b/2 _01.jpg", 3),
        ("a/1.JPG", 3000),
        ("c.heic", 0),
    ]
    assert archive.ignored == 2
    assert _read(archive) == {"b/2 _01.jpg": b"two", "a/1.JPG": b"one" * 1000, "c.heic": b""}


def test_long_and_foreign_names(tmp_path: Path) -> None:
    long = "d/" * 90 + "Änne.jpg"
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert _read(_opened(tmp_path, _tar(_member(long, b"x"), style=style))) == {long: b"x"}
    raw = _tar(_member("nXme.jpg", b"x"), style=tarfile.USTAR_FORMAT)
    info = tarfile.TarInfo("n\udcffme.jpg")
    info.size = 1
    raw = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape") + raw[512:]
    assert _read(_opened(tmp_path, raw)) == {"n\\xffme.jpg": b"x"}


def test_a_part_travels_alone(tmp_path: Path) -> None:
    members = [_member(f"{number:04}.jpg", b"%d" % number) for number in range(200)]
    archive = _opened(tmp_path, _tar(*members))
    part = archive.part(50, 52)
    sent = pickle.dumps(part)
    assert len(sent) < 1000
    assert _read(pickle.loads(sent)) == {"0050.jpg": b"50", "0051.jpg": b"51"}  # noqa: S301


def test_unsafe_members_become_rows_and_touch_nothing(tmp_path: Path) -> None:
    names = {
        "link.jpg": tarfile.SYMTYPE,
        "hard.jpg": tarfile.LNKTYPE,
        "device.jpg": tarfile.CHRTYPE,
        "pipe.jpg": tarfile.FIFOTYPE,
        "/etc/absolute.jpg": tarfile.REGTYPE,
        "../up.jpg": tarfile.REGTYPE,
        "a/../../up.jpg": tarfile.REGTYPE,
    }
    members = [_member(name, b"", kind) for name, kind in names.items()]
    archive = _opened(tmp_path, _tar(*members, _member("good.jpg", b"good")))
    assert _read(archive) == {**dict.fromkeys(names, "unsafe_member"), "good.jpg": b"good"}
    assert [path.name for path in tmp_path.iterdir()] == ["photos.tar"]


def test_a_tar_that_ends_inside_a_member(tmp_path: Path) -> None:
    whole = _tar(_member("a.jpg", b"a" * 600), _member("b.jpg", b"b" * 600))
    archive = _opened(tmp_path, whole[: 512 + 1024 + 512 + 100])
    assert _read(archive) == {"a.jpg": b"a" * 600, "b.jpg": "truncated"}


@pytest.mark.parametrize("left", [512 + 1024, 512 + 1024 + 200])
def test_a_tar_that_ends_between_members(tmp_path: Path, left: int) -> None:
    whole = _tar(_member("a.jpg", b"a" * 600), _member("b.jpg", b"b" * 600))
    assert _read(_opened(tmp_path, whole[:left])) == {"a.jpg": b"a" * 600, "(end of archive)": "truncated"}


def test_a_tar_damaged_in_the_middle(tmp_path: Path) -> None:
    whole = bytearray(_tar(_member("a.jpg", b"a" * 600), _member("b.jpg", b"b" * 600)))
    whole[512 + 1024 : 512 + 1024 + 300] = b"\x55" * 300
    assert _read(_opened(tmp_path, bytes(whole))) == {"a.jpg": b"a" * 600, "(end of archive)": "corrupt"}


@given(cut=st.integers(1, 4096), flips=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=4))
def test_damage_is_a_row_or_a_plain_error(
    cut: int, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(_tar(_member("a.jpg", b"a" * 600), _member("x/" * 60 + "b.jpg", b"b" * 600)))
    for place, value in flips:
        damaged[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(damaged[:cut])
    try:
        archive = open_archive(str(path))
    except UserError:
        return
    assert len(_read(archive)) == len(archive.items) > 0


def test_every_cut_short_tar_says_so(tmp_path: Path) -> None:
    whole = _tar(_member("a.jpg", b"a" * 600), _member("b.jpg", b"b" * 10))
    content = 512 + 1024 + 512 + 512
    for cut in range(512, content, 97):
        assert "truncated" in _read(_opened(tmp_path, whole[:cut])).values(), cut
    assert "truncated" not in _read(_opened(tmp_path, whole[: content + 512])).values()


@pytest.mark.parametrize("data", [b"", b"not a tar" * 100, b"\x1f\x8b" + b"x" * 2000])
def test_a_file_that_is_no_tar(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match=r"photos\.tar"):
        _opened(tmp_path, data)


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.TGZ", "photos.zip"])
def test_compressed_archives_are_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="is compressed"):
        open_archive(str(tmp_path / name))


def test_nothing_to_annotate_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_archive(str(tmp_path / "absent"))
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"has no pictures \(1 other files\)"):
        open_archive(str(tmp_path))
    with pytest.raises(UserError, match=r"neither a folder nor a \.tar"):
        open_archive(str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match="has no pictures"):
        _opened(tmp_path, _tar(_member("notes.txt", b"x")))


def test_links_to_photographs_are_followed_and_loops_end(tmp_path: Path) -> None:
    real, folder = tmp_path / "real", tmp_path / "links"
    real.mkdir()
    folder.mkdir()
    (real / "a.jpg").write_bytes(b"a")
    (folder / "a.jpg").symlink_to(real / "a.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    unusable = dict.fromkeys(["gone.jpg", "loop", "pipe.jpg", "self.jpg"], "unsafe_member")
    assert _read(open_archive(str(folder))) == {"a.jpg": b"a", **unusable}


def test_trouble_that_may_pass_is_left_to_be_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    archive = open_archive(str(tmp_path))

    def flaky(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", flaky)
    with pytest.raises(OSError, match="Input/output"):
        list(archive.read(archive.items))


def test_sidecars_are_counted_whatever_they_are(tmp_path: Path) -> None:
    link = _member("link.txt", kind=tarfile.SYMTYPE)
    archive = _opened(tmp_path, _tar(link, _member(".hidden.jpg", b"x"), _member("a.jpg", b"a")))
    assert (_read(archive), archive.ignored) == ({"a.jpg": b"a"}, 2)


def test_files_that_vanish_after_the_listing(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    archive = open_archive(str(tmp_path))
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.jpg").mkdir()
    assert _read(archive) == {"a.jpg": "unreadable", "b.jpg": "unreadable", "c.jpg": b"x"}


def test_a_tar_that_shrinks_after_the_listing(tmp_path: Path) -> None:
    whole = _tar(_member("a.jpg", b"a"), _member("b.jpg", b"b"))
    archive = _opened(tmp_path, whole)
    (tmp_path / "photos.tar").write_bytes(whole[:1024])
    assert _read(archive) == {"a.jpg": b"a", "b.jpg": "unreadable"}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xffme.jpg")).write_bytes(b"x")
    assert _read(open_archive(str(tmp_path))) == {"n\\xffme.jpg": "unreadable"}


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(b"x" * 101)
    (tmp_path / "small.jpg").write_bytes(b"x" * 100)
    archive = open_archive(str(tmp_path))
    (large, problem), (small, data) = archive.read(archive.items, max_bytes=100)
    assert (large.uri, small.uri, data) == ("large.jpg", "small.jpg", b"x" * 100)
    assert isinstance(problem, Undecodable)
    assert problem.reason == "too_large"
    grown = [ArchiveItem("large.jpg", 0, 5)]
    ((_, late),) = archive.read(grown, max_bytes=100)
    assert isinstance(late, Undecodable)
    assert late.reason == "too_large"


def test_the_real_photographs(data_root: Path) -> None:
    archive = open_archive(str(data_root / "photos"))
    assert len(archive.items) == 414
    assert archive.ignored == 1
    assert all(isinstance(data, bytes) and len(data) == item.size for item, data in archive.read(archive.items[:20]))
