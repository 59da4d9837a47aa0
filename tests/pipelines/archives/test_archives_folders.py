import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines import storage as storage_module
from pipelines.archives import PROBLEMS, Input, has_vanished, list_inputs, read_inputs
from pipelines.archives import containers as containers_module
from pipelines.archives.tars import Tar
from pipelines.archives.zips import Zip
from pipelines.decoding import Undecodable
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.storage import Store
from tests.factories import refuse
from tests.faulty import FaultyEndpoint
from tests.pipelines.containers import growth, member, packed, publish, read, tangle, tar, zipped

FILES = {"b/2 _01.jpg": b"two", "a/1.JPG": b"one" * 1000, "c.heic": b"", "notes.txt": b"no", "a/1.pts": b"no"}
BESIDE = {".DS_Store": b"x", ".thumbs/a.jpg": b"x", "b/Thumbs.db": b"x"}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_what_lies_apart_is_no_part_of_it(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "in") if place == "local" else f"{request.getfixturevalue('s3')}/in"
    publish(
        url, {"a.jpg": b"a", "b/out/c.jpg": b"c", "b/out/run.json": b"{}", "b/outside.jpg": b"d", "out/e.jpg": b"e"}
    )

    def found(apart: str) -> list[str]:
        return [item.uri for item in list_inputs(url, Store(apart))]

    assert found(f"{url}/b/out") == ["a.jpg", "b/outside.jpg", "out/e.jpg"]
    assert found(url) == found(f"{url}-out") == ["a.jpg", "b/out/c.jpg", "b/outside.jpg", "out/e.jpg"]


def test_nor_is_it_where_a_link_leads_there(tmp_path: Path) -> None:
    publish(str(tmp_path), {"in/a.jpg": b"a", "scratch/job/c.jpg": b"c", "in/job/d.jpg": b"d"})
    (tmp_path / "in" / "out").symlink_to(tmp_path / "scratch" / "job")
    for apart in ("in/out", "scratch/job"):
        assert [item.uri for item in list_inputs(str(tmp_path / "in"), Store(str(tmp_path / apart)))] == [
            "a.jpg",
            "job/d.jpg",
        ]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_folder_is_read_in_order(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "in") if place == "local" else f"{request.getfixturevalue('s3')}/in"
    publish(url, FILES | BESIDE)
    listing = list_inputs(f"{url}/")
    items = list(listing)
    assert [(item.uri, item.size, item.packed) for item in items] == [
        ("a/1.JPG", 3000, 3000),
        ("b/2 _01.jpg", 3, 3),
        ("c.heic", 0, 0),
    ]
    assert listing.ignored == 5
    assert {(item.container, item.offset, item.problem) for item in items} == {("", 0, "")}
    assert read(url, items) == [("a/1.JPG", b"one" * 1000), ("b/2 _01.jpg", b"two"), ("c.heic", b"")]
    assert read(url, items[::-1]) == read(url, items)[::-1]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_the_order_is_that_of_the_names(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "in") if place == "local" else f"{request.getfixturevalue('s3')}/in"
    names = ["a.jpg", "a/x.jpg", "a/y/z.jpg", "a0.jpg", "Z.jpg", "写真/顔.jpg", "лицо.jpg", "a b.jpg", "#%+&.jpg"]
    publish(url, dict.fromkeys(names, b"x"))
    assert [item.uri for item in list_inputs(url)] == sorted(names)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_file_that_was_replaced_has_another_version(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "in") if place == "local" else f"{request.getfixturevalue('s3')}/in"
    publish(url, {"a.jpg": b"one", "b.jpg": b"two"})
    before = list(list_inputs(url))
    assert list(list_inputs(url)) == before
    publish(url, {"b.jpg": b"2nd"})
    after = list(list_inputs(url))
    assert after[0] == before[0]
    assert (after[1].version != before[1].version, after[1].size) == (True, before[1].size)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_archives_in_a_folder_are_entered_at_any_depth(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "in") if place == "local" else f"{request.getfixturevalue('s3')}/in"
    inside = {"x/1.jpg": b"one", "x/1.json": b"{}", ".hidden.jpg": b"x"}
    publish(url, {"lfpw.zip": packed(".zip", inside), "own.jpg": b"own"})
    publish(url, {"deep/er/h.tar": packed(".tar", inside), "deep/er/h.TGZ": packed(".tgz", inside)})
    publish(
        url, {"deep/half.zip": b"half a download", "deep/no.tar": b"no tar", "old.7z": b"7z", "b.tar.bz2": b"BZh"}
    )
    listing = list_inputs(url)
    items = list(listing)
    assert read(url, items) == [
        ("b.tar.bz2", "unsupported_archive"),
        ("deep/er/h.TGZ/x/1.jpg", b"one"),
        ("deep/er/h.tar/x/1.jpg", b"one"),
        ("deep/half.zip", "broken_archive"),
        ("deep/no.tar", "broken_archive"),
        ("lfpw.zip/x/1.jpg", b"one"),
        ("old.7z", "unsupported_archive"),
        ("own.jpg", b"own"),
    ]
    assert listing.ignored == 6
    containers = {item.uri: item.container for item in items}
    assert containers["deep/er/h.tar/x/1.jpg"] == "deep/er/h.tar"
    assert containers["lfpw.zip/x/1.jpg"] == "lfpw.zip"


