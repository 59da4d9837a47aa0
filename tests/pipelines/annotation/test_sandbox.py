import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from pipelines.annotation import sandbox as station
from pipelines.annotation.sandbox import BEGUN, Died, Sandbox
from pipelines.errors import UserError
from pipelines.outages import OutageError


def doubled(mark: str, items: Sequence[str]) -> Iterator[str | tuple[str, int]]:
    """Each item with the process that did it; some do what pictures do to decoders."""
    for item in items:
        if item == "outage":
            raise OutageError("the bucket does not answer")
        yield BEGUN
        if item == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "exit":
            os._exit(3)
        if item == "hang":
            time.sleep(60)
        if item.startswith("once:") and not Path(item[5:]).exists():
            Path(item[5:]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield f"{mark}{item}", os.getpid()


@pytest.fixture(autouse=True)
def _by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here its process is started as users have it started (see `tests.quick`)."""
    monkeypatch.setattr(station, "subprocess", subprocess)


@pytest.fixture
def sandbox() -> Iterator[Sandbox[str, str, tuple[str, int]]]:
    made: Sandbox[str, str, tuple[str, int]] = Sandbox(doubled, ">", 1.5)
    yield made
    made.close()


Made = Sandbox[str, str, tuple[str, int]]


def test_results_come_in_order_from_one_other_process(sandbox: Made) -> None:
    first, second = list(sandbox.run(["a", "b", "c"])), list(sandbox.run(["d"]))
    assert [result[0] for result in first + second if isinstance(result, tuple)] == [">a", ">b", ">c", ">d"]
    processes = {result[1] for result in first + second if isinstance(result, tuple)}
    assert len(processes) == 1
    assert os.getpid() not in processes
    assert os.getpgid(*processes) != os.getpgrp(), "Ctrl-C is for the parent to answer"


@pytest.mark.parametrize(
    ("item", "reason", "message"),
    [
        ("segfault", "crashed", "killed by SIGSEGV"),
        ("exit", "crashed", "it ended with exit code 3"),
        ("hang", "timeout", "not done after 1.5 seconds"),
    ],
)
def test_what_kills_its_process_costs_only_itself(sandbox: Made, item: str, reason: str, message: str) -> None:
    for items in ([item, "b"], ["a", item, "b"], ["a", item], [item, item]):
        results = list(sandbox.run(items))
        assert len(results) == len(items)
        for asked, result in zip(items, results, strict=True):
            if asked == item:
                assert result == Died(reason, message)  # type: ignore[arg-type]
            else:
                assert isinstance(result, tuple)
                assert result[0] == f">{asked}"


def test_a_process_that_was_killed_by_chance_costs_nothing(sandbox: Made, tmp_path: Path) -> None:
    results = list(sandbox.run(["a", f"once:{tmp_path}/mark", "b"]))
    assert all(isinstance(result, tuple) for result in results)


def test_one_that_died_while_it_had_nothing_to_do_is_replaced(sandbox: Made) -> None:
    (first,) = sandbox.run(["a"])
    assert isinstance(first, tuple)
    os.kill(first[1], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first[1])], timeout=120)
    (second,) = sandbox.run(["a"])
    assert isinstance(second, tuple)
    assert second[1] != first[1]


def test_one_that_cannot_be_started_is_said(sandbox: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\necho >> {tmp_path}/starts\nkill -9 $$\n")
    (tmp_path / "python").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(tmp_path / "python"))
        with pytest.raises(UserError, match=r"started: killed by SIGKILL \(memory may be short\), 3 times"):
            list(sandbox.run(["a"]))
    assert (tmp_path / "starts").read_text() == "\n\n\n"
    assert [result[0] for result in sandbox.run(["a"]) if isinstance(result, tuple)] == [">a"]


def test_nothing_is_imported_from_the_folder_of_the_call(
    sandbox: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit('of an archive that somebody sent')\n")
    monkeypatch.chdir(tmp_path)
    assert [result[0] for result in sandbox.run(["a"]) if isinstance(result, tuple)] == [">a"]


def test_trouble_with_reading_is_raised_and_the_process_stays(sandbox: Made) -> None:
    with pytest.raises(OutageError, match="does not answer"):
        list(sandbox.run(["a", "outage", "b"]))
    (first,) = sandbox.run(["a"])
    with pytest.raises(UserError):
        list(sandbox.run(["outage"]))
    (second,) = sandbox.run(["a"])
    assert first == second


def test_a_run_that_is_left_half_way_leaves_no_results_for_the_next(sandbox: Made) -> None:
    left = sandbox.run(["a", "b", "c"])
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert [result[0] for result in sandbox.run(["x"]) if isinstance(result, tuple)] == [">x"]


@pytest.mark.parametrize("others", [signal.SIG_DFL, signal.SIG_IGN])
def test_the_process_ends_with_its_parent(others: signal.Handlers) -> None:
    """Also where the parent does not heed the signal of the watch."""
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        signal.signal(signal.SIGALRM, others)
        for result in Sandbox(doubled, ">", 0.5).run(["a", "hang"]):
            os.write(write, str(result[1] if isinstance(result, tuple) else 0).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    child = psutil.Process(int(os.read(read, 100)))
    os.waitpid(parent, 0)
    # It is busy with the second item until its own watch ends it, or the pipe that nobody reads.
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE or child.wait(120) is None


def test_the_process_that_looks_at_pictures_knows_no_network() -> None:
    """It would start seconds later, and take hundreds of megabytes more."""
    program = (
        "import sys, pipelines.annotation.sightings, pipelines.detection.blazeface; print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
