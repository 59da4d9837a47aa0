"""The multiscale recurrent regression network (MSRRN).

A CNN predicts the initial shape S⁰ from the coarsest level. Then one regressor f, the same weights at
every stage, reads patches around the current landmarks at the next finer level, updates a recurrent
state and gives a residual: Sᵗ = Sᵗ⁻¹ + f(I⁽ᵗ⁾ ∘ Sᵗ⁻¹), t = 1..T.

Source: Wang, Sun, Lu, Feng & Zhou, "Multiscale recurrent regression networks for face alignment",
Applied Informatics 4:13, 2017. What that text leaves open (channels, widths, the form of the memory)
is chosen here and lives in `ModelConfig`.

Two presets. `paper` has max-pooling and one linear layer over all patches. `best` has filters side by side
instead, which are plain matrix products and cost a fraction, and first reduces each landmark's patch to a few
numbers by weights of its own; its patches and residuals live in the frame of the mean shape.

In training, a stage may start from a moved shape and miss features (`msrrn.disturbance`).

A small head beside the regressor says what error it expects of its own result. No gradient leaves it.

Max-pooling stands before ReLU: the two commute, and a quarter of the values are left to rectify.
Gradients flow through the sum of residuals and the memory, not through where patches are sampled: that
path is noisy (it follows single pixels' slopes) and costs half of the training time.

Suffixes: B faces, L landmarks, P pixels a side of a patch, C channels.
"""

import math
from typing import Annotated, Final, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from msrrn.landmarks import NUM_LANDMARKS
from msrrn.sampling import block_offsets, frames_of, sample_patches, square_offsets

LEVELS: Final = (50, 100, 200)
"""Pixels a side of the pyramid, coarse to fine: stage t reads level t."""

COORDINATES: Final = 2 * NUM_LANDMARKS

DOUBT: Final = 32
"""Width of the head that estimates the error."""


Channels = Annotated[int, Field(ge=1, le=1024)]


class ModelConfig(BaseModel):
    """Everything that fixes the network's tensors; it travels in the model card.

    A card may come from anywhere: its widths are bounded before memory is asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "paper"
    pooled: bool = Field(True, description="convolutions with max-pooling behind them, else filters side by side")
    aligned: bool = Field(
        False, description="patches and residuals turned and scaled with the current shape, as the mean shape's are"
    )
    landmark_features: int = Field(
        0, ge=0, le=256, description="numbers that each landmark's own weights make of its patch; 0: all go on"
    )
    patch: int = Field(16, ge=12, le=40, multiple_of=4, description="pixels a side of a patch")
    patch_channels: tuple[Channels, Channels] = (16, 16)
    initial_channels: tuple[Channels, Channels, Channels] = (16, 32, 48)
    mirrored: bool = Field(
        False, description="a face is looked at again, straightened and in the mirror; the mean of both shapes counts"
    )
    hidden: int = Field(256, ge=8, le=4096, description="width of the fully connected layers and of the memory")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if not self.pooled and self.patch % 8:
            raise ValueError(f"patch {self.patch} must be a multiple of 8 where nothing is pooled")
        return self


PRESETS: Final[dict[str, ModelConfig]] = {
    "paper": ModelConfig(),
    "best": ModelConfig(
        preset="best",
        pooled=False,
        aligned=True,
        mirrored=True,
        landmark_features=32,
        patch_channels=(32, 64),
        initial_channels=(32, 64, 128),
        hidden=384,
    ),
}


class Stages(NamedTuple):
    """What an unrolled pass gives."""

    shapes: Tensor
    """(B, T+1, L, 2), S⁰ first, in [0, 1] of the crop"""
    log_error: Tensor
    """(B,) natural logarithm of the NRMSE (IP, a fraction) that the network expects of its last shape"""

    @property
    def final(self) -> Tensor:
        return self.shapes[:, -1]


class Disturbance(NamedTuple):
    """What training changes between the stages (`msrrn.disturbance`)."""

    moves: Tensor
    """(B, T, L, 2): added to the shape that each stage starts from, in sides of the crop"""
    kept: Tensor
    """(B, T, F): factors of the features that each stage reads"""


def standardise(pixels: Tensor) -> Tensor:
    """uint8 or float crops (B, H, W) → float32 of zero mean and unit variance, each crop by itself."""
    values = pixels.float()
    values = values - values.mean(dim=(1, 2), keepdim=True)
    variance = values.square().mean(dim=(1, 2), keepdim=True)
    return values * variance.clamp_min(1.0).rsqrt()


class InitialShapeNet(nn.Module):
    """The CNN that predicts S⁰ from the 50 px level, as an offset from the training set's mean shape."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first, second, third = config.initial_channels
        if config.pooled:
            side = 4
            self.features = nn.Sequential(
                nn.Unflatten(1, (1, LEVELS[0])),
                nn.Conv2d(1, first, 5), nn.MaxPool2d(2), nn.ReLU(),
                nn.Conv2d(first, second, 4), nn.MaxPool2d(2), nn.ReLU(),
                nn.Conv2d(second, third, 3), nn.MaxPool2d(2), nn.ReLU(),
            )  # fmt: skip
        else:
            side = 5
            self.features = nn.Sequential(
                StridedFilters(first), nn.ReLU(),
                nn.Conv2d(first, second, 3, stride=2), nn.ReLU(), Residual(second),
                nn.Conv2d(second, third, 3, stride=2), nn.ReLU(), Residual(third),
            )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(side * side * third, config.hidden), nn.ReLU(), nn.Linear(config.hidden, COORDINATES)
        )

    def forward(self, images_BHW: Tensor) -> Tensor:
        """(B, 50, 50) → offsets (B, L, 2) in [0, 1] of the crop."""
        offsets: Tensor = self.head(self.features(images_BHW).flatten(1))
        return offsets.view(-1, NUM_LANDMARKS, 2)


