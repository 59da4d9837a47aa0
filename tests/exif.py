"""Where a point of an upright picture lies in its file."""

from typing import Final

import numpy as np

from msrrn.geometry import Points, Similarity

EXIF_MATRICES: Final[dict[int, tuple[tuple[int, int, int, int], tuple[int, int]]]] = {
    1: ((1, 0, 0, 1), (0, 0)),
    2: ((-1, 0, 0, 1), (1, 0)),
    3: ((-1, 0, 0, -1), (1, 1)),
    4: ((1, 0, 0, -1), (0, 1)),
    5: ((0, 1, 1, 0), (0, 0)),
    6: ((0, 1, -1, 0), (0, 1)),
    7: ((0, -1, -1, 0), (1, 1)),
    8: ((0, -1, 1, 0), (1, 0)),
}
"""Upright → stored, per EXIF orientation (TIFF 6 / EXIF 2.3, tag 0x0112): a signed permutation,
and which stored axes (width, height) it counts from the far end."""


def upright_to_stored(points: Points, orientation: int, stored_size: tuple[int, int]) -> Points:
    """Maps points (..., 2) of the upright image to pixels of the file as stored.

    `orientation` is the EXIF value 1 to 8, `stored_size` the stored (width, height).
    """
    permutation, far = EXIF_MATRICES[orientation]
    matrix = np.array(permutation, dtype=np.float64).reshape(2, 2)
    offset = np.array(far) * (np.array(stored_size) - 1.0)
    return Similarity(matrix, offset)(points)
