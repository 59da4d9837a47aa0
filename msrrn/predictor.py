"""From crops to landmarks: the one way in which a trained network is asked."""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from msrrn.network import LEVELS, MSRRN

STAGES: Final = ("mean_shape", "initial", "stage_1", "stage_2", "stage_3")
"""Names of the shapes that a prediction holds, in order."""

CONFIDENT: Final = 0.05
"""The expected NRMSE (IP) at which the confidence is 1/2."""

LOG_ERRORS: Final = (-10.0, 10.0)


class Prediction(NamedTuple):
    """For B faces; coordinates in [0, 1] of the crop, float32."""

    stages: NDArray[np.float32]
    """(B, 5, 68, 2), in the order of `STAGES`."""
    expected_nrmse: NDArray[np.float32]
    """(B,): the NRMSE (IP, a fraction) that the network expects of its last shape."""

    @property
    def confidence(self) -> NDArray[np.float32]:
        """(B,) in (0, 1]: 1 / (1 + expected / 0.05), so a half where an error of 5 % is expected."""
        return (1 / (1 + self.expected_nrmse / CONFIDENT)).astype(np.float32)

    @property
    def shapes(self) -> NDArray[np.float32]:
        """(B, 68, 2), the last stage."""
        return self.stages[:, -1]


def area_halve(level: Tensor) -> Tensor:
    """(B, H, W) uint8 → (B, H/2, W/2) float: 2 × 2 area average, rounded half up as OpenCV does."""
    return torch.floor(functional.avg_pool2d(level[:, None].float(), 2)[:, 0] + 0.5)


class Predictor:
    """Runs a network over crops in batches of a fixed size, without gradients."""

    def __init__(self, model: MSRRN, batch: int = 64, device: str = "cpu") -> None:
        self.model = model.to(device).eval()
        self.batch = batch
        self.device = device

    def predict(self, image_200: NDArray[np.uint8]) -> Prediction:
        """Grey crops (B, 200, 200) uint8 → shapes; B = 0 is fine.

        Raises:
            ValueError: another shape or dtype.
        """
        self.model.eval()
        side = LEVELS[-1]
        if image_200.dtype != np.uint8 or image_200.shape[1:] != (side, side):
            raise ValueError(f"crops must be uint8 (B, {side}, {side}), not {image_200.dtype} {image_200.shape}")
        parts = [
            self._predict_batch(image_200[start : start + self.batch])
            for start in range(0, len(image_200), self.batch)
        ]
        stages = np.concatenate([np.zeros((0, len(STAGES), 68, 2), np.float32), *(part.stages for part in parts)])
        expected = np.concatenate([np.zeros(0, np.float32), *(part.expected_nrmse for part in parts)])
        return Prediction(stages, expected)

    @torch.inference_mode()
    def _predict_batch(self, crops: NDArray[np.uint8]) -> Prediction:
        # A copy, since torch takes no negative strides, which NumPy leaves on an axis of length 1.
        level_200 = torch.from_numpy(crops.copy()).to(self.device)
        level_100 = area_halve(level_200)
        stages = self.model(area_halve(level_100), level_100, level_200)
        mean = self.model.mean_shape.expand(len(crops), 1, -1, -1)
        shapes = torch.cat([mean, stages.shapes], dim=1).cpu().numpy()
        # Bounded, so that a network that has gone astray still gives a number.
        expected = stages.log_error.clamp(*LOG_ERRORS).exp().cpu().numpy()
        return Prediction(shapes, expected)