class Residual(nn.Module):
    """Two convolutions whose result is added to their input; at first it is nothing (Zhang et al., "Fixup", 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return torch.relu(features_BCHW + self.second(torch.relu(self.first(features_BCHW))))


class StridedFilters(nn.Module):
    """A convolution of 4 × 4 pixels with stride 2 on grey images, as one matrix product.

    With one channel of input, libraries' convolutions run at a small share of the machine's speed.
    """

    SIDE: Final = 4
    STRIDE: Final = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(self.SIDE * self.SIDE, channels)

    def forward(self, images_BHW: Tensor) -> Tensor:
        """(B, H, W) → (B, C, H/2 - 1, W/2 - 1), channels last in memory."""
        windows = images_BHW.unfold(1, self.SIDE, self.STRIDE).unfold(2, self.SIDE, self.STRIDE)
        filtered: Tensor = self.linear(windows.flatten(3))
        return filtered.permute(0, 3, 1, 2)


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

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first, second = config.patch_channels
        side = ((config.patch - 4) // 2 - 2) // 2
        self.patch, self.size = config.patch, second * side * side
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, first, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(first, second, 3), nn.MaxPool2d(2), nn.ReLU(),
        )  # fmt: skip
        self.register_buffer("offsets", square_offsets(config.patch), persistent=False)

    def forward(self, patches_BLK: Tensor) -> Tensor:
        """(B, L, P²), row by row → (B, L, F)."""
        features: Tensor = self.convolutions(patches_BLK.reshape(-1, 1, self.patch, self.patch))
        return features.reshape(*patches_BLK.shape[:2], -1)


class BlockFeatures(nn.Module):
    """Filters of 4 × 4 pixels side by side, then filters over 2 × 2 of these.

    The pixels come block by block, so that both are matrix products of what lies in memory as it is.
    """

    offsets: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first, second = config.patch_channels
        self.blocks = (config.patch // 8) ** 2
        self.size = second * self.blocks
        self.first = nn.Linear(4 * 4, first)
        self.second = nn.Linear(2 * 2 * first, second)
        self.register_buffer("offsets", block_offsets(config.patch), persistent=False)

    def forward(self, patches_BLK: Tensor) -> Tensor:
        """(B, L, P²), block by block → (B, L, F)."""
        batch = patches_BLK.shape[0]
        inner = torch.relu(self.first(patches_BLK.reshape(-1, 4 * 4)))
        outer = torch.relu(self.second(inner.view(-1, self.second.in_features)))
        return outer.view(batch, NUM_LANDMARKS, -1)


class PatchFeatures(nn.Module):
    """φ: patches (B, L, P²) → features (B, F), by two small filters that all landmarks share."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.filters: PooledFeatures | BlockFeatures = (
            PooledFeatures(config) if config.pooled else BlockFeatures(config)
        )
        own = config.landmark_features
        self.landmarks = LandmarkLinear(self.filters.size, own) if own else None
        self.size = NUM_LANDMARKS * (own or self.filters.size)

    @property
    def offsets(self) -> Tensor:
        """(P², 2): where the pixels of a patch lie, in pixels from its landmark, in the order of `forward`."""
        return self.filters.offsets

    def forward(self, patches_BLK: Tensor) -> Tensor:
        features: Tensor = self.filters(patches_BLK)
        if self.landmarks is not None:
            features = self.landmarks(features)
        return features.flatten(1)


