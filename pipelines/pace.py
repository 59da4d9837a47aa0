"""How long models take, side by side: by turns on the same core in the same minutes, so that what else the machine
does slows all of them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.memory import keep_memory

ROUNDS: Final = 7


def race(contestants: Mapping[str, Callable[[], object]]) -> dict[str, NDArray[np.float64]]:
    """Name → seconds of each of `ROUNDS` rounds, (ROUNDS,); a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(taken[1:]) for name, taken in seconds.items()}


@contextmanager
def one_core() -> Iterator[None]:
    """torch uses one core within."""
    keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
