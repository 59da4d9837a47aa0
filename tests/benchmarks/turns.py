"""Jobs that run by turns of a second or two, so that whatever else a machine does slows all of them alike."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final

import psutil

TURN_SECONDS: Final = 2.0

Prepared = Callable[[], object]
"""What is timed: the work, of which everything that may precede it is done."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something to be timed, in a process of its own and those that it starts, on some of the machine's cores."""

    cores: frozenset[int]
    prepare: Callable[[], Prepared]
    """Is sent to that process: a function of a module, or a partial of one."""


def by_turns(jobs: Mapping[str, Job]) -> dict[str, float]:
    """The seconds that each job ran for, start to end, without those in which it was stopped for others.

    Raises:
        RuntimeError: a job failed; it has printed why.
    """
    started: dict[str, _Started] = {}
    try:
        for name, job in jobs.items():
            started[name] = _Started(name, job)
        while left := [name for name, job in started.items() if not job.ended]:
            for name in left:
                started[name].take_turn()
    finally:
        _end(started.values())
    return {name: job.seconds for name, job in started.items()}


class _Started:
    def __init__(self, name: str, job: Job) -> None:
        self._name = name
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(job, theirs))
        self._process.start()
        theirs.close()
        self.seconds = 0.0
        self.ended = False
        self._hear()  # that it is prepared
        self._stopped = self._stop()
        self._connection.send(None)

    def take_turn(self) -> None:
        began = time.perf_counter()
        self.go_on()
        self.ended = self._connection.poll(TURN_SECONDS)
        self._stopped = self._stop()
        self.seconds += time.perf_counter() - began
        if self.ended:
            self._hear()

    def go_on(self) -> None:
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def join(self) -> None:
        self._process.join()

    def _hear(self) -> None:
        try:
            self._connection.recv()
        except EOFError as error:
            raise RuntimeError(f"{self._name} failed") from error

    def _stop(self) -> list[psutil.Process]:
        # Parents before their children: a stopped one starts no more of them.
        stopped: dict[int, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            root.suspend()
            stopped[root.pid] = root
            while new := [child for child in root.children(recursive=True) if child.pid not in stopped]:
                for child in new:
                    with suppress(psutil.NoSuchProcess):
                        child.suspend()
                    stopped[child.pid] = child
        return list(stopped.values())


def _run(job: Job, connection: Connection) -> None:
    os.sched_setaffinity(0, job.cores)
    work = job.prepare()
    connection.send(None)
    connection.recv()
    work()
    connection.send(None)


def _end(started: Iterable[_Started]) -> None:
    # What a job that ended does to go away would take time from the others; so it goes away now.
    for job in started:
        job.go_on()
    for job in started:
        job.join()
