"""f, the regressor that all stages share: what the landmarks see, and memory, become a residual.

Suffixes: B faces, L landmarks, K pixels of a patch, C channels, F features, H numbers of the memory.
"""

import torch
from torch import Tensor, nn

from msrrn.config import ModelConfig
from msrrn.landmarks import NUM_LANDMARKS
from msrrn.layers import BlockFeatures, LandmarkLinear, PooledFeatures


class LandmarkFeatures(nn.Module):
    """φ: what the landmarks see → features (B, F): filters that all landmarks share, then weights of their own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kind = PooledFeatures if config.pooled else BlockFeatures
        self.filters: PooledFeatures | BlockFeatures = kind(config.patch, config.patch_channels)
        size = self.filters.size + (config.context_features if config.context else 0)
        own = config.landmark_features
        self.landmarks = LandmarkLinear(size, own) if own else None
        self.size = NUM_LANDMARKS * (own or size)

    @property
    def offsets(self) -> Tensor:
        """(P², 2): where the pixels of a patch lie, in pixels from its landmark, in the order of `forward`."""
        return self.filters.offsets

    def forward(self, patches_BLK: Tensor, context_BLC: Tensor | None) -> Tensor:
        features: Tensor = self.filters(patches_BLK)
        if context_BLC is not None:
            features = torch.cat([features, torch.relu(context_BLC)], dim=-1)
        if self.landmarks is not None:
            features = self.landmarks(features)
        return features.flatten(1)


class RecurrentRegressor(nn.Module):
    """f: what the landmarks see and memory → residual and memory, the same weights at every stage."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.features = LandmarkFeatures(config)
        self.input = nn.Linear(self.features.size, config.hidden)
        self.memory = nn.Linear(config.hidden, config.hidden, bias=False)
        self.output = nn.Linear(config.hidden, 2 * NUM_LANDMARKS)
        own = config.landmark_features
        self.local = LandmarkLinear(own, 2) if own else None

    def forward(
        self, patches_BLK: Tensor, context_BLC: Tensor | None, state_BH: Tensor, kept_BF: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the residual (B, L, 2) in sides of the crop, and the new state (B, H)."""
        features_BF = self.features(patches_BLK, context_BLC)
        if kept_BF is not None:
            features_BF = features_BF * kept_BF
        state_BH = torch.tanh(self.input(features_BF) + self.memory(state_BH))
        residual = self.output(state_BH).view(-1, NUM_LANDMARKS, 2)
        if self.local is not None:
            residual = residual + self.local(features_BF.view(features_BF.shape[0], NUM_LANDMARKS, -1))
        return residual.float(), state_BH
