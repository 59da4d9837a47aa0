"""A detector of squares, which a sandbox loads in no time."""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.detection.boxes import Detection, ordered


@dataclass(frozen=True)
class Squares:
    """Finds bright squares, and scores them by their brightness; `upright`, those that are brighter above alone."""

    upright: bool = False
    name: ClassVar[str] = "hog"
    resolution: ClassVar[float] = 10.0
    scores: ClassVar[tuple[float, float]] = (0.0, 255.0)

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        grey = rgb.max(axis=2)
        _, _, stats, _ = cv2.connectedComponentsWithStats((grey > 60).astype(np.uint8))
        found = []
        for x, y, width, height, _ in stats[1:].tolist():
            part = grey[y : y + height, x : x + width].astype(float)
            if not self.upright or part[: height // 2].mean() > 1.1 * part[height // 2 :].mean():
                box = Box(x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5)
                found.append(Detection(box, float(part.max())))
        return ordered(found)