class RecurrentRegressor(nn.Module):
    """f: patches and memory → residual and memory, the same weights at every stage."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.features = PatchFeatures(config)
        self.input = nn.Linear(self.features.size, config.hidden)
        self.memory = nn.Linear(config.hidden, config.hidden, bias=False)
        self.output = nn.Linear(config.hidden, COORDINATES)

    def forward(self, patches_BLK: Tensor, state_BH: Tensor, kept_BF: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the residual (B, L, 2) in sides of the crop, and the new state (B, H)."""
        features_BF = self.features(patches_BLK)
        if kept_BF is not None:
            features_BF = features_BF * kept_BF
        state_BH = torch.tanh(self.input(features_BF) + self.memory(state_BH))
        return self.output(state_BH).view(-1, NUM_LANDMARKS, 2), state_BH


class MSRRN(nn.Module):
    """The unrolled network. `mean_shape` (L, 2) is the training set's, in [0, 1] of the crop."""

    mean_shape: Tensor

    def __init__(self, config: ModelConfig, mean_shape: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        if mean_shape is None:
            mean_shape = torch.full((NUM_LANDMARKS, 2), 0.5)
        self.register_buffer("mean_shape", mean_shape.to(torch.float32, copy=True))
        self.initial = InitialShapeNet(config)
        self.regressor = RecurrentRegressor(config)
        self.doubt = nn.Sequential(nn.Linear(config.hidden, DOUBT), nn.ReLU(), nn.Linear(DOUBT, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Residual):
                nn.init.zeros_(module.second.weight)
        for outputs in (self.initial.head[-1], self.regressor.output):
            # Start near S⁰ = mean shape and Sᵗ = Sᵗ⁻¹: the first gradients then see residuals close to the true ones.
            assert isinstance(outputs, nn.Linear)
            nn.init.normal_(outputs.weight, std=1e-3)
        expected = self.doubt[-1]
        assert isinstance(expected, nn.Linear)
        nn.init.normal_(expected.weight, std=1e-2)
        nn.init.constant_(expected.bias, math.log(0.06))
        nn.init.orthogonal_(self.regressor.memory.weight, gain=0.5)

    def forward(
        self, level_50: Tensor, level_100: Tensor, level_200: Tensor, disturbance: Disturbance | None = None
    ) -> Stages:
        """Pyramid (B, 50, 50), (B, 100, 100), (B, 200, 200), uint8 or float → every stage's shape.

        With a `disturbance`, a stage's shape is its residual on top of the moved shape that it started from.
        """
        levels = [standardise(level) for level in (level_50, level_100, level_200)]
        shape_BL2 = self.mean_shape + self.initial(levels[0])
        state_BH = shape_BL2.new_zeros(shape_BL2.shape[0], self.config.hidden)
        shapes = [shape_BL2]
        for stage, level in enumerate(levels):
            kept_BF = None
            if disturbance is not None:
                shape_BL2 = shape_BL2 + disturbance.moves[:, stage]
                kept_BF = disturbance.kept[:, stage]
            current = shape_BL2.detach()
            frame = frames_of(self.mean_shape, current) if self.config.aligned else None
            patches = sample_patches(level, current, self.regressor.features.offsets, frame)
            residual, state_BH = self.regressor(patches, state_BH, kept_BF)
            shape_BL2 = shape_BL2 + (residual if frame is None else residual @ frame)
            shapes.append(shape_BL2)
        return Stages(torch.stack(shapes, dim=1), self.doubt(state_BH.detach())[:, 0])
