"""Whether a picture has fewer bytes than it says itself: of a copy that was broken off."""

import io
import warnings
from contextlib import suppress
from typing import Final

from PIL import ExifTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pipelines.jpeg import END

_PARTS: Final = (
    (ExifTags.Base.StripOffsets, ExifTags.Base.StripByteCounts),
    (ExifTags.Base.TileOffsets, ExifTags.Base.TileByteCounts),
)


def is_cut(data: bytes) -> bool:
    """Asked of what no decoder could read; of a JPEG, a PNG or a GIF the decoder says it."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data[4:8] in {b"ftyp", b"jP  "}:
        return box_cut_in(data) is not None
    if data.startswith(b"\xff\x4f\xff\x51"):  # a bare codestream of JPEG 2000, in which nothing looks like its end
        return END not in data
    return data.startswith((b"II", b"MM")) and _is_cut_tiff(data)


def box_cut_in(data: bytes) -> bytes | None:
    """The type of the box within which a HEIC, AVIF or JPEG 2000 ends; None where it has all that its boxes are to
    have."""
    place = 0
    kind = b""
    while place + 8 <= len(data):
        kind = data[place + 4 : place + 8]
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0: up to the end
            return None
        place += size
    if place == len(data):
        return None
    return kind if place > len(data) else b""


def _is_cut_tiff(data: bytes) -> bool:
    """Whether its directory, or one of its strips or tiles, lies behind its end."""
    large = 43 in data[2:4]
    place = data[8:16] if large else data[4:8]
    start = int.from_bytes(place, "little" if data.startswith(b"II") else "big")
    if start >= len(data):
        return True
    file = io.BytesIO(data)
    file.seek(start)
    with warnings.catch_warnings(), suppress(Exception):  # whatever Pillow makes of damage
        warnings.simplefilter("ignore")
        tags = ImageFileDirectory_v2(data[:16] if large else data[:8])
        tags.load(file)
        begins, sizes = next((kind for kind in _PARTS if kind[0] in tags), _PARTS[0])
        return any(begin + size > len(data) for begin, size in zip(tags[begins], tags[sizes], strict=False))
    return False
