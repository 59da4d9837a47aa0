"""Reading what a disk may not give: a file that cannot be read costs itself, a disk that is gone ends the work."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
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


def anew(listing: Callable[[], Iterator[Result]]) -> Callable[[], list[Result]]:
    """What gives one more of a listing at each call, and none at its end.

    After an error it begins anew, behind what it gave.
    """
    given = 0
    left: Iterator[Result] | None = None

    def more() -> list[Result]:
        nonlocal given, left
        left = islice(listing(), given, None) if left is None else left
        try:
            found = list(islice(left, 1))
        except OSError:
            left = None
            raise
        given += len(found)
        return found

    return more


def insisted(listing: Callable[[], Iterator[Result]]) -> Iterator[Result]:
    """All of a listing; see `insist`."""
    more = anew(listing)
    while found := insist(more):
        yield from found


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
        content = self.open(read)
        if isinstance(content, bytes):  # of what is not even read, nothing is known
            self._failed = 0
        return content

    def listed(self, listing: Callable[[], Iterator[Result]]) -> Iterator[Result | Undecodable]:
        """All that a file lists, or, where the disk cannot read on, why there is no more; else as `read`."""
        more = anew(listing)
        while found := self.open(more):
            if isinstance(found, Undecodable):
                yield found
                return
            self._failed = 0
            yield from found

    def open(self, ask: Callable[[], Result]) -> Result | Undecodable:
        """As `read`, but that a file opens is no sign that the disk can read what is in it."""
        # One is waited for; what follows it in its folder often lies in the same place.
        try:
            return ask() if self._failed else insist(ask)
        except OSError as error:
            if error.errno != errno.EIO or self._failed == _MANY:
                error.filename = error.filename or self._source  # reading names no file
                raise
            self._failed += 1
            return Undecodable("unreadable", "the disk cannot read it: copy the file again from where it came")


@cache
def patience_with(source: str) -> Patience:
    """That of this process: archives and pieces of work are small, and a disk that is gone fails in many of them."""
    return Patience(source)
