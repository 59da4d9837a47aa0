"""dlib's convolutional detector: finds turned and partly hidden faces, and takes its time on a CPU."""

import math
import tempfile
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Final

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

from pipelines.detection.boxes import BoxMapping, Detection, dlib_box, ordered, require_askable

MAX_SIDE: Final = 640
"""Longer side, in pixels, of the copy that is searched: faces from an eighth of it are found."""

MIN_SIDE: Final = 160
"""A smaller copy is set on black of this size: dlib raises where its filters do not fit."""

_MAPPING: Final = BoxMapping(0.041, 0.081, 1.061)
"""Measured on the 57 of 74 faces, in 56 of the training photographs of 300-W, that it finds (1.7 s each on one core).

The medians against `expected_box`; about them the sd is 0.066 sides in x, 0.045 in y, and 0.100 of the side's
logarithm.
"""


@dataclass(frozen=True)
class CnnDetector:
    """dlib's `mmod_human_face_detector`; `model` is the bytes of its file, so a worker needs no file.

    Source: King, "Max-Margin Object Detection", arXiv 1502.00046.
    """

    model: bytes = field(repr=False)
    name: ClassVar[str] = "cnn"
    resolution: ClassVar[float] = 80.0
    scores: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        """Faces of an upright picture (H, W, 3) uint8, largest box first, ties by x0, then y0.

        With `min_side`, the copy is as large as such faces need.
        """
        require_askable(rgb, min_side)
        height, width = rgb.shape[:2]
        factor = min(1.0, self.resolution / min_side if min_side else MAX_SIDE / max(height, width))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        copy = np.zeros((max(size[1], MIN_SIDE), max(size[0], MIN_SIDE), 3), np.uint8)
        copy[: size[1], : size[0]] = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        return ordered(
            [
                Detection(_MAPPING(dlib_box(item.rect).scaled(1 / factor)), float(item.confidence))
                for item in _detector(self.model)(copy, 0)
            ]
        )


@cache
def _detector(model: bytes) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".dat") as file:  # dlib reads models from files alone
        file.write(model)
        file.flush()
        return dlib.cnn_face_detection_model_v1(file.name)
