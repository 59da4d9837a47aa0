"""The multiscale recurrent regression network (MSRRN).

A CNN predicts the initial shape S⁰ from the coarsest level. Then one regressor f, the same weights at
every stage, reads patches around the current landmarks at the next finer level, updates a recurrent
state and gives a residual: Sᵗ = Sᵗ⁻¹ + f(I⁽ᵗ⁾ ∘ Sᵗ⁻¹), t = 1..T.

Source: Wang, Sun, Lu, Feng & Zhou, "Multiscale recurrent regression networks for face alignment",
Applied Informatics 4:13, 2017. What that text leaves open (channels, widths, the form of the memory)
is chosen here and lives in `msrrn.config`.

Two presets. `paper` has max-pooling and one linear layer over all patches. `best` straightens the face by S⁰
(`msrrn.view`): patches and residuals live there. Two levels are made anew from the straight face, the pixels of the
finest are read in the crop, around the landmarks only. Beside its patch, a landmark sees what a small convolutional
network found around it (`ContextMap`), and what it sees is first reduced to a few numbers by weights of its own.

In training, a stage may start from a moved shape and miss features (`msrrn.disturbance`).

Two things say what error to expect; no shape is made of them. A small head beside the regressor, which no gradient
leaves. And heat maps on the context, which learns from them a little: they say where each landmark is for themselves,
and it counts how wide they are, and how far from the last shape.

Max-pooling stands before ReLU: the two commute, and a quarter of the values are left to rectify.
Gradients flow through the sum of residuals and the memory, not through where patches are sampled: that
path is noisy (it follows single pixels' slopes) and costs half of the training time.

Suffixes: B faces, L landmarks, H cells a side of a map, C channels.
"""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from msrrn.config import ModelConfig
from msrrn.disturbance import Disturbance
from msrrn.geometry import LEVELS
from msrrn.landmarks import MIRROR, NUM_LANDMARKS
from msrrn.layers import ContextMap, LandmarkLinear, Residual
from msrrn.regressor import RecurrentRegressor
from msrrn.sampling import mirrored_points, sample_map, sample_patches
from msrrn.view import Grey, View

DOUBT: Final = 32
"""Width of the head that estimates the error."""


class Stages(NamedTuple):
    """What an unrolled pass gives."""

    shapes: Tensor
    """(B, T+1, L, 2), S⁰ first, in [0, 1] of the crop; without those of stages that were skipped"""
    log_error: Tensor
    """(B,) natural logarithm of the NRMSE (IP, a fraction) that the network expects of its last shape"""
    heat: Tensor
    """(B, L, H, H) heat maps in the straightened face, logits; (B, L, 0, 0) without context"""
    view: View
    """Where that face lies in the crop"""

    @property
    def final(self) -> Tensor:
        return self.shapes[:, -1]


def standardise(pixels: Tensor) -> Tensor:
    """uint8 or float crops (B, H, W) → float32 of zero mean and unit variance, each crop by itself."""
    values = pixels.float()
    values = values - values.mean(dim=(1, 2), keepdim=True)
    variance = values.square().mean(dim=(1, 2), keepdim=True)
    return values * variance.clamp_min(1.0).rsqrt()


class Start(NamedTuple):
    """Where the stages begin, for B faces."""

    shapes: Tensor
    """(B, L, 2): S⁰, in [0, 1] of the crop"""
    view: View
    levels: list[Tensor]
    """(B, H, H) each, coarse to fine: two of what `view` shows, and the crop itself; or all three of the crop"""
    grey: Grey | None
    """For what is read in the crop; None where nothing is left to do"""
    reading_mirrored: bool = False
    """Whether all but the crop is mirrored: what is read in it is read at mirrored places."""

    def mirrored(self, mirror: Tensor) -> "Start":
        """That of the mirror image: nothing of it has to be found or sampled anew. `mirror` is `MSRRN.mirror`."""
        shapes = mirrored_points(self.shapes)
        view = self.view.mirrored()
        if self.grey is None:
            return Start(shapes[:, mirror], view, [level.flip(2) for level in self.levels], None)
        *seen, crop = self.levels
        levels = [*(level.flip(2) for level in seen), crop]
        return Start(shapes[:, mirror], view, levels, self.grey, not self.reading_mirrored)

    def in_crop(self, places: Tensor, offsets: Tensor) -> Tensor:
        """What `sample_patches` gives of the finest level, the crop, made comparable."""
        assert self.grey is not None
        steps = self.view.steps(offsets)
        if self.reading_mirrored:
            places, steps = mirrored_points(places), torch.stack([-steps[..., 0], steps[..., 1]], dim=-1)
        return self.grey(sample_patches(self.levels[-1], places, steps))


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
                nn.Unflatten(1, (1, LEVELS[0])),
                nn.Conv2d(1, first, 4, stride=2), nn.ReLU(inplace=True),
                nn.Conv2d(first, second, 3, stride=2), nn.ReLU(inplace=True), Residual(second, second),
                nn.Conv2d(second, third, 3, stride=2), nn.ReLU(inplace=True), Residual(third, third),
            )  # fmt: skip
        hidden = config.initial_hidden
        self.head = nn.Sequential(
            nn.Linear(side * side * third, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 2 * NUM_LANDMARKS)
        )

    def forward(self, images_BHW: Tensor) -> Tensor:
        """(B, 50, 50) → offsets (B, L, 2) in [0, 1] of the crop."""
        offsets: Tensor = self.head(self.features(images_BHW).flatten(1))
        return offsets.view(-1, NUM_LANDMARKS, 2)


