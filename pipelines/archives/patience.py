"""Reading what a disk may not give: a file that cannot be read costs itself, a disk that is gone ends the work."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final, TypeVar

from pipelines.archives.names import printable
from pipelines.decoding import Undecodable
from pipelines.outages import OutageError

Result = TypeVar("Result")
Content = bytes | Undecodable

_PAUSES: Final = (0.2, 0.8, 3.2)
"""Seconds before a disk is asked again."""
_MANY: Final = 32
"""Files in a row that cannot be read: it is the disk then."""


def insist(ask: Callable[[], Result]) -> Result:
    """What the disk answers; where it says that it cannot (`EIO`, a bad sector), it is asked again after pauses."""
    for pause in _PAUSES:
        try:
            return ask()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        time.sleep(pause)
    return ask()


@contextmanager
def told(source: str) -> Iterator[None]:
    """Around a listing: a disk that cannot be listed may be whole tomorrow, so nothing is known of what lies there.

    Raises:
        OutageError: it says so.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        name = printable(str(error.filename or source))
        raise OutageError(
            f"{name}: the disk cannot read it ({error.strerror}): check the disk and its connection, or "
            "copy the file again from where it came, and run again"
        ) from error


class Patience:
    """Reads one file after another of a source."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._failed = 0

    def read(self, read: Callable[[], Content]) -> Content:
        """What `read` gives, or, where the disk cannot read it, why there is nothing.

        Raises:
            OSError: that of many files, or another.
        """
        # One is waited for; what follows it in its folder often lies in the same place.
        try:
            content = read() if self._failed else insist(read)
        except OSError as error:
            if error.errno != errno.EIO or self._failed == _MANY:
                error.filename = error.filename or self._source  # reading names no file
                raise
            self._failed += 1
            return Undecodable("unreadable", "the disk cannot read it: copy the file again from where it came")
        if isinstance(content, bytes):  # of what is not even read, nothing is known
            self._failed = 0
        return content


@cache
def patience_with(source: str) -> Patience:
    """That of this process: archives and pieces of work are small, and a disk that is gone fails in many of them."""
    return Patience(source)
