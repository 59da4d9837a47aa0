"""What fixes the network's tensors: its widths, and the presets."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Preset = Literal["paper", "best"]

Channels = Annotated[int, Field(ge=1, le=1024)]

MOST: Final = 2**24
"""Pixels of a patch times its channels times the width of the memory: of `best` a tenth of that."""


class ModelConfig(BaseModel):
    """Everything that fixes the network's tensors; it travels in the model card.

    A card may come from anywhere: its widths are bounded, to 2 GB in all, before memory is asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "paper"
    pooled: bool = Field(True, description="convolutions with max-pooling behind them, else filters side by side")
    context: tuple[Channels, Channels, Channels, Channels] | None = Field(
        None, description="the face is straightened by the initial shape; channels of the context map, fine to coarse"
    )
    context_features: Channels = Field(64, description="what a landmark reads of the context map")
    landmark_features: int = Field(
        0, ge=0, le=64, description="numbers that each landmark's own weights make of what it sees; 0: all go on"
    )
    patch: int = Field(16, ge=8, le=40, multiple_of=4, description="pixels a side of a patch")
    patch_channels: tuple[Channels, Channels] = (16, 16)
    initial_channels: tuple[Channels, Channels, Channels] = (16, 32, 48)
    initial_hidden: int = Field(256, ge=8, le=1024, description="width of the initial CNN's fully connected layer")
    hidden: int = Field(256, ge=8, le=2048, description="width of the regressor's memory")
    mirrored: bool = Field(
        False, description="a face is looked at again, in the mirror; the mean of both shapes counts"
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if not self.pooled and self.patch % 8:
            raise ValueError(f"patch {self.patch} must be a multiple of 8 where nothing is pooled")
        if self.patch**2 * self.patch_channels[1] * self.hidden > MOST:
            raise ValueError("patch, patch_channels and hidden are too large together")
        if self.pooled and self.patch < 12:
            raise ValueError(f"patch {self.patch} must be at least 12 where filters are pooled")
        return self


_CHOSEN: Final[dict[Preset, dict[str, Any]]] = {
    "paper": {},
    "best": {
        "pooled": False,
        "context": (16, 32, 64, 128),
        "landmark_features": 32,
        "patch": 8,
        "patch_channels": (16, 64),
        "initial_channels": (16, 32, 64),
        "hidden": 384,
        "mirrored": True,
    },
}

PRESETS: Final[dict[str, ModelConfig]] = {
    preset: ModelConfig(preset=preset, **chosen) for preset, chosen in _CHOSEN.items()
}