class MSRRN(nn.Module):
    """The unrolled network. `mean_shape` (L, 2) is the training set's, in [0, 1] of the crop."""

    mean_shape: Tensor
    lean: Tensor
    """(L, 2): what annotations of pictures as they are lie beside its shapes, in the frame of the mean shape. Trained
    on mirrored faces too, a network cannot know it; whoever asks it about a picture as it is adds it. While it is
    trained: what was taken off its targets."""
    mirror: Tensor
    """(L,): the landmark that each becomes in the mirror"""
    stages: int = len(LEVELS)
    """How often f is asked. From the third time on it sees the finest level; from the fourth on its residuals are
    halved, quartered, …: they become noise where the shape is as good as f can make it, and so do no harm."""
    reduced: bool = False
    """Whether convolutions and matrix products run in bfloat16; coordinates never do. See `reduce`."""

    def __init__(self, config: ModelConfig, mean_shape: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        if mean_shape is None:
            mean_shape = torch.full((NUM_LANDMARKS, 2), 0.5)
        self.register_buffer("mean_shape", mean_shape.to(torch.float32, copy=True))
        self.register_buffer("lean", torch.zeros(NUM_LANDMARKS, 2))
        self.register_buffer("mirror", torch.from_numpy(MIRROR), persistent=False)
        self.initial = InitialShapeNet(config)
        self.regressor = RecurrentRegressor(config)
        self.doubt = nn.Sequential(nn.Linear(config.hidden, DOUBT), nn.ReLU(), nn.Linear(DOUBT, 1))
        self.context = self.heat = None
        if config.context:
            self.context = ContextMap(config.context, config.context_features)
            self.heat = nn.Conv2d(config.context[2], NUM_LANDMARKS, 1, bias=False)
        # Whatever dtype whoever makes it has as torch's default: all that it is given is float32.
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Residual):
                nn.init.zeros_(module.second.weight)
        # Start near S⁰ = mean shape and Sᵗ = Sᵗ⁻¹: the first gradients then see residuals close to the true ones.
        for outputs in (self.initial.head[-1], self.regressor.output, self.regressor.local, self.heat):
            if outputs is not None:
                assert isinstance(outputs, nn.Linear | LandmarkLinear | nn.Conv2d)
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
        return self.refined(self.begun(level_50, level_100, level_200, disturbance), disturbance)

    def begun(
        self, level_50: Tensor, level_100: Tensor, level_200: Tensor, disturbance: Disturbance | None = None
    ) -> Start:
        """The initial shape, and the levels in which the stages will look around it."""
        with self._precision(level_50.device):
            offsets = self.initial(standardise(level_50)).float()
        shape_BL2 = self.mean_shape + offsets
        if self.context is None:
            levels = [standardise(level) for level in (level_50, level_100, level_200)]
            return Start(shape_BL2, View.whole(shape_BL2), levels, None)
        around = shape_BL2 if disturbance is None else shape_BL2 + disturbance.moves[:, 0]
        view = View.around(self.mean_shape, around.detach())
        coarse, middle, grey = view.levels(level_100)
        return Start(shape_BL2, view, [coarse, middle, level_200.float()], grey)

    def refined(self, start: Start, disturbance: Disturbance | None = None, skipped: int = 0) -> Stages:
        """All stages but for the first `skipped`, from a start."""
        shape_BL2, view, levels = start.shapes, start.view, start.levels
        batch = shape_BL2.shape[0]
        state_BH = shape_BL2.new_zeros(batch, self.config.hidden)
        shapes = [shape_BL2]
        context = None
        heat = shape_BL2.new_zeros(batch, NUM_LANDMARKS, 0, 0)
        if self.context is not None and self.heat is not None:
            with self._precision(shape_BL2.device):
                context, coarser = self.context(levels[1])
                heat = self.heat(coarser)
        offsets = self.regressor.features.offsets
        stages = self.stages if disturbance is None else disturbance.kept.shape[1]
        for stage in range(skipped, stages):
            level = levels[min(stage, len(levels) - 1)]
            kept_BF = None
            if disturbance is not None:
                shape_BL2 = shape_BL2 + disturbance.moves[:, stage]
                kept_BF = disturbance.kept[:, stage]
            seen = view.inside(shape_BL2.detach())
            if start.grey is not None and stage + 1 >= len(levels):
                patches = start.in_crop(shape_BL2.detach(), offsets)
            else:
                patches = sample_patches(level, seen, offsets / level.shape[-1])
            with self._precision(level.device):
                around = None if context is None else sample_map(context, seen)
                residual, state_BH = self.regressor(patches, around, state_BH, kept_BF)
            if disturbance is None:
                residual = residual * 0.5 ** max(0, stage + 1 - len(levels))
            shape_BL2 = shape_BL2 + view.turned(residual)
            shapes.append(shape_BL2)
        log_error = self.doubt(state_BH.detach().float())[:, 0]
        return Stages(torch.stack(shapes, dim=1), log_error, heat.float(), view)

    def looking_once(self) -> "MSRRN":
        """The same network, of which predictors take one look at each face; both share their weights."""
        once = copy.copy(self)
        once.config = self.config.model_copy(update={"mirrored": False})
        return once

    def reduce(self) -> None:
        """From now on it runs in bfloat16 on weights that are rounded once, so it is no more to be trained."""
        self.reduced = True
        for part in (self.initial, self.regressor, self.context, self.heat):
            for weight in part.parameters() if part is not None else ():
                weight.data = weight.data.bfloat16()

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.reduced else nullcontext()
