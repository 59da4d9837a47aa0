"""Servers on loopback, as processes of their own."""

import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx

_SERVERS: Final = range(20_000, 32_000)
"""Ports below those that Linux gives to connections as they begin, and above those of Ray's workers."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now, and that no connection gets before a server listens there."""
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.SystemRandom().sample(_SERVERS, len(_SERVERS)):
            if len(found) == count:
                break
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    assert len(found) == count, "too few free ports"
    return found


def wait_for(found: Callable[[], Any], seconds: float = 600) -> Any:
    """What `found` gives, as soon as it is something. The limit is for what never happens, not for slow machines."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)
    return value


def listens(port: int) -> bool:
    """Whether somebody answers there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the server says at `url` that it is; fails with the end of its log where it ended before."""

    def answers() -> bool:
        assert process.poll() is None, f"it did not start:\n{log.read_text(errors='replace')[-3000:]}"
        try:
            return httpx.get(url, verify=False, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answers)


@contextmanager
def serving(command: Sequence[str], environment: Mapping[str, str], folder: Path, health: str) -> Iterator[None]:
    """A server that works in `folder`, with its log there."""
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        wait_until_healthy(health, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
