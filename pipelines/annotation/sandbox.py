"""Work on inputs that nobody vouches for, in a process of its own: what crashes or hangs there costs one input.

The process is kept from one batch to the next. It ends with its parent, whatever ends that.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

from pipelines.errors import UserError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

BEGUN: Final = "begun"
"""What work yields before it does with an input what may crash or hang: its time runs from here, by a timer of the
system that ends the process whatever code is running, and whether or not the parent lives.
"""
_READY: Final = "ready"
_END: Final = "end"
_START_SECONDS: Final = 120.0
_STARTS: Final = 3
"""Times that it is tried: one that is killed meanwhile may have been so by chance."""
_PROGRAM: Final = "from pipelines.annotation.sandbox import serve; serve()"


@dataclass(frozen=True)
class Died:
    """Instead of a result: the process died of this input, twice, the second time alone with it."""

    reason: Literal["crashed", "timeout"]
    message: str


@dataclass(frozen=True)
class _Raised:
    error: Exception


class Sandbox(Generic[Shared, Item, Result]):
    """Runs `work(shared, items)`, which yields `BEGUN` and then a result for each item, in order.

    `seconds` is the time that one item may take from `BEGUN` on. What work raises is raised here.
    `work` and `shared` travel by pickle, as do items and results.
    """

    def __init__(
        self, work: Callable[[Shared, Sequence[Item]], Iterator[Result | str]], shared: Shared, seconds: float
    ) -> None:
        self._task = work, shared, seconds
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._cause = Died("crashed", "")

    def run(self, items: Sequence[Item]) -> Iterator[Result | Died]:
        """A result for every item, in order; the process is made anew whenever it died.

        Raises:
            UserError: it could not be started, however often it was tried.
        """
        done = 0
        while done < len(items):
            for result in self._attempt(items[done:]):
                yield result
                done += 1
            if done < len(items):
                # It may have died of its age, or by a hand from outside: the item gets a process for itself.
                alone: list[Result] = list(self._attempt(items[done : done + 1]))
                yield alone[0] if alone else self._cause
                done += 1

    def close(self) -> None:
        """Ends the process; the next `run` starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _attempt(self, items: Sequence[Item]) -> Iterator[Result]:
        """Results until the process dies, or all of them."""
        connection = self._sent(items)
        whole = False
        try:
            for _ in items:
                event = self._next(connection)
                if isinstance(event, Died):
                    self._cause = event
                    return
                if isinstance(event, _Raised):
                    whole = True  # it waits for the next items
                    raise event.error
                yield event
            whole = self._next(connection) == _END
        finally:
            if not whole:
                self.close()

    def _next(self, connection: "Connection[Any, Any]") -> Any:
        try:
            return connection.recv()
        except (EOFError, OSError):
            return self._death()

    def _sent(self, items: Sequence[Item]) -> "Connection[Any, Any]":
        if self._connection is not None:
            with suppress(OSError):  # it was killed while it had nothing to do
                self._connection.send(items)
                return self._connection
            self.close()
        connection = self._started()
        connection.send(items)
        return connection

    def _started(self) -> "Connection[Any, Any]":
        for _ in range(_STARTS):
            connection = self._start()
            if connection is not None:
                return connection
            death = self._death()
            self.close()
        raise UserError(
            f"the process that looks at pictures could not be started: {death.message}, {_STARTS} times, perhaps for "
            "want of memory; what is finished is kept: run again"
        )

    def _start(self) -> "Connection[Any, Any] | None":
        ours, theirs = Pipe()
        # With -P Python imports nothing from the folder of the call, where somebody's pictures may lie, and more.
        path = os.pathsep.join(str(Path(folder or ".").absolute()) for folder in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is the parent's to answer
        )
        theirs.close()
        self._connection = ours
        with suppress(EOFError, OSError):
            ours.send(self._task)
            if ours.poll(_START_SECONDS) and ours.recv() == _READY:
                return ours
        return None

    def _death(self) -> Died:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return Died("crashed", "it does not answer")
        if code == -signal.SIGALRM:
            return Died("timeout", f"not done after {self._seconds:g} seconds")
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        if code == -signal.SIGKILL:  # which is how Linux takes memory back
            how += " (memory may be short)"
        return Died("crashed", how)


def serve() -> None:
    """The process's own side; its argument is the descriptor of its connection."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A parent may have had other plans for the timer's signal, which a child inherits.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    try:
        work, shared, seconds = connection.recv()
        connection.send(_READY)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent was stopped before it had any work
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # decoders complain there of every damaged picture
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                _answer(connection, work, shared, seconds, connection.recv())


def _answer(connection: "Connection[Any, Any]", work: Any, shared: Any, seconds: float, items: Any) -> None:
    try:
        for event in work(shared, items):
            if event is BEGUN:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            else:
                signal.setitimer(signal.ITIMER_REAL, 0)
                connection.send(event)
        connection.send(_END)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(_Raised(_portable(error)))


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, to see whether it can travel
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
