"""A Ray cluster on loopback, started as an operator starts one, whose parts can be killed."""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.servers import free_ports, listens, wait_for

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]


class Cluster:
    """A head, and the nodes beside it. `address` is for `RAY_ADDRESS`."""

    def __init__(self, folder: str, head_cpus: int) -> None:
        self.folder = Path(folder)
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        head = ["--head", "--port", str(port), "--temp-dir", folder, "--include-dashboard", "false"]
        self._head = _started([*head, "--num-cpus", str(head_cpus)])
        self.nodes: list[subprocess.Popen[bytes]] = []
        wait_for(lambda: listens(port))

    def add_node(self, cpus: int = 1) -> None:
        """Returns when it is up: of two that start at once on one machine, one may take the other's ports."""
        end = time.monotonic() + 120
        while True:
            node = _started(["--address", self.address, "--num-cpus", str(cpus)])
            while node.poll() is None and not _has_raylet(node):
                assert time.monotonic() < end, "the node did not start"
                time.sleep(0.1)
            time.sleep(1)
            if node.poll() is None:
                self.nodes.append(node)
                return

    def kill_node(self, index: int) -> None:
        """As when its machine loses power."""
        kill_tree(self.nodes.pop(index))

    def workers(self) -> list[psutil.Process]:
        """The processes that do Ray's tasks, on all nodes."""
        found = []
        for node in (self._head, *self.nodes):
            with_children = psutil.Process(node.pid).children(recursive=True)
            found += [process for process in with_children if is_worker(process)]
        return found

    def close(self) -> None:
        for node in (*self.nodes, self._head):
            kill_tree(node)


@contextmanager
def cluster(head_cpus: int) -> Iterator[Cluster]:
    """Far from the local Ray that other tests share; the caller sets `RAY_AUTH_MODE=disabled` and `RAY_ADDRESS`."""
    # Sockets' paths must be short, and what was killed may still write.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = Cluster(folder, head_cpus)
        try:
            yield made
        finally:
            made.close()


def kill_one(processes: Sequence[psutil.Process], moments: random.Random) -> bool:
    """Kills one of these; False where none is left."""
    alive = [process for process in processes if process.is_running()]
    if alive:
        moments.choice(alive).kill()
    return bool(alive)


def _started(arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    command = [*RAY, "--node-ip-address", "127.0.0.1", *arguments]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def _has_raylet(node: "subprocess.Popen[bytes]") -> bool:
    try:
        return any(child.name() == "raylet" for child in psutil.Process(node.pid).children(recursive=True))
    except psutil.Error:
        return False


def is_worker(process: psutil.Process) -> bool:
    """Whether it is a Ray worker that is at a unit."""
    try:
        return bool(process.cmdline()[:1] == ["ray::_run_one"])
    except psutil.Error:
        return False


def kill_tree(root: "subprocess.Popen[bytes]") -> None:
    """A process and all that it started, as when their machine loses power."""
    # Asked to end, it would take half a minute. All are stopped first, parents before their children: none must see
    # another one die, and tell.
    processes: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        processes = [psutil.Process(root.pid)]
        processes[0].suspend()
        processes += processes[0].children(recursive=True)
    for end in (psutil.Process.suspend, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                end(process)
    root.wait()
