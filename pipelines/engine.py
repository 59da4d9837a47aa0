"""The one way in which a long job's units are run: in this process, or on Ray.

A unit is deterministic and owns its outputs, so running it again is always right: Ray retries a unit
whose worker died, and a job that was killed runs what is not finished.
"""

import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Final, TypeVar

from pipelines.errors import UserError, disk_is_full

Shared = TypeVar("Shared")
Unit = TypeVar("Unit")
Result = TypeVar("Result")

UNIT_RETRIES: Final = 3
_PAUSE_SECONDS: Final = 0.2
_CONNECT_SECONDS: Final = 10.0
_SETTINGS: Final = b"\4"
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
"""How HTTP/2 begins, which Ray speaks: either side sends a frame of its settings (RFC 9113, 3.4)."""


def default_workers() -> int:
    """One worker for each core that this process may use, or whose time its container, or service, may take."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(int, _quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))]))


def _quotas(groups: Path, mounted: Path) -> Iterator[float]:
    """The cores' worth of time that Linux gives each control group that this process is in, where that is limited.

    In a container its own group is what is mounted, whatever it is called outside.
    """
    with suppress(OSError):  # it is no Linux
        for line in groups.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = mounted / "cpu" if controllers else mounted  # of version 1, or 2
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            own = Path(name.lstrip("/"))
            for folder in (top / each for each in (own, *own.parents)):
                with suppress(OSError, ValueError):  # no such group here, or "max"
                    quota, period = " ".join((folder / file).read_text() for file in files).split()
                    if int(quota) > 0:  # -1 is no limit
                        yield int(quota) / int(period)


def start_ray(workers: int) -> None:
    """Joins the cluster at `RAY_ADDRESS`, or starts a local Ray with `workers` CPUs. Repeatable.

    Raises:
        OutageError: no Ray listens at `RAY_ADDRESS`.
        UserError: this process was called with a name, or in a folder, that Ray cannot write down; or Ray does not
            come up in the time that it gives itself, or finds no space for its temporary files.
    """
    # Ray's defaults would report usage, print its workers' lines and wait two seconds for each poll.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A process of each training, for a warning of preempted nodes that this one does not ask for: it goes on from its
    # checkpoint.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # That a machine fell silent, as without power, it would see after seven minutes. Nodes take one ping a minute,
    # and hang up on who sends more.
    for name, milliseconds in (("time_ms", "75000"), ("timeout_ms", "30000")):
        os.environ.setdefault(f"RAY_grpc_client_keepalive_{name}", milliseconds)
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _require_listener(address)
    elif not _has_home():  # Ray would keep there what its processes know each other by
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    from ray.job_config import JobConfig

    job = JobConfig(_py_driver_sys_path=_OwnCode([str(Path(__file__).parents[1])]))
    local = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        with _ended_as_before():
            ray.init(address=address, job_config=job, log_to_driver=False, logging_level="error", **local)
    except UnicodeEncodeError as error:  # it keeps the command line and the working directory, as UTF-8
        encoding = sys.getfilesystemencoding()
        remedy = "rename it" if encoding == "utf-8" else f"names are read as {encoding} here, so set PYTHONUTF8=1"
        raise UserError(
            "Ray takes no name that is not valid UTF-8, neither in the call nor of the folder where it is made: "
            f"{remedy}, or do without Ray (--workers 1, of a training 0)"
        ) from error
    except ConnectionError:
        if address is None:
            raise
        raise _silent(address) from None
    except Exception as error:
        without_space = local and isinstance(error, RuntimeError | OSError)  # of a cluster it is something else
        if type(error) is not Exception and not without_space:
            raise
        raise UserError(
            f"Ray could not be started ({str(error).partition('. ')[0]}), perhaps since this machine does much else, "
            "or has no space for temporary files (TMPDIR); call again, or do without Ray "
            "(--workers 1, of a training 0)"
        ) from error


class _OwnCode(list[str]):
    """Where workers find this code. Ray adds the folder of the call, before all others: a file of somebody's pictures
    would be imported there, if it had the name of a module."""

    def extend(self, _: Iterable[str]) -> None:
        pass


def _has_home() -> bool:
    """Whether this user can write in a home: one of a container that has no account can not."""
    try:
        return os.access(Path.home(), os.W_OK)
    except RuntimeError:
        return False


@contextmanager
def _ended_as_before() -> Iterator[None]:
    """Keeps what SIGTERM does: Ray answers it with its stack, and aborts in the midst of what is cleaned up then; or,
    while it starts, with an exit of its own."""
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _require_listener(address: str) -> None:
    """Raises OutageError where no Ray listens at `host:port`, which Ray itself notices after many minutes."""
    place = re.fullmatch(r"\[?([^/\[\]]+)\]?:(\d+)", address)
    if place is None:
        return
    try:
        with socket.create_connection((place[1], int(place[2])), _CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(_GREETING)
                if connection.makefile("rb").read(4)[3:] != _SETTINGS:
                    raise ConnectionError
    except (OSError, ValueError):  # a name that is none is a ValueError
        raise _silent(address) from None


def _silent(address: str) -> UserError:
    from pipelines.outages import OutageError  # it brings in what S3 needs

    return OutageError(f"no Ray answers at {address}: start it, or correct or unset RAY_ADDRESS")


def in_a_thread(work: Callable[[], Result]) -> Future[Result]:
    """Runs it in a thread that the end of the process does not wait for."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def run_units(
    work: Callable[[Shared, Unit], Result], shared: Shared, units: Iterable[Unit], workers: int
) -> Iterator[Result]:
    """Yields `work(shared, unit)` for every unit, in the order in which units finish.

    `shared` is sent to each worker machine once. With one worker, or one unit, everything runs in this
    process. Units are taken as they are needed: memory is bounded by two of them a worker. A unit that fails with
    an `OSError`, as disks and networks do for a moment, is run again; any other exception of `work` ends the job.
    What the workers hold then, they do: `ray.cancel` of a task that ends meanwhile aborts this process
    (https://github.com/ray-project/ray/pull/54798).

    Raises:
        UserError: a unit's worker died, or failed with an `OSError`, and again each time it was retried; or Ray
            itself died.
        OSError: a unit found a disk full, each time.
    """
    left = iter(units)
    first = list(islice(left, 2))
    waiting = chain(first, left)
    if min(workers, len(first)) <= 1:
        yield from (_attempt(work, shared, unit) for unit in waiting)
        return
    start_ray(workers)
    import ray

    remote = ray.remote(num_cpus=1, max_retries=UNIT_RETRIES)(_run_one)
    reference = ray.put(shared)
    running: set[Future[Result]] = set()
    try:
        while True:
            running.update(
                remote.remote(work, reference, unit).future() for unit in islice(waiting, 2 * workers - len(running))
            )
            if not running:
                return
            # Not by `ray.wait`, which knows of no exception of a signal's but Ctrl-C's: a flow that was cancelled
            # failed, and began again.
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise UserError(
            f"a worker died {UNIT_RETRIES + 1} times at the same piece of work, perhaps for want of memory; "
            "what is finished is kept: lower --workers and run again"
        ) from error
    except ray.exceptions.LocalRayletDiedError as error:
        raise UserError(
            "Ray died on this machine, perhaps for want of memory; what is finished is kept: run again"
        ) from error


def _run_one(work: Callable[[Shared, Unit], Result], shared: Shared, unit: Unit) -> Result:
    import cv2

    cv2.setNumThreads(1)
    return _attempt(work, shared, unit)


def _attempt(work: Callable[[Shared, Unit], Result], shared: Shared, unit: Unit) -> Result:
    for retry in range(UNIT_RETRIES):
        with suppress(OSError):
            return work(shared, unit)
        time.sleep(_PAUSE_SECONDS * 4**retry)
    try:
        return work(shared, unit)
    except OSError as error:
        if disk_is_full(error):  # of temporary files: `Store` names its own
            raise
        raise UserError(
            f"{error}, {UNIT_RETRIES + 1} times at the same piece of work; "
            "finished units are kept: mend this and run again"
        ) from error
