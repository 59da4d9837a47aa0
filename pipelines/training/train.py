"""Dataset → model artifact: the loop of `pipelines.training.loop`, here or on Ray Train, resumable by name.

A run is named by the digest of its dataset's shards and of its settings. What goes on lies below `OUT/runs/NAME`
until its artifact appears at `OUT/models/NAME`: the weights first, the card last.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from msrrn.artifact import CARD, WEIGHTS, Card, save
from msrrn.calibration import LEAST_FACES, Calibration
from msrrn.config import PRESETS
from msrrn.lean import one_sided
from msrrn.network import MSRRN
from msrrn.provenance import DatasetSettings, InitialWeights, Recipe, Training
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import Manifest, read_manifest
from pipelines.errors import UsageError, UserError
from pipelines.lease import LEASE, hold
from pipelines.models import PHOTO_DIGITS
from pipelines.outages import MissingError
from pipelines.settings import NAME, TrainSettings
from pipelines.storage import Store
from pipelines.synthesis import SYNTHETIC
from pipelines.training.checkpoints import RUNS, Checkpoints, unfinished
from pipelines.training.epochs import Epoch, OnEpoch, epoch_done, interruptible
from pipelines.training.loop import DivergedError, TrainState, train
from pipelines.training.on_ray import train_on_ray
from pipelines.training.validation import EpochMetrics, calibrate, lean, validate

HISTORY: Final = "history.json"
RECIPE: Final = 12
"""Part of every run's name. Raise it with any change of code that changes weights: network, objective, loop, order
of samples, perturbations."""
SEEN: Final = "val_photos_learned_before"
FREE: Final = "Apache-2.0: trained on synthetic faces alone"
RESTRICTED: Final = "that of the annotations it was trained on; those of 300-W allow research only"

Followed = Callable[[], AbstractContextManager[OnEpoch]]
"""Entered by who begins, or goes on with, a training."""


@dataclass(frozen=True)
class TrainedModel:
    """A finished run: where its artifact is, its name, card and history."""

    artifact: Store
    name: str
    card: Card
    history: Sequence[EpochMetrics]
    reused: bool
    """the artifact was there already"""


def run_name(manifest: Manifest, settings: TrainSettings) -> str:
    """The digest of what fixes a model: the dataset's shards, and settings (not the number of workers)."""
    text = (
        f"{RECIPE} {manifest.learned()}\n{settings.model_dump_json()}\n{PRESETS[settings.preset].model_dump_json()}"
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resumable(out: str, name: str = "") -> tuple[str, TrainSettings, str | None]:
    """Dataset, settings and experiment of the one run below `out` that is not finished, or of the one of this name.

    An older run does not say its experiment: None.

    Raises:
        UserError: there is none, or more than one and no name says which, or it is of another version.
    """
    name, told = unfinished(out, name)
    settings = told.all_settings()
    if run_name(read_manifest(Store(told.dataset)), settings) != name:
        raise UserError(
            f"run {name} was begun by another version of msrrn, or {told.dataset} is another dataset now: call "
            f"`train` with --dataset, and delete {out}/{RUNS}/{name}"
        )
    return told.dataset, settings, told.experiment


def made_before(out: str, name: str) -> bool:
    """Whether the artifact of a run is there."""
    return _artifact(out, name).exists(CARD)


def _artifact(out: str, name: str) -> Store:
    return Store(out).child("models").child(name)


def train_model(
    dataset: str,
    out: str,
    settings: TrainSettings,
    workers: int,
    followed: Followed = lambda: nullcontext(lambda epoch: None),
    init: MSRRN | None = None,
    experiment: str = NAME,
    on_wait: Callable[[str], None] = lambda note: None,
) -> TrainedModel:
    """Trains on up to `workers` Ray workers (0: in this process), on GPUs if there are, or finds the artifact done.

    Every worker has an equal share of each batch, and on GPUs one of its own: so many work as that allows. `followed`
    is entered for as long as this process is at the run, and gives who is told each epoch. `init` is the network that
    `settings.init` speaks of; a run that has a checkpoint does without it. `experiment` is noted with the run, for
    `resumable`. Where another process is at this run, this one waits for it, with what it is doing told to `on_wait`
    each second, and takes over when it is dead.

    Raises:
        UserError: the dataset is not finished or too small, training failed, or the artifact there is damaged.
        KeyboardInterrupt: after Ctrl-C, at a checkpoint; a second Ctrl-C does not wait for one.
    """
    store = Store(dataset)
    manifest = read_manifest(store)
    samples = sum(shard.rows for shard in manifest.shards("train"))
    if samples < settings.batch:
        raise UsageError(
            f"--batch {settings.batch} is more than the {samples} training samples of {dataset}: lower it, or "
            "prepare with more --copies"
        )
    name = run_name(manifest, settings)
    artifact = _artifact(out, name)
    checkpoints = Checkpoints(Store(out).absolute().child(RUNS).child(name))
    if artifact.exists(CARD):
        checkpoints.finish()
        return _trained(artifact, name, reused=True)
    with hold(checkpoints.place, LEASE, on_wait) as lease:
        try:
            reused = artifact.exists(CARD)  # another may have made it while this one waited
            if not reused:
                with followed() as tell:

                    def told(epoch: Epoch) -> None:
                        lease.note(f"epoch {int(epoch.metrics['epoch'])} of {settings.epochs}")
                        tell(epoch)

                    if settings.init:
                        _start(checkpoints, settings, Loader(store, manifest, "train"), init)
                    checkpoints.begin(store, settings, experiment)
                    state = _run(store, manifest, settings, workers, checkpoints, told)
                    _finish(artifact, state, store, manifest, settings, checkpoints)
            checkpoints.finish()
        except UserError:
            # Who took over from one that was frozen may have finished, and removed what this one has worked on.
            if not (lease.is_lost() and artifact.exists(CARD)):
                raise
            reused = True
    return _trained(artifact, name, reused)


def _run(
    store: Store,
    manifest: Manifest,
    settings: TrainSettings,
    workers: int,
    checkpoints: Checkpoints,
    progress: OnEpoch,
) -> TrainState:
    """The training itself, from its last checkpoint to its last epoch."""
    try:
        if workers == 0:
            return _train_here(store, manifest, settings, checkpoints, progress)
        return train_on_ray(store, run_name(manifest, settings), settings, workers, checkpoints, progress)
    except DivergedError as error:
        raise DivergedError(
            f"{error}\nThe run is kept as it was before, at {checkpoints.place.url}: call again if it can have "
            "been by chance, as on other hardware; else delete that"
        ) from None


def _start(checkpoints: Checkpoints, settings: TrainSettings, data: Loader, init: MSRRN | None) -> None:
    """The first checkpoint: from there all goes on as after any other."""
    state = TrainState(settings, data.mean_shape())
    if not checkpoints.restore(state):
        if init is None:
            raise UserError(
                f"{checkpoints.place.url} has no checkpoint: call `train` with --dataset and --init again"
            )
        state.start_from(init)
        if settings.perturbed:
            state.lean_to(one_sided(lean(state.averaged, data), state.averaged.mirror))
        checkpoints.write(state)


def _train_here(
    store: Store, manifest: Manifest, settings: TrainSettings, checkpoints: Checkpoints, progress: OnEpoch
) -> TrainState:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, val = Loader(store, manifest, "train", pinned=device == "cuda"), Loader(store, manifest, "val")
    state = TrainState(settings, data.mean_shape(), device)
    checkpoints.restore(state)

    def report(now: TrainState) -> None:
        checkpoints.write(now)
        if now.step == 0:
            progress(epoch_done(now, settings, val))

    with interruptible() as stopping:
        train(state, settings, data, val, report, stopping)
        if stopping():
            raise KeyboardInterrupt
    return state


def _finish(
    artifact: Store,
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
    card = _card(model, calibrate(model, val), metrics, manifest, settings, data.photos())
    _publish(artifact, model, card, state.history)


def _card(
    model: MSRRN,
    calibration: Calibration,
    metrics: EpochMetrics,
    manifest: Manifest,
    settings: TrainSettings,
    photos: Sequence[str],
) -> Card:
    before = set(settings.init.photos) if settings.init else set()
    weights = b"".join(tensor.contiguous().numpy().tobytes() for tensor in model.state_dict().values())
    return Card(
        version=hashlib.sha256(weights).hexdigest()[:12],
        crop_margin=manifest.settings["crop_margin"],
        detector=manifest.settings["detector"],
        config=model.config,
        calibration=calibration,
        training=Training(
            run=run_name(manifest, settings),
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
    if init is None or init.licence in (own, FREE):
        return own
    return init.licence if own == FREE else f"{own}; and that of the model it started from: {init.licence}"


def _trained(artifact: Store, name: str, reused: bool) -> TrainedModel:
    try:
        card = Card.model_validate_json(artifact.read_bytes(CARD))
        history = json.loads(artifact.read_bytes(HISTORY))
        if not artifact.exists(WEIGHTS):
            raise MissingError(f"{artifact.url}/{WEIGHTS} is missing")
    except (MissingError, ValueError) as error:
        raise UserError(
            f"{artifact.url} is a damaged artifact ({str(error).splitlines()[0]}): copy it again, or delete it to "
            "train it anew"
        ) from error
    return TrainedModel(artifact, name, card, history, reused)
