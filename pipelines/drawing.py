"""Pictures of faces and shapes: pure functions on uint8 RGB arrays (H, W, 3); no input is changed.

Coordinates are 0-based pixel centres, x before y.
"""

import io
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msrrn.geometry import Box, CropFrame, Points, Similarity
from msrrn.landmarks import CONTOURS, NUM_LANDMARKS

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

TRUTH: Final[Colour] = (60, 255, 170)
PREDICTION: Final[Colour] = (255, 50, 30)
BOX: Final[Colour] = (90, 190, 255)
BACKGROUND: Final[Colour] = (128, 128, 128)
"""TRUTH is much lighter than PREDICTION and bluer, so red-green blindness keeps them apart;
BACKGROUND sits as well on a light page as on a dark one."""

_PADDING: Final = 1.5
"""Side of a face tile over that of the box: detector boxes cut off chins and foreheads."""

_GAP: Final = 4
"""Pixels between the tiles of a sheet."""

_SHIFT: Final = 4
"""Fractional bits of the coordinates that OpenCV draws."""
_REACH: Final = 2.0**20
"""OpenCV takes fixed-point int32: points further out than this many pixels are pulled in."""


def draw_shape(rgb: Picture, shape: Points, colour: Colour = PREDICTION) -> Picture:
    """A copy with the contours and points of `shape` (68, 2), in pixels of `rgb`; parts outside are cut off.

    Lines and dots grow with the face, and are anti-aliased at sub-pixel positions. Raises ValueError
    for a shape that is not (68, 2) and finite.
    """
    if shape.shape != (NUM_LANDMARKS, 2) or not np.isfinite(shape).all():
        raise ValueError(f"a shape must be ({NUM_LANDMARKS}, 2) and finite, not {shape.shape}")
    canvas = _checked(rgb).copy()
    face = min(float(np.ptp(shape, axis=0).max()), float(max(canvas.shape[:2])))
    thickness = max(1, round(face / 300))
    radius = max(1.25, 0.009 * face)
    points = _fixed(shape)
    for group, closed in CONTOURS:
        cv2.polylines(canvas, [points[list(group)]], closed, colour, thickness, cv2.LINE_AA, _SHIFT)
    for x, y in points.tolist():
        cv2.circle(canvas, (x, y), round(radius * 2**_SHIFT), colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    return canvas


def face_tile(rgb: Picture, box: Box, shapes: Sequence[tuple[Points, Colour]], size: int = 200) -> Picture:
    """The padded square around `box` at (size, size, 3), each shape drawn on it after resizing.

    Shapes are in pixels of `rgb`. What lies beyond the picture's edge shows BACKGROUND.
    """
    side = face_side(box)
    upright = CropFrame.square(box.centre, side).to_pixels(size)
    # warpAffine samples without averaging, so a large face is first shrunk by area.
    shrunk = _resized(rgb, min(1.0, size / side))
    scale = np.array([shrunk.shape[1] / rgb.shape[1], shrunk.shape[0] / rgb.shape[0]])
    from_shrunk = Similarity(np.diag(1 / scale), (0.5 / scale) - 0.5)
    warp = upright.after(from_shrunk)
    tile: Picture = cv2.warpAffine(
        shrunk,
        np.hstack([warp.matrix, warp.offset[:, None]]),
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=BACKGROUND,
    ).astype(np.uint8, copy=False)
    for shape, colour in shapes:
        tile = draw_shape(tile, upright(shape), colour)
    return tile


def face_side(box: Box) -> float:
    """Side of the square that `face_tile` shows of a picture, in pixels of the picture."""
    return _PADDING * max(box.width, box.height)


def photo_tile(rgb: Picture, faces: Sequence[tuple[Box, Points]], size: int) -> Picture:
    """The whole photo, centred on a (size, size, 3) square, with a box and a shape for each face.

    Boxes and shapes are in pixels of `rgb`.
    """
    photo = _resized(rgb, size / max(rgb.shape[:2]))
    height, width = photo.shape[:2]
    scale = np.array([width / rgb.shape[1], height / rgb.shape[0]])
    for box, shape in faces:
        corners = _fixed((np.array(box.edges).reshape(2, 2) + 0.5) * scale - 0.5).tolist()
        cv2.rectangle(photo, corners[0], corners[1], BOX, 1, cv2.LINE_AA, _SHIFT)
        photo = draw_shape(photo, (shape + 0.5) * scale - 0.5)
    top, left = (size - height) // 2, (size - width) // 2
    tile = _filled(size, size)
    tile[top : top + height, left : left + width] = photo
    return tile


def contact_sheet(tiles: Sequence[Picture], columns: int) -> Picture:
    """Tiles row by row, a little apart; cells have the size of the largest tile.

    Fewer tiles than columns make one narrower row; no tiles make a single pixel of background.
    """
    if not tiles:
        return _filled(1, 1)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    height, width = max(tile.shape[0] for tile in tiles), max(tile.shape[1] for tile in tiles)
    sheet = _filled(rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = row * (height + _GAP), column * (width + _GAP)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = _checked(tile)
    return sheet


def to_jpeg(rgb: Picture) -> bytes:
    """JPEG bytes without metadata; colour at full resolution, since thin coloured lines smear without."""
    buffer = io.BytesIO()
    Image.fromarray(_checked(rgb)).save(buffer, "JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()


def _checked(rgb: Picture) -> Picture:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ValueError(f"a picture must be uint8 (H, W, 3), not {rgb.dtype} {rgb.shape}")
    return rgb


def _fixed(points: Points) -> NDArray[np.int32]:
    return np.rint(np.clip(points, -_REACH, _REACH) * 2**_SHIFT).astype(np.int32)


def _filled(height: int, width: int) -> Picture:
    return np.full((height, width, 3), BACKGROUND, dtype=np.uint8)


def _resized(rgb: Picture, factor: float) -> Picture:
    """A new array, at least one pixel a side; averages when it shrinks."""
    height, width = (max(1, round(length * factor)) for length in _checked(rgb).shape[:2])
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized: Picture = cv2.resize(rgb, (width, height), interpolation=interpolation).astype(np.uint8)
    return resized
