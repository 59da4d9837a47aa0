"""Sandboxes of tests, as forks of a process that has imported what they import: a test would start Python twice for
each run, a second of a core each time. `tests.pipelines.annotation.test_sandbox`, and whatever tests start as
processes of their own, start them as users do."""

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, Final

from pipelines.annotation.sandbox import serve
from tests.factories import forked


class _Fork:
    """What `pipelines.annotation.sandbox` asks of a `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], **_: object) -> None:
        connection: Connection[Any, Any] = Connection(os.dup(int(command[-1])))
        self._process = forked(_served, connection)
        self._process.start()
        connection.close()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        return self._process.exitcode


FORKING: Final = SimpleNamespace(Popen=_Fork, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
"""For `subprocess` there."""


def _served(connection: "Connection[Any, Any]") -> None:
    sys.argv = ["", str(connection.fileno())]
    serve()
