"""What tests do without, since it takes a second of a core each time and is always the same.

`tests.pipelines.annotation.test_sandbox` and `tests.pipelines.detection.test_detection`, and whatever tests start as
processes of their own, have it as users do.
"""

import hashlib
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.forkserver import get_inherited_fds
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeVar

import pytest
from filelock import FileLock

from pipelines.annotation.sandbox import serve
from tests.factories import forked

Result = TypeVar("Result")


class _Fork:
    """What `pipelines.annotation.sandbox` asks of a `subprocess.Popen`: a fork of a process that has imported what
    sandboxes do."""

    def __init__(self, command: Sequence[str], **_: object) -> None:
        connection: Connection[Any, Any] = Connection(os.dup(int(command[-1])))
        if get_inherited_fds() is None:
            self._process: Any = forked(_served, connection)
        else:  # of a run that a test kills, which is such a fork itself
            fork = multiprocessing.get_context("fork")
            self._process = fork.Process(target=_served_alone, args=(connection,), daemon=True)
        self._process.start()
        connection.close()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code: int | None = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return code


FORKING: Final = SimpleNamespace(Popen=_Fork, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
"""For `subprocess` there."""


def _served(connection: "Connection[Any, Any]") -> None:
    sys.argv = ["", str(connection.fileno())]
    serve()


def _served_alone(connection: "Connection[Any, Any]") -> None:
    """Without what the run has open: its end of the connection, which tells that it died, and its leases."""
    ours = connection.fileno()
    os.closerange(3, ours)
    os.closerange(ours + 1, os.sysconf("SC_OPEN_MAX"))
    _served(connection)


def remembered(work: Callable[..., Result]) -> Callable[..., Result]:
    """What `work` gave the last time for the same; for what is never changed afterwards."""
    known: dict[bytes, Result] = {}

    def quick(*asked: object, **named: object) -> Result:
        key = hashlib.sha256(pickle.dumps((asked, named))).digest()
        if key not in known:
            known[key] = work(*asked, **named)
        return known[key]

    return quick


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is filled by one of the processes in which tests run side by side, and found by the others."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = Path(f"{folder}.part")
            making.mkdir(exist_ok=True)  # where another failed, this one fails, too
            make(making)
            making.rename(folder)
    return folder
