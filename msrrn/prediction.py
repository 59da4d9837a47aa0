"""From crops to landmarks: what a trained network says, and how it is asked, whatever runs it. No torch is needed."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msrrn.calibration import Calibration, Signs
from msrrn.geometry import LEVELS

STAGES: Final = ("mean_shape", "initial", "stage_1", "stage_2", "stage_3")
"""Names of the shapes that a prediction holds, in order."""

UNCALIBRATED: Final = Calibration()

CPU_BATCH: Final = 32
"""Faces that are asked about at once: with more, what one layer leaves to the next does not stay near the core."""

OUTPUTS: Final = ("landmarks", "expected_nrmse", "stages", *Signs._fields)
"""Names of what a graph gives."""

CONFIDENT: Final = 0.05
"""The expected NRMSE (IP) at which the confidence is 1/2."""


class Prediction(NamedTuple):
    """For B faces; coordinates in [0, 1] of the crop, float32."""

    stages: NDArray[np.float32]
    """(B, 5, 68, 2), in the order of `STAGES`."""
    expected_nrmse: NDArray[np.float32]
    """(B,): the NRMSE (IP, a fraction) to expect of the last shape; calibrated where the model is."""

    @property
    def confidence(self) -> NDArray[np.float32]:
        """(B,) in (0, 1]: 1 / (1 + expected / 0.05), so a half where an error of 5 % is expected."""
        return (1 / (1 + self.expected_nrmse / CONFIDENT)).astype(np.float32)

    @property
    def shapes(self) -> NDArray[np.float32]:
        """(B, 68, 2), the last stage."""
        return self.stages[:, -1]


class Judgement(NamedTuple):
    """For B faces: the shapes, and what is known about their error; float32."""

    stages: NDArray[np.float32]
    """(B, 5, 68, 2)"""
    signs: Signs
    """(B,) each"""


class Predictor(ABC):
    """Asks a network about crops, in batches of a fixed size. Its back ends say how one batch is run."""

    def __init__(self, calibration: Calibration = UNCALIBRATED, batch: int = CPU_BATCH) -> None:
        self.calibration = calibration
        self.batch = batch

    @abstractmethod
    def _run(self, crops: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """One batch (B, 200, 200) with 1 ≤ B ≤ `batch` → the columns of `OUTPUTS` behind the first two."""

    def _runs(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Sequence[NDArray[np.float32]]]:
        """What `_run` gives of each batch; a back end may begin one before the one before has ended."""
        return map(self._run, batches)

    def predict(self, image_200: NDArray[np.uint8]) -> Prediction:
        """Grey crops (B, 200, 200) uint8 → shapes; B = 0 is fine.

        Raises:
            ValueError: another shape or dtype.
        """
        stages, signs = self.judge(image_200)
        return Prediction(stages, self.calibration.expected(signs))

    def judge(self, image_200: NDArray[np.uint8]) -> Judgement:
        """What `predict` is made of, and calibrations are fitted to.

        Raises:
            ValueError: another shape or dtype.
        """
        side = LEVELS[-1]
        if image_200.dtype != np.uint8 or image_200.shape[1:] != (side, side):
            raise ValueError(f"crops must be uint8 (B, {side}, {side}), not {image_200.dtype} {image_200.shape}")
        none = np.zeros(0, np.float32)
        nothing = [np.zeros((0, len(STAGES), 68, 2), np.float32), *[none] * len(Signs._fields)]
        parts = self._runs(image_200[start : start + self.batch] for start in range(0, len(image_200), self.batch))
        stages, *signs = (np.concatenate(columns) for columns in zip(nothing, *parts, strict=True))
        return Judgement(stages, Signs(*signs))
