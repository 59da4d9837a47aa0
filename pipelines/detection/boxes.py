"""What all detectors share: a detection, the one convention of boxes, and whose box is whose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.pyramid import require_picture

MATCH_IOU: Final = 0.3
"""Overlap (IoU) of a face's own detection with its `expected_box`.

On the 1,812 training faces no best overlap lies between 0.19 and 0.52, and no second best above 0.22.
"""

_OFFSET_X: Final = -0.009
_OFFSET_Y: Final = -0.052
_SIDE: Final = 2.81


@dataclass(frozen=True)
class Detection:
    """`box` in pixels of the upright image; `score` is the detector's own, larger is surer."""

    box: Box
    score: float


class Detector(Protocol):
    """Finds faces. Picklable, and holds its model's bytes: a worker elsewhere needs no file.

    `resolution` is how many pixels a side a face has to have: a picture may be reduced until its smallest faces
    that are worth finding have no more. `scores` are the least and the largest score that it gives.
    """

    name: ClassVar[str]
    resolution: ClassVar[float]
    scores: ClassVar[tuple[float, float]]

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        """Faces of an upright picture (H, W, 3) uint8, in the convention of `expected_box`, as `ordered`.

        `min_side`, in pixels, is the side of the smallest face worth finding: smaller ones need not be searched
        for. Without it the detector searches as far as its own policy goes.

        Raises:
            ValueError: another dtype, no pixels, or a `min_side` that is not above 0.
        """
        ...


def require_askable(rgb: NDArray[np.uint8], min_side: float | None) -> None:
    """Raises ValueError where no detector can be asked this, as `Detector` says."""
    require_picture(rgb)
    if min_side is not None and not min_side > 0:
        raise ValueError(f"min_side must be pixels, above 0, or None, not {min_side}")


@dataclass(frozen=True)
class BoxMapping:
    """Another convention's box to ours: the centre moves by `dx`, `dy` sides, the side is multiplied.

    A side is that of the square of equal area, and so is the result a square.
    """

    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0

    def __call__(self, box: Box) -> Box:
        (x, y), side = box.centre, box.side
        x, y, half = x + self.dx * side, y + self.dy * side, self.scale * side / 2
        return Box(x - half, y - half, x + half, y + half)

    @classmethod
    def median(cls, boxes: Sequence[Box], shapes: Sequence[NDArray[np.floating]]) -> Self:
        """The mapping from faces' boxes to their `expected_box`, by each quantity's median."""
        rows = [(box, expected_box(shape)) for box, shape in zip(boxes, shapes, strict=True)]
        offsets = np.array(
            [
                (
                    (ours.centre[0] - theirs.centre[0]) / theirs.side,
                    (ours.centre[1] - theirs.centre[1]) / theirs.side,
                    ours.side / theirs.side,
                )
                for theirs, ours in rows
            ]
        )
        dx, dy, scale = np.median(offsets, axis=0)
        return cls(float(dx), float(dy), float(scale))


def dlib_box(rectangle: Any) -> Box:
    """A rectangle of dlib, which holds the pixels at both its ends."""
    return Box(rectangle.left() - 0.5, rectangle.top() - 0.5, rectangle.right() + 0.5, rectangle.bottom() + 0.5)


def ordered(detections: Sequence[Detection]) -> list[Detection]:
    """Largest box first, ties by x0, then y0."""
    return sorted(detections, key=lambda item: (-item.box.area, item.box.x0, item.box.y0))


def without_overlaps(detections: Sequence[Detection]) -> list[Detection]:
    """One detection for each face: those that overlap an earlier one by `MATCH_IOU` or more are dropped."""
    kept: list[Detection] = []
    for item in detections:
        if all(item.box.iou(other.box) < MATCH_IOU for other in kept):
            kept.append(item)
    return kept


def expected_box(shape: NDArray[np.floating]) -> Box:
    """The box that a detector would give an annotated face (68, 2): for faces that it misses.

    A square around the shape's mean point, its side a multiple of the root mean square distance of the
    points from there. Measured on the 1,744 of 1,812 training faces of 300-W (LFPW, HELEN, AFW without the
    validation split) that `HogDetector` finds: the centre's offset is -0.009 sides in x (sd 0.035) and -0.053
    in y (sd 0.047), the side 2.82 (sd of its logarithm 0.083); the constants are of an earlier search, and agree
    to 0.003. The tight box predicts worse: its
    centre moves with yaw (sd 0.093 in x).
    """
    centre = shape.mean(axis=0)
    side = _SIDE * float(np.sqrt(((shape - centre) ** 2).sum(axis=1).mean()))
    x, y = float(centre[0]) + _OFFSET_X * side, float(centre[1]) + _OFFSET_Y * side
    return Box(x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def match(detections: Sequence[Detection], shape: NDArray[np.floating]) -> Detection | None:
    """The detection of an annotated face (68, 2), None when it was missed.

    It is the one that overlaps `expected_box` most, if by `MATCH_IOU`.
    """
    expected = expected_box(shape)
    best = max(detections, key=lambda item: item.box.iou(expected), default=None)
    return best if best is not None and best.box.iou(expected) >= MATCH_IOU else None
