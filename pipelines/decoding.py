"""Bytes of a picture → upright RGB, within limits.

The header is read first (Pillow, lazily), so that a picture too large is refused before any pixel is
decoded. OpenCV decodes the common formats; Pillow decodes the rest, and is asked again where OpenCV
gives up, to tell what is wrong. Samples of 16 bits are scaled to 8. Alpha is dropped, not
composited: there is no background to choose, and the colours under it are the photograph's.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from PIL.TiffImagePlugin import TiffImageFile

from msrrn.geometry import Similarity
from pipelines.bombs import BombError, Pieces, check_parts, has_long_lists, is_slow, overstates
from pipelines.cut import box_cut_in
from pipelines.damage import CUT, what_is_wrong
from pipelines.errors import UnusableInput
from pipelines.jpeg import END, START, lacks_scans
from pipelines.ppm import Scaled
from pipelines.tiff import has_12_bits, high_byte, is_preview, mend_planes, white_is_zero

try:
    import pillow_heif
except ImportError:
    _HEIC: tuple[str, ...] = ()
else:
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
    _HEIC = ("HEIF",)
# Profiles and texts of more than a megabyte are rare, and no bombs: all texts of a picture may have so much together.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
Image.register_decoder("ppm", Scaled)
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", *_HEIC)
"""What is opened at all: raster formats whose decoders start no other program. HEIC where the extra is installed."""
_JPEG: Final = {"JPEG", "MPO"}
_BY_OPENCV: Final = {*_JPEG, "PNG", "WEBP", "BMP"}
_SIZE_OF_JPEG_2000: Final = b"\xff\x4f\xff\x51"
"""How its codestream begins; the bits of the first colour, less one, are 42 bytes on."""
_COLOUR: Final = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""How OpenCV is asked for a JPEG by its reduction; of a flag that reduces, the colour RGB takes the reduction."""
_GREY: Final = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_FROM_THE_RIGHT: Final = {2, 3, 6, 7}
"""Orientations in which x of the upright image counts from the far end of a stored axis."""
_FROM_BELOW: Final = {3, 4, 7, 8}
_RAW: Final = "a camera's raw file, of which only a preview can be read: develop it, or convert it to JPEG"
_PNG_EXIF_MARKS: Final = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. `max_side` and `max_pixels` hold for the stored size."""

    max_bytes: int = 200 * 1024 * 1024
    max_pixels: int = 120_000_000
    max_side: int = 32_000


class Undecodable(UnusableInput):
    """A picture that cannot be used.

    Reasons of `decode`: empty, not_an_image, truncated, corrupt, too_large.
    Reasons of the places that bytes come from: `pipelines.archives.PROBLEMS`.
    """


@dataclass(frozen=True)
class Photo:
    """`rgb` is (H, W, 3) uint8, upright. `orientation` is EXIF 1 to 8.

    `stored_size` (width, height) is that of the file. Where `reduction` is more than 1, a pixel of `rgb` is the
    mean of that many pixels of the file, each way, counted from the upper left as stored.
    """

    rgb: NDArray[np.uint8]
    orientation: int
    stored_size: tuple[int, int]
    reduction: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image at full resolution."""
        width, height = self.stored_size
        return (height, width) if self.orientation >= 5 else (width, height)

    def to_reduced(self, reduction: int) -> Similarity:
        """From pixels of the upright image at full resolution to those of the image as `reduction` leaves it."""
        far = self.orientation in _FROM_THE_RIGHT, self.orientation in _FROM_BELOW
        # By what the last stored pixels, of which there may be too few for a reduced one, begin before the image.
        before = np.array([-side % reduction if counted else 0 for side, counted in zip(self.size, far, strict=True)])
        return Similarity(np.eye(2) / reduction, (before + 0.5) / reduction - 0.5)


