import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.lease import LEASE, free_stale, hold
from pipelines.storage import Store

BEAT = 0.1
HOLD = f"""
import sys, time
from pipelines.lease import hold
from pipelines.storage import Store
with hold(Store(sys.argv[1]), lambda note: None, beat={BEAT}) as lease:
    lease.note("unit 12 of 42")
    print("held", flush=True)
    while not lease.is_lost():
        time.sleep(0.05)
print("lost", flush=True)
"""


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(f"{request.getfixturevalue('s3')}/place" if request.param == "s3" else str(tmp_path / "place"))


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another run that holds the lease and has said what it does."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        while b"unit 12" not in store.read_bytes(LEASE):
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


class WaitedError(Exception):
    """The test waited enough."""


def _give_up(note: str) -> None:
    raise WaitedError(note)


def test_the_lease_is_there_while_it_is_held_and_gone_afterwards(store: Store) -> None:
    with hold(store, _give_up):
        assert store.keys() == [LEASE]
    assert store.keys() == []


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
def test_no_lease_is_left_by_an_exception(tmp_path: Path, end: type[BaseException]) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(end), hold(store, _give_up):
        raise end
    assert store.keys() == []


def test_the_lease_names_neither_the_machine_nor_a_time(tmp_path: Path) -> None:
    with hold(Store(str(tmp_path)), _give_up):
        record = json.loads((tmp_path / LEASE).read_bytes())
    assert set(record) == {"token", "host", "pid", "started", "beat", "note"}
    assert os.uname().nodename not in str(record)
    assert record["started"] < 0.9 * time.time()  # since the machine's start


