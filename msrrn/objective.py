"""The training objective (eq. 5 of the paper)."""

import torch
from torch import Tensor

from msrrn.network import Stages


def objective(stages: Stages, truth: Tensor) -> Tensor:
    """Σₜ ‖f(I⁽ᵗ⁾, Sᵗ⁻¹) − (S* − Sᵗ⁻¹)‖², plus ‖S⁰ − S*‖² for the initial shape; mean over faces.

    Since Sᵗ = Sᵗ⁻¹ + f, each term is ‖Sᵗ − S*‖². `truth` is (B, L, 2) in [0, 1] of the crop; the
    result is a scalar in squared crop sides, summed over coordinates and stages. λ‖W‖² is the
    optimiser's weight decay.
    """
    return torch.sum((stages.shapes - truth[:, None]) ** 2, dim=(1, 2, 3)).mean()
