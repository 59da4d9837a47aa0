"""From crops to landmarks: the one way in which a trained network is asked."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from msrrn.calibration import Calibration
from msrrn.landmarks import MIRROR
from msrrn.network import LEVELS, MSRRN, Stages
from msrrn.objective import pupil_distance
from msrrn.sampling import straightened

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
    narrowness: NDArray[np.float32]
    """(B,): root of the summed squares of the shape about its centre, over the pupils' distance"""


def area_halve(level: Tensor) -> Tensor:
    """(B, H, W) → (B, H/2, W/2) float: 2 × 2 area average, rounded half up as OpenCV does."""
    return torch.floor(mean_halve(level) + 0.5)


def mean_halve(level: Tensor) -> Tensor:
    """`area_halve` without rounding, for pixels that are not whole: a last bit then never moves a grey value."""
    return functional.avg_pool2d(level[:, None].float(), 2)[:, 0]


class Looks(nn.Module):
    """All that happens to a batch of crops: pyramid, network, and a second look in the mirror where it is asked for.

    The second one sees the face straightened, by the shape that the first one found: centred, upright, and as large
    as training faces are. Where the network's configuration says `mirrored`, all shapes are the mean of both looks.
    """

    mirror: Tensor

    def __init__(self, model: MSRRN) -> None:
        super().__init__()
        self.model = model.eval()
        self.register_buffer("mirror", torch.from_numpy(MIRROR), persistent=False)

    def forward(self, image_200: Tensor) -> tuple[Tensor, ...]:
        """Crops (B, 200, 200) uint8 → the fields of `Judgement`."""
        pixels = image_200.float()
        stages, log_error = self._look(pixels, area_halve)
        disagreement = torch.zeros_like(log_error)
        if self.model.config.mirrored:
            found = stages[:, -1]
            crops, frames = straightened(pixels, self.model.mean_shape, found)
            other, log_other = self._look(crops, mean_halve)
            other = torch.stack([1 - other[..., 0], other[..., 1]], dim=-1)[:, :, self.mirror]
            centre = found.mean(dim=1, keepdim=True)[:, None]
            other = (other - self.model.mean_shape.mean(dim=0)) @ frames[:, None] + centre
            apart = torch.linalg.vector_norm(stages[:, -1] - other[:, -1], dim=-1).mean(dim=1)
            stages, log_error = (stages + other) / 2, (log_error + log_other) / 2
            disagreement = apart / pupil_distance(stages[:, -1]).clamp_min(1e-6)
        shape = stages[:, -1]
        size = torch.linalg.vector_norm((shape - shape.mean(dim=1, keepdim=True)).flatten(1), dim=1)
        narrowness = size / pupil_distance(shape).clamp_min(1e-6)
        mean_shape = self.model.mean_shape.expand(image_200.shape[0], 1, -1, -1)
        return torch.cat([mean_shape, stages], dim=1), log_error, disagreement, narrowness

    def _look(self, level_200: Tensor, halve: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        level_100 = halve(level_200)
        stages: Stages = self.model(halve(level_100), level_100, level_200)
        return stages.shapes, stages.log_error


class Predictor(ABC):
    """Asks a network about crops, in batches of a fixed size. Its back ends say how one batch is run."""

    def __init__(self, calibration: Calibration = UNCALIBRATED, batch: int = 64) -> None:
        self.calibration = calibration
        self.batch = batch

    @abstractmethod
    def _run(self, crops: NDArray[np.uint8]) -> Judgement:
        """One batch (B, 200, 200) with 1 ≤ B ≤ `batch`."""

    def predict(self, image_200: NDArray[np.uint8]) -> Prediction:
        """Grey crops (B, 200, 200) uint8 → shapes; B = 0 is fine.

        Raises:
            ValueError: another shape or dtype.
        """
        stages, *told = self.judge(image_200)
        return Prediction(stages, self.calibration.expected(*told))

    def judge(self, image_200: NDArray[np.uint8]) -> Judgement:
        """What `predict` is made of, and calibrations are fitted to.

        Raises:
            ValueError: another shape or dtype.
        """
        side = LEVELS[-1]
        if image_200.dtype != np.uint8 or image_200.shape[1:] != (side, side):
            raise ValueError(f"crops must be uint8 (B, {side}, {side}), not {image_200.dtype} {image_200.shape}")
        none = np.zeros(0, np.float32)
        nothing = Judgement(np.zeros((0, len(STAGES), 68, 2), np.float32), none, none, none)
        parts = [self._run(image_200[start : start + self.batch]) for start in range(0, len(image_200), self.batch)]
        return Judgement._make(np.concatenate(columns) for columns in zip(nothing, *parts, strict=True))


class TorchPredictor(Predictor):
    """Runs the network itself, without gradients."""

    def __init__(
        self, model: MSRRN, calibration: Calibration = UNCALIBRATED, batch: int = 64, device: str = "cpu"
    ) -> None:
        super().__init__(calibration, batch)
        self.looks = Looks(model).to(device)
        self.device = device

    @torch.inference_mode()
    def _run(self, crops: NDArray[np.uint8]) -> Judgement:
        self.looks.eval()
        # A copy, since torch takes no negative strides.
        columns = self.looks(torch.from_numpy(crops.copy()).to(self.device))
        return Judgement._make(column.cpu().numpy() for column in columns)
