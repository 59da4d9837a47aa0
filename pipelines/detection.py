"""Face boxes by dlib's HOG detector, and the boxes expected from annotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box

MAX_SIDE: Final = 1024
"""Longer side, in pixels, of the copy that is searched: faces from 8 % of it are found.

Measured on 150 photographs (50 of each of LFPW, HELEN and AFW, 725 px on average, RGB, one core of a
busy machine): the annotated face is found in 82 % at 640 px (37 ms), 90 % at 768 px (71 ms), 93 % at
900 px (79 ms). The same in grey: 80, 86 and 91 %.
"""

MAX_UPSAMPLED_SIDE: Final = 640
"""Where nothing is found, a copy of twice the size is searched too, if the first is no larger than this.

Doubling costs 4.5 times the first search. It helps small pictures (82 → 91 % at 640 px), but found
nothing more in those of 900 px.
"""

MATCH_IOU: Final = 0.3
"""Overlap (IoU) of a face's own detection with its `expected_box`.

On the 1,812 training faces no best overlap lies between 0.15 and 0.37, and no second best above 0.29.
"""

_OFFSET_X: Final = -0.009
_OFFSET_Y: Final = -0.052
_SIDE: Final = 2.81


@dataclass(frozen=True)
class Detection:
    """`box` in pixels of the upright image; `score` is the detector's own, larger is surer."""

    box: Box
    score: float


@dataclass(frozen=True)
class HogDetector:
    """dlib's frontal face detector (HOG and a linear classifier); holds nothing, so it is picklable.

    Source: King, "Max-Margin Object Detection", arXiv 1502.00046; Dalal and Triggs, CVPR 2005.
    """

    name: ClassVar[str] = "dlib-hog"

    def __call__(self, rgb: NDArray[np.uint8]) -> list[Detection]:
        """Faces of an upright picture (H, W, 3) uint8, largest box first, ties by x0, then y0."""
        longer = max(rgb.shape[:2])
        factor = min(1.0, MAX_SIDE / longer)
        reduced = rgb if factor == 1.0 else _resized(rgb, factor)
        found = _run(reduced, 0)
        if not found and max(reduced.shape[:2]) <= MAX_UPSAMPLED_SIDE:
            found = _run(reduced, 1)
        detections = [Detection(item.box.scaled(1 / factor), item.score) for item in found]
        return sorted(detections, key=lambda item: (-item.box.area, item.box.x0, item.box.y0))


def expected_box(shape: NDArray[np.floating]) -> Box:
    """The box `HogDetector` would give an annotated face (68, 2): for faces that it misses.

    A square around the shape's mean point, its side a multiple of the root mean square distance of the
    points from there. Measured on the 1,676 of 1,812 training faces of 300-W (LFPW, HELEN, AFW without the
    validation split) that were detected: the centre's offset is -0.009 sides in x (sd 0.035) and -0.052
    in y (sd 0.048), the side 2.81 (sd of its logarithm 0.087). The tight box predicts worse: its centre
    moves with yaw (sd 0.093 in x).
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


@cache
def _detector() -> Any:
    return dlib.get_frontal_face_detector()


def _run(rgb: NDArray[np.uint8], upsampling: int) -> list[Detection]:
    rectangles, scores, _ = _detector().run(np.ascontiguousarray(rgb), upsampling)
    return [
        Detection(Box(r.left() - 0.5, r.top() - 0.5, r.right() + 0.5, r.bottom() + 0.5), float(score))
        for r, score in zip(rectangles, scores, strict=True)
    ]


def _resized(rgb: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    height, width = rgb.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
