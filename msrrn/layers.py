"""The layers that the network is made of.

Suffixes: B faces, L landmarks, P pixels a side of a patch, K pixels of a patch, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrrn.landmarks import NUM_LANDMARKS
from msrrn.sampling import block_offsets, square_offsets


class Residual(nn.Module):
    """Two convolutions whose result is added to their input; at first it is nothing (Zhang et al., "Fixup", 2019)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, inner, 3, padding=1)
        self.second = nn.Conv2d(inner, channels, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        inner = self.second(torch.relu_(self.first(features_BCHW)))
        return torch.relu_(inner.add_(features_BCHW))


class LandmarkLinear(nn.Module):
    """A linear layer for each landmark, with weights of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(NUM_LANDMARKS, inputs, outputs) * inputs**-0.5)

    def forward(self, features_BLC: Tensor) -> Tensor:
        return torch.bmm(features_BLC.transpose(0, 1), self.weight).transpose(0, 1)


class PooledFeatures(nn.Module):
    """Two small convolutions, each with max-pooling behind it, as in the paper."""

    offsets: Tensor

    def __init__(self, patch: int, channels: tuple[int, int]) -> None:
        super().__init__()
        first, second = channels
        side = ((patch - 4) // 2 - 2) // 2
        self.patch, self.size = patch, second * side * side
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, first, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(first, second, 3), nn.MaxPool2d(2), nn.ReLU(),
        )  # fmt: skip
        self.register_buffer("offsets", square_offsets(patch), persistent=False)

    def forward(self, patches_BLK: Tensor) -> Tensor:
        """(B, L, P²), row by row → (B, L, F)."""
        features: Tensor = self.convolutions(patches_BLK.reshape(-1, 1, self.patch, self.patch))
        return features.reshape(*patches_BLK.shape[:2], -1)


class BlockFeatures(nn.Module):
    """Filters of 4 × 4 pixels side by side, then filters over 2 × 2 of these.

    The pixels come block by block, so that both are matrix products of what lies in memory as it is.
    """

    offsets: Tensor

    def __init__(self, patch: int, channels: tuple[int, int]) -> None:
        super().__init__()
        first, second = channels
        self.size = second * (patch // 8) ** 2
        self.first = nn.Linear(4 * 4, first)
        self.second = nn.Linear(2 * 2 * first, second)
        self.register_buffer("offsets", block_offsets(patch), persistent=False)

    def forward(self, patches_BLK: Tensor) -> Tensor:
        """(B, L, P²), block by block → (B, L, F)."""
        batch = patches_BLK.shape[0]
        inner = torch.relu_(self.first(patches_BLK.reshape(-1, 4 * 4)))
        outer = torch.relu_(self.second(inner.view(-1, self.second.in_features)))
        return outer.view(batch, NUM_LANDMARKS, -1)


class ContextMap(nn.Module):
    """What is where in a straightened face: features on a grid of every fourth pixel, which see far around.

    Three halvings down, a residual block at each size; then the coarse features are spread over the fine ones
    (Lin et al., "Feature Pyramid Networks", 2017).
    """

    def __init__(self, channels: tuple[int, int, int, int], features: int) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.stem = nn.Conv2d(1, first, 4, stride=2, padding=1)
        self.down_2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.down_3 = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.down_4 = nn.Conv2d(third, fourth, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Residual(width, width // 2) for width in (second, third, fourth, third))
        self.up_3 = nn.Conv2d(fourth, third, 1)
        self.up_2 = nn.Conv2d(third, second, 1)
        self.around = nn.Conv2d(second, second, 3, padding=1, groups=second)
        self.output = nn.Conv2d(second, features, 1)

    def forward(self, images_BHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, H), H a multiple of 16 → (B, F, H/4, H/4), and what it is made of at (B, C, H/8, H/8)."""
        block_2, block_3, block_4, block_up = self.blocks
        finest = torch.relu_(self.stem(images_BHW[:, None]))
        fine = block_2(torch.relu_(self.down_2(finest)))
        middle = block_3(torch.relu_(self.down_3(fine)))
        coarse = block_4(torch.relu_(self.down_4(middle)))
        middle = block_up(torch.relu_(middle + functional.interpolate(self.up_3(coarse), scale_factor=2)))
        fine = torch.relu_(fine + functional.interpolate(self.up_2(middle), scale_factor=2))
        return self.output(self.around(fine)), middle
