import errno
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray

from pipelines.engine import _quotas, default_workers, run_units, start_ray
from pipelines.errors import UserError, disk_is_full
from pipelines.outages import OutageError


def test_one_worker_runs_here_and_in_order() -> None:
    seen = []

    def work(shared: str, unit: int) -> tuple[int, str, int]:
        seen.append(unit)
        return os.getpid(), shared, unit

    results = run_units(work, "shared", range(3), workers=1)
    assert next(results) == (os.getpid(), "shared", 0)
    assert seen == [0]  # the next unit waits until its result is wanted
    assert [unit for _, _, unit in results] == [1, 2]


def test_a_single_unit_starts_no_ray() -> None:
    assert list(run_units(lambda shared, unit: (os.getpid(), unit), None, ["u"], 8)) == [(os.getpid(), "u")]
    assert list(run_units(lambda shared, unit: unit, None, [], 8)) == []


def test_there_is_a_worker_for_each_core() -> None:
    assert 1 <= default_workers() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, [2.5]),
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/a.slice/b\n", {"a.slice/cpu.max": "400000 100000", "a.slice/b/cpu.max": "50000 100000"}, [0.5, 4.0]),
        (
            "5:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n",
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            [3.0],
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        (None, {}, []),
    ],
)
def test_a_container_has_the_cores_that_it_is_given(
    groups: str | None, files: dict[str, str], cores: list[float], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    assert list(_quotas(tmp_path / "groups", tmp_path)) == cores


def test_units_run_in_other_processes(ray_of_two: int) -> None:
    results = dict(run_units(lambda shared, unit: (unit, (os.getpid(), shared)), "s", range(9), ray_of_two))
    assert sorted(results) == list(range(9))
    assert os.getpid() not in {pid for pid, _ in results.values()}
    assert {shared for _, shared in results.values()} == {"s"}


def test_workers_import_nothing_from_the_folder_of_the_call(ray_of_two: int) -> None:
    seen = list(run_units(lambda shared, unit: (Path.cwd(), sys.path), None, range(2), ray_of_two))
    assert all(str(called) not in path for called, path in seen)
    assert Path(__file__).parents[2] not in {called for called, _ in seen}


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there, nor will
        for address in (f"127.0.0.1:{unused.getsockname()[1]}", "no-such-host.invalid:6379", "..:6379"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(OutageError, match=f"no Ray answers at {address}: .*RAY_ADDRESS"):
                start_ray(2)


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1"])
def test_a_cluster_that_ray_itself_does_not_find_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("ray client connection timeout")  # as it says after half a minute

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(OutageError, match=f"no Ray answers at {address}: .*RAY_ADDRESS"):
        start_ray(2)


def test_a_machine_too_busy_for_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:  # as it ended on two cores with eighteen processes at work
        raise Exception("The current node timed out during startup. This could happen because some of the raylet")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"not be started \(The current node timed out during startup\), .*workers 1"):
        start_ray(2)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Timed out waiting for file /tmp/ray/session/gcs_server_port_ab"),
        OSError(errno.ENOSPC, "No space left on device", "/tmp/ray/session"),
    ],
)
def test_a_full_folder_for_temporary_files_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:  # as it ended where a file could be named there, but not be written
        raise error

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"not be started .*no space for temporary files \(TMPDIR\); .*workers 1"):
        start_ray(2)


@pytest.mark.parametrize("home", ["/proc/none", ""])
def test_ray_starts_for_a_user_without_a_home(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str | None] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: tokens.append(os.environ.get("RAY_AUTH_TOKEN")))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    start_ray(2)
    if home:
        monkeypatch.setenv("HOME", home)
    else:
        monkeypatch.setattr("pathlib.Path.home", Mock(side_effect=RuntimeError("no home directory")))
    start_ray(2)
    assert tokens[0] is None
    assert len(tokens[1] or "") == 64


def test_a_call_that_ray_cannot_write_down_is_named() -> None:
    called = "import sys; from pipelines.engine import start_ray; start_ray(1)"
    program = [sys.executable, "-c", called, os.fsdecode(b"caf\xe9")]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert "UserError: Ray takes no name that is not valid UTF-8, " in ended.stderr
    assert ": rename it, or do without Ray" in ended.stderr


def test_a_call_that_ray_cannot_write_down_for_its_locale_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:  # as it ends where a name is fine, and Python took it for ASCII
        "caf\udcc3\udca9".encode()

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="names are read as ascii here, so set PYTHONUTF8=1"):
        start_ray(2)


def test_a_node_that_falls_silent_is_given_up_within_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[int]] = []
    settings = ["RAY_grpc_client_keepalive_time_ms", "RAY_grpc_client_keepalive_timeout_ms"]
    for name in settings:
        monkeypatch.setenv(name, "")  # so that what it sets is undone
        monkeypatch.delenv(name)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: told.append([int(os.environ.get(name, 0)) for name in settings]))
    start_ray(2)
    ((pause, patience),) = told
    assert pause > 60_000, "Ray's servers hang up on who asks more often"
    assert 0 < pause + patience <= 120_000


