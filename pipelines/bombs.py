"""Pictures of few bytes that keep a core for long, or take the memory of many, told before they do."""

import io
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import Final, Literal

import numpy as np

from pipelines.jpeg import SCAN, segments

_MOST_SCANNED: Final = 5_000_000_000
"""Pixels of a JPEG times its scans, each of which goes over all of them in ten bytes: some ten seconds. Cameras and
editors write 14 scans at most.
"""
_MOST_PIECES: Final = 1_000_000
"""Some seconds of Pillow, in the format that it reads slowest. A PNG of 200 MB has 100,000 where it has many."""
_MOST_PROFILES: Final = 8
"""Colour profiles of a PNG, which may have one: Pillow unpacks them all."""
_MOST_EXIF: Final = 200
"""Parts that EXIF of a JPEG comes in, of up to 64 kB: Pillow puts them together, one after another."""
_MOST_COMMENTS: Final = 10_000
"""For each, Pillow copies what follows of up to a megabyte."""
_LONGEST_LIST: Final = 500_000
"""Numbers of a tag of TIFF. So many tiles of 16 pixels a side make the largest picture that is read."""
_OFFSETS: Final = (273, 324)
"""Where strips or tiles begin, in numbers of any type: of bytes, too, for libtiff."""
_SIZES: Final = np.array([0, 0, 0, 2, 4, 8, 0, 0, 2, 4, 8, 4, 8, 4, 0, 0, 8, 0])
"""Bytes of each number, by the type of the tag; 0 where Pillow makes none of it."""
_PNG: Final = b"\x89PNG\r\n\x1a\n"


class BombError(Exception):
    """A picture that would cost far more than such of its size do."""


class Pieces(io.BytesIO):
    """The bytes of a picture for Pillow, which may read them in `_MOST_PIECES` pieces.

    It reads a header of PPM byte by byte, and chunks, markers and boxes of other formats one by one.
    """

    _left = _MOST_PIECES

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise BombError("it has far more parts than pictures have")
        return super().read(size)


def check_parts(data: bytes) -> None:
    """Raises `BombError` for a picture with far more of something than it has use for; `Pieces` sees the others."""
    if sum(kind == b"iCCP" for kind, _ in _chunks(data)) > _MOST_PROFILES:
        raise BombError("a PNG of far more colour profiles than pictures have")
    if data.startswith(b"\xff\xd8"):
        header = takewhile(lambda segment: segment[0] != SCAN, islice(segments(data), _MOST_PIECES))
        if sum(data.startswith(b"Exif\0\0", place) for _, place in header) > _MOST_EXIF:
            raise BombError("a JPEG of far more EXIF than pictures have")
    if data.startswith((b"P1", b"P2", b"P3")) and data.count(b"#") > _MOST_COMMENTS:
        raise BombError("a PPM of far more comments than pictures have")
    if has_long_lists(data):
        raise BombError("a TIFF of far more strips, tiles or numbers than pictures have")


def has_long_lists(data: bytes) -> bool:
    """Whether a TIFF, or what EXIF keeps as one, has more numbers in a tag than are of use (TIFF 6.0, section 2).

    Pillow makes Python's numbers of them, and a step of the decoder of each strip and tile.
    """
    if data[:2] not in {b"II", b"MM"}:
        return False
    order = "<" if data[:2] == b"II" else ">"
    whole: Literal["little", "big"] = "little" if order == "<" else "big"
    large = 43 in data[2:4]
    width = 8 if large else 4
    start = int.from_bytes(data[width : 2 * width], whole)
    first = start + (8 if large else 2)
    fields = f"{order}u2", f"{order}u2", f"{order}u{width}", f"V{width}"
    tags = np.dtype(list(zip(("tag", "kind", "count", "value"), fields, strict=True)))
    there = min(int.from_bytes(data[start:first], whole), max(0, len(data) - first) // tags.itemsize)
    found = np.frombuffer(data, tags, there, first) if there else np.empty(0, tags)
    sizes = np.where(np.isin(found["tag"], _OFFSETS), 1, 0)
    sizes = np.maximum(sizes, _SIZES[np.minimum(found["kind"], len(_SIZES) - 1)])
    # Damage may state any number, but what leads out of the file is not read.
    count = found["count"].astype(np.float64)
    return bool((sizes.astype(bool) & (count > _LONGEST_LIST) & (count * sizes <= len(data))).any())


def overstates(data: bytes) -> bool:
    """Whether a PNG has a chunk of more bytes than all of the file: OpenCV takes the memory for it, up to 4 GB."""
    return any(size > len(data) for _, size in _chunks(data))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The type of each chunk before the end of a PNG, and the bytes that it says it has (PNG, section 5.3).

    Raises:
        BombError: they are far too many.
    """
    place = len(_PNG) if data.startswith(_PNG) else len(data)
    for _ in range(_MOST_PIECES):
        kind = data[place + 4 : place + 8]
        if len(kind) < 4 or kind == b"IEND":
            return
        size = int.from_bytes(data[place : place + 4])
        yield kind, size
        place += size + 12
    raise BombError("a PNG of far more chunks than pictures have")


def is_slow(data: bytes, size: tuple[int, int]) -> bool:
    """Whether a JPEG (width, height) has so many scans that decoding it would hold a core for long."""
    most = _MOST_SCANNED // (size[0] * size[1])
    pairs = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    # First whatever looks like one, which costs little: also in the film that phones write behind a photo.
    looks = sum(int(np.count_nonzero(pair == int.from_bytes(SCAN, "little"))) for pair in pairs)
    return looks > most and _scans(data) > most


def _scans(data: bytes) -> int:
    """The scans of a JPEG's first picture, as its decoder finds them."""
    return sum(marker == SCAN for marker, _ in segments(data))
