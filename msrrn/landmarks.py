"""The iBUG 68-point scheme of 300-W: groups, mirror permutation, pupils, outer eye corners.

Shapes are arrays `(..., 68, 2)`, x before y. Indices are 0-based (the scheme's drawings count from 1).
Source: Sagonas et al., "300 Faces in-the-Wild Challenge", ICCVW 2013, figure 1.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SCHEME: Final = "ibug-68"
NUM_LANDMARKS: Final = 68

JAW: Final = range(0, 17)
RIGHT_BROW: Final = range(17, 22)
LEFT_BROW: Final = range(22, 27)
NOSE_BRIDGE: Final = range(27, 31)
NOSTRILS: Final = range(31, 36)
RIGHT_EYE: Final = range(36, 42)
LEFT_EYE: Final = range(42, 48)
OUTER_LIPS: Final = range(48, 60)
INNER_LIPS: Final = range(60, 68)
"""`right` and `left` are the person's own: the right eye has the smaller x in an unmirrored face."""

RIGHT_OUTER_CORNER: Final = 36
LEFT_OUTER_CORNER: Final = 45

CONTOURS: Final[tuple[tuple[range, bool], ...]] = (
    (JAW, False),
    (RIGHT_BROW, False),
    (LEFT_BROW, False),
    (NOSE_BRIDGE, False),
    (NOSTRILS, False),
    (RIGHT_EYE, True),
    (LEFT_EYE, True),
    (OUTER_LIPS, True),
    (INNER_LIPS, True),
)
"""Each group with whether its line is closed, in drawing order."""


def _mirror_permutation() -> NDArray[np.intp]:
    mirror = np.arange(NUM_LANDMARKS)
    mirror[list(JAW)] = list(reversed(JAW))
    mirror[17:27] = list(reversed(range(17, 27)))
    mirror[31:36] = list(reversed(NOSTRILS))
    for right, left in (*zip(range(36, 40), (45, 44, 43, 42), strict=True), (40, 47), (41, 46)):
        mirror[right], mirror[left] = left, right
    mirror[48:55] = list(reversed(range(48, 55)))
    mirror[55:60] = list(reversed(range(55, 60)))
    mirror[60:65] = list(reversed(range(60, 65)))
    mirror[65:68] = list(reversed(range(65, 68)))
    return mirror


MIRROR: Final = _mirror_permutation()
"""`mirrored_shape = shape[MIRROR]` after x → width - 1 - x; an involution."""


def pupils(shapes: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Right and left pupil `(..., 2)`: the mean of the six points of each eye (the 300-W convention)."""
    return shapes[..., 36:42, :].mean(axis=-2), shapes[..., 42:48, :].mean(axis=-2)


def inter_pupil(shapes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Distance of the pupils `(...)`, in the unit of the shapes: the normaliser IP."""
    right, left = pupils(shapes)
    return np.asarray(np.linalg.norm(right - left, axis=-1))


def face_roll(shapes: NDArray[np.floating]) -> NDArray[np.floating]:
    """By how many degrees the line of the pupils is turned clockwise `(...)`, in (-180, 180]."""
    right, left = pupils(shapes)
    across = left - right
    return np.asarray(np.rad2deg(np.arctan2(across[..., 1], across[..., 0])))


def inter_ocular(shapes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Distance of the outer eye corners `(...)`, in the unit of the shapes: the normaliser IO."""
    corners = shapes[..., RIGHT_OUTER_CORNER, :] - shapes[..., LEFT_OUTER_CORNER, :]
    return np.asarray(np.linalg.norm(corners, axis=-1))
