"""Random access to a gzip stream that is unpacked nowhere.

zlib's own state can be copied. A copy is kept every 16 MiB, so that going back costs at most the unpacking of
so much, and reading on costs nothing more than plain gzip. `indexed_gzip`, measured on 144 MB of photographs
with the same distance, was three to ten times as slow (it goes back to its last point at every refill of its
buffer), and lost what precedes a break of the stream.
"""

import io
import zlib
from bisect import bisect_right
from typing import Any, BinaryIO, Final

SPACING: Final = 16 << 20
MAX_POINTS: Final = 1024
"""Copies of the state, 40 kB each, before every other is dropped and the distance doubled."""
MAX_UNPACKED: Final = 64 << 30
MAX_RATIO: Final = 50
"""A stream larger than `MAX_UNPACKED` that is this many times its packed size is taken for a bomb."""
_BLOCK: Final = 1 << 16
_KEPT: Final = 1 << 10
"""Bytes behind that cost nothing: tarfile looks whether the last byte of a member is there."""
_GZIP: Final = 31
"""For zlib: a gzip header, and the largest window."""
MAGIC: Final = b"\x1f\x8b"
"""How a gzip file begins."""


class GzipStream(io.RawIOBase):
    """The unpacked bytes of a gzip file; owns `file`.

    Where the stream breaks, it ends, after all that precedes the break, and `problem` tells why: `truncated`,
    `corrupt` or `too_large`. Trouble with `file` is raised as it comes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._spacing = SPACING
        self._points: list[tuple[int, int, Any]] = [(0, 0, zlib.decompressobj(_GZIP))]
        """Each: the place in the unpacked stream and in the file, and the state there."""
        self._wanted = 0
        self._go(0)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always, but not from the end, which is not known."""
        return True

    def tell(self) -> int:
        """The place in the unpacked stream."""
        return self._wanted

    def seek(self, place: int, whence: int = 0) -> int:
        """Goes to a place; what lies between is unpacked at the next `read`."""
        if whence == 2:
            raise io.UnsupportedOperation("the length of a gzip stream is not known")
        self._wanted = place + (self._wanted if whence == 1 else 0)
        return self._wanted

    def read(self, size: int = -1) -> bytes:
        """That many bytes, fewer only where the stream ends."""
        if not self._at - len(self._data) <= self._wanted <= self._at:
            point = bisect_right(self._points, self._wanted, key=lambda point: point[0]) - 1
            if self._wanted < self._at or self._points[point][0] > self._at:
                self._go(point)
        parts: list[bytes] = []
        while size:
            if self._wanted < self._at:
                start = len(self._data) - (self._at - self._wanted)
                part = self._data[start : start + size if size > 0 else None]
                parts.append(part)
                self._wanted += len(part)
                size -= len(part) if size > 0 else 0
            elif not self._next():
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Closes the file, too."""
        self._points = self._points[:1]
        self._file.close()
        super().close()

    def _go(self, point: int) -> None:
        self._at, self._packed, state = self._points[point]
        self._state = state.copy()
        self._file.seek(self._packed)
        self._block = b""
        """packed, yet to be unpacked"""
        self._data = b""
        """unpacked, up to `_at`"""
        self.problem = ""

    def _next(self) -> bool:
        """Unpacks some more, if there is any."""
        while not self.problem:
            if self._state.eof and not self._next_member():
                break
            if not self._block:
                self._remember()
                self._block = self._more()
            try:
                data: bytes = self._state.decompress(self._block, _BLOCK)
            except zlib.error:
                self.problem = "corrupt"
                break
            if not data and not self._block:
                self.problem = "" if self._state.eof else "truncated"
                break
            self._block = self._state.unused_data if self._state.eof else self._state.unconsumed_tail
            self._at += len(data)
            if self._at > MAX_UNPACKED and self._at > MAX_RATIO * self._packed:
                self.problem = "too_large"
            if data:
                self._data = self._data[-_KEPT:] + data
                return True
        return False

    def _next_member(self) -> bool:
        """Whether another stream follows; padding and what is no gzip end the file, as for gzip itself."""
        if len(self._block) < len(MAGIC):
            self._block += self._more()
        if not self._block.startswith(MAGIC):
            return False
        self._state = zlib.decompressobj(_GZIP)
        return True

    def _more(self) -> bytes:
        """More of the file. A read that fails may have moved it: then it goes back, so that the next one goes on."""
        try:
            more = self._file.read(_BLOCK)
        except OSError:
            self._file.seek(self._packed)
            raise
        self._packed += len(more)
        return more

    def _remember(self) -> None:
        if self._at - self._points[-1][0] < self._spacing:
            return
        self._points.append((self._at, self._packed, self._state.copy()))
        if len(self._points) > MAX_POINTS:
            del self._points[1::2]
            self._spacing *= 2
