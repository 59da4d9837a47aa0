"""Reading what a disk may not give: a file that cannot be read costs itself, a disk that is gone ends the work."""

import errno
import time
from collections.abc import Callable
from typing import Final

from pipelines.decoding import Undecodable

Content = bytes | Undecodable

_PAUSES: Final = (0.2, 0.8, 3.2)
"""Seconds before a file is read again."""
_MANY: Final = 32
"""Files in a row that cannot be read: it is the disk then."""


class Patience:
    """Reads one file after another."""

    def __init__(self) -> None:
        self._failed = 0

    def read(self, read: Callable[[], Content]) -> Content:
        """What `read` gives, or, where the disk says that it cannot (`EIO`, a bad sector), why there is nothing.

        Raises:
            OSError: that of many files, or another.
        """
        # One is waited for; what follows it in its folder often lies in the same place.
        for pause in (*(() if self._failed else _PAUSES), 0.0):
            try:
                content = read()
            except OSError as error:
                if error.errno != errno.EIO or self._failed == _MANY:
                    raise
                time.sleep(pause)
            else:
                self._failed = 0
                return content
        self._failed += 1
        return Undecodable("unreadable", "the disk cannot read it: copy the file again from where it came")