@pytest.mark.parametrize("answer", [b"HTTP/1.0 505 HTTP Version Not Supported\r\n\r\n", b""])
def test_what_answers_and_is_no_ray_is_told(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    def speak(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=speak, args=[server], daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(OutageError, match=f"no Ray answers at {address}: .*RAY_ADDRESS"):
            start_ray(2)


def test_ray_itself_finds_its_cluster_by_other_addresses(ray_of_two: int, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []
    addresses = ["auto", "local", "ray://127.0.0.1:1", ray.get_runtime_context().gcs_address]
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda address, **_: joined.append(address))
    for address in addresses:
        monkeypatch.setenv("RAY_ADDRESS", address)
        start_ray(2)
    assert joined == addresses


def _dies(always: bool) -> Callable[[Path, int], int]:
    def work(marks: Path, unit: int) -> int:
        mark = marks / str(unit)
        if unit == 1 and (always or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return unit

    return work


def test_sigterm_does_what_it_did_before_ray_was_started() -> None:
    program = """
import os, signal, sys
from pipelines.engine import start_ray
signal.signal(signal.SIGTERM, lambda *_: sys.exit("tidied up"))
start_ray(1)
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (1, "tidied up\n")


def test_sigterm_does_what_it_did_before_while_ray_is_started() -> None:
    program = """
import os, signal, sys
from pipelines.engine import start_ray
signal.signal(signal.SIGTERM, lambda *_: sys.exit("tidied up"))
def as_it_starts(event, _):
    if event == "subprocess.Popen":
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(as_it_starts)
start_ray(1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (1, "tidied up\n")


def test_what_a_signal_raises_arrives_as_it_is(ray_of_two: int, tmp_path: Path) -> None:
    class CancelledError(BaseException):
        pass

    def cancel(number: int, frame: object) -> None:
        raise CancelledError

    def signalled() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    def work(folder: Path, unit: int) -> None:
        (folder / "begun").touch()
        until = time.monotonic() + 60
        while not (folder / "over").exists() and time.monotonic() < until:
            time.sleep(0.01)

    before = signal.signal(signal.SIGUSR1, cancel)
    try:
        threading.Thread(target=signalled).start()
        with pytest.raises(CancelledError):
            list(run_units(work, tmp_path, range(2), ray_of_two))
    finally:
        (tmp_path / "over").touch()
        signal.signal(signal.SIGUSR1, before)


def test_a_unit_whose_worker_dies_once_is_done_again(ray_of_two: int, tmp_path: Path) -> None:
    assert sorted(run_units(_dies(always=False), tmp_path, range(4), ray_of_two)) == [0, 1, 2, 3]
    assert (tmp_path / "1").exists()


def test_a_unit_that_kills_every_worker_is_explained(ray_of_two: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a worker died 4 times at the same piece of work"):
        list(run_units(_dies(always=True), tmp_path, range(4), ray_of_two))


def _stumbles(times: int) -> Callable[[Path, int], int]:
    def work(marks: Path, unit: int) -> int:
        seen = len(list(marks.glob(f"{unit}-*")))
        (marks / f"{unit}-{seen}").touch()
        if unit == 1 and seen < times:
            raise OSError(errno.EIO, "Input/output error", "/mnt/shard")
        return unit

    return work


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unit_that_stumbles_is_run_again(ray_of_two: int, tmp_path: Path, workers: int) -> None:
    assert sorted(run_units(_stumbles(2), tmp_path, range(3), workers)) == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-0", "1-1", "1-2", "2-0"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unit_that_stumbles_each_time_ends_the_job(
    ray_of_two: int, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if workers == 1:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"/mnt/shard.*4 times.*finished units are kept"):
        list(run_units(_stumbles(9), tmp_path, range(3), workers))
    assert len(list(tmp_path.glob("1-*"))) == 4


def test_a_unit_that_finds_no_space_for_temporary_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line names TMPDIR, which such an error does not."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left") as raised:
        list(run_units(full, None, range(1), 1))
    assert disk_is_full(raised.value)
    assert full.call_count == 4


def test_an_error_of_the_work_arrives_as_it_is(ray_of_two: int) -> None:
    def work(shared: None, unit: int) -> int:
        if unit == 2:
            raise UserError("photo.jpg: field x: remedy")
        return unit

    with pytest.raises(UserError, match=r"^photo\.jpg: field x: remedy$"):
        list(run_units(work, None, range(4), ray_of_two))


def test_of_units_that_fail_at_once_the_first_one_is_told_and_no_stack(
    ray_of_two: int, caplog: pytest.LogCaptureFixture
) -> None:
    def work(shared: None, unit: int) -> None:
        time.sleep(0.01)  # so that others end while an error is on its way
        raise UserError("disk full")

    list(run_units(lambda shared, unit: unit, None, range(2), ray_of_two))  # its workers are there
    logging.getLogger("ray").addHandler(caplog.handler)
    try:
        for _ in range(80):
            with pytest.raises(UserError, match="disk full"):
                list(run_units(work, None, range(8), ray_of_two))
        gc.collect()
        time.sleep(0.7)  # by then Ray would have told of the others
    finally:
        logging.getLogger("ray").removeHandler(caplog.handler)
    assert "Unhandled error" not in caplog.text
