"""Face boxes by dlib's HOG detector, and the boxes expected from annotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box

MAX_SIDE: Final = 1024
MAX_UPSAMPLED_SIDE: Final = 640

_CENTRE_X: Final = 0.0
_CENTRE_Y: Final = 0.0
_SCALE: Final = 1.0


@dataclass(frozen=True)
class Detection:
    """`box` in pixels of the upright image; `score` is the detector's own, larger is surer."""

    box: Box
    score: float


@dataclass(frozen=True)
class HogDetector:
    name = "dlib-hog"

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
    """The box the HOG detector would give for an annotated face (68, 2)."""
    tight = Box.around(shape)
    (x, y), side = tight.centre, tight.side
    half = side * _SCALE / 2
    x, y = x + _CENTRE_X * side, y + _CENTRE_Y * side
    return Box(x - half, y - half, x + half, y + half)


def match(detections: Sequence[Detection], shape: NDArray[np.floating]) -> Detection | None:
    """Which detection is this annotated face's, None when it was missed."""
    tight = Box.around(shape)
    best = max(detections, key=lambda item: item.box.iou(tight), default=None)
    return best if best is not None and best.box.iou(tight) > 0.3 else None


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
