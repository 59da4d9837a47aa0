"""dlib's HOG detector and the policy by which pictures of any size are searched."""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

from msrrn.spares import Spares
from pipelines.detection.boxes import Detection, dlib_box, ordered, require_askable, without_overlaps

FINE: Final = 2.0
"""The fine copy's size over the picture's; its faces are from 37 px of the picture."""

MAX_FINE_SIDE: Final = 2048
"""Longer side of the fine copy of large pictures: their faces are found from 3.6 % of it."""

COARSE: Final = 1 / 3
"""The coarse copy's size over the fine one's. It has a ninth of its cost, and finds faces three times as large."""

SURE: Final = -0.1
"""Score of a face. At 0 the coarse copy finds 20 annotated faces fewer, at -0.2 eleven more and eight that a
second detector (BlazeFace, on the spot) denies. At -0.1 it denies 12 of all 2,292 detections; of the 2,273 that
the detector's own usage gives, 13.
"""

UNSURE: Final = -0.5
"""Score in the coarse copy of what may be a face. At -0.3 nothing is lost yet, at 0 four faces are."""

MAX_ASKED_SIDE: Final = 4 * MAX_FINE_SIDE
"""Longer side of the fine copy, however small the faces that are asked for."""

SMALLEST: Final = 75
"""Side, in pixels of a copy, below which a detection belongs to the smallest scale: 73, the next has 88."""

_DETECTORS: Final = Spares(dlib.get_frontal_face_detector)


@dataclass(frozen=True)
class HogDetector:
    """dlib's frontal face detector (HOG and a linear classifier); holds nothing, so it is picklable.

    A coarse copy is searched first. Where it shows no face, or one of the smallest size it can show, be it an
    unsure one, there may be smaller ones: then the fine copy is searched too, three times as large.

    Measured on the 2,012 faces in 1,859 photographs of 300-W (LFPW, HELEN, AFW): 1,943 are found at a
    quarter (0.251) of the cost of dlib's own usage, one upsampling for every picture, which finds 1,907, all
    of these among them. Without upsampling dlib's detector costs the same (0.246) and finds 1,867. The fine
    copy was searched for 15 % of the photographs. Ten of those 1,867 are missed here: scores differ with the
    size of the copy, and near the threshold no search contains another.

    Source: King, "Max-Margin Object Detection", arXiv 1502.00046; Dalal and Triggs, CVPR 2005.
    """

    name: ClassVar[str] = "hog"
    resolution: ClassVar[float] = 80.0
    scores: ClassVar[tuple[float, float]] = (SURE, math.inf)

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        """Faces of an upright picture (H, W, 3) uint8, largest box first, ties by x0, then y0.

        With `min_side`, the fine copy is as large as such faces need, and not larger.
        """
        require_askable(rgb, min_side)
        longer = max(rgb.shape[:2])
        if min_side is None:
            fine = min(FINE, MAX_FINE_SIDE / longer)
        else:
            fine = min(FINE, MAX_ASKED_SIDE / longer, self.resolution / min_side)
        coarse = fine * COARSE
        candidates = _search(rgb, coarse, UNSURE)
        found = [item for item in candidates if item.score > SURE]
        if not found or any(item.box.side * coarse < SMALLEST for item in candidates):
            found = without_overlaps(_search(rgb, fine, SURE) + found)
        return ordered(found)


def _search(rgb: NDArray[np.uint8], factor: float, threshold: float) -> list[Detection]:
    """Faces that score more than `threshold` in a copy of `factor` times the size, in pixels of `rgb`."""
    height, width = rgb.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    copy = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    with _DETECTORS.one() as detector:
        rectangles, scores, _ = detector.run(copy, 0, threshold)
    return [
        Detection(dlib_box(rectangle).scaled(1 / factor), float(score))
        for rectangle, score in zip(rectangles, scores, strict=True)
    ]
