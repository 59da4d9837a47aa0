"""A trained network, asked by torch."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from msrrn.calibration import Calibration
from msrrn.network import MSRRN
from msrrn.objective import heat_centres, pupil_distance
from msrrn.prediction import CPU_BATCH, UNCALIBRATED, Predictor
from msrrn.sampling import frames_of, halved, mirrored_points

SKIPPED: Final = 1
"""Stages that the second look does without."""


def area_halve(level: Tensor) -> Tensor:
    """(B, H, W) → (B, H/2, W/2) float: 2 × 2 area average, rounded half up as OpenCV does."""
    return halved(level.float()).add_(0.5).floor_()


class Looks(nn.Module):
    """All that happens to a batch of crops: pyramid, network, a second look in the mirror where it is asked for.

    Where the network's configuration says `mirrored`, the shapes of the stages that both looks have are the mean of
    both, and so is the expected error. The second look begins with the initial shape, too, but does without the
    coarsest level, where it changes nothing worth its time. What annotations lean to one side (`MSRRN.lean`) is added
    last.
    """

    def __init__(self, model: MSRRN) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, image_200: Tensor) -> tuple[Tensor, ...]:
        """Crops (B, 200, 200) uint8 → shapes (B, 5, 68, 2), and the fields of `Signs`."""
        level_200 = image_200.float()
        level_100 = area_halve(level_200)
        start = self.model.begun(area_halve(level_100), level_100, level_200)
        stages = self.model.refined(start)
        shapes, log_error = stages.shapes, stages.log_error
        disagreement = spread = astray = torch.zeros_like(log_error)
        if self.model.config.mirrored:
            mirror = self.model.mirror
            again = self.model.refined(start.mirrored(mirror), skipped=SKIPPED)
            others = mirrored_points(again.shapes[:, 1:])[:, :, mirror]
            disagreement = _apart(stages.final, others[:, -1])
            both = (shapes[:, 1 + SKIPPED :] + others) / 2
            shapes = torch.cat([shapes[:, : 1 + SKIPPED], both], dim=1)
            log_error = (log_error + again.log_error) / 2
        if self.model.heat is not None:
            spread, centres = heat_centres(stages)
            astray = _apart(stages.final, centres)
        mean_shape = self.model.mean_shape
        shape = shapes[:, -1]
        size = torch.linalg.vector_norm((shape - shape.mean(dim=1, keepdim=True)).flatten(1), dim=1)
        pupils = pupil_distance(shape).clamp_min(1e-6)
        shapes = shapes + (self.model.lean @ frames_of(mean_shape, shape))[:, None]
        shapes = torch.cat([mean_shape.expand(image_200.shape[0], 1, -1, -1), shapes], dim=1)
        return shapes, log_error, disagreement / pupils, size / pupils, spread, astray / pupils


def _apart(shapes: Tensor, others: Tensor) -> Tensor:
    """(B,): mean distance of the points of two shapes (B, L, 2) each."""
    distance: Tensor = torch.linalg.vector_norm(shapes - others, dim=-1).mean(dim=1)
    return distance


class TorchPredictor(Predictor):
    """Runs the network itself, without gradients."""

    def __init__(
        self, model: MSRRN, calibration: Calibration = UNCALIBRATED, batch: int = CPU_BATCH, device: str = "cpu"
    ) -> None:
        super().__init__(calibration, batch)
        self.looks = Looks(model).to(device)
        self.device = device

    @torch.inference_mode()
    def _run(self, crops: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        self.looks.eval()
        # A face alone meets kernels of its own, which in bfloat16 round otherwise: it is asked about twice. A batch
        # that is filled up would take several times as long.
        faces = max(len(crops), 2 if self.looks.model.reduced else 1)
        # A copy, since torch takes no negative strides.
        filled = np.resize(crops, (faces, *crops.shape[1:]))
        with torch.autocast(torch.device(self.device).type, enabled=False):  # the network knows its own precision
            columns = self.looks(torch.from_numpy(filled).to(self.device))
        return [column[: len(crops)].cpu().numpy() for column in columns]
