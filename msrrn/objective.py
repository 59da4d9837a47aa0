"""The training objectives: the paper's (eq. 5), and one near the error by which models are judged."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from msrrn.landmarks import LEFT_EYE, RIGHT_EYE
from msrrn.network import Stages

BELL: Final = 0.8
"""sd of the bells that heat maps are to show, in cells"""
BEND: Final = 0.06
"""c of `summed_log_nrmse_ip`, of the distance of the pupils"""


def squared(stages: Stages, truth: Tensor) -> Tensor:
    """Σₜ ‖f(I⁽ᵗ⁾, Sᵗ⁻¹) − (S* − Sᵗ⁻¹)‖², plus ‖S⁰ − S*‖² for the initial shape; mean over faces.

    Since Sᵗ = Sᵗ⁻¹ + f, each term is ‖Sᵗ − S*‖². `truth` is (B, L, 2) in [0, 1] of the crop; the
    result is a scalar in squared crop sides, summed over coordinates and stages. λ‖W‖² is the
    optimiser's weight decay.
    """
    return torch.sum((stages.shapes - truth[:, None]) ** 2, dim=(1, 2, 3)).mean()


def summed_log_nrmse_ip(stages: Stages, truth: Tensor) -> Tensor:
    """NRMSE over the distance of the pupils, a fraction, of S⁰, and after each stage the mean over landmarks of
    c log(1 + e / c), where e is a landmark's error and c = `BEND`: summed; mean over faces.

    Near 0 it is e, too. What errs far after a stage, often by its annotation, weighs less; S⁰ has to find hard faces.
    This is the inner part of the wing loss (Feng et al., "Wing Loss for Robust Facial Landmark Localisation", CVPR
    2018, eq. 5), of distances.
    """
    errors = _errors(stages.shapes, truth)
    bent = BEND * torch.log1p(errors[:, 1:] / BEND)
    error: Tensor = torch.cat([errors[:, :1], bent], dim=1).mean(dim=2).sum(dim=1).mean()
    return error


def nrmse_ip(shapes: Tensor, truth: Tensor) -> Tensor:
    """(B, T+1): NRMSE over the pupils' distance, a fraction, of shapes (B, T+1, L, 2) against truth (B, L, 2)."""
    return _errors(shapes, truth).mean(dim=2)


def _errors(shapes: Tensor, truth: Tensor) -> Tensor:
    """(B, T+1, L): distances of landmarks from the true ones over that of the pupils."""
    pupils = pupil_distance(truth).clamp_min(1e-3)
    # Smooth where a point is exact: the slope of a norm is not defined there.
    distances = torch.sqrt((shapes - truth[:, None]).square().sum(dim=-1) + 1e-12)
    return distances / pupils[:, None, None]


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


def misplaced(stages: Stages, truth: Tensor) -> Tensor:
    """Mean cross entropy, nats, of heat maps against a bell around each landmark's true place; 0 without maps."""
    side = stages.heat.shape[-1]
    if not side:
        return stages.shapes.new_zeros(())
    places = stages.view.inside(truth) * side - 0.5
    cells = torch.arange(side, dtype=truth.dtype, device=truth.device)
    bells = torch.exp(-0.5 * ((cells - places[..., None]) / BELL).square())
    wanted = (bells[:, :, 1, :, None] * bells[:, :, 0, None, :]).flatten(2)
    wanted = wanted / wanted.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    entropy: Tensor = -(wanted * stages.heat.flatten(2).log_softmax(dim=-1)).sum(dim=-1).mean()
    return entropy


def heat_centres(stages: Stages) -> tuple[Tensor, Tensor]:
    """Of heat maps (side H ≥ 1): (B,) the mean of their radii, in [0, 1] of the straightened face (the root of the
    mean squared distance from the centre), and (B, L, 2) their centres, in [0, 1] of the crop."""
    side = stages.heat.shape[-1]
    shares = stages.heat.flatten(2).softmax(dim=-1)
    steps = (torch.arange(side, dtype=shares.dtype, device=shares.device) + 0.5) / side
    x, y = steps.repeat(side), steps.repeat_interleave(side)
    moments = shares @ torch.stack([x, y, x.square() + y.square()], dim=1)
    centres, squares = moments[..., :2], moments[..., 2]
    radii = (squares - centres.square().sum(dim=-1)).clamp_min(0).sqrt()
    return radii.mean(dim=1), stages.view.outside(centres)


OBJECTIVES: Final[dict[str, Callable[[Stages, Tensor], Tensor]]] = {
    "squared": squared,
    "log_nrmse_ip": summed_log_nrmse_ip,
}
