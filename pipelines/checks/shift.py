"""An annotation shifted by a constant number of pixels: seen over a whole source, by the symmetry of faces.

Around the outer eye corners, the mouth corners and the nostrils, the right half's patch is laid, mirrored, over the
left half's. If the landmarks lie right of what they mark by t, the two patches disagree by 2 t along the
line of the eyes. One face tells little (3 % of the pupil distance); many faces tell two things apart:
annotators' own taste, a share of the face, and a shift, the same number of pixels on faces of any size.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.landmarks import pupils
from pipelines.checks.catalogue import Problem

_PAIRS: Final = (([36], [45]), ([48], [54]), ([31, 32, 33], [33, 34, 35]))
"""Landmarks whose mean a patch is centred on, right and left."""
_WIDTH: Final = 32
_HEIGHT: Final = 24
_REACH: Final = 0.28
"""Half of a patch's width, in pupil distances."""
_SEARCH: Final = (16, 3)
"""How far patches are moved against each other, in pixels of a patch: offsets to 0.14 pupil distances are seen."""

MIN_SHIFT: Final = 1.0
MIN_CERTAINTY: Final = 5.0
"""Pixels, and standard errors.

Measured by moving the annotations by -2, -1, 0, 1 and 2 px: 2,012 faces of 300-W -1.2, -0.5, 0.3, 1.1, 1.8
(± 0.07); of these AFW -1.1, -0.7, 0.0, 0.6, 1.3 (± 0.1) and LFPW -1.4, -0.4, 0.5, 1.3, 2.2 (± 0.25); 402 video
frames -1.1, -0.2, 0.9, 1.6, 1.8 (± 0.16); 560 synthetic faces -1.7, -0.9, 0.0, 0.8, 1.7 (± 0.16). HELEN, where
all faces are equally large, has ± 0.5 and gets no answer.

Of draws of 300 faces, moved to the left and to the right, 2 px are found in 73 and 100 % (300-W), 81 and
100 % (AFW), 31 and 66 % (LFPW), 100 and 97 % (synthetic); 1 px seldom. Unmoved, none is reported but in 24 %
of such draws from the video frames, whose points another network set.
"""
MIN_FACES: Final = 50
_TASTE: Final = 0.01
"""Standard deviation expected of the annotators' share: 300-W has 0.007, other sets 0 to 0.015."""


def sideways_offset(grey: NDArray[np.uint8], shape: NDArray[np.floating]) -> NDArray[np.float64]:
    """How far an annotation lies right of what it marks along the line of the eyes, and the distance of the pupils.

    `grey` is (H, W) uint8, `shape` (68, 2) in its pixels; so is the result (2,). Best on a crop of 40 to 80 px
    between the pupils: scale both numbers back to the photo's pixels. Up to 0.14 pupil distances. 0.3 ms.
    """
    right, left = pupils(shape.astype(np.float64))
    between = left - right
    distance = float(np.hypot(*between))
    axis = between / distance
    pixel = 2 * _REACH * distance / _WIDTH
    dx, dy = _SEARCH
    likeness = np.zeros(2 * dx + 1, np.float32)
    for right_points, left_points in _PAIRS:
        mirrored = _patch(grey, shape[right_points].mean(axis=0), -axis, axis, pixel, (_WIDTH, _HEIGHT))
        around = (_WIDTH + 2 * dx, _HEIGHT + 2 * dy)
        plain = _patch(grey, shape[left_points].mean(axis=0), axis, axis, pixel, around)
        likeness += cv2.matchTemplate(plain, mirrored, cv2.TM_CCOEFF_NORMED).max(axis=0)
    return np.array([-(_peak(likeness) - dx) * pixel / 2, distance])


def shifted_source(offsets: NDArray[np.floating]) -> Problem | None:
    """`shifted` where a source's faces all lie off by the same pixels; `offsets` (N, 2) are in its photos' pixels.

    2 px show on some hundred faces of mixed sizes, 20 to 170 px between the pupils; not where all faces are
    equally large, since a shift then looks like annotators' taste. Only sideways shifts are seen: faces
    have no symmetry from top to bottom. Nothing is said of fewer than `MIN_FACES` faces.
    """
    known = offsets[np.isfinite(offsets).all(axis=1)].astype(np.float64)
    if len(known) < MIN_FACES:
        return None
    shift, error = _constant_part(known[:, 0], known[:, 1])
    if abs(shift) < MIN_SHIFT or abs(shift) < MIN_CERTAINTY * error:
        return None
    side = "right" if shift > 0 else "left"
    return Problem(
        "shifted",
        f"landmarks lie {abs(shift):.1f} px (± {error:.1f}) too far to the {side}, on small and large faces alike, "
        f"over {len(known)} faces",
    )


def _patch(
    grey: NDArray[np.uint8],
    centre: NDArray[np.floating],
    across: NDArray[np.float64],
    axis: NDArray[np.float64],
    pixel: float,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """A patch of `size` (width, height) whose x runs along `across`, and whose y runs down the face."""
    matrix = np.column_stack([across, [-axis[1], axis[0]]]) * pixel
    placed = np.column_stack([matrix, centre - matrix @ ((np.array(size) - 1) / 2)])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(grey, placed, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _peak(scores: NDArray[np.float32]) -> float:
    """Where a profile is highest, between its samples by a parabola."""
    at = int(scores.argmax())
    if not 0 < at < len(scores) - 1:
        return float(at)
    before, best, after = (float(score) for score in scores[at - 1 : at + 2])
    curvature = before - 2 * best + after
    return at + ((before - after) / (2 * curvature) if curvature < 0 else 0.0)


def _constant_part(offsets: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float, float]:
    """Offset = taste × size + constant: the constant and its standard error, by Huber's robust regression.

    Source: Huber, "Robust Estimation of a Location Parameter", 1964, by reweighted least squares.
    """
    columns = np.column_stack([np.ones_like(sizes), 1 / sizes])
    shares = offsets / sizes
    weights = np.ones_like(sizes)
    spread = _spread(shares - np.median(shares))
    for _ in range(20):
        information = (columns.T * weights) @ columns
        information[0, 0] += (spread / _TASTE) ** 2
        residuals = shares - columns @ np.linalg.solve(information, (columns.T * weights) @ shares)
        spread = _spread(residuals)
        weights = 1 / np.maximum(1, np.abs(residuals) / (1.5 * spread))
    solution = np.linalg.solve(information, (columns.T * weights) @ shares)
    return float(solution[1]), spread * float(np.sqrt(np.linalg.inv(information)[1, 1]))


def _spread(residuals: NDArray[np.float64]) -> float:
    """Standard deviation by the median of absolute values; never 0."""
    return max(1.4826 * float(np.median(np.abs(residuals))), 1e-6)
