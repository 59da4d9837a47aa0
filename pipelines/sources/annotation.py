"""What every format's annotation must be: 68 finite points that span a face. The formats' readers share this."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import FARTHEST, Box
from msrrn.landmarks import NUM_LANDMARKS, inter_ocular, inter_pupil
from pipelines.errors import UnusableInput

MAX_BYTES: Final = 1 << 20
"""Of a file that holds one face's annotation."""
_LONGEST_SUBSET: Final = 255


class BadAnnotation(UnusableInput):
    """An annotation that cannot be used; its reason is one of `pipelines.checks.CHECKS`."""


def as_unicode(text: str) -> str:
    """JSON may hold halves of characters, which no table can: they are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def subset_name(said: str) -> str:
    """What a file calls a subset, as each row of a table can hold it: long ones are cut."""
    return as_unicode(said)[:_LONGEST_SUBSET]


def usable_shape(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """`points` (N, 2), 0-based pixels of the upright image, as a shape: float64 (68, 2).

    Raises `BadAnnotation`: count, not_finite, flat.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(points) != NUM_LANDMARKS:
        raise BadAnnotation("count", f"{len(points)} points instead of {NUM_LANDMARKS}")
    shape = np.array(points, dtype=np.float64)
    finite = (np.abs(shape) < FARTHEST).all(axis=1)
    if not finite.all():
        raise BadAnnotation("not_finite", f"point {int(np.argmin(finite)) + 1} is not finite, or too far away")
    if not (np.ptp(shape, axis=0) > 0).all():
        raise BadAnnotation("flat", "all points lie on one horizontal or vertical line")
    if min(inter_pupil(shape), inter_ocular(shape)) < 1e-3 * np.ptp(shape, axis=0).max():
        raise BadAnnotation("flat", "the eyes coincide, so no error could be measured against it")
    return shape


def points_of(value: object) -> NDArray[np.float64]:
    """A list of pairs, or a flat list x, y, x, y, …, as float64 (N, 2), whatever its N.

    Raises `BadAnnotation`: syntax, count (an odd one), not_finite (too large for a float).
    """
    if not isinstance(value, list):
        raise BadAnnotation("syntax", "the points are not a list")
    numbers = [number for pair in value for number in pair] if all(map(_is_pair, value)) else value
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise BadAnnotation("syntax", "the points are neither pairs of numbers nor a list of numbers")
    if len(numbers) % 2:
        raise BadAnnotation("count", f"{len(numbers)} numbers make no pairs")
    try:
        return np.array(numbers, np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise BadAnnotation("not_finite", "a number is too large") from error


def box_of(value: object) -> Box | None:
    """A list of left, top, right and bottom edge, if there is one. Raises `BadAnnotation`: syntax."""
    if value is None:
        return None
    try:
        edges = points_of(value).ravel()
        return Box(*(float(edge) for edge in edges))
    except (BadAnnotation, TypeError, ValueError) as error:
        raise BadAnnotation(
            "syntax", f"box is {value!r}"[:200] + ": write its left, top, right, bottom edge"
        ) from error


def number(text: str) -> float:
    """A decimal number; `ValueError` for all else, and for what Python alone takes for one."""
    if "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def pixel_box(left: float, top: float, width: float, height: float) -> Box:
    """The box of `width` × `height` pixels whose first one is (left, top); `ValueError` when it is none."""
    return Box(left - 0.5, top - 0.5, left + width - 0.5, top + height - 0.5)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2
