"""What a job can be told: typed, with bounds, and light to import, so that `--help` answers at once."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from msrrn.augmentation import AugmentationSettings
from msrrn.config import Preset
from msrrn.provenance import InitialWeights

VAL_SHARE: Final = 0.1

NAME: Final = "msrrn"
"""The registered model, where no other name is given."""

MODEL_NAME: Final = "^[A-Za-z0-9_-]{1,100}$"
"""Of a model that a training may become a version of."""

REGISTERED_NAME: Final = r"^[^/:]*[^/:\s][^/:]*$"
"""Of any registered model: in MLflow's UI it may have been given a name that no training takes. An empty one, as of a
variable that is not set, is not all of them."""

RECONCILE_MINUTES: Final = 15.0
"""What is younger may still be at work: `reconcile` leaves it alone."""

SourceFormat = Literal["300w", "imglab", "coco", "cvat", "csv", "csv-1based", "webdataset", "parquet"]
ExportFormat = Literal["pts", "coco", "csv", "cvat", "imglab", "webdataset"]
ReviewFormat = Literal["cvat", "coco"]
FetchedDetector = Literal["blazeface", "cnn", "yunet"]
"""A detector that needs a model file."""
DetectorName = Literal["hog", FetchedDetector]
DetectorChoice = Literal["auto", DetectorName]
"""A detector, or (auto) the best that is installed: blazeface where its runtime and its model file are, else hog."""
Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", Precision]
Engine = Literal["native", "openvino"]
EngineChoice = Literal["auto", Engine]
MANY_PICTURES: Final = 50_000
"""From so many on, two cores win back the seconds that the graph for OpenVINO takes."""
BoxesBy = Literal[DetectorName, "annotated"]
"""Who gives a training face its box: a detector, or the data."""
Selection = Literal["held-out", "val", "all"]
"""Which photos of the sources are evaluated.

`val`: those that `prepare` holds out of training, declared or by their digest; test photos where all are.
`held-out`: those that the sources declare `val` or `test`; where they declare none, all. `all`: every one.
"""
OnBad = Literal["quarantine", "fail"]
"""What becomes of bad inputs: they are left out and listed, or no dataset is made."""


class Settings(BaseModel):
    """What one is told: unknown names and infinite numbers are refused, and nothing is changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PrepareSettings(Settings):
    """What, beside the photos, fixes a dataset's bytes."""

    seed: int = Field(0, ge=0, lt=1 << 63)
    val_share: float = Field(
        VAL_SHARE,
        ge=0,
        lt=1,
        description="share of photos held out where the source names no validation photos",
    )
    augmentation: AugmentationSettings = AugmentationSettings()
    photos_per_shard: int = Field(48, ge=1, le=4096)
    detector: BoxesBy = "hog"
    crop_margin: float = Field(
        1.5,
        ge=1,
        le=4,
        description="side of the crop over the side of the face box: detector boxes cut off chins and jaws; at 1.5 "
        "nearly every landmark stays inside after rotation and jitter",
    )


class Tolerance(Settings):
    """How much bad input a dataset may have: what is wrong with it is in its manifest either way."""

    on_bad: OnBad = "quarantine"
    max_bad: float = Field(1.0, ge=0, le=1, description="largest share of bad inputs among all")


