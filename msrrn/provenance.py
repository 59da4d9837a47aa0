"""What a model's card says of its training. What the code reads of it is checked; what else is said there is kept."""

from pydantic import BaseModel, ConfigDict, Field

FacesBySource = dict[str, dict[str, int]]
"""source → split → faces"""


class InitialWeights(BaseModel):
    """The model that a training starts from, and what its weights have seen.

    Those before it are nested in it, as far back as `pipelines.models.initial_weights` keeps them: a chain without an
    end would become a card that no reader of JSON takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    dataset: str
    faces_by_source: FacesBySource
    licence: str
    # Not told where there is none, as before it was told at all: it is part of a run's name.
    init: "InitialWeights | None" = Field(
        None, exclude_if=lambda init: init is None, description="whose weights that one had started from"
    )
    alias: str = Field("", exclude_if=lambda alias: not alias, description="that led to it, where one was asked for")
    # The version stands for them in a run's name; a card tells them once, among its own.
    photos: tuple[str, ...] = Field((), exclude=True, description="as `Model.photos`, sorted")


class DatasetSettings(BaseModel):
    """Of the dataset's own settings."""

    model_config = ConfigDict(frozen=True, extra="allow")

    val_share: float | None = Field(None, ge=0, lt=1, description="share of photos held out where none are declared")


class Recipe(BaseModel):
    """Of the training's settings."""

    model_config = ConfigDict(frozen=True, extra="allow")

    objective: str | None = None
    init: InitialWeights | None = Field(None, description="whose weights training started from")


class Training(BaseModel):
    """How a model came to be; what is None was not told."""

    model_config = ConfigDict(frozen=True, extra="allow")

    run: str | None = None
    dataset: str | None = None
    faces: int | None = None
    faces_by_source: FacesBySource = Field(default_factory=dict)
    dataset_settings: DatasetSettings = DatasetSettings()
    settings: Recipe = Recipe()
    code_version: str | None = None
    photos: str = Field("", description="prefixes of the SHA-256 of each photo that its weights have seen")
