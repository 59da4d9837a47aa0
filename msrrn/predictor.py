"""From crops to landmarks: the one way in which a trained network is asked."""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from msrrn.augmentation import mirror_shape
from msrrn.calibration import Calibration
from msrrn.landmarks import inter_pupil
from msrrn.metrics import point_error
from msrrn.network import LEVELS, MSRRN

STAGES: Final = ("mean_shape", "initial", "stage_1", "stage_2", "stage_3")
"""Names of the shapes that a prediction holds, in order."""

UNCALIBRATED: Final = Calibration()

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
    log_error: NDArray[np.float32]
    """(B,): logarithm of the NRMSE that the network expects"""
    disagreement: NDArray[np.float32]
    """(B,): mean distance of a face's two shapes over the pupils' distance; 0 where it is looked at once"""


def area_halve(level: Tensor) -> Tensor:
    """(B, H, W) uint8 → (B, H/2, W/2) float: 2 × 2 area average, rounded half up as OpenCV does."""
    return torch.floor(functional.avg_pool2d(level[:, None].float(), 2)[:, 0] + 0.5)


class Predictor:
    """Runs a network over crops in batches of a fixed size, without gradients.

    Where the network's configuration says `mirrored`, it also sees every crop in the mirror, and all shapes are
    the mean of both.
    """

    def __init__(
        self, model: MSRRN, calibration: Calibration = UNCALIBRATED, batch: int = 64, device: str = "cpu"
    ) -> None:
        self.model = model.to(device).eval()
        self.calibration = calibration
        self.batch = batch
        self.device = device

    def predict(self, image_200: NDArray[np.uint8]) -> Prediction:
        """Grey crops (B, 200, 200) uint8 → shapes; B = 0 is fine.

        Raises:
            ValueError: another shape or dtype.
        """
        stages, log_error, disagreement = self.judge(image_200)
        return Prediction(stages, self.calibration.expected(log_error, disagreement))

    def judge(self, image_200: NDArray[np.uint8]) -> Judgement:
        """What `predict` is made of, and calibrations are fitted to.

        Raises:
            ValueError: another shape or dtype.
        """
        self.model.eval()
        side = LEVELS[-1]
        if image_200.dtype != np.uint8 or image_200.shape[1:] != (side, side):
            raise ValueError(f"crops must be uint8 (B, {side}, {side}), not {image_200.dtype} {image_200.shape}")
        none = np.zeros(0, np.float32)
        nothing = Judgement(np.zeros((0, len(STAGES), 68, 2), np.float32), none, none)
        parts = [
            self._judge_batch(image_200[start : start + self.batch]) for start in range(0, len(image_200), self.batch)
        ]
        return Judgement._make(np.concatenate(columns) for columns in zip(nothing, *parts, strict=True))

    def _judge_batch(self, crops: NDArray[np.uint8]) -> Judgement:
        stages, log_error = self._run(crops)
        if not self.model.config.mirrored:
            return Judgement(stages, log_error, np.zeros_like(log_error))
        mirrored, log_mirrored = self._run(crops[:, :, ::-1])
        mirrored[..., 0] = 1 - mirrored[..., 0]
        mirrored = mirror_shape(mirrored).astype(np.float32)
        # The mean shape is the same for all.
        mirrored[:, 0] = stages[:, 0]
        both = ((stages + mirrored) / 2).astype(np.float32)
        distance = point_error(stages[:, -1], mirrored[:, -1])
        disagreement = distance / np.maximum(inter_pupil(both[:, -1]), 1e-6)
        log_both = ((log_error + log_mirrored) / 2).astype(np.float32)
        return Judgement(both, log_both, disagreement.astype(np.float32))

    @torch.inference_mode()
    def _run(self, crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        # A copy, since torch takes no negative strides.
        level_200 = torch.from_numpy(crops.copy()).to(self.device)
        level_100 = area_halve(level_200)
        stages = self.model(area_halve(level_100), level_100, level_200)
        mean = self.model.mean_shape.expand(len(crops), 1, -1, -1)
        return torch.cat([mean, stages.shapes], dim=1).cpu().numpy(), stages.log_error.cpu().numpy()
