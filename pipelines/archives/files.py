"""Plain files, read ahead: a bucket answers late, and a disk has to seek."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from pipelines.archives.inputs import MISSING, Input, unopened, unusable
from pipelines.archives.patience import Content, Patience
from pipelines.decoding import Undecodable
from pipelines.errors import UserError
from pipelines.outages import MissingError, OutageError
from pipelines.storage import Store

AHEAD: Final = 8
"""Files that are on their way while one is looked at: a core looks at some 60 a second, a bucket takes 100 ms."""
LARGEST: Final = 8 << 20
"""Bytes of a file that is read ahead; a larger one is read when it is wanted, so that few are in memory."""


def read_files(
    files: Iterable[tuple[Input, Store, str]], limit: int, patience: Patience
) -> Iterator[tuple[Input, Content]]:
    """Each input with its bytes, or with why there are none, given its folder and its name there.

    Raises:
        OSError, OutageError: trouble that may pass, at the input that has it.
    """
    waiting: deque[tuple[Input, Callable[[], Content]]] = deque()
    for item, store, key in files:
        waiting.append((item, _begun(item, store, key, limit)))
        if len(waiting) > AHEAD:
            first, content = waiting.popleft()
            yield first, patience.read(content)
    for item, content in waiting:
        yield item, patience.read(content)


def _begun(item: Input, store: Store, key: str, limit: int) -> Callable[[], Content]:
    """Begins to read a file, of which the size may be unknown (0) or no longer true; what it returns ends it."""
    if problem := unusable(item, limit):
        content: Content = problem
        return lambda: content
    later = partial(_explained, partial(_read, store, key, item.size, limit))
    if item.size > LARGEST:
        return later
    most = min(item.size or LARGEST, limit) + 1
    try:
        if store.local_path() is not None and store.version(key) is None:
            return later  # a pipe would wait for ever
        begun = store.reading(key, most)
    except (OSError, UserError):
        return later  # if it is no better then, it says what is wrong

    def ended() -> Content:
        data = begun()
        if len(data) == most:
            return _read(store, key, most, limit)  # all of it at once: it may have been replaced meanwhile
        return data or _without_bytes(store, key)

    return partial(_explained, ended)


def _read(store: Store, key: str, expected: int, limit: int) -> Content:
    """All of a file of about so many bytes; memory is asked for before a byte is read."""
    if store.local_path() is not None and store.version(key) is None:
        return _without_bytes(store, key)
    with store.open(key) as file:
        data = file.read(min(expected, limit) + 1)
        if len(data) > expected:
            data += file.read(limit + 1 - len(data))
    if len(data) > limit:
        return Undecodable("too_large", f"the limit is {limit} bytes")
    return data or _without_bytes(store, key)


def _without_bytes(store: Store, key: str) -> Content:
    """Of an empty file, or of what is none: on S3 a folder reads as an empty file."""
    return b"" if store.version(key) is not None else MISSING


def _explained(read: Callable[[], Content]) -> Content:
    try:
        return read()
    except OutageError:
        raise
    except MissingError:
        return MISSING
    except UserError as error:
        return unopened(error)
