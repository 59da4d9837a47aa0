"""Progress that a person can watch: a bar on a terminal, a line now and then in a log."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Final, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from pipelines.settings import TrainSettings
from pipelines.showable import showable

LOG_SECONDS: Final = 10.0

Update = Callable[..., None]
"""`update(done, total)`, or `update(done, total, what)`; a total of 0 is one that is not known yet."""


class _Watched:
    """stderr; that nobody sees it any more, as where a log's disk is full or a terminal was closed, ends no work."""

    def __init__(self) -> None:
        self._stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def write(self, text: str) -> None:
        self._tried(lambda: self._stderr.write(text))

    def flush(self) -> None:
        self._tried(self._stderr.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stderr, name)

    def _tried(self, say: Callable[[], object]) -> None:
        try:
            say()
        except OSError:  # Python would try again at its end, and exit with a code of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stderr.fileno())


def _watched() -> IO[str]:
    return cast(IO[str], _Watched())


def say(text: str) -> None:
    """A line for the person who watches, on stderr: stdout belongs to results."""
    Console(file=_watched(), highlight=False, soft_wrap=True).print(showable(text), markup=False)


@contextmanager
def progress(what: str) -> Iterator[Update]:
    """Shows how far a step is. The step need not know whether anybody watches."""
    if sys.stderr.isatty():
        with _bar(what) as update:
            yield update
    else:
        with _lines(what) as update:
            yield update


@contextmanager
def _bar(what: str) -> Iterator[Update]:
    whole = Column(no_wrap=True)  # on a narrow terminal it is the bar that shrinks, not what a person reads
    columns = (
        TextColumn("{task.description:<20}", markup=False),
        BarColumn(),
        MofNCompleteColumn(table_column=whole),
        TimeElapsedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(file=_watched())) as bars:
        task = bars.add_task(what, total=None, note="")

        def update(done: int, total: int, text: str | None = None, note: str = "") -> None:
            bars.update(task, completed=done, total=total or None, description=text or what, note=note)

        yield update


@contextmanager
def _lines(what: str) -> Iterator[Update]:
    began = last = time.monotonic()
    latest = ""

    def update(done: int, total: int, text: str | None = None, note: str = "") -> None:
        nonlocal last, latest
        latest = f"{text or what}: {done}" + (f" of {total}" if total else "") + (f"  {note}" if note else "")
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            say(latest)

    yield update
    say(f"{latest or what} ({time.monotonic() - began:.1f} s)")


@contextmanager
def epoch_progress(
    settings: TrainSettings,
) -> Iterator[tuple[Callable[[Mapping[str, float]], None], Callable[[str], None]]]:
    """Shows the epochs of a training, with loss and validation error; and what another does that is waited for."""
    with progress("training, epochs") as update:
        update(0, settings.epochs)

        def epoch(metrics: Mapping[str, float]) -> None:
            error = metrics.get("val_nrmse_ip_stage_3")
            note = f"loss {metrics['loss']:.4f}" + (f"  val NRMSE IP {error:.2%}" if error else "")
            update(int(metrics["epoch"]), settings.epochs, note=note)

        def wait(note: str) -> None:
            update(0, settings.epochs, f"waiting for another run that trains this{note and f', {note}'}; epochs")

        yield epoch, wait