def test_archives_in_archives_are_rows(tmp_path: Path) -> None:
    inner = packed(".zip", {"a.jpg": b"a"})
    for kind in (".zip", ".tar", ".tar.gz"):
        (tmp_path / f"x{kind}").write_bytes(packed(kind, {"in.zip": inner, "in.rar": b"x", "b.jpg": b"b"}))
        rows = [("in.zip", "nested_archive"), ("in.rar", "nested_archive"), ("b.jpg", b"b")]
        assert read(str(tmp_path / f"x{kind}")) == rows


def test_web_datasets_are_folders_of_tars(tmp_path: Path) -> None:
    for shard in range(2):
        names = [f"{shard}{n}.{suffix}" for n in range(2) for suffix in ("jpg", "json", "txt", "cls")]
        (tmp_path / f"{shard:05d}.tar").write_bytes(packed(".tar", {name: name.encode() for name in names}))
    listing = list_inputs(str(tmp_path))
    uris = ["00000.tar/00.jpg", "00000.tar/01.jpg", "00001.tar/10.jpg", "00001.tar/11.jpg"]
    assert [item.uri for item in listing] == uris
    assert listing.ignored == 12


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_picture_is_a_source_by_itself(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = str(tmp_path / "in") if place == "local" else f"{request.getfixturevalue('s3')}/in"
    publish(folder, {"a b.JPG": b"one", "beside.jpg": b"x"})
    url = f"{folder}/a b.JPG"
    before = list(list_inputs(url))
    assert read(url, before) == [("a b.JPG", b"one")]
    assert list(list_inputs(url)) == before
    publish(folder, {"a b.JPG": b"2nd"})
    assert next(list_inputs(url)).version != before[0].version


def test_nothing_to_annotate_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list_inputs(str(tmp_path / "absent"))
    (tmp_path / "notes.txt").write_bytes(b"\n# nothing\n")
    with pytest.raises(UserError, match=r"has no pictures \(1 other files\)"):
        list_inputs(str(tmp_path))
    with pytest.raises(UserError, match="has no pictures"):
        list_inputs(str(tmp_path / "notes.txt"))
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="is of no known kind: give a picture"):
        list_inputs(str(tmp_path / "model.bin"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a folder nor a file"):
        list_inputs(str(tmp_path / "pipe"))


@pytest.mark.parametrize("name", ["a.tar.bz2", "a.TXZ", "a.tar.zst", "a.7z", "a.rar"])
def test_kinds_that_are_not_read_are_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"make a \.tar or \.zip of it"):
        list_inputs(str(tmp_path / name))


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    publish(str(tmp_path / "x.tar"), {"a.jpg": b"a"})
    assert read(str(tmp_path / "x.tar")) == [("a.jpg", b"a")]
    assert read(str(tmp_path)) == [("x.tar/a.jpg", b"a")]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root = tangle(tmp_path)
    (root / "above").symlink_to(tmp_path)
    found = dict(read(str(root)))
    assert {uri for uri, data in found.items() if data == b"a"} == {"a.jpg", "again/deep/a.jpg"}
    assert {uri: data for uri, data in found.items() if data != b"a"} == {
        **dict.fromkeys(["above", "again/loop", "folder", "self"], "linked_folder"),
        **dict.fromkeys(["gone.jpg", "pipe.jpg", "round.jpg"], "unsafe_member"),
    }


def test_what_is_gone_since_its_folder_was_listed_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(str(tmp_path), {"a.jpg": b"a", "gone.jpg": b"gone"})
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "no.jpg")
    scan = os.scandir

    def overtaken(folder: Path) -> Any:
        entries = scan(folder)
        (tmp_path / "gone.jpg").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(os, "scandir", overtaken)
    assert read(str(tmp_path)) == [("a.jpg", b"a"), ("nowhere.jpg", "unsafe_member")]


