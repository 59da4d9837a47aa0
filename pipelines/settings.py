"""What a job can be told: typed, with bounds, and light to import, so that `--help` answers at once."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from msrrn.augmentation import AugmentationSettings

VAL_SHARE: Final = 0.1


class PrepareSettings(BaseModel):
    """What, beside the photos, fixes a dataset's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    val_share: float = Field(
        VAL_SHARE,
        ge=0,
        lt=1,
        description="share of photos held out where the source names no validation photos",
    )
    augmentation: AugmentationSettings = AugmentationSettings()
    photos_per_shard: int = Field(48, ge=1, le=4096)
    detector: Literal["dlib-hog"] = "dlib-hog"
    crop_margin: float = Field(
        1.5,
        ge=1,
        le=4,
        description="side of the crop over the side of the face box: detector boxes cut off chins and jaws; at 1.5 "
        "nearly every landmark stays inside after rotation and jitter",
    )


class TrainSettings(BaseModel):
    """What, beside the dataset, fixes a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["paper"] = "paper"
    epochs: int = Field(16, ge=1, description="passes over all augmented copies")
    batch: int = Field(64, ge=2, description="samples of one update, shared by all workers")
    learning_rate: float = Field(0.02, gt=0, description="peak of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0, description="λ of the objective")
    warmup: float = Field(0.15, ge=0, lt=1, description="share of the steps before the peak")
    clip_norm: float = Field(5.0, gt=0, description="longest gradient that is followed")
    seed: int = 0


class AnnotateSettings(BaseModel):
    """What, beside the archive and the model, fixes the tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images_per_unit: int = Field(64, ge=1, le=100_000)
    detector: Literal["dlib-hog"] = "dlib-hog"
