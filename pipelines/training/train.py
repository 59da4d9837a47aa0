"""Dataset → model artifact: the loop of `pipelines.training.loop`, here or on Ray Train, resumable by name.

A run is named by the digest of its dataset's shards and of its settings. What goes on lies below `OUT/runs/NAME`
until its artifact appears at `OUT/models/NAME`: the weights first, the card last.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch

from msrrn.artifact import CARD
from msrrn.config import PRESETS
from msrrn.network import MSRRN
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import Manifest, read_manifest, refuse_renamed
from pipelines.errors import UsageError, UserError
from pipelines.lease import hold
from pipelines.settings import NAME, TrainSettings
from pipelines.storage import Store
from pipelines.training.checkpoints import RUNS, Checkpoints, unfinished
from pipelines.training.epochs import Epoch, OnEpoch, epoch_done, interruptible
from pipelines.training.loop import DivergedError, train
from pipelines.training.on_ray import train_on_ray
from pipelines.training.outcome import TrainedModel, publish_trained, read_trained
from pipelines.training.state import TrainState
from pipelines.training.validation import lean_to_take_off

RECIPE: Final = 14
"""Part of every run's name. Raise it with any change of code that changes weights: network, objective, loop, order
of samples, perturbations, the lean that is taken off; or what the card of every new model has to tell."""

Followed = Callable[[], AbstractContextManager[OnEpoch]]
"""Entered by who begins, or goes on with, a training."""


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
        UserError: there is none, or more than one and no name says which, or it is of another version, or its dataset
            is no longer where it was, or pictures of that were forgotten.
    """
    name, told = unfinished(out, name)
    settings = told.all_settings()
    store = Store(told.dataset)
    remedy = f"has learned from them: delete {out}/{RUNS}/{name}, and train anew"
    try:
        refuse_renamed(store)
        remedy = (
            "was begun with it: if it lies elsewhere now, call `train` with --dataset and the same settings, which "
            "goes on all the same"
        )
        manifest = read_manifest(store)
    except UserError as error:
        raise type(error)(f"{error}\nRun {name} {remedy}") from error
    if run_name(manifest, settings) != name:
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
        return read_trained(artifact, name, reused=True)
    with hold(checkpoints.place, on_wait) as lease:
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
                    publish_trained(artifact, name, state, store, manifest, settings, checkpoints)
            checkpoints.finish()
        except UserError:
            # Who took over from one that was frozen may have finished, and removed what this one has worked on.
            if not (lease.is_lost() and artifact.exists(CARD)):
                raise
            reused = True
    return read_trained(artifact, name, reused)


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
            state.lean_to(lean_to_take_off(state.averaged, data))
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
