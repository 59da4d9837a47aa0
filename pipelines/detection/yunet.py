"""YuNet, the detector of OpenCV."""

from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.spares import Spares
from pipelines.detection.boxes import BoxMapping, Detection, ordered, require_askable
from pipelines.detection.letterbox import letterbox

SIZE: Final = 640
"""Side of the square that the model file declares as its input; OpenCV 5 takes no other size everywhere."""

MIN_SCORE: Final = 0.7
SUPPRESSION_IOU: Final = 0.3
MAX_CANDIDATES: Final = 5000

_MAPPING: Final = BoxMapping()
"""Not measured: its file is in no package, and was not at hand. `tests/benchmarks/detection.py` prints it."""


@dataclass(frozen=True)
class YuNetDetector:
    """OpenCV's `FaceDetectorYN`; `model` is the bytes of its file, so a worker needs no file.

    Source: Wu, Peng and Yu, "YuNet: a tiny millisecond-level face detector", Machine Intelligence Research 2023.
    """

    model: bytes = field(repr=False)
    name: ClassVar[str] = "yunet"
    resolution: ClassVar[float] = 16.0
    scores: ClassVar[tuple[float, float]] = (MIN_SCORE, 1.0)

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        """Faces of an upright picture (H, W, 3) uint8, largest box first, ties by x0, then y0.

        `min_side` changes nothing: there is one copy, in which the smallest faces have some 16 px.
        """
        require_askable(rgb, min_side)
        square, scale, corner = letterbox(rgb, SIZE)
        with _detectors(self.model).one() as detector:
            _, faces = detector.detect(np.ascontiguousarray(square[:, :, ::-1]))
        return [] if faces is None else ordered(to_detections(faces, scale, corner))


def to_detections(
    faces: NDArray[np.float32], scale: NDArray[np.float64], corner: NDArray[np.float64]
) -> list[Detection]:
    """Rows (N, 15) of `FaceDetectorYN` as detections: x, y, width and height come first, the score last."""
    faces = faces[(faces[:, 2:4] > 0).all(axis=1)].astype(np.float64)
    edges = (np.hstack([faces[:, :2], faces[:, :2] + faces[:, 2:4]]) - corner) / scale - 0.5
    return [
        Detection(_MAPPING(Box(*row)), score)
        for row, score in zip(edges.tolist(), faces[:, 14].tolist(), strict=True)
    ]


@cache
def _detectors(model: bytes) -> Spares[Any]:
    return Spares(partial(_detector, model))


def _detector(model: bytes) -> Any:
    buffer = np.frombuffer(model, np.uint8)
    empty = np.zeros(0, np.uint8)
    create = cv2.FaceDetectorYN.create
    return create("onnx", buffer, empty, (SIZE, SIZE), MIN_SCORE, SUPPRESSION_IOU, MAX_CANDIDATES)