def test_what_may_not_be_opened_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(str(tmp_path), {"a.jpg": b"a", "shut/b.jpg": b"b", "gone/c.jpg": b"c"})
    refuse(monkeypatch, shut=errno.EACCES, gone=errno.ENOENT)
    assert read(str(tmp_path)) == [("a.jpg", b"a"), ("shut", "forbidden")]


def test_a_folder_that_may_be_listed_and_no_more_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(str(tmp_path), {"a.jpg": b"a", "listed/deep/b.jpg": b"b"})
    plain = os.stat

    def refusing(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        if not isinstance(path, int) and Path(path).name == "deep":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return plain(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", refusing)
    refuse(monkeypatch, deep=errno.EACCES)
    assert read(str(tmp_path)) == [("a.jpg", b"a"), ("listed/deep", "forbidden")]


def test_what_is_hidden_is_no_row_and_takes_no_folder_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(str(tmp_path), {"disk/a.jpg": b"a", "in/.Trashes/b.jpg": b"b"})
    (tmp_path / "in" / ".recent").symlink_to(tmp_path / "disk")
    (tmp_path / "in" / "photos").symlink_to(tmp_path / "disk")
    refuse(monkeypatch, **{".Trashes": errno.EACCES})
    assert read(str(tmp_path / "in")) == [("photos/a.jpg", b"a")]


def test_trouble_that_may_pass_is_left_to_be_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(str(tmp_path), {"a.jpg": b"x", "b.zip": packed(".zip", {"b.jpg": b"b"})})
    items = list(list_inputs(str(tmp_path)))

    def flaky(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "open", flaky)
    for item in items:
        with pytest.raises(OSError, match=r"Stale file handle: '.*/[ab]\.(jpg|zip)'"):
            list(read_inputs(str(tmp_path), [item]))
    with pytest.raises(OSError, match="Stale file handle"):
        list(list_inputs(str(tmp_path)))


@pytest.mark.parametrize("kind", ["folder", ".tar", ".zip"])
def test_what_the_disk_cannot_read_is_a_row(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file again after pauses, but not those that follow it; and no more than some in a row."""
    files = {f"{index:02}.jpg": b"%d" % index for index in range(60)}
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    bad = {"05", "06", "07", "20"}

    def patched(read: Any, name: Callable[..., str]) -> Any:
        def reading(*arguments: Any, **named: Any) -> Any:
            if name(*arguments)[-6:-4] in bad:
                raise OSError(errno.EIO, "Input/output error")
            return read(*arguments, **named)

        return reading

    if kind == "folder":
        place = publish(str(tmp_path / "in"), files)
        monkeypatch.setattr(Path, "open", patched(Path.open, lambda path, *_: path.name))
    else:
        place = str(tmp_path / f"in{kind}")
        Path(place).write_bytes(packed(kind, files))
        reader: Any = {".tar": Tar, ".zip": Zip}[kind]
        monkeypatch.setattr(reader, "read", patched(reader.read, lambda _, item, limit: item.uri))
    found = read(place)
    assert [uri for uri, data in found if data == "unreadable"] == [f"{name}.jpg" for name in sorted(bad)]
    assert len(found) == 60
    assert sum(pauses) == pytest.approx(2 * 4.2)
    bad |= {f"{index:02}" for index in range(60)}
    with pytest.raises(OSError, match="Input/output error"):
        read(place)


def test_a_folder_that_holds_what_a_link_led_to_is_read_nevertheless(tmp_path: Path) -> None:
    publish(str(tmp_path / "disk"), {"2019/x.jpg": b"x", "2019/summer/s.jpg": b"s", "2019/winter/summer/w.jpg": b"w"})
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a-best").symlink_to(tmp_path / "disk" / "2019" / "summer")
    (tmp_path / "root" / "b-year").symlink_to(tmp_path / "disk" / "2019")
    assert read(str(tmp_path / "root")) == [
        ("a-best/s.jpg", b"s"),
        ("b-year/summer", "linked_folder"),
        ("b-year/winter/summer/w.jpg", b"w"),
        ("b-year/x.jpg", b"x"),
    ]


def test_a_bucket_is_listed_page_by_page(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"in/{n:02d}/{m}.jpg": b"%d" % n for n in range(5) for m in range(2)}
    publish(s3, files | {"in/05.zip": packed(".zip", {"a.jpg": b"a"}), "inside.jpg": b"x"})
    monkeypatch.setattr(storage_module, "_KEYS_A_PAGE", 3)
    listing = list_inputs(f"{s3}/in")
    assert [next(listing).uri for _ in range(4)] == ["00/0.jpg", "00/1.jpg", "01/0.jpg", "01/1.jpg"]
    publish(s3, {"in/00/new.jpg": b"behind", "in/99.jpg": b"before"})
    assert [item.uri for item in listing][-2:] == ["05.zip/a.jpg", "99.jpg"]
    for folder in ("in/", "in/02/"):  # as S3 browsers make them
        fsspec.filesystem("s3").call_s3("put_object", Bucket=s3.removeprefix("s3://"), Key=folder, Body=b"")
    assert len(list(list_inputs(f"{s3}/in"))) == len(files) + 3


def test_an_outage_is_no_row(s3: str, faulty: FaultyEndpoint) -> None:
    publish(s3, {"a.jpg": b"a" * 9000, "b.zip": packed(".zip", {"b.jpg": os.urandom(9000)})})
    items = list(list_inputs(s3))
    faulty.kinds, faulty.share = ("503",), 1.0
    for call in (lambda: list(list_inputs(s3)), lambda: read(s3, items[:1]), lambda: read(s3, items[1:])):
        with pytest.raises(OutageError):
            call()
    faulty.share = 0.0
    assert [uri for uri, data in read(s3, items) if isinstance(data, bytes)] == ["a.jpg", "b.zip/b.jpg"]


def test_a_flaky_s3_gives_all(faulty_s3: str) -> None:
    files = {f"{n:02d}.jpg": b"%d" % n for n in range(12)}
    publish(faulty_s3, files | {"x.tar": packed(".tar", files)})
    assert read(faulty_s3) == [*files.items(), *((f"x.tar/{name}", data) for name, data in files.items())]


def test_files_that_vanish_after_the_listing(tmp_path: Path) -> None:
    publish(str(tmp_path), dict.fromkeys(["a.jpg", "b.jpg", "c.jpg"], b"x"))
    publish(str(tmp_path), {"d.zip": packed(".zip", {"a.jpg": b"a", "../b.jpg": b""}), "e.tar": tar(member("a.jpg"))})
    items = list(list_inputs(str(tmp_path)))
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.jpg").mkdir()
    (tmp_path / "d.zip").unlink()
    (tmp_path / "e.tar").write_bytes(b"no tar any more")
    outcomes = ["unreadable", "unreadable", b"x", "unreadable", "unsafe_member", "corrupt"]
    assert [data for _, data in read(str(tmp_path), items)] == outcomes
    reads = read_inputs(str(tmp_path), items)
    vanished = [
        item.uri for item, data in reads if isinstance(data, Undecodable) and has_vanished(item, data.message)
    ]
    assert vanished == ["a.jpg", "b.jpg", "d.zip/a.jpg"]


def test_an_archive_that_is_written_anew_while_it_is_read_counts_as_gone_meanwhile(tmp_path: Path) -> None:
    publish(str(tmp_path), {"d.zip": packed(".zip", {"a.jpg": b"a"}), "list.txt": b"no.jpg"})
    items = list(list_inputs(str(tmp_path / "d.zip")))
    (tmp_path / "d.zip").write_bytes(b"PK")
    ((item, data),) = read_inputs(str(tmp_path / "d.zip"), items)
    assert isinstance(data, Undecodable)
    assert has_vanished(item, data.message)
    ((item, data),) = read_inputs(str(tmp_path / "list.txt"), list(list_inputs(str(tmp_path / "list.txt"))))
    assert isinstance(data, Undecodable)
    assert not has_vanished(item, data.message), "it never was there"


def test_reasons_name_no_place(tmp_path: Path) -> None:
    publish(str(tmp_path), {"a.jpg": b"a", "b.zip": packed(".zip", {"b.jpg": b"b"}), "c.jpg": b"x" * 200})
    items = list(list_inputs(str(tmp_path)))
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.zip").write_bytes(b"x")
    for _, problem in read_inputs(str(tmp_path), items, 100):
        assert isinstance(problem, Undecodable)
        assert str(tmp_path) not in problem.message
        assert problem.reason in PROBLEMS


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xfe"))
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xffme.jpg")).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xffme.zip")).write_bytes(zipped(("a.jpg", b"")))
    names = ["d\\xfe/a.jpg", "n\\xffme.jpg", "n\\xffme.zip"]
    assert read(str(tmp_path)) == [(name, "unreadable") for name in names]


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    publish(str(tmp_path), {"large.jpg": b"x" * 101, "small.jpg": b"x" * 100})
    assert read(str(tmp_path), max_bytes=100) == [("large.jpg", "too_large"), ("small.jpg", b"x" * 100)]
    grown = Input("large.jpg", "", 0, 5, 5, "")
    assert read(str(tmp_path), [grown], 100) == [("large.jpg", "too_large")]
    grown = Input("small.jpg", "", 0, 5, 5, "")
    assert read(str(tmp_path), [grown], 100) == [("small.jpg", b"x" * 100)]


def test_memory_is_that_of_one_folder(tmp_path: Path) -> None:
    for folder in range(20):
        (tmp_path / f"{folder:02d}").mkdir()
        for number in range(1000):
            os.close(os.open(tmp_path / f"{folder:02d}" / f"photograph-{number:04d}.jpg", os.O_CREAT))
    count, grown = growth(str(tmp_path))
    assert count == 20_000
    assert grown < 3_000_000


def test_containers_stay_open_and_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tmp_path / f"{number}.tar").write_bytes(packed(".tar", {"a.jpg": b"%d" % number, "b.jpg": b"b"}))
    items = list(list_inputs(str(tmp_path)))
    opened: list[str] = []
    open_container = containers_module.open_container

    def opening(store: Store, key: str) -> containers_module.Container:
        opened.append(key)
        return open_container(store, key)

    monkeypatch.setattr(containers_module, "open_container", opening)
    monkeypatch.setattr(containers_module, "MAX_IDLE", 2)
    assert len(read(str(tmp_path), items)) == 8
    assert opened == ["0.tar", "1.tar", "2.tar", "3.tar"]
    assert read(str(tmp_path), items[4:]) == [("2.tar/a.jpg", b"2"), ("2.tar/b.jpg", b"b"), ("3.tar/a.jpg", b"3")] + [
        ("3.tar/b.jpg", b"b")
    ]
    assert len(opened) == 4
    (tmp_path / "3.tar").write_bytes(packed(".tar", {"a.jpg": b"new", "b.jpg": b"b"}))
    assert read(str(tmp_path), [item for item in list_inputs(str(tmp_path)) if item.container == "3.tar"][:1]) == [
        ("3.tar/a.jpg", b"new")
    ]
    some = read_inputs(str(tmp_path), items[:2])
    next(some)
    some.close()  # type: ignore[attr-defined]
    opened.clear()
    assert read(str(tmp_path), items[:2]) == [("0.tar/a.jpg", b"0"), ("0.tar/b.jpg", b"b")]
    assert opened == []


def test_the_real_photographs(data_root: Path) -> None:
    url = str(data_root / "photos")
    listing = list_inputs(url)
    items = list(listing)
    assert (len(items), listing.ignored) == (414, 1)
    for item, data in read_inputs(url, items[:20]):
        assert isinstance(data, bytes)
        assert len(data) == item.size
