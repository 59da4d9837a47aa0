"""Perturbations drawn anew whenever a sample is seen, on the device that trains.

They stand beside the copies that shards hold (`msrrn.augmentation`): those are the paper's and are the same in
every epoch. A similarity of the crop, uneven light, blur, and a rectangle that hides a part of the face.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ROTATION: Final = 15.0
"""degrees, uniform in ±"""
LOG_SCALE: Final = 0.08
"""sd of the logarithm of the scale"""
SHIFT: Final = 0.02
"""sd in sides of the crop, of x and of y"""
LIGHT: Final = 0.5
"""strongest gradient of the light over the crop, uniform in ±, in x and in y"""
BLURRED: Final = 0.3
HIDDEN: Final = 0.4
"""shares of samples"""
HIDDEN_SIDE: Final = (0.1, 0.5)
"""sides of the rectangle, in sides of the crop"""


class Draws(NamedTuple):
    """Parameters for B samples, float32."""

    angle: Tensor
    """(B,) radians, from x towards y"""
    scale: Tensor
    """(B,)"""
    shift: Tensor
    """(B, 2) in sides of the crop"""
    light: Tensor
    """(B, 2) change of the light from the crop's centre to its edge, in x and y, as a share"""
    blur: Tensor
    """(B,) 0 to 1: from the pixels as they are to averages of 4 × 4 of them"""
    hidden: Tensor
    """(B, 4) left, top, right, bottom of the rectangle in [0, 1] of the crop; empty where nothing is hidden"""
    grey: Tensor
    """(B,) grey value of the rectangle, 0 to 255"""

    def rows(self, first: int, end: int) -> "Draws":
        return Draws(*(column[first:end] for column in self))

    def to(self, device: torch.device) -> "Draws":
        return Draws(*(column.to(device) for column in self))


def draw(batch: int, generator: torch.Generator) -> Draws:
    """Draws for `batch` samples, on the CPU: the same on every machine and device."""

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).clamp(-2.5, 2.5)

    least, most = HIDDEN_SIDE
    sides = least + (most - least) * uniform(batch, 2)
    centres = uniform(batch, 2)
    sides = torch.where(uniform(batch, 1) < HIDDEN, sides, 0.0)
    return Draws(
        angle=torch.deg2rad(ROTATION * (2 * uniform(batch) - 1)),
        scale=torch.exp(LOG_SCALE * normal(batch)),
        shift=SHIFT * normal(batch, 2),
        light=LIGHT * (2 * uniform(batch, 2) - 1),
        blur=torch.where(uniform(batch) < BLURRED, uniform(batch), 0.0),
        hidden=torch.cat([centres - sides / 2, centres + sides / 2], dim=1),
        grey=255 * uniform(batch),
    )


def perturb(images: Tensor, shapes: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Perturbed crops and their landmarks.

    Args:
        images: (B, H, H) grey values, uint8 or float.
        shapes: (B, L, 2) in [0, 1] of the crop.
        draws: on the images' device.

    Returns:
        float (B, H, H) grey values, not rounded; edge pixels repeat outside. And (B, L, 2), exact.
    """
    batch, side = images.shape[0], images.shape[-1]
    cos, sin = torch.cos(draws.angle), torch.sin(draws.angle)
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    forward = draws.scale[:, None, None] * rotation
    shapes = (shapes - 0.5) @ forward.transpose(1, 2) + 0.5 + draws.shift[:, None]
    # grid_sample asks where a pixel of the result comes from; its coordinates run from -1 to 1.
    inverse = rotation.transpose(1, 2) / draws.scale[:, None, None]
    back = torch.cat([inverse, -2 * inverse @ draws.shift[:, :, None]], dim=2)
    grid = functional.affine_grid(back, [batch, 1, side, side], align_corners=False)
    warped = functional.grid_sample(images[:, None].float(), grid, padding_mode="border", align_corners=False)
    coarse = functional.interpolate(functional.avg_pool2d(warped, 4), size=side, mode="bilinear", align_corners=False)
    result = torch.lerp(warped, coarse, draws.blur[:, None, None, None])[:, 0]
    centres = (torch.arange(side, device=images.device) + 0.5) / side
    slope = 2 * centres - 1
    light_x, light_y = draws.light[:, 0, None] * slope, draws.light[:, 1, None] * slope
    result *= 1 + light_x[:, None, :] + light_y[:, :, None]
    within = (centres > draws.hidden[:, :2, None]) & (centres < draws.hidden[:, 2:, None])
    hidden = within[:, 0, None, :] & within[:, 1, :, None]
    return torch.where(hidden, draws.grey[:, None, None], result).clamp(0, 255), shapes
