"""What a training tells while it goes on, and how a person stops it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pipelines.dataset.loader import Loader
from pipelines.settings import TrainSettings
from pipelines.training.examples import due, examples
from pipelines.training.state import TrainState
from pipelines.training.validation import EpochMetrics


class Epoch(NamedTuple):
    """What is told of an epoch that is done."""

    metrics: EpochMetrics
    examples: bytes | None
    """JPEG of validation faces, after some epochs"""


OnEpoch = Callable[[Epoch], None]
"""What is called with each epoch that is done."""


def epoch_done(state: TrainState, settings: TrainSettings, val: Loader) -> Epoch:
    """What there is to tell of the epoch that `state` has just ended."""
    return Epoch(state.history[-1], examples(state.averaged, val) if due(state.epoch, settings.epochs) else None)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C becomes a wish that is asked for, so that no update is cut in half; a second one ends at once."""
    wished = threading.Event()

    def wish(number: int, frame: object) -> None:
        if wished.is_set():
            raise KeyboardInterrupt
        wished.set()

    if threading.current_thread() is not threading.main_thread():
        yield wished.is_set
        return
    before = signal.signal(signal.SIGINT, wish)
    try:
        yield wished.is_set
    finally:
        signal.signal(signal.SIGINT, before)
