"""What training does to faces inside the network, so that f learns what faces have in common.

With some 2,000 faces, f would know the pixels around each face's landmarks by heart after a few epochs, and its later
stages would only ever see shapes that are almost right. So every stage starts from a shape that was moved, and reads
features of which some are missing (Srivastava et al., "Dropout", 2014).
"""

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msrrn.geometry import LEVELS

MOVED: Final = 0.01
"""sd of the shift before the first stage, in sides of the crop, in x and in y; twice that for turn and scale"""
NARROWER: Final = 0.6
"""each stage's over that of the one before, as errors shrink"""
BENT: Final = 0.3
"""sd of what each landmark moves by itself, over that of the shift"""
MISSING: Final = 0.2
"""share of its features that a stage does not see"""
MORE: Final = (0.6, 0.2, 0.2)
"""shares of batches in which f is asked thrice, once more, and twice more, so that asking it more does no harm"""


class Disturbance(NamedTuple):
    """What training changes between T stages, of B faces, L landmarks and the F numbers that f reads."""

    moves: Tensor
    """(B, T, L, 2): added to the shape that each stage starts from, in sides of the crop"""
    kept: Tensor
    """(B, T, F): factors of the features that each stage reads"""


def draw_disturbance(
    batch: int, features: int, mean_shape: NDArray[np.float32], rng: np.random.Generator
) -> Disturbance:
    """Draws for `batch` faces and the `features` numbers that f reads at each stage.

    Args:
        mean_shape: (68, 2) in [0, 1] of the crop; it is turned and scaled about its centre, and gives the moves.
    """
    stages = len(LEVELS) + int(rng.choice(len(MORE), p=MORE))
    reach = (MOVED * NARROWER ** np.arange(stages, dtype=np.float32))[:, None, None]
    turn, scale = 2 * rng.standard_normal((2, batch, stages, 1, 1), np.float32)
    arms = mean_shape - mean_shape.mean(axis=0)
    across = np.stack([-arms[:, 1], arms[:, 0]], axis=-1)
    shift = rng.standard_normal((batch, stages, 1, 2), np.float32)
    bent = BENT * rng.standard_normal((batch, stages, len(arms), 2), np.float32)
    seen = rng.random((batch, stages, features), np.float32) >= MISSING
    return Disturbance(
        moves=torch.from_numpy(reach * (scale * arms + turn * across + shift + bent)),
        kept=torch.from_numpy(seen / np.float32(1 - MISSING)),
    )