def test_who_waits_hears_what_the_first_is_doing(store: Store, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(WaitedError, match=r"^unit 12 of 42$"), hold(store, _give_up):
        pass
    assert store.keys() == [LEASE]  # the holder's, who goes on
    assert holder.poll() is None


def test_a_killed_holder_is_taken_over_at_once(store: Store, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)  # nobody waits for it: it stays a zombie
    while Path(f"/proc/{holder.pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    with hold(store, _give_up, beat=BEAT):
        pass
    assert store.keys() == []


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with hold(store, _give_up):
        record = json.loads(store.read_bytes(LEASE))
    store.publish(LEASE, json.dumps(record | {"started": record["started"] - 60}).encode())
    with hold(store, _give_up, beat=BEAT):
        pass
    assert store.keys() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil does not read /proc")
def test_a_clock_that_is_set_makes_no_holder_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With psutil before 7.1 who waited took a living holder for dead: it remembers when the machine was started."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")

    def set_clock(started: int) -> None:
        (proc / "stat").write_text(f"btime {started}\n")

    clocks = iter((1_700_000_000, 1_700_003_600, 1_699_990_000))

    def wait(note: str) -> None:
        try:
            set_clock(next(clocks))
        except StopIteration:
            raise WaitedError from None

    wait("")
    monkeypatch.setattr("psutil.PROCFS_PATH", str(proc))
    store = Store(str(tmp_path / "place"))
    with hold(store, _give_up), pytest.raises(WaitedError), hold(store, wait, beat=BEAT):
        pass


def test_a_frozen_holder_is_taken_over_and_notices(store: Store, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGSTOP)
    notes: list[str] = []
    with hold(store, notes.append, beat=BEAT, patience=0.5):
        assert set(notes) == {"unit 12 of 42"}
        assert len(notes) > 1
        holder.send_signal(signal.SIGCONT)
        assert holder.communicate(timeout=600)[0] == "lost\n"
        assert store.keys() == [LEASE]  # it left the lease to its new owner
    assert holder.returncode == 0
    assert store.keys() == []


def test_the_dead_of_another_machine_are_given_up_by_ones_own_clock(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with hold(store, _give_up):
        record = json.loads(store.read_bytes(LEASE))
    store.publish(LEASE, json.dumps(record | {"host": "elsewhere", "pid": 2**22 + 1}).encode())
    notes: list[str] = []
    start = time.monotonic()
    with hold(store, notes.append, beat=BEAT, patience=0.4):
        assert time.monotonic() - start > 0.4
    assert notes


def test_who_beats_is_waited_for_beyond_all_patience(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    beats = iter(range(50))

    def beat(note: str) -> None:
        try:
            record = {"token": "x", "host": "elsewhere", "pid": 1, "started": 1.0, "beat": next(beats)}
        except StopIteration:
            raise WaitedError from None
        store.publish(LEASE, json.dumps(record).encode())

    store.publish(LEASE, b"{}")
    with pytest.raises(WaitedError), hold(store, beat, beat=0.01, patience=0.1):
        pass


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff\x00", b'{"token": 1}'])
def test_junk_in_its_place_is_waited_for_and_replaced(tmp_path: Path, junk: bytes) -> None:
    store = Store(str(tmp_path))
    store.publish(LEASE, junk)
    notes: list[str] = []
    with hold(store, notes.append, beat=0.02, patience=0.1):
        assert set(notes) == {""}
    assert store.keys() == []


def test_notes_of_others_cannot_command_a_terminal(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with hold(store, _give_up, beat=0.02) as lease:
        lease.note("\x1b[2J\nunit 3" + "!" * 1000)
        while b"unit 3" not in store.read_bytes(LEASE):
            time.sleep(0.01)
        with pytest.raises(WaitedError, match=r"^\[2Junit 3!{100,200}$"), hold(store, _give_up):
            pass


def test_runs_take_turns(store: Store) -> None:
    """Several at once: each gets the lease, never two, and nothing is left."""
    inside = 0
    most = 0
    heard: list[str] = []

    def work(_: int) -> None:
        nonlocal inside, most
        with hold(store, heard.append, beat=0.05) as lease:
            inside += 1
            most = max(most, inside)
            lease.note("busy")
            end = time.monotonic() + 120
            while "busy" not in heard and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert "busy" in heard
    assert store.keys() == []


def test_of_several_that_take_over_one_wins(store: Store, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    lost: list[bool] = []
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        with hold(store, lambda note: None, beat=0.3) as lease:
            inside += 1
            most = max(most, inside)
            time.sleep(0.2)
            lost.append(lease.is_lost())
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert lost == [False] * 4
    assert store.keys() == []


def test_trouble_with_the_store_spares_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Store, key: str, data: bytes) -> None:
        raise UserError("S3 failed")

    store = Store(str(tmp_path))
    with hold(store, _give_up, beat=0.01) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "publish", refused)
            time.sleep(0.1)
        before = store.read_bytes(LEASE)
        while store.read_bytes(LEASE) == before:
            time.sleep(0.01)
        assert not lease.is_lost()
    assert store.keys() == []


def test_leases_of_the_dead_are_freed(store: Store, holder: subprocess.Popen[str]) -> None:
    assert free_stale(store, patience=20 * BEAT) == []  # it beats
    holder.kill()
    holder.wait()

    def impatient(seconds: float) -> None:
        raise AssertionError("the dead of this machine need no patience")

    assert free_stale(store, patience=3600, sleep=impatient) == [LEASE]
    assert not store.exists(LEASE)
    assert free_stale(store, patience=0) == []


def test_leases_that_do_not_change_are_freed(tmp_path: Path) -> None:
    place = Store(str(tmp_path))
    for key in ("a/lease.json", "b/lease.json", "b/other.json"):
        place.publish(key, b'{"token": "x", "host": "elsewhere", "pid": 1, "started": 1.0, "beat": 3}')

    def beat(seconds: float) -> None:
        place.publish("b/lease.json", b'{"token": "x", "host": "elsewhere", "pid": 1, "started": 1.0, "beat": 4}')

    assert free_stale(place, patience=60, sleep=beat) == ["a/lease.json"]
    assert place.keys("") == ["b/lease.json", "b/other.json"]
