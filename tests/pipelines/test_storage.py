import errno
import os
import pickle
import resource
import socket
import stat
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from aiobotocore.httpsession import AIOHTTPSession

from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.s3 import s3_files
from pipelines.storage import Store, publish_file, require_writable_file
from tests.factories import refuse
from tests.faulty import FAULTS, Fault, FaultyEndpoint


@pytest.fixture(params=["path", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same behaviour is asked of all three kinds of URL."""
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('s3')}/deep/place")
    folder = tmp_path / "a place"
    return Store(folder.as_uri() if request.param == "file" else str(folder))


@pytest.fixture
def dead_endpoint(s3: str, other_connections: None) -> Iterator[str]:
    """An address at which nobody listens, nor will."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_a_published_file_reads_back_and_is_replaced_whole(store: Store) -> None:
    store.publish("units/0001 _01.parquet", b"first, longer")
    store.publish("units/0001 _01.parquet", b"second")
    assert store.read_bytes("units/0001 _01.parquet") == b"second"
    assert store.keys() == ["units/0001 _01.parquet"]


def test_a_file_that_grows_appears_whole_or_not_at_all(store: Store) -> None:
    store.publish("big.json", b"older")
    with store.writing("big.json") as file:
        file.write(b"new, ")
        assert store.read_bytes("big.json") == b"older"
        assert store.keys() == ["big.json"]
        file.write(b"longer")
    assert store.read_bytes("big.json") == b"new, longer"
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        _write_half(store)
    assert store.keys() == ["big.json"]
    local = store.local_path()
    assert local is None or not [path for path in local.rglob("*") if path.name.startswith(".tmp-")]


def _write_half(store: Store) -> None:
    with store.writing("deep/other.json") as file:
        file.write(b"half")
        raise FileNotFoundError(errno.ENOENT, "elsewhere")


def test_a_file_that_outgrows_the_disk_leaves_nothing(small_disk: Path) -> None:
    store = Store(str(small_disk / "in"))
    with pytest.raises(UserError, match=r"disk full: .*/in/big.tar"), store.writing("big.tar") as file:
        file.write(b"x" * (1 << 20))
    assert not [path for path in small_disk.rglob("*") if path.is_file()]


def test_what_could_not_be_written_is_told_before_there_is_anything_to_write(store: Store) -> None:
    store.publish("older", b"1")
    store.require_writable("older")
    store.require_writable("deep/new")
    assert store.files() == {"older": 1}
    if store.local_path():
        with pytest.raises(UserError, match="older/below"):
            store.require_writable("older/below")
        with pytest.raises(UserError, match="deep: Is a directory"):
            store.require_writable("deep")


def test_to_ask_whether_it_could_be_written_leaves_no_upload_behind(s3: str) -> None:
    Store(f"{s3}/place").require_writable("new")
    assert not s3_files().call_s3("list_multipart_uploads", Bucket=s3.removeprefix("s3://")).get("Uploads")


def test_keys_are_sorted_relative_and_limited_to_a_folder(store: Store) -> None:
    for key in ("b.txt", "a/2", "a/1", "a/deep/3", "ab/4", "A.txt"):
        store.publish(key, b"x")
    assert store.keys() == ["A.txt", "a/1", "a/2", "a/deep/3", "ab/4", "b.txt"]
    assert store.keys("a") == ["a/1", "a/2", "a/deep/3"]
    assert store.child("a").keys() == ["1", "2", "deep/3"]
    assert store.keys("absent") == []
    assert store.files("ab") == {"ab/4": 1}


def test_an_object_that_stands_for_a_folder_is_no_file(s3: str) -> None:
    store = Store(f"{s3}/place")
    store.publish("folder/a", b"1")
    s3_files().call_s3("put_object", Bucket=s3.removeprefix("s3://"), Key="place/folder/")
    assert store.files() == {"folder/a": 1}


def test_folders_are_those_directly_below(store: Store) -> None:
    assert store.folders() == []
    for key in ("file", "b/deep/x", "a/x"):
        store.publish(key, b"")
    assert store.folders() == ["a", "b"]


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
    assert store.present("a/c", "a/b", "a") == ["a/b", "a"]
    assert not store.exists("a/\0")


def test_the_version_of_a_file_is_another_when_it_was_replaced(store: Store) -> None:
    assert store.version("a/b") is None
    store.publish("a/b", b"1")
    before = store.version("a/b")
    assert before is not None
    assert store.version("a/b") == before
    assert store.version("a") is None
    store.publish("a/b", b"2")
    assert store.version("a/b") not in (before, None)


def test_the_version_of_a_file_tells_one_of_the_same_time_and_one_that_was_written_in_place(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    versions = []
    for data in (b"1", b"2"):
        store.publish("x", data)
        os.utime(tmp_path / "x", (1, 1))
        versions.append(store.version("x"))
    os.utime(tmp_path / "x", (2, 2))
    assert len({*versions, store.version("x")}) == 3


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


def test_the_beginning_of_a_file_is_read_and_no_more(store: Store) -> None:
    store.publish("large", b"abcdef")
    store.publish("empty", b"")
    asked = [store.reading(*each) for each in (("large", 4), ("large", 9), ("empty", 4))]
    assert [receive() for receive in asked] == [b"abcd", b"abcdef", b""]


def test_parts_are_read_by_seeking(store: Store) -> None:
    store.publish("large", bytes(range(256)) * 16)
    with store.open("large") as file:
        file.seek(258)
        assert file.read(3) == b"\x02\x03\x04"


def test_a_store_travels_to_another_process(store: Store) -> None:
    store.publish("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read_bytes("x") == b"1"  # noqa: S301


@pytest.mark.parametrize("key", ["../up", "/../up", "a/../../up"])
def test_keys_stay_inside(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="leaves its store"):
        store.publish(key, b"x")


def test_a_key_that_begins_with_a_slash_is_a_name_on_s3_alone(tmp_path: Path, s3: str) -> None:
    Store(s3).publish("/a", b"x")
    assert Store(s3).keys() == ["/a"]
    assert not Store(s3).exists("a")
    with pytest.raises(ValueError, match="leaves its store"):
        Store(str(tmp_path)).publish("/a", b"x")


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "gs://bucket", "s3://", "", "s3:/bucket/x", "S3:/bucket", "https:/host/x", "gs:/bucket"]
)
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


def test_what_may_not_be_looked_at_is_not_taken_for_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_bytes(b"{}")

    def refused(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(UserError, match="Permission denied"):
        Store(str(tmp_path)).exists("run.json")


def test_links_to_files_count_and_links_to_folders_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"12")
    (tmp_path / "file-link").symlink_to("real/a")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    store = Store(str(tmp_path))
    assert store.files() == {"file-link": 2, "real/a": 2}


def test_published_files_are_readable_for_others(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        Store(str(tmp_path)).publish("x", b"")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def _grown(store: Store, key: str, data: bytes) -> None:
    with store.writing(key) as file:
        file.write(data)


@pytest.mark.parametrize("write", [Store.publish, Store.create, _grown])
def test_a_loss_of_power_takes_neither_what_was_written_nor_its_name(
    write: Callable[[Store, str, bytes], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are on the disk before they have their name, and that is there before the call ends."""
    synced: list[tuple[int | None, bool]] = []
    sync = os.fsync

    def spy(descriptor: int) -> None:
        sync(descriptor)
        status = os.fstat(descriptor)
        synced.append((status.st_size if stat.S_ISREG(status.st_mode) else None, (tmp_path / "x").exists()))

    monkeypatch.setattr(os, "fsync", spy)
    write(Store(str(tmp_path)), "x", b"data")
    assert synced == [(4, False), (None, True)]


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


def test_a_limit_on_files_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(UserError, match=r"file too large: .*/new was not written.*ulimit -f"):
            Store(str(tmp_path)).publish("new", bytes(1 << 17))
        with (
            pytest.raises(UserError, match=r"file too large: .*/new was not written.*ulimit -f"),
            Store(str(tmp_path)).writing("new") as file,
        ):
            file.write(bytes(1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_a_link_that_leads_to_no_folder_is_named(below: str, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("unmounted")
    store = Store(str(tmp_path / "out" / below))
    for write in (store.publish, store.create):
        with pytest.raises(
            UserError, match=rf"^{tmp_path}/out is a link to unmounted, where no folder is: make that"
        ):
            write("a.json", b"{}")


def test_a_deleted_file_is_gone_and_may_be_gone_already(store: Store) -> None:
    store.publish("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/there")
    assert store.keys() == []
    assert store.create("a/b", b"2")


def test_of_what_is_named_like_temporary_files_only_old_files_are_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for key in ("a/.tmp-old", "a/.tmp-new", "a/kept", ".tmp-folder/kept"):
        store.publish(key, b"x")
    (tmp_path / ".tmp-link").symlink_to("a/kept")
    for path in tmp_path.rglob("*"):
        if path.name != ".tmp-new":
            os.utime(path, (0, 0), follow_symlinks=False)
    store.sweep()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert left == {"a/.tmp-new", "a/kept", ".tmp-folder/kept", ".tmp-link"}


def test_a_temporary_file_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".tmp-old").write_bytes(b"x")

    def refused(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(UserError, match=r"/\.tmp-old: Permission denied; check the path"):
        Store(str(tmp_path)).sweep(0)


def test_a_bucket_itself_exists_or_not(s3: str) -> None:
    assert Store(s3).exists()
    assert not Store("s3://no-such-bucket-here").exists()


@pytest.mark.parametrize(
    ("url", "parent"),
    [
        ("s3://bucket/a/b", "s3://bucket/a"),
        ("s3://bucket/a", "s3://bucket"),
        ("s3://bucket", "s3://bucket"),
        ("/data/set", "/data"),
        ("/data", "/"),
        ("/", "/"),
        ("set", "."),
        (".", ".."),
        ("..", "../.."),
        ("~/sets/a", "~/sets"),
        ("file:///data/a%20b", "file:///data"),
        ("file:///a%23b/c%2Fd", "file:///a%23b/c"),
        ("file:///data/..", "file:///data/../.."),
    ],
)
def test_the_folder_above(url: str, parent: str) -> None:
    assert Store(url).parent == Store(parent)


@pytest.mark.parametrize("name", ["jan%20a", "a#b", "a?b", "a b", "caf\u00e9", "\udcff"])
def test_any_name_lies_below_a_file_url(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path.as_uri())
    store.publish(f"{name}/x", b"1")
    assert store.folders() == [name]
    child = store.child(name)
    assert child.read_bytes("x") == b"1"
    assert child.local_path() == tmp_path / name
    assert Store(child.absolute().url).keys() == ["x"]
    assert child.parent == store
    assert child.child("x").parent == child


def test_a_file_is_published_at_its_own_path_or_url(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    publish_file(f"{tmp_path.as_uri()}/a%20b.onnx", b"1")
    publish_file("c%20d.onnx", b"2")
    publish_file(f"{tmp_path}/in/e", b"3")
    assert Store(".").files() == {"a b.onnx": 1, "c%20d.onnx": 1, "in/e": 1}
    publish_file(f"{s3}/f%20g.onnx", b"4")
    assert Store(s3).keys() == ["f%20g.onnx"]


def test_the_folder_above_the_home_folder() -> None:
    parent = Store("~").parent.local_path()
    assert parent
    assert parent.resolve() == Path.home().resolve().parent


def test_the_root_as_a_url_is_above_itself() -> None:
    assert Store("file:///data").parent.local_path() == Path("/")
    assert Store("file:///data").parent.parent.local_path() == Path("/")


def test_everything_works_through_an_endpoint_that_often_fails(faulty_s3: str, faulty: FaultyEndpoint) -> None:
    """More than 300 operations, by several threads."""
    store = Store(f"{faulty_s3}/place")

    def work(number: int) -> None:
        key, data = f"{number // 10}/{number}", b"%d" % number * 500
        if number % 3:
            store.publish(key, data)
        else:
            assert store.create(key, data)
            assert not store.create(key, b"another's")
        assert store.read_bytes(key) == data
        with store.open(key) as file:
            file.seek(100)
            assert file.read(50) == data[100:150]
        if number % 10 == 9:
            assert key in store.keys(str(number // 10))
        if number % 7 == 0:
            store.delete(key)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(80)))
    assert faulty.failed > 80
    faulty.share = 0
    assert store.keys() == sorted(f"{number // 10}/{number}" for number in range(80) if number % 7)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_object_created_is_ones_own_whatever_happened_to_the_answer(
    s3: str, faulty: FaultyEndpoint, fault: Fault
) -> None:
    store = Store(s3)
    faulty.script = [fault, fault]
    assert store.create("done/7", b"mine")
    assert not store.create("done/7", b"other")
    assert store.read_bytes("done/7") == b"mine"


def test_an_answer_cut_short_is_not_taken_for_the_whole(s3: str, faulty: FaultyEndpoint) -> None:
    store = Store(s3)
    store.publish("large", bytes(range(256)) * 400)
    faulty.script = [None, "cut", "cut"]
    assert store.read_bytes("large") == bytes(range(256)) * 400
    faulty.script = [None, "cut", "cut"]
    with store.open("large", readahead=5000) as file:
        file.seek(256)
        assert file.read(50_000) == (bytes(range(256)) * 400)[256:50_256]


OPERATIONS: list[Callable[[Store], object]] = [
    lambda store: store.read_bytes("x"),
    lambda store: store.publish("x", b"1"),
    lambda store: store.create("x", b"1"),
    lambda store: store.exists("x"),
    lambda store: store.keys("x"),
    lambda store: store.delete("x"),
    lambda store: store.open("x"),
]


@pytest.mark.parametrize(
    ("fault", "what", "operations"),
    [
        ("500", "planned trouble|Internal Server Error", OPERATIONS),
        ("503", "planned trouble|Service Unavailable|reduce your request rate", OPERATIONS[:1]),
        ("drop", "closed", OPERATIONS[:1]),
        ("403", "check the S3 credentials", OPERATIONS),
    ],
)
def test_what_s3_refuses_for_good_is_explained(
    s3: str,
    faulty: FaultyEndpoint,
    fault: Fault,
    what: str,
    operations: list[Callable[[Store], object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # Nothing hangs here: on a busy machine half a second is no sign of it.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 60}})
    faulty.share, faulty.kinds = 1, [fault]
    for operation in operations:
        with pytest.raises(UserError, match=what) as caught:
            operation(Store(s3))
        assert s3 in str(caught.value)
        assert ("what is finished is kept" in str(caught.value)) == (fault != "403")


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("AWS_MAX_ATTEMPTS", "abc", "give 1 or more"),
        ("AWS_MAX_ATTEMPTS", "0", "give 1 or more"),
        ("AWS_RETRY_MODE", "often", "legacy, standard, adaptive"),
        ("FSSPEC_S3_CONFIG_KWARGS", "{bad", "JSON object"),
        ("FSSPEC_S3_CONFIG_KWARGS", "[60]", "JSON object"),
        ("FSSPEC_S3_CONFIG_KWARGS", '{"patience": 60}', "JSON object"),
        ("FSSPEC_S3_CLIENT_KWARGS", "{bad", "JSON object"),
        ("FSSPEC_S3_CLIENT_KWARGS", '{"patience": 60}', "'patience'.*s3fs"),
        ("FSSPEC_S3_S3_ADDITIONAL_KWARGS", "[60]", "JSON object"),
        ("FSSPEC_S3_MAX_CONCURRENCY", "0", "must be >= 1.*s3fs"),
        ("FSSPEC_S3_PATIENCE", "60", "'patience'.*s3fs"),
        ("FSSPEC_S3_MAX_CONCURRENCY", "many", "s3fs"),
    ],
)
def test_a_setting_that_s3_cannot_use_is_named(
    variable: str, value: str, remedy: str, other_connections: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")  # or it is asked of the network
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    fsspec.config.set_conf_env(fsspec.config.conf)  # as it does when it is imported
    with pytest.raises(UserError, match=f"^{variable}.*{remedy}.*unset it$"):
        Store("s3://bucket/place").keys()


def test_reading_on_is_explained_as_well(s3: str, faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(s3)
    store.publish("tar", bytes(100_000))
    with store.open("tar", readahead=1000) as file:
        file.read(10)
        faulty.share, faulty.kinds = 1, ["500"]
        file.seek(50_000)
        with pytest.raises(UserError, match=r"/tar: (.|\n)*what is finished is kept"):
            file.read(10)


def test_a_dead_endpoint_is_explained_after_as_many_attempts_as_were_asked_for(
    s3: str, dead_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system's own repetitions, which multiply botocore's, would take minutes."""
    sent: list[str] = []
    send = AIOHTTPSession.send

    async def counted(session: Any, request: Any) -> Any:
        sent.append(request.url)
        return await send(session, request)

    monkeypatch.setattr(AIOHTTPSession, "send", counted)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", dead_endpoint)
    for operation in OPERATIONS[:3]:
        sent.clear()
        with pytest.raises(UserError, match=r"Could not connect.*\n.*check AWS_ENDPOINT_URL"):
            operation(Store(s3))
        assert sent == [f"{dead_endpoint}/{s3.removeprefix('s3://')}/x"] * 2


def test_a_server_that_never_answers_is_given_up(
    s3: str, faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.1}})
    faulty.share, faulty.kinds = 1, ["hang"]
    with pytest.raises(UserError, match=r"(?i)timeout.*\n.*what is finished is kept"):
        Store(s3).publish("x", b"1")


@pytest.mark.parametrize("endpoint", ["localhost:9000", "user:planted@localhost:9000"])
def test_an_endpoint_without_a_scheme_is_explained(
    endpoint: str, s3: str, other_connections: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("FSSPEC_S3_USE_SSL", "true")  # it was not looked at before
    with pytest.raises(UserError, match=r"no address: give AWS_ENDPOINT_URL as https://HOST") as caught:
        Store(s3).keys()
    assert "planted" not in "".join(traceback.format_exception(caught.value))


def test_a_bucket_that_is_not_there_is_explained(s3: str) -> None:
    with pytest.raises(UserError, match=r"no-such-bucket-here/x does not exist: .*bucket"):
        Store("s3://no-such-bucket-here").publish("x", b"1")
    with pytest.raises(UserError, match=r"no-such-bucket-here/x does not exist: .*bucket"):
        Store("s3://no-such-bucket-here").require_writable("x")


def test_missing_credentials_are_explained(s3: str, other_connections: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(OutageError, match="no S3 credentials; set AWS_ACCESS_KEY_ID"):
        Store(s3).keys()


SECRET = "wJalrXUtnFEMI/K7MDENG+planted"


@pytest.mark.parametrize("fault", ["403", "500", None])
def test_no_secret_is_told(
    s3: str,
    faulty: FaultyEndpoint,
    dead_endpoint: str,
    fault: Fault | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither in a message, nor with its causes, nor in a log; though a server, or an address, brings it in."""
    caplog.set_level("INFO")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    if fault:
        faulty.share, faulty.kinds, faulty.message = 1, [fault], f"the key {SECRET} is bad"
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", dead_endpoint.replace("//", "//user:planted@"))
    store = Store(s3)
    with pytest.raises(UserError) as caught:
        store.publish("x", b"1")
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(store) + str(caught.value)
    assert "planted" not in told


def test_a_disk_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    store = Store(str(tmp_path))
    assert store.create("done/7", b"mine")
    assert not store.create("done/7", b"other")
    assert store.read_bytes("done/7") == b"mine"
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda n: store.create("done/1", b"%d" % n), range(8))) == 1
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["1", "7"]


def test_what_may_not_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.publish("a/b/c", b"c")
    store.publish("d", b"d")
    refuse(monkeypatch, a=errno.EACCES)
    assert store.keys() == ["d"]  # what lies beside our folders is not ours
    with pytest.raises(UserError, match="a: "):
        store.keys("a")
    refuse(monkeypatch, a=errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        store.files()


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY, not into a URL") as caught:
        Store("s3://AKIA:planted@bucket/x")
    assert "planted" not in str(caught.value)


def test_the_same_place_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far" / "away")
    monkeypatch.chdir(tmp_path / "here")
    assert Store("../there/./x").absolute().url == f"{tmp_path}/there/x"
    assert Store("link/x").absolute().url == f"{tmp_path}/here/link/x"  # wherever it leads tomorrow
    beyond = Path(Store("link/../x").absolute().url)
    assert beyond.resolve() == tmp_path / "far" / "x"
    assert Store("s3://bucket/x").absolute().url == "s3://bucket/x"


@pytest.mark.parametrize("name", ["/dev/full", "/dev/stdout", "pipe"])
def test_no_file_takes_the_place_of_a_device(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=f"{name} is a device or a pipe"):
        require_writable_file(name)
