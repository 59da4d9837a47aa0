"""A detector that chokes on some pictures. It is imported by each process that looks at pictures: so, by itself.

In others it finds a face without looking for one: on a busy machine, that could take longer than a picture may.
"""

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.detection import Detection, HogDetector

UPSETTING: Final = {"b raises": 41, "c dies": 42, "d hangs": 43}
"""Columns of pictures of 40 rows."""


@dataclass
class Upset:
    """Chokes on such pictures in the way that their columns say."""

    patient: bool = False
    name: ClassVar[str] = "hog"
    resolution: ClassVar[float] = HogDetector.resolution
    scores: ClassVar[tuple[float, float]] = HogDetector.scores

    def __call__(self, rgb: NDArray[np.uint8], min_side: float | None = None) -> list[Detection]:
        height, width = rgb.shape[:2]
        if height == 40 and width == 41:
            raise RuntimeError("internal error in the detector")
        if height == 40 and width == 42:
            os.kill(os.getpid(), signal.SIGSEGV)
        if height == 40 and width == 43 and not self.patient:
            time.sleep(60)
        middle = Box(width / 4, height / 4, width * 3 / 4, height * 3 / 4)
        return [] if height == 40 else [Detection(middle, 1.0)]
