"""Plain files, read ahead: a bucket answers late, and a disk has to seek."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from pipelines.archives.inputs import PROBLEMS, Input, unopened, unusable
from pipelines.decoding import Undecodable
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.storage import Store

AHEAD: Final = 8
"""Files that are on their way while one is looked at: a core looks at some 60 a second, a bucket takes 100 ms."""
LARGEST: Final = 8 << 20
"""Bytes of a file that is read ahead; a larger one is read when it is wanted, so that few are in memory."""

Content = bytes | Undecodable


def read_files(files: Iterable[tuple[Input, Store, str]], limit: int) -> Iterator[tuple[Input, Content]]:
    """Each input with its bytes, or with why there are none, given its folder and its name there.

    Raises:
        OSError, OutageError: trouble that may pass, at the input that has it.
    """
    waiting: deque[tuple[Input, Callable[[], Content]]] = deque()
    for item, store, key in files:
        problem = unusable(item, limit)
        waiting.append((item, partial(_same, problem) if problem else _begun(store, key, item.size, limit)))
        if len(waiting) > AHEAD:
            first, content = waiting.popleft()
            yield first, content()
    for item, content in waiting:
        yield item, content()


def _begun(store: Store, key: str, listed: int, limit: int) -> Callable[[], Content]:
    """Begins to read a file of a size that may be unknown (0) or no longer true; what it returns ends it."""
    if listed > LARGEST:
        return partial(_explained, partial(_read, store, key, listed, limit))
    most = min(listed or LARGEST, limit) + 1
    begun: Callable[[], bytes] | None = None
    try:
        # A pipe would wait for ever.
        if store.local_path() is None or store.version(key) is not None:
            begun = store.reading(key, most)
    except (OSError, UserError) as error:
        return partial(_explained, partial(_raise, error))

    def ended() -> Content:
        data = begun() if begun else b""
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
    return data if len(data) <= limit else Undecodable("too_large", f"the limit is {limit} bytes")


def _without_bytes(store: Store, key: str) -> Content:
    """Of an empty file, or of what is none."""
    return b"" if store.version(key) is not None else Undecodable("unreadable", PROBLEMS["unreadable"])


def _explained(read: Callable[[], Content]) -> Content:
    try:
        return read()
    except OutageError:
        raise
    except UserError as error:
        return unopened(error)


def _same(content: Content) -> Content:
    return content


def _raise(error: Exception) -> Content:
    raise error
