"""Small files of a bucket, on their way while what came before them is worked on: it answers late."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from pipelines.archives.names import ARCHIVE_SUFFIXES, has_suffix
from pipelines.storage import Store

Result = TypeVar("Result")

AHEAD: Final = 4
"""A photo takes a core some 20 ms to decode, a bucket 60 ms to send."""


def begun(reads: Iterable[tuple[str, Callable[[], Result]]]) -> Generator[Callable[[], Result], None, None]:
    """Each read, in order, as what waits for its result, or raises its error; up to `AHEAD` more have begun then.

    With each comes the URL of the folder or archive that it reads. On a disk it begins when it is asked for: handing
    it to a thread takes longer. So it does in an archive, which has one reader at a time.
    """
    waiting: deque[Callable[[], Result]] = deque()
    pool = ThreadPoolExecutor(AHEAD, "reads-ahead")
    try:
        for url, read in reads:
            waiting.append(pool.submit(read).result if _answers_late(url) else read)
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _answers_late(url: str) -> bool:
    return Store(url).local_path() is None and not has_suffix(url, ARCHIVE_SUFFIXES)
