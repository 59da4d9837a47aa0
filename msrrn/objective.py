"""The training objectives: the paper's (eq. 5), and the error by which models are judged."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from msrrn.landmarks import LEFT_EYE, RIGHT_EYE
from msrrn.network import Stages


def squared(stages: Stages, truth: Tensor) -> Tensor:
    """Σₜ ‖f(I⁽ᵗ⁾, Sᵗ⁻¹) − (S* − Sᵗ⁻¹)‖², plus ‖S⁰ − S*‖² for the initial shape; mean over faces.

    Since Sᵗ = Sᵗ⁻¹ + f, each term is ‖Sᵗ − S*‖². `truth` is (B, L, 2) in [0, 1] of the crop; the
    result is a scalar in squared crop sides, summed over coordinates and stages. λ‖W‖² is the
    optimiser's weight decay.
    """
    return torch.sum((stages.shapes - truth[:, None]) ** 2, dim=(1, 2, 3)).mean()


def summed_nrmse_ip(stages: Stages, truth: Tensor) -> Tensor:
    """NRMSE over the distance of the pupils, a fraction, summed over S⁰ and all stages; mean over faces."""
    error: Tensor = nrmse_ip(stages.shapes, truth).sum(dim=1).mean()
    return error


def nrmse_ip(shapes: Tensor, truth: Tensor) -> Tensor:
    """(B, T+1): NRMSE over the pupils' distance, a fraction, of shapes (B, T+1, L, 2) against truth (B, L, 2)."""
    pupils = pupil_distance(truth).clamp_min(1e-3)
    # Smooth where a point is exact: the slope of a norm is not defined there.
    distances = torch.sqrt((shapes - truth[:, None]).square().sum(dim=-1) + 1e-12)
    error: Tensor = distances.mean(dim=2) / pupils[:, None]
    return error


def pupil_distance(shapes: Tensor) -> Tensor:
    """(B,): the normaliser IP of shapes (B, L, 2), in their unit."""
    eyes = [shapes[:, eye.start : eye.stop].mean(dim=1) for eye in (RIGHT_EYE, LEFT_EYE)]
    distance: Tensor = torch.linalg.vector_norm(eyes[1] - eyes[0], dim=-1)
    return distance


def misjudged(stages: Stages, truth: Tensor) -> Tensor:
    """Mean square of what the logarithm of the last shape's expected NRMSE (IP) lies beside that of the true one."""
    error = nrmse_ip(stages.final[:, None].detach(), truth)[:, 0]
    gap: Tensor = stages.log_error - error.clamp_min(1e-3).log()
    return gap.square().mean()


OBJECTIVES: Final[dict[str, Callable[[Stages, Tensor], Tensor]]] = {
    "squared": squared,
    "nrmse_ip": summed_nrmse_ip,
}
