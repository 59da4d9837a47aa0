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
    """Finds bright squares, however they lie; `upright_only`, where the upper half is brighter."""

    upright_only: bool = False
    name: ClassVar[str] = "hog"
    resolution: ClassVar[float] = 10.0

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        grey = rgb.max(axis=2)
        _, _, stats, _ = cv2.connectedComponentsWithStats((grey > 60).astype(np.uint8))
        found = []
        for x, y, width, height, _ in stats[1:].tolist():
            half = grey[y : y + height // 2, x : x + width].mean(), grey[y + height // 2 : y + height].max()
            if half[0] > half[1] or not self.upright_only:
                found.append(Detection(Box(x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5), 1.0))
        return ordered(found)
