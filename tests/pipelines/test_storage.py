import errno
import os
import pickle
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.storage import Store


@pytest.fixture(params=["path", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same behaviour is asked of all three kinds of URL."""
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('s3')}/deep/place")
    folder = tmp_path / "a place"
    return Store(folder.as_uri() if request.param == "file" else str(folder))


def test_a_published_file_reads_back_and_is_replaced_whole(store: Store) -> None:
    store.publish("units/0001 _01.parquet", b"first, longer")
    store.publish("units/0001 _01.parquet", b"second")
    assert store.read_bytes("units/0001 _01.parquet") == b"second"
    assert store.keys() == ["units/0001 _01.parquet"]


def test_keys_are_sorted_relative_and_limited_to_a_folder(store: Store) -> None:
    for key in ("b.txt", "a/2", "a/1", "a/deep/3", "ab/4", "A.txt"):
        store.publish(key, b"x")
    assert store.keys() == ["A.txt", "a/1", "a/2", "a/deep/3", "ab/4", "b.txt"]
    assert store.keys("a") == ["a/1", "a/2", "a/deep/3"]
    assert store.child("a").keys() == ["1", "2", "deep/3"]
    assert store.keys("absent") == []
    assert store.sizes("ab") == {"ab/4": 1}


def test_files_of_another_writer_are_seen_at_once(store: Store) -> None:
    assert store.keys() == []
    Store(store.url).publish("late", b"x")
    assert store.keys() == ["late"]
    assert store.exists("late")


def test_existence(store: Store) -> None:
    assert not store.exists()
    assert not store.exists("a/b")
    store.publish("a/b", b"")
    assert store.exists()
    assert store.exists("a/b")
    assert store.exists("a")
    assert not store.exists("a/c")


def test_create_writes_once(store: Store) -> None:
    assert store.create("done/7", b"mine")
    assert not store.create("done/7", b"other")
    assert store.read_bytes("done/7") == b"mine"
    assert store.keys() == ["done/7"]


def test_of_racing_creators_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create("done/1", b"%d" % n), range(8)))
    assert won.count(True) == 1
    assert store.read_bytes("done/1") == b"%d" % won.index(True)


def test_a_missing_file_is_named(store: Store) -> None:
    store.publish("there", b"")
    with pytest.raises(UserError, match=r"place/shapes/none\.pts does not exist"):
        store.read_bytes("shapes/none.pts")


def test_parts_are_read_by_seeking(store: Store) -> None:
    store.publish("large", bytes(range(256)) * 16)
    with store.open("large") as file:
        file.seek(258)
        assert file.read(3) == b"\x02\x03\x04"


def test_a_store_travels_to_another_process(store: Store) -> None:
    store.publish("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read_bytes("x") == b"1"  # noqa: S301


@pytest.mark.parametrize("key", ["/etc/passwd", "../up", "a/../../up"])
def test_keys_stay_inside(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="leaves its store"):
        store.publish(key, b"x")


@pytest.mark.parametrize("url", ["ftp://host/x", "gs://bucket", "s3://", ""])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="s3://bucket"):
        Store(url)


def test_a_file_url_with_two_slashes_is_explained() -> None:
    with pytest.raises(UserError, match="three slashes"):
        Store("file://home/x").local_path()


def test_trailing_slashes_are_dropped(tmp_path: Path) -> None:
    assert Store("s3://bucket/x/").url == "s3://bucket/x"
    assert Store(f"{tmp_path}/") == Store(str(tmp_path))
    assert Store("/").url == "/"
    assert Store("~/x").local_path() == Path.home() / "x"
    assert Store("s3://bucket").local_path() is None


def test_links_to_files_count_and_links_to_folders_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"12")
    (tmp_path / "file-link").symlink_to("real/a")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    store = Store(str(tmp_path))
    assert store.keys() == ["file-link", "real/a"]
    assert store.sizes() == {"dangling": None, "file-link": 2, "loop": None, "pipe": None, "real/a": 2}


def test_published_files_are_readable_for_others(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        Store(str(tmp_path)).publish("x", b"")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


@pytest.mark.parametrize("write", [Store.publish, Store.create])
def test_a_full_disk_leaves_what_was_there(
    write: Callable[[Store, str, bytes], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.publish("old", b"whole")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk full"):
        write(store, "new", b"data")
    with pytest.raises(UserError, match="nothing half-written was left"):
        write(store, "old", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert store.read_bytes("old") == b"whole"


def test_a_really_full_device(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(UserError):
        Store(str(tmp_path / "full")).publish("x", b"1")


def test_an_interrupted_writer_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    seen: list[list[str]] = []

    def died(_: int) -> None:
        seen.append(store.keys())
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", died)
    with pytest.raises(KeyboardInterrupt):
        store.publish("x", b"1")
    assert seen == [[]]
    assert list(tmp_path.iterdir()) == []


def test_trouble_that_may_pass_stays_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flaky(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", flaky)
    with pytest.raises(OSError, match="Input/output"):
        Store(str(tmp_path)).publish("x", b"1")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file/x"):
        Store(str(tmp_path / "file")).publish("x", b"1")
