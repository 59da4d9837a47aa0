"""The steps of a retraining that join stations: what it starts from, its run in MLflow, and who annotates then."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Final

from msrrn.network import MSRRN
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import Manifest, read_manifest
from pipelines.engine import in_a_thread
from pipelines.errors import UserError
from pipelines.models import PHOTO_DIGITS, initial_weights
from pipelines.opening import open_model
from pipelines.registry.succession import lost_champion
from pipelines.registry.tracking import RunRecord, finish_run, log_files, log_history, open_run, system_metrics
from pipelines.registry.versions import champion
from pipelines.settings import INIT, TrainSettings
from pipelines.storage import Store
from pipelines.training.epochs import Epoch
from pipelines.training.outcome import TrainedModel
from pipelines.training.train import made_before, run_name, train_model

RANDOM: Final = "none"


def require_validation(manifest: Manifest) -> None:
    """Raises UserError where a dataset has no face to judge its model by, before anything is trained."""
    if not manifest.counts["val"]:
        raise UserError(
            f"dataset {manifest.name} has no validation face, so no model could be judged: annotate at least two "
            "photos, raise --val-share, or name some in val.txt"
        )


def require_unseen(dataset: str, settings: TrainSettings) -> None:
    """Raises UserError where what a training starts from was trained on every validation photo of its dataset."""
    before = set(settings.init.photos) if settings.init else set()
    if not before:
        return
    store = Store(dataset)
    if all(photo[:PHOTO_DIGITS] in before for photo in Loader(store, read_manifest(store), "val").photos()):
        raise UserError(
            f"what --init gives was trained on every validation photo of {dataset}, so nobody could tell how good "
            "its successor is: leave --init out, or add photos of your own to --data"
        )


def started_from(init: str | None, settings: TrainSettings) -> tuple[TrainSettings, MSRRN | None]:
    """A training's settings, with what it starts from, and that network; None stands for random weights.

    `init` is a model as `open_model` takes it, or "none"; None: what the preset starts from.

    Raises:
        UserError: there is no such model, or it has no weights to start from.
    """
    init = init or INIT.get(settings.preset, RANDOM)
    if init == RANDOM:
        return settings, None
    network, weights = initial_weights(open_model(init))
    if _is_alias(init):
        weights = weights.model_copy(update={"alias": init})
    return settings.model_copy(update={"init": weights}), network


def _is_alias(model: str) -> bool:
    """Whether a model's name may stand for another one tomorrow; a place may hold an @, too."""
    return model.startswith("models:") and "@" in model


def begun_from(
    init: str | None, settings: TrainSettings, dataset: str, out: str
) -> tuple[TrainSettings, MSRRN | None]:
    """`started_from`, for a call that may be made again.

    An alias may lead by then to the model that came of that call: it is what is to be found, not to be started from.
    """
    if init is not None and _is_alias(init):
        made = open_model(init).card.training
        before = made.settings.init
        if before is not None and before.alias == init:
            same = settings.model_copy(update={"init": before})
            name = run_name(read_manifest(Store(dataset)), same)
            if name == made.run and made_before(out, name):
                return same, None
    return started_from(init, settings)


