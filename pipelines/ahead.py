"""Small reads that are on their way while what came before them is worked on: a bucket answers late."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

Result = TypeVar("Result")

AHEAD: Final = 4
"""A photo takes a core some 20 ms to decode, a bucket 60 ms to send."""


def begun(reads: Iterable[Callable[[], Result]]) -> Generator[Callable[[], Result], None, None]:
    """Each read, in order, as what waits for its result, or raises its error; up to `AHEAD` more have begun then."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(AHEAD, "reads-ahead")
    try:
        for read in reads:
            waiting.append(pool.submit(read))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result
        while waiting:
            yield waiting.popleft().result
    finally:
        pool.shutdown(cancel_futures=True)