class TrainSettings(Settings):
    """What, beside the dataset, fixes a model. What is not given is the preset's."""

    preset: Preset = "paper"
    init: InitialWeights | None = Field(None, description="whose weights training starts from (none: random ones)")
    objective: Literal["squared", "log_nrmse_ip"] = "squared"
    optimiser: Literal["sgd", "adamw"] = "sgd"
    epochs: int = Field(16, ge=1, description="passes over all augmented copies")
    batch: int = Field(64, ge=2, description="samples of one update, shared by all workers")
    learning_rate: float = Field(0.02, gt=0, description="peak of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(1e-4, ge=0, description="λ of the objective")
    warmup: float = Field(0.15, ge=0, lt=1, description="share of the steps before the peak")
    clip_norm: float = Field(5.0, gt=0, description="longest gradient that is followed")
    perturbed: bool = Field(
        False,
        description="samples are perturbed anew whenever they are seen; where training starts from another network, "
        "they are learned without what their annotations lean to one side of its shapes",
    )
    calm: float = Field(
        0.0, ge=0, le=1, description="share of the epochs, the last, in which samples are perturbed half as much"
    )
    averaged: float = Field(
        0.0, ge=0, lt=1, description="decay, in each update, of the running mean of the weights that is the model"
    )
    precision: Precision = Field(
        "float32", description="of convolutions and matrix products in training; coordinates are always float32"
    )
    seed: int = Field(0, ge=0, lt=1 << 63)
    # It fixes nothing of a model, so it is in no run's name and no card.
    checkpoint_steps: int = Field(500, ge=1, exclude=True, description="updates between checkpoints in an epoch")

    @model_validator(mode="before")
    @classmethod
    def _of_the_preset(cls, given: Any) -> Any:
        return OF_PRESET.get(given.get("preset", ""), {}) | given if isinstance(given, dict) else given


OF_PRESET: Final[dict[Preset, dict[str, Any]]] = {
    "best": {
        "objective": "log_nrmse_ip",
        "optimiser": "adamw",
        "epochs": 24,
        "batch": 32,
        "learning_rate": 1.5e-3,
        "weight_decay": 0.5,
        "warmup": 0.05,
        "perturbed": True,
        "calm": 0.25,
        "averaged": 0.999,
    }
}

INIT: Final[dict[Preset, str]] = {"best": "synthetic"}
"""The model whose weights a training starts from, where the preset says one and nobody else does."""


class AnnotateSettings(Settings):
    """What, beside the archive and the model, fixes the tables."""

    detector: DetectorChoice = Field(
        "auto",
        description="who finds faces. auto: who began the run, else blazeface where it is installed, else hog",
    )
    min_face: float = Field(
        0.07,
        gt=0,
        le=100_000,
        description="side of the smallest face box worth finding: below 1 a share of the picture's longer side, else "
        "pixels; smaller ones cost more",
    )
    max_faces: int | None = Field(
        None, ge=1, description="faces of a picture that are kept, the largest (default: all)"
    )
    min_score: float | None = Field(
        None,
        description="least score of a face that is kept; each detector has a scale of its own (default: its limit)",
    )
    any_rotation: bool = Field(
        False,
        description="look also at the picture turned by 90, 180 and 270 degrees, where no face is found, or none of "
        "which the network is sure, and keep the turn with the surest",
    )
    precision: PrecisionChoice = Field(
        "auto",
        description="of the network and of BlazeFace. auto: what the run was begun in, else bfloat16 where this CPU "
        "computes in it, else float32. bfloat16 moves landmarks by hundredths of a pixel of the crop, boxes by a "
        "thousandth of their side on average",
    )
    engine: EngineChoice = Field(
        "auto",
        description="what runs the network, not the detector. native: torch, or ONNX Runtime for an exported file. "
        "openvino (msrrn[fast]): faster, but takes some 8 seconds when it first sees a model. auto: what the run was "
        f"begun with, else openvino where it is installed and there are {MANY_PICTURES:,} pictures or more (with a "
        "limit: among those), else native",
    )
    # It decides what is quarantined, and a run may be gone on with under another one to try that again.
    timeout: float = Field(
        120.0, gt=0, le=86_400, exclude=True, description="seconds that one picture may take, once its bytes are read"
    )
    images_per_unit: int = Field(
        64, ge=1, le=100_000, description="pictures that are finished, or done again, together"
    )


class DriftSettings(Settings):
    """When a difference between two samples of faces, or of pictures, is one.

    The population stability index (PSI) is read by the convention of credit scoring: under 0.1 nothing changed, over
    0.25 much did (E. M. Lewis, An Introduction to Credit Scoring, 1994). Two normal distributions half a standard
    deviation apart have a PSI of 0.25, and the distance of Kolmogorov and Smirnov (KS) between them is 0.197.
    """

    recent: int = Field(5, ge=1, description="how many of the newest runs are looked at together")
    psi_warning: float = Field(0.2, gt=0, description="PSI from which a difference is worth a look")
    psi_alarm: float = Field(0.25, gt=0, description="PSI from which it is drift")
    ks_warning: float = Field(0.18, gt=0, le=1, description="KS from which a difference is worth a look")
    ks_alarm: float = Field(0.2, gt=0, le=1, description="KS from which it is drift")
    chance: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="false alarms to accept: a difference that chance alone would exceed with at least this "
        "probability is no drift, whatever the thresholds",
    )
    least: int = Field(
        100, ge=1, description="faces, or pictures, that either side must have; with fewer the verdict is unknown"
    )
    bins: int = Field(10, ge=2, le=30, description="groups of about equal size that the PSI is computed over")


class GateSettings(Settings):
    """When a challenger replaces the champion. Shares are fractions: 0.01 is one in a hundred."""

    least_gain: float = Field(
        0.0,
        gt=-1,
        lt=1,
        description="by what share of the champion's error a challenger must be better; -0.01 also promotes one "
        "that is surely not more than a hundredth worse",
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="level of every confidence interval that decides")
    least_faces: int = Field(
        20,
        ge=2,
        description="with evaluation faces of fewer photos nothing is decided: those of one photo count as one",
    )
    more_failures: float = Field(
        0.01, ge=0, le=1, description="by how much the share of faces with an error above 0.1 may grow"
    )
    slower: float = Field(
        2.0, gt=0, description="how many times the champion's time for a face a challenger may take"
    )
    rank_loss: float = Field(
        0.1, ge=0, le=2, description="by how much the rank correlation of confidence and true error may fall"
    )
    bias: float = Field(
        1.5,
        ge=1,
        description="factor by which the expected error may be too large or too small on average; more is allowed if "
        "the champion's is off by as much",
    )
    slice_loss: float = Field(
        0.1,
        ge=0,
        description="by what share of the champion's error a slice of the faces (size, roll, sharpness, subset) may "
        "become worse",
    )
    slice_faces: int = Field(
        20, ge=2, description="a slice with faces of fewer photos is shown, but stops no challenger"
    )
    resamples: int = Field(2000, ge=100, le=100_000, description="how often photos are drawn anew for each interval")
    seed: int = Field(0, ge=0, description="seed of these draws")