def train_tracked(
    dataset: str,
    out: str,
    settings: TrainSettings,
    workers: int,
    name: str,
    progress: Callable[[Mapping[str, float]], None],
    init: MSRRN | None = None,
    on_wait: Callable[[str], None] = lambda note: None,
) -> TrainedModel:
    """`train_model`, with an MLflow run of the experiment `name` that shows how it goes on.

    There are curves, pictures of validation faces after some epochs, and what this machine (with Ray: the driver's)
    is busy with.

    Raises:
        UserError: the dataset, the training or MLflow fails.
        KeyboardInterrupt: with what to call to go on.
    """

    @contextmanager
    def at_it() -> Iterator[Callable[[Epoch], None]]:
        # Not before: while this process waits, the run is that of another one.
        key, run = _begun(dataset, settings, name)
        try:
            with system_metrics(run), followed(run) as tell:

                def follow(epoch: Epoch) -> None:
                    tell(epoch)
                    progress(epoch.metrics)

                yield follow
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            with suppress(UserError):  # that MLflow cannot be told is not what went wrong
                finish_run(run, "FAILED" if isinstance(error, Exception) else "KILLED")
            if not interrupted:
                raise
            call = ["msrrn", "train", "--resume", key, "--out", out]
            raise KeyboardInterrupt(
                "training stopped; the same command goes on from its last checkpoint, and so does\n  "
                + shlex.join(call)
            ) from error

    trained = train_model(dataset, out, settings, workers, at_it, init, name, on_wait)
    try:
        _, run = _begun(dataset, settings, name, trained.card.training.dataset)
        # A run that resumed, or whose artifact was there, still has its whole history.
        log_history(run, trained.history)
        finish_run(run, "FINISHED")
    except UserError as error:
        raise type(error)(
            f"{error}\nThe model is trained, at {trained.artifact.url}, and MLflow lacks a part of its curves: mend "
            f"that and train on {dataset} with the same settings again, which finds the model and logs them"
        ) from None
    return trained


def _begun(dataset: str, settings: TrainSettings, name: str, of: str | None = None) -> tuple[str, RunRecord]:
    """The name of a training's run, and MLflow's run of it, which says what the training was told.

    `of` is the name of the dataset that the model says: it may have been trained on another one of the same shards.
    """
    manifest = read_manifest(Store(dataset))
    key = run_name(manifest, settings)
    parameters = {
        **settings.model_dump(),
        "init": settings.init.version if settings.init else "",
        **{f"dataset.{name}": value for name, value in manifest.settings.items() if name != "augmentation"},
        **manifest.settings["augmentation"],
    }
    tags = {
        "msrrn.dataset": of or manifest.name,
        "msrrn.code_version": manifest.code_version,
        "msrrn.boxes": manifest.settings["detector"],
    }
    return key, open_run(name, key, parameters, tags)


@contextmanager
def followed(run: RunRecord) -> Iterator[Callable[[Epoch], None]]:
    """What logs an epoch, in a thread of its own: no training waits for MLflow, nor ends with it.

    What could not be logged is tried again after the next epoch, and once more at the end. MLflow itself repeats each
    request to a server for a while (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`). Pictures that are not taken by then are
    given up; the curves are the caller's, who has the whole history.
    """
    told: SimpleQueue[Epoch | None] = SimpleQueue()

    def follow() -> None:
        waiting: list[Epoch] = []
        arrived: list[Epoch | None] = []
        while None not in arrived:
            arrived = [told.get()]
            while not told.empty():  # of what came in an outage, all at once
                arrived.append(told.get())
            waiting += [epoch for epoch in arrived if epoch]
            with suppress(Exception):  # whatever stores and networks raise
                _log_epochs(run, waiting)

    following = in_a_thread(follow)
    try:
        yield told.put
        told.put(None)
        following.result()
    finally:
        told.put(None)


def _log_epochs(run: RunRecord, waiting: list[Epoch]) -> None:
    """Empties the list, once all is logged."""
    if not waiting:
        return
    log_history(run, [epoch.metrics for epoch in waiting])
    pictures = {f"examples/epoch_{int(each.metrics['epoch']):04d}.jpg": each.examples for each in waiting}
    log_files(run, {name: data for name, data in pictures.items() if data})
    waiting.clear()


def annotator(name: str, artifact: str) -> str:
    """Which model annotates after a retraining: the champion; the new one at `artifact` where there never was any.

    Raises:
        UserError: the champion was deleted: a model that no gate saw does not take its place.
    """
    if best := champion(name):
        return best.uri
    if lost := lost_champion(name):
        raise UserError(f"{lost}, and call again, which finds the new model trained")
    return artifact
