"""What a finished training leaves: the artifact, and what its card says of how it came to be."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import torch
from pydantic import Field, TypeAdapter, ValidationError

from msrrn.artifact import CARD, WEIGHTS, Card, card_of, save
from msrrn.calibration import LEAST_FACES, Calibration
from msrrn.network import MSRRN
from msrrn.provenance import DatasetSettings, InitialWeights, Recipe, Training
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import Manifest
from pipelines.errors import UserError
from pipelines.models import PHOTO_DIGITS
from pipelines.outages import MissingError
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.synthesis import SYNTHETIC
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.loop import DivergedError
from pipelines.training.state import TrainState
from pipelines.training.validation import EpochMetrics, calibrate, lean, validate

HISTORY: Final = "history.json"
_HISTORY: Final = TypeAdapter(Annotated[list[EpochMetrics], Field(min_length=1)])
SEEN: Final = "val_photos_learned_before"
FREE: Final = "Apache-2.0: trained on synthetic faces alone"
RESTRICTED: Final = "that of the annotations it was trained on; those of 300-W allow research only"


@dataclass(frozen=True)
class TrainedModel:
    """A finished run: where its artifact is, its name, card and history."""

    artifact: Store
    name: str
    card: Card
    history: Sequence[EpochMetrics]
    reused: bool
    """the artifact was there already"""


def publish_trained(
    artifact: Store,
    name: str,
    state: TrainState,
    store: Store,
    manifest: Manifest,
    settings: TrainSettings,
    checkpoints: Checkpoints,
) -> None:
    """Validation, calibration and the artifact of what was trained."""
    model = state.averaged.cpu()
    _require_weights(model, checkpoints)
    data, val = Loader(store, manifest, "train"), Loader(store, manifest, "val")
    model.lean.copy_(lean(model, data))
    metrics = validate(model, val) | _seen(val, settings.init)
    once = calibrate(model.looking_once(), val) if model.config.mirrored else None
    card = _card(name, model, (calibrate(model, val), once), metrics, manifest, settings, data.photos())
    _publish(artifact, model, card, state.history)


def _card(
    name: str,
    model: MSRRN,
    calibrations: tuple[Calibration, Calibration | None],
    metrics: EpochMetrics,
    manifest: Manifest,
    settings: TrainSettings,
    photos: Sequence[str],
) -> Card:
    before = set(settings.init.photos) if settings.init else set()
    calibration, one_look_calibration = calibrations
    weights = b"".join(tensor.contiguous().numpy().tobytes() for tensor in model.state_dict().values())
    return Card(
        version=hashlib.sha256(weights).hexdigest()[:12],
        crop_margin=manifest.settings["crop_margin"],
        detector=manifest.settings["detector"],
        config=model.config,
        calibration=calibration,
        one_look_calibration=one_look_calibration,
        training=Training(
            run=name,
            dataset=manifest.name,
            faces=manifest.counts["train"],
            faces_by_source=manifest.faces_by_source,
            dataset_settings=DatasetSettings.model_validate(manifest.settings),
            settings=Recipe.model_validate(settings.model_dump()),
            code_version=version("msrrn"),
            photos=" ".join(sorted({digest[:PHOTO_DIGITS] for digest in photos} | before)),
        ),
        licence=_licence(manifest, settings.init),
        metrics={
            "protocol": "validation faces of the dataset, crops from detector boxes, NRMSE over the pupils' "
            "distance (IP), fractions"
            + (f"; {metrics[SEEN]} of their photos were learned by what it started from" if SEEN in metrics else "")
            + ("; too few of them to calibrate the confidence" if manifest.counts["val"] < LEAST_FACES else ""),
            **metrics,
        },
    )


def _require_weights(model: MSRRN, checkpoints: Checkpoints) -> None:
    """Raises DivergedError where an artifact cannot hold the weights: its last epoch is over, nothing can go on."""
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight.half()).all():
            raise DivergedError(
                f"training: {name} is beyond {torch.finfo(torch.half).max:g}; lower --learning-rate, and delete "
                f"{checkpoints.place.url}, which ends so again"
            )


def _seen(val: Loader, init: InitialWeights | None) -> EpochMetrics:
    """How many validation photos flatter a model, since what it started from was trained on them; none: nothing."""
    before = set(init.photos) if init else set()
    seen = sum(digest[:PHOTO_DIGITS] in before for digest in val.photos()) if before else 0
    return {SEEN: seen} if seen else {}


def _publish(artifact: Store, model: MSRRN, card: Card, history: Sequence[EpochMetrics]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        save(Path(directory), model, card)
        artifact.publish(HISTORY, json.dumps(history, indent=1).encode())
        for name in (WEIGHTS, CARD):
            artifact.publish(name, (Path(directory) / name).read_bytes())


def _licence(manifest: Manifest, init: InitialWeights | None) -> str:
    own = FREE if set(manifest.faces_by_source) == {SYNTHETIC} else RESTRICTED
    if init is None or init.licence == FREE:
        return own
    if own == FREE or own in init.licence:  # it binds anyway, or said so of a model before
        return init.licence
    return f"{own}; and that of the model it started from: {init.licence}"


def read_trained(artifact: Store, name: str, reused: bool) -> TrainedModel:
    """The finished run of this name; UserError where its artifact is damaged."""
    try:
        card = card_of(artifact.read_bytes(CARD), CARD)
        history = _HISTORY.validate_json(artifact.read_bytes(HISTORY))
        if not card.is_of(artifact.read_bytes(WEIGHTS)):
            raise ValueError(f"{WEIGHTS} is not that of its {CARD}")
    except (MissingError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            reason = f"{HISTORY}: {error.errors()[0]['msg']}"
        raise UserError(
            f"{artifact.url} is a damaged artifact ({reason}): copy it again, or delete it to train it anew"
        ) from error
    return TrainedModel(artifact, name, card, history, reused)
