"""Two runs into the same place: one works, the other says what it waits for, or takes over what was left.

The lease is a small object beside the data. It spares double work and guards nothing: what runs write is
the same and goes in whole, so that even two holders at once would do no harm. What is not the same (the next one may
have found more to do) is for who still has the lease.
"""

import hashlib
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import UserError
from pipelines.outages import MissingError
from pipelines.storage import Store

LEASE: Final = "lease.json"
"""The name of every lease."""
BEAT_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 60.0
"""A holder that was silent for so long is given up. Longer than the retries of one request to S3."""

_NOTE_LENGTH: Final = 200
_SAME_START_SECONDS: Final = 0.5


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)

    token: str
    host: str
    """A digest: which processes can see the holder, without their machine's name."""
    pid: int
    started: float
    """Seconds from the machine's start to the process's: a process id alone is used again."""
    beat: int = 0
    note: str = Field(default="", max_length=_NOTE_LENGTH)


class Lease:
    """One's right to work at a place, renewed by a thread. Made by `hold`."""

    def __init__(self, store: Store) -> None:
        process = psutil.Process()
        self._store = store
        self._holder = _Record(
            token=secrets.token_hex(8), host=_host(), pid=process.pid, started=_seconds_after_boot(process)
        )
        self._beats = 0
        self._note = ""
        self._lost = False

    def is_lost(self) -> bool:
        """Asks whether another run took over, because this one was silent too long. It may go on: see above."""
        return self._lost or not self._is_mine()

    def note(self, text: str) -> None:
        """Tells waiting runs, from the next beat on, what this one is doing."""
        self._note = text[:_NOTE_LENGTH]

    def _acquire(self, on_wait: Callable[[str], None], pause: float, patience: float) -> None:
        seen = None
        since = 0.0
        while True:
            data = self._read()
            if data is None:
                if self._store.create(LEASE, self._bytes()):
                    return
                continue
            if data != seen:
                seen, since = data, time.monotonic()
            holder = _parsed(data)
            if (holder and _is_dead(holder)) or time.monotonic() - since > patience:
                self._store.publish(LEASE, self._bytes())
                time.sleep(pause)  # another waiter may be doing the same: the last one to write wins
                if self._is_mine():
                    return
            else:
                on_wait(holder.note if holder else "")
                time.sleep(pause)

    def _beat(self) -> None:
        """Renews the lease, or notices that it went to another. A beat that fails is left to the next."""
        with suppress(OSError, UserError):
            if self._is_mine():
                self._beats += 1
                self._store.publish(LEASE, self._bytes())
            else:
                self._lost = True

    def _beat_until(self, stopped: threading.Event, beat: float) -> None:
        while not self._lost and not stopped.wait(beat):
            self._beat()

    def _release(self) -> None:
        # What cannot be removed is silent from now on; the error that ended the work must not be hidden.
        with suppress(OSError, UserError):
            if self._is_mine():
                self._store.delete(LEASE)

    def _is_mine(self) -> bool:
        data = self._read()
        found = _parsed(data) if data is not None else None
        return found is not None and found.token == self._holder.token

    def _read(self) -> bytes | None:
        return _content(self._store, LEASE)

    def _bytes(self) -> bytes:
        record = self._holder.model_copy(update={"beat": self._beats, "note": self._note})
        return record.model_dump_json().encode()


@contextmanager
def hold(
    store: Store,
    on_wait: Callable[[str], None],
    beat: float = BEAT_SECONDS,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[Lease]:
    """Waits for the lease of a place, keeps it during the block and removes it afterwards, whatever happens.

    While another run holds it, `on_wait` gets that run's note each second. A holder that died on this
    machine is taken over at once; one elsewhere, or a frozen one, when its lease did not change for
    `patience` seconds of this process's own clock. `beat` is the time between two renewals.
    """
    lease = Lease(store)
    stopped = threading.Event()
    thread = threading.Thread(target=lease._beat_until, args=(stopped, beat), daemon=True)
    try:
        lease._acquire(on_wait, min(1.0, beat), patience)
        thread.start()
        yield lease
    finally:
        stopped.set()
        if thread.ident is not None:
            thread.join()  # a late beat would bring the lease back
        lease._release()


def free_stale(store: Store, patience: float, sleep: Callable[[float], None] = time.sleep) -> list[str]:
    """Removes the leases below a place whose holders are dead: here, or silent for `patience` seconds; their keys.

    A run would take them over by itself; until then they look as if somebody were at work.
    """

    def seen() -> dict[str, bytes | None]:
        return {key: _content(store, key) for key in store.keys("") if key.rpartition("/")[2] == LEASE}

    first = seen()
    known = {key: _parsed(data) for key, data in first.items() if data is not None}
    dead = {key for key, holder in known.items() if holder and _is_dead(holder)}
    if set(known) - dead:
        sleep(patience)
    freed = [key for key, data in seen().items() if key in known and data == first[key]]
    for key in freed:
        store.delete(key)
    return freed


def _content(store: Store, key: str) -> bytes | None:
    try:
        return store.read_bytes(key)
    except MissingError:
        return None


def _parsed(data: bytes) -> _Record | None:
    """The record, or None for what no run of this version wrote."""
    try:
        record = _Record.model_validate_json(data)
    except ValidationError:
        return None
    # Another run's text goes to a terminal.
    return record.model_copy(update={"note": "".join(filter(str.isprintable, record.note))})


def _host() -> str:
    """The same for processes that can see each other: containers have process ids of their own."""
    parts = [platform.node()]
    with suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text("ascii"),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _is_dead(holder: _Record) -> bool:
    if holder.host != _host():
        return False
    try:
        process = psutil.Process(holder.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        return abs(_seconds_after_boot(process) - holder.started) > _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _seconds_after_boot(process: psutil.Process) -> float:
    # Both are guesses from the wall clock, which may be set; their difference is not.
    return float(process.create_time() - psutil.boot_time())
