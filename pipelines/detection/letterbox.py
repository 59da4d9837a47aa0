"""A picture as networks of one size take it: whole, in a black square."""

import cv2
import numpy as np
from numpy.typing import NDArray


def letterbox(
    rgb: NDArray[np.uint8], size: int, share: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """The whole picture in the middle of a black square (size, size, 3), its longer side a share of the square's.

    With it `scale` and `corner` (4,), which map edges counted from the picture's corner: square = picture ·
    scale + corner.
    """
    height, width = rgb.shape[:2]
    factor = share * size / max(height, width)
    if factor < 0.5 and min(height, width) > 1:
        # To halve is what OpenCV does fast. The odd row and column at the end are left out.
        even = rgb[: height // 2 * 2, : width // 2 * 2]
        half = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        square, scale, corner = letterbox(half.astype(np.uint8, copy=False), size, share)
        return square, scale / 2, corner
    new_width, new_height = max(1, round(width * factor)), max(1, round(height * factor))
    shrinking = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    x, y = (size - new_width) // 2, (size - new_height) // 2
    square = np.zeros((size, size, 3), np.uint8)
    square[y : y + new_height, x : x + new_width] = cv2.resize(rgb, (new_width, new_height), interpolation=shrinking)
    scale = np.tile([new_width / width, new_height / height], 2)
    return square, scale, np.tile([float(x), float(y)], 2)
