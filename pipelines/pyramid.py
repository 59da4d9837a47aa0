"""Crops: a square around a face box, sampled from the original pixels, and its pyramid."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import LEVELS, Box, CropFrame, Similarity

CROP: Final = LEVELS[-1]
OVERSAMPLING: Final = 2.0
"""Resolution, over that of the crop, of the copy that large pictures are reduced to before they are sampled:
a bilinear sample there is the average of the pixels between its neighbours."""


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


def crop(picture: NDArray[np.uint8], frame: CropFrame, sampled: int = cv2.INTER_LINEAR) -> NDArray[np.uint8]:
    """Grey crop (200, 200) of an upright picture. See `crops`."""
    return crops(picture, [frame], sampled)[0]


def crops(
    picture: NDArray[np.uint8], frames: Sequence[CropFrame], sampled: int = cv2.INTER_LINEAR
) -> list[NDArray[np.uint8]]:
    """Grey crops (200, 200) of an upright picture, for frames of about one size and place.

    The picture is RGB (H, W, 3) or grey (H, W), uint8.

    Where the picture is finer than twice the crop of the first frame, its part around the frames is
    reduced to that by area averages, once for all of them. Then each crop is sampled by OpenCV's
    interpolation `sampled`. Outside the picture its edge pixels repeat.

    Raises:
        ValueError: another dtype, or no pixels.
    """
    require_picture(picture)
    grey, to_part = _grey_around(picture, frames)
    height, width = grey.shape
    factor = min(1.0, OVERSAMPLING * CROP / frames[0].side)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if factor < 1:
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
        scale = np.array(size) / (width, height)
        to_part = Similarity(np.diag(scale), 0.5 * scale - 0.5).after(to_part)
    back = to_part.inverse()
    made = []
    for frame in frames:
        to_pixels = frame.to_pixels(CROP).after(back)
        matrix = np.hstack([to_pixels.matrix, to_pixels.offset[:, None]])
        pixels = cv2.warpAffine(grey, matrix, (CROP, CROP), flags=sampled, borderMode=cv2.BORDER_REPLICATE)
        made.append(np.asarray(pixels, np.uint8))
    return made


def require_picture(picture: NDArray[np.uint8]) -> None:
    """Raises ValueError where it has no pixel, or is of another dtype: cut to bytes, shares of 1 would be black, and
    16 bits noise."""
    if picture.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8, 0 to 255, not {picture.dtype}")
    if not picture.size:
        raise ValueError(f"a picture must have pixels: its shape is {picture.shape}")


def _grey_around(picture: NDArray[np.uint8], frames: Sequence[CropFrame]) -> tuple[NDArray[np.uint8], Similarity]:
    """The part of the picture that the frames can touch, in grey, and the map from the picture to it."""
    height, width = picture.shape[:2]
    square = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    corners = np.concatenate([frame.shape_to_upright(square) for frame in frames])
    low = np.floor(corners.min(axis=0)).astype(int) - 2
    high = np.ceil(corners.max(axis=0)).astype(int) + 3
    x0, x1 = np.clip([low[0], high[0]], 0, width)
    y0, y1 = np.clip([low[1], high[1]], 0, height)
    # A frame that lies wholly outside still needs the edge pixels that repeat into it.
    x0, x1 = min(x0, width - 1), max(x1, 1)
    y0, y1 = min(y0, height - 1), max(y1, 1)
    part = picture[y0:y1, x0:x1]
    if part.ndim == 3:
        part = np.asarray(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), np.uint8)
    return part, Similarity(np.eye(2), np.array([-x0, -y0], np.float64))


def halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, H) → (H/2, H/2): area average over 2 × 2 pixels, rounded to nearest."""
    size = image.shape[0] // 2
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def pyramid(level_200: NDArray[np.uint8]) -> Pyramid:
    """The pyramid of a crop: each coarser level is the area average of the next finer one."""
    level_100 = halve(level_200)
    return Pyramid(level_200, level_100, halve(level_100))


def sharpness(level_200: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of a crop: small where it is blurred."""
    return float(cv2.Laplacian(level_200, cv2.CV_32F).var())


def padding(frame: CropFrame, width: int, height: int) -> float:
    """Share of the crop that lies outside a picture of this size, in [0, 1]."""
    quad = frame.shape_to_upright(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    picture = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
    # In units of the frame, around its centre: single precision is enough then.
    quad, picture = (((points - quad.mean(axis=0)) / frame.side).astype(np.float32) for points in (quad, picture))
    inside, _ = cv2.intersectConvexConvex(quad, picture)
    return float(np.clip(1.0 - inside, 0.0, 1.0))
