"""What annotations lean to one side, taken off what a network learns from.

Annotations of 300-W lie half a pixel of the crop further right than those of the mirror images would. The targets of
mirrored faces lie as far to the left: a network can do no better than between, and learn the rest by heart.
"""

import torch
from torch import Tensor

from msrrn.sampling import frames_of


def one_sided(lean: Tensor, mirror: Tensor) -> Tensor:
    """Of a lean (L, 2) in the frame of the mean shape, what turns its sign in the mirror.

    What does not is another matter: faces in the mirror have it too, so it can be learned. `mirror` (L,) is the
    landmark that each becomes in the mirror.
    """
    return (lean - lean[mirror] * lean.new_tensor([-1.0, 1.0])) / 2


def without_lean(shapes: Tensor, mirrored: Tensor, lean: Tensor, mean_shape: Tensor) -> Tensor:
    """Annotated shapes (B, L, 2), of which `mirrored` (B,) says whether they are mirrored ones, without a `one_sided`
    lean (L, 2)."""
    sides = torch.where(mirrored, -1.0, 1.0).to(shapes.dtype)[:, None, None]
    return shapes - sides * (lean @ frames_of(mean_shape, shapes))
