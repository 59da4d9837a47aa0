"""The straightened face: a square that is cut out of a crop so that a face lies in it as the mean shape does.

It is a similarity, fixed once by the initial shape. Everything finer is seen there: however a face was turned, large
or beside the middle, its landmarks then are where they always are.
"""

from typing import Final, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from msrrn.sampling import frames_of, halved

SIDE: Final = 192
"""Pixels a side of the finest level; the others are its halves."""
FILLED: Final = 0.72
"""Share of the square's side that the longer side of the mean shape takes."""


class View(NamedTuple):
    """For each of B faces, a square in its crop. Points inside it are in [0, 1] of its side."""

    axes: Tensor
    """(B, 2, 2): its sides as row vectors, in sides of the crop"""
    centre: Tensor
    """(B, 1, 2) in [0, 1] of the crop"""
    frame: Tensor
    """(B, 2, 2): turn and scale of the face against the mean shape, for row vectors"""

    @classmethod
    def whole(cls, shapes: Tensor) -> Self:
        """The crop itself, for as many faces as there are shapes (B, L, 2)."""
        axes = torch.eye(2, dtype=shapes.dtype, device=shapes.device).expand(shapes.shape[0], 2, 2)
        return cls(axes, torch.full_like(shapes[:, :1], 0.5), axes)

    @classmethod
    def around(cls, mean_shape: Tensor, shapes: Tensor) -> Self:
        """The square in which each of `shapes` (B, L, 2) lies as near as it can to where `mean_shape` (L, 2) lies."""
        low, high = mean_shape.amin(dim=0), mean_shape.amax(dim=0)
        frame = frames_of(mean_shape, shapes)
        beside = (low + high) / 2 - mean_shape.mean(dim=0)
        centre = shapes.mean(dim=1, keepdim=True) + _times(beside[None, None], frame)
        return cls(frame * (high - low).amax(dim=0) / FILLED, centre, frame)

    def mirrored(self) -> Self:
        """The square in the mirror image of the crop that shows the mirror image of what this one shows."""
        flip = self.axes.new_tensor([[1.0, -1.0], [-1.0, 1.0]])
        centre = torch.stack([1 - self.centre[..., 0], self.centre[..., 1]], dim=-1)
        return type(self)(self.axes * flip, centre, self.frame * flip)

    def inside(self, shapes: Tensor) -> Tensor:
        """Points (B, L, 2) of the crop → the same in the square."""
        squared = self.axes.square().sum(dim=(1, 2), keepdim=True) / 2
        # A similarity is turned back by its transpose.
        return _times(shapes - self.centre, self.axes.mT / squared.clamp_min(1e-12)) + 0.5

    def outside(self, points: Tensor) -> Tensor:
        """Points (B, L, 2) of the square → the same in the crop."""
        return _times(points - 0.5, self.axes) + self.centre

    def turned(self, steps: Tensor) -> Tensor:
        """Steps (B, L, 2) as the mean shape would make them → as this face makes them, in sides of the crop."""
        return _times(steps, self.frame)

    def levels(self, crops: Tensor) -> list[Tensor]:
        """Crops (B, H, H), uint8 or float → the square at a quarter of `SIDE`, half of it, and `SIDE` pixels.

        Zero mean and nearly unit variance in the finest; outside of the crop its edge pixels repeat.
        """
        steps = (2 * torch.arange(SIDE, device=crops.device) + 1) / SIDE - 1
        along, down = self.axes[..., None, None].unbind(dim=1)
        # Both coordinates of a pixel far apart in memory: sums over whole rows, which is many times faster.
        grid = along * steps + (down * steps[:, None] + (2 * self.centre.mT[..., None] - 1))
        finest = functional.grid_sample(
            crops[:, None].float(), grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
        )
        finest = functional.layer_norm(finest, finest.shape[1:], eps=1.0)
        return [level[:, 0] for level in (halved(halved(finest)), halved(finest), finest)]


def _times(points: Tensor, frame: Tensor) -> Tensor:
    """points @ frame, without a matrix product: those may run in a precision that is too low for coordinates."""
    return points[..., :1] * frame[:, None, 0] + points[..., 1:] * frame[:, None, 1]
