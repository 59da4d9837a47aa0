"""Crops: a square around a face box, resampled once from the original pixels, and its pyramid."""

from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box, CropFrame
from msrrn.network import LEVELS

CROP: Final = LEVELS[-1]
MAX_OVERSAMPLING: Final = 16


class Pyramid(NamedTuple):
    """Grey uint8 levels (200, 200), (100, 100), (50, 50)."""

    level_200: NDArray[np.uint8]
    level_100: NDArray[np.uint8]
    level_50: NDArray[np.uint8]


def frame_around(
    box: Box,
    margin: float,
    shift: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    roll: float = 0.0,
    mirrored: bool = False,
) -> CropFrame:
    """The crop of a face box: a square of `margin` times its side.

    `shift` is in sides of the box, `scale` multiplies the square, `roll` is in radians.
    """
    x, y = box.centre
    centre = (x + shift[0] * box.side, y + shift[1] * box.side)
    return CropFrame.square(centre, box.side * margin * scale, roll, mirrored)


def crop(rgb: NDArray[np.uint8], frame: CropFrame) -> NDArray[np.uint8]:
    """Grey crop (200, 200) of an upright picture (H, W, 3).

    One bilinear resampling; where the picture is finer than the crop, it samples k × k points a pixel and
    averages them (a box filter: detail just below the crop's resolution can leave a faint pattern, a
    checkerboard of a much larger picture comes out grey). Outside the picture its edge pixels repeat.
    """
    oversampling = int(np.clip(np.ceil(frame.side / CROP), 1, MAX_OVERSAMPLING))
    size = CROP * oversampling
    grey, frame = _grey_around(rgb, frame)
    fine = cv2.warpAffine(
        grey, frame.pixel_matrix(size), (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return halve(np.asarray(fine, np.uint8), oversampling)


def _grey_around(rgb: NDArray[np.uint8], frame: CropFrame) -> tuple[NDArray[np.uint8], CropFrame]:
    """The part of the picture that the frame can touch, in grey, and the frame in its coordinates."""
    height, width = rgb.shape[:2]
    corners = frame.shape_to_upright(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    low = np.floor(corners.min(axis=0)).astype(int) - 2
    high = np.ceil(corners.max(axis=0)).astype(int) + 3
    x0, x1 = np.clip([low[0], high[0]], 0, width)
    y0, y1 = np.clip([low[1], high[1]], 0, height)
    # A frame that lies wholly outside still needs the edge pixels that repeat into it.
    x0, x1 = min(x0, width - 1), max(x1, 1)
    y0, y1 = min(y0, height - 1), max(y1, 1)
    part = np.asarray(cv2.cvtColor(rgb[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY), np.uint8)
    to_crop = frame.to_crop
    offset = to_crop.offset + to_crop.matrix @ np.array([x0, y0], dtype=np.float64)
    return part, CropFrame(type(to_crop)(to_crop.matrix, offset))


def halve(image: NDArray[np.uint8], factor: int = 2) -> NDArray[np.uint8]:
    """Area average over factor × factor pixels, rounded to nearest."""
    if factor == 1:
        return image
    size = image.shape[0] // factor
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def pyramid(level_200: NDArray[np.uint8]) -> Pyramid:
    """The pyramid of a crop: each coarser level is the area average of the next finer one."""
    level_100 = halve(level_200)
    return Pyramid(level_200, level_100, halve(level_100))


def padding(frame: CropFrame, width: int, height: int) -> float:
    """Share of the crop that lies outside a picture of this size, in [0, 1]."""
    axis = (np.arange(CROP) + 0.5) / CROP
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    x, y = np.moveaxis(frame.shape_to_upright(grid), -1, 0)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return float(1.0 - inside.mean())