def decode(data: bytes, limits: Limits | None = None, enough: Callable[[int], float] | None = None) -> Photo:
    """Decodes the first frame of a picture; raises `Undecodable` and nothing else for bad bytes.

    `enough` may say, for the longer side of the picture, what longer side will do: a JPEG is then decoded at a
    half, a quarter or an eighth of its size, while that is not less. It costs a fraction.
    """
    limits = limits or Limits()
    if not data:
        raise Undecodable("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise Undecodable("too_large", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning starts below our limit, EXIF warnings concern tags we do not read.
            warnings.simplefilter("ignore")
            check_parts(data)
            with Image.open(Pieces(data), formats=_FORMATS) as image:
                _check_size(image.size, limits)
                if image.format in _JPEG and is_slow(data, image.size):
                    raise BombError("a JPEG of far more scans over its pixels than pictures have")
                if isinstance(image, TiffImageFile) and is_preview(image, data):
                    raise Undecodable("not_an_image", _RAW)
                if image.format == "HEIF" and box_cut_in(data) == b"mdat":
                    # Where phones make it of tiles, those that it lacks would be black.
                    raise Undecodable("truncated", CUT)
                orientation = _orientation(image, data)
                reduction = _reduction(image, enough) if enough else 1
                by_opencv = image.format in _BY_OPENCV or _is_deep_jpeg_2000(image, data)
                stored = _by_opencv(data, _COLOUR[reduction]) if by_opencv else None
                if reduction > 1 and (stored is None or not _is_reduced(stored, image.size, reduction)):
                    reduction, stored = 1, _by_opencv(data, _COLOUR[1])
                upright = _by_pillow(image) if stored is None else _turned(stored, orientation)
                stored_size = image.size
    except (Undecodable, MemoryError):
        raise
    except BombError as error:
        raise Undecodable("too_large", str(error)) from error
    except Image.DecompressionBombError as error:  # before its size could be asked
        said = re.search(r"\d+ pixels", str(error))
        raise Undecodable("too_large", f"{said[0] if said else 'too many pixels'}, {_allowed(limits)}") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise Undecodable(*what_is_wrong(error, data, bool(_HEIC))) from error
    if reduction == 1:
        height, width = upright.shape[:2]
        stored_size = (height, width) if orientation >= 5 else (width, height)
    return Photo(upright, orientation, stored_size, reduction)


def decode_grey(data: bytes, photo: Photo, reduction: int) -> NDArray[np.uint8]:
    """The picture that `decode` gave reduced, less reduced or not at all: (H, W) uint8, upright.

    Grey costs a fraction of colour, and is within some grey values of what the colours give.
    """
    stored = _by_opencv(data, _GREY[reduction])
    if stored is None or not _is_reduced(stored, photo.stored_size, reduction):
        raise Undecodable("corrupt", "the picture can be decoded reduced alone")
    return _turned(stored, photo.orientation)


def _reduction(image: Image.Image, enough: Callable[[int], float]) -> int:
    if image.format not in _JPEG:
        return 1
    longer = max(image.size)
    return next((factor for factor in (8, 4, 2) if longer / factor >= enough(longer)), 1)


def _is_reduced(stored: NDArray[np.uint8], size: tuple[int, int], reduction: int) -> bool:
    height, width = stored.shape[:2]
    return (width, height) == (-(-size[0] // reduction), -(-size[1] // reduction))


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if max(size) > limits.max_side or width * height > limits.max_pixels:
        raise Undecodable("too_large", f"{width}×{height} pixels, {_allowed(limits)}")


def _allowed(limits: Limits) -> str:
    return f"at most {limits.max_side} a side and {limits.max_pixels} in all"


def _is_deep_jpeg_2000(image: Image.Image, data: bytes) -> bool:
    """Whether it has more than 8 bits, which Pillow makes 8 of: it rounds the lightest up to black."""
    start = data.find(_SIZE_OF_JPEG_2000) if image.format == "JPEG2000" and image.mode != "I;16" else -1
    depth = data[start + 42 : start + 43] if start >= 0 else b""
    return bool(depth) and depth[0] & 0x7F >= 8


def _orientation(image: Image.Image, data: bytes) -> int:
    # getexif decodes every pixel of a PNG that has no EXIF, looking for it behind them.
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF_MARKS):
        return 1
    try:
        if image.format == "PNG" and "exif" not in image.info:
            image.load()  # it may be behind the pixels
        if has_long_lists((image.info.get("exif") or b"").removeprefix(b"Exif\0\0")):
            raise BombError("EXIF of far more numbers than pictures have")
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError):  # broken EXIF, perhaps sound pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _by_opencv(data: bytes, flags: int) -> NDArray[np.uint8] | None:
    """As stored, or None where OpenCV finds fault. A JPEG may lack its end marker alone."""
    stored = _imdecode(data, flags)
    if stored is None and data.startswith(START):
        scan = data.rstrip(END[:1])
        whole = [scan + filler * 4096 + END for filler in (b"\0", b"\x55")]
        # A scan that is whole decodes to the same whatever follows it; one cut short takes it for pixels.
        first, second = (_imdecode(padded, _COLOUR[1]) for padded in whole)
        same = first is not None and second is not None and np.array_equal(first, second)
        if same and not lacks_scans(whole[0]):
            return _imdecode(whole[0], flags)
    return stored


def _imdecode(data: bytes, flags: int) -> NDArray[np.uint8] | None:
    if overstates(data):
        return None
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if decoded is None else np.asarray(decoded, np.uint8)


def _by_pillow(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3), upright; loading a TIFF turns it, for the others `exif_transpose` does."""
    high = None
    if isinstance(image, TiffImageFile):
        mend_planes(image)
        high = high_byte(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # which copies nothing where nothing is to be turned
    upright = image
    # A PGM of more than 8 bits is opened as one of 32, with its white at that of 16.
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PPM") or high is not None:
        less = 4 if isinstance(image, TiffImageFile) and has_12_bits(image) else 8
        grey = (np.asarray(upright) >> less).astype(np.uint8) if high is None else np.asarray(upright)[..., high]
        if isinstance(image, TiffImageFile) and white_is_zero(image):
            grey = ~grey
        return np.repeat(grey[..., None], 3, axis=-1)
    if upright.mode in {"I", "F"}:
        raise Undecodable("not_an_image", "samples of 32 bits have no defined white: convert to 8 or 16 bits")
    if upright.mode == "La":  # from which Pillow makes nothing else
        upright = upright.convert("LA")
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"), np.uint8)


def _turned(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation == 1:
        return stored
    turned = np.swapaxes(stored, 0, 1) if orientation >= 5 else stored
    if orientation in _FROM_BELOW:
        turned = turned[::-1]
    if orientation in _FROM_THE_RIGHT:
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)
