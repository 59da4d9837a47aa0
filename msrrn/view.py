"""The straightened face: a square that is cut out of a crop so that a face lies in it as the mean shape does.

It is a similarity, fixed once by the initial shape. Everything finer is seen there: however a face was turned, large
or beside the middle, its landmarks then are where they always are.
"""

from typing import Final, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from msrrn.sampling import frames_of, halved, mirrored_points

SIDE: Final = 192
"""Pixels a side of the finest level; the others are its halves. It is never made whole."""
FILLED: Final = 0.72
"""Share of the square's side that the longer side of the mean shape takes."""


class Grey(NamedTuple):
    """Makes grey values comparable between faces."""

    mean: Tensor
    """(B, 1, 1)"""
    factor: Tensor
    """(B, 1, 1)"""

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, ...) three-dimensional → the same less the mean, times the factor."""
        return (pixels - self.mean) * self.factor


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
        return type(self)(_turned_back(self.axes), mirrored_points(self.centre), _turned_back(self.frame))

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

    def steps(self, offsets: Tensor) -> Tensor:
        """Offsets (K, 2) in pixels of the finest level → the same (B, K, 2) in sides of the crop."""
        return _times(offsets[None] / SIDE, self.axes)

    def levels(self, level_100: Tensor) -> tuple[Tensor, Tensor, Grey]:
        """Crops (B, 100, 100) → the square at a quarter of `SIDE` and at half of it, of zero mean and nearly unit
        variance, and what made it so. Outside of the crop its edge pixels repeat.

        The finest level is not made: its pixels are read in the crop, only where landmarks are (`steps`).
        """
        side = SIDE // 2
        steps = (2 * torch.arange(side, dtype=self.axes.dtype, device=level_100.device) + 1) / side - 1
        along, down = self.axes[..., None, None].unbind(dim=1)
        # Both coordinates of a pixel far apart in memory: sums over whole rows, which is many times faster.
        grid = along * steps + (down * steps[:, None] + (2 * self.centre.mT[..., None] - 1))
        square = functional.grid_sample(
            level_100[:, None].float(), grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
        )[:, 0]
        mean = square.mean(dim=(1, 2), keepdim=True)
        square = square - mean
        factor = (square.square().mean(dim=(1, 2), keepdim=True) + 1.0).rsqrt()
        square = square * factor
        return halved(square), square, Grey(mean, factor)


def _turned_back(frame: Tensor) -> Tensor:
    """(B, 2, 2) of a similarity → that of its mirror image."""
    (a, b), (c, d) = (row.unbind(dim=1) for row in frame.unbind(dim=1))
    return torch.stack([a, -b, -c, d], dim=1).view(-1, 2, 2)


def _times(points: Tensor, frame: Tensor) -> Tensor:
    """points @ frame, without a matrix product: those may run in a precision that is too low for coordinates."""
    return points[..., :1] * frame[:, None, 0] + points[..., 1:] * frame[:, None, 1]
