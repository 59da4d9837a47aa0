"""Dataset → model artifact: Ray Train around the loop of `pipelines.training`, resumable by name.

A run is named by the digest of its dataset and settings. What goes on lies below `OUT/runs/NAME` until its
artifact appears at `OUT/models/NAME`: the weights first, the card last.
"""

import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from msrrn.artifact import CARD, WEIGHTS, Card, save
from msrrn.calibration import Calibration
from msrrn.network import MSRRN, PRESETS
from pipelines.checkpoints import RUNS, Checkpoints, unfinished
from pipelines.engine import in_a_thread, start_ray
from pipelines.errors import UsageError, UserError
from pipelines.examples import due, examples
from pipelines.loader import Loader
from pipelines.manifest import Manifest, read_manifest
from pipelines.settings import InitialWeights, TrainSettings
from pipelines.storage import Store
from pipelines.synthesis import SYNTHETIC
from pipelines.training import DivergedError, EpochMetrics, TrainState, calibrate, lean, train, validate

HISTORY: Final = "history.json"
RECIPE: Final = 8
"""Part of every run's name. Raise it with any change of code that changes weights: network, objective, loop, order
of samples."""
FREE: Final = "Apache-2.0: trained on synthetic faces alone"
RESTRICTED: Final = "that of the annotations it was trained on; those of 300-W allow research only"
WORKER_FAILURES: Final = 3
POLL_SECONDS: Final = 0.2
"""how often it is looked whether a person wants the training to stop"""


class Epoch(NamedTuple):
    """What is told of an epoch that is done."""

    metrics: EpochMetrics
    examples: bytes | None
    """JPEG of validation faces, after some epochs"""


Progress = Callable[[Epoch], None]


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
    """The digest of what fixes a model: its dataset and settings (not the number of workers)."""
    text = f"{RECIPE} {manifest.name}\n{settings.model_dump_json()}\n{PRESETS[settings.preset].model_dump_json()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resumable(out: str, name: str = "") -> tuple[str, TrainSettings]:
    """Dataset and settings of the one run below `out` that is not finished, or of the one of this name.

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
    return told.dataset, settings


def train_model(
    dataset: str,
    out: str,
    settings: TrainSettings,
    workers: int,
    progress: Progress = lambda epoch: None,
    init: MSRRN | None = None,
) -> TrainedModel:
    """Trains on up to `workers` Ray workers (0: in this process), or finds the artifact finished.

    Every worker has an equal share of each batch, and on GPUs one of its own: so many work as that allows. `init` is
    the network that `settings.init` speaks of; a run that has a checkpoint does without it.

    Raises:
        UserError: the dataset is not finished or too small, or training failed.
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
    artifact = Store(out).child("models").child(name)
    checkpoints = Checkpoints(Store(out).absolute().child(RUNS).child(name))
    reused = artifact.exists(CARD)
    if not reused:
        if settings.init:
            _start(checkpoints, settings, Loader(store, manifest, "train"), init)
        checkpoints.begin(store, settings)
        if workers == 0:
            state = _train_here(store, manifest, settings, checkpoints, progress)
        else:
            state = _train_on_ray(store, name, settings, workers, checkpoints, progress)
        model = state.averaged.cpu()
        model.lean.copy_(lean(model, Loader(store, manifest, "train")))
        val = Loader(store, manifest, "val")
        card = _card(model, calibrate(model, val), validate(model, val), manifest, settings)
        _publish(artifact, model, card, state.history)
    checkpoints.finish()
    return _trained(artifact, name, reused)


def _start(checkpoints: Checkpoints, settings: TrainSettings, data: Loader, init: MSRRN | None) -> None:
    """The first checkpoint: from there all goes on as after any other."""
    state = TrainState(settings, data.mean_shape())
    if not checkpoints.restore(state):
        if init is None:
            raise UserError(
                f"{checkpoints.place.url} has no checkpoint: call `train` with --dataset and --init again"
            )
        state.start_from(init)
        checkpoints.write(state)


def _train_here(
    store: Store, manifest: Manifest, settings: TrainSettings, checkpoints: Checkpoints, progress: Progress
) -> TrainState:
    data, val = Loader(store, manifest, "train"), Loader(store, manifest, "val")
    state = TrainState(settings, data.mean_shape())
    checkpoints.restore(state)

    def report(now: TrainState) -> None:
        checkpoints.write(now)
        if now.step == 0:
            progress(_epoch(now, settings, val))

    with _interruptible() as stopping:
        train(state, settings, data, val, report, stopping)
        if stopping():
            raise KeyboardInterrupt
    return state


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C becomes a wish that is asked for, so that no update is cut in half; a second one ends at once."""
    wished = threading.Event()

    def wish(number: int, frame: object) -> None:
        if wished.is_set():
            raise KeyboardInterrupt
        wished.set()

    if threading.current_thread() is not threading.main_thread():
        yield wished.is_set
        return
    before = signal.signal(signal.SIGINT, wish)
    try:
        yield wished.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _epoch(state: TrainState, settings: TrainSettings, val: Loader) -> Epoch:
    return Epoch(state.history[-1], examples(state.averaged, val) if due(state.epoch, settings.epochs) else None)


def _train_on_ray(
    store: Store, name: str, settings: TrainSettings, workers: int, checkpoints: Checkpoints, progress: Progress
) -> TrainState:
    state = TrainState(settings, np.zeros((68, 2), np.float32))
    checkpoints.restore(state)  # a damaged one is found here, not by workers that Ray would start again
    start_ray(workers)
    import ray.train
    from ray.train.torch import TorchTrainer

    here = ray.cluster_resources()
    gpus = int(here.get("GPU", 0))
    workers = min(workers, settings.batch)
    # A local Ray never grows: it would wait for more than it has without end. On a cluster, training begins with what
    # is there, and takes in workers as they come and go, each time from the last checkpoint.
    elastic = bool(os.environ.get("RAY_ADDRESS"))
    most = workers if elastic else min(workers, gpus or int(here["CPU"]))
    with _followed(progress) as (following, reports, wishes), _interruptible() as stopping:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "dataset": store.absolute(),
                "settings": settings,
                "checkpoints": checkpoints,
                "reports": reports,
                "wishes": wishes,
            },
            scaling_config=ray.train.ScalingConfig(num_workers=(1, most) if elastic else most, use_gpu=gpus > 0),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=checkpoints.place.url,
                failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
            ),
        )
        fitting = in_a_thread(trainer.fit)
        while not wait([fitting], POLL_SECONDS).done:
            # What `progress` raises ends the training, too, as it does without Ray.
            if (stopping() or following.done()) and wishes.empty():
                wishes.put("stop")
        if stopping():
            raise KeyboardInterrupt
        try:
            fitting.result()
        except ray.train.TrainingFailedError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            known = next((line for line in lines if "UserError: " in line), lines[-1])
            raise UserError(f"training {name} failed: {known.rpartition('UserError: ')[2]}") from error
    if not checkpoints.restore(state):
        raise UserError(f"training {name} left no checkpoint at {checkpoints.place.url}; run it again with --debug")
    return state


def _worker(config: dict[str, Any]) -> None:
    """The loop on one Ray worker."""
    import ray.train
    from ray.train.torch import prepare_model

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings: TrainSettings = config["settings"]
    manifest = read_manifest(config["dataset"])
    device = ray.train.torch.get_device()
    checkpoints: Checkpoints = config["checkpoints"]
    data = Loader(config["dataset"], manifest, "train", pinned=device.type == "cuda")
    val = Loader(config["dataset"], manifest, "val")
    state = TrainState(settings, data.mean_shape(), str(device))
    # Every rank reads the same one: DDP waits for all of them before rank 0 can write the next.
    checkpoints.restore(state)

    wished = threading.Event()

    def listen() -> None:
        # It is left in the queue: if this worker dies now, the one after it shall find it, too.
        while config["wishes"].empty():
            time.sleep(POLL_SECONDS)
        wished.set()

    if rank == 0:
        in_a_thread(listen)

    def report(now: TrainState) -> None:
        if rank == 0:
            checkpoints.write(now)
            if now.step == 0:
                config["reports"].put(_epoch(now, settings, val))

    try:
        train(state, settings, data, val, report, wished.is_set, rank, world, prepare_model)
    except DivergedError as error:
        # Ray would try again what ends in the same way.
        if rank == 0:
            config["reports"].put(error)


@contextmanager
def _followed(progress: Progress) -> Iterator[tuple[Future[None], Any, Any]]:
    """A queue that workers put their epochs into, and one where they find the wish to stop.

    `progress` is called for each epoch in a thread of this process; its end comes with the queues.

    Raises:
        DivergedError: what a worker put into the queue instead of an epoch; also what `progress` raises.
    """
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Elsewhere they would die with a node that the training can do without.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports, wishes = (Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}) for _ in range(2))

    def follow() -> None:
        while (told := reports.get()) is not None:
            if isinstance(told, DivergedError):
                raise told
            progress(told)

    following = in_a_thread(follow)
    try:
        yield following, reports, wishes
        reports.put(None)
        following.result()
    finally:
        for queue in (reports, wishes):
            queue.shutdown(force=True)


def _card(
    model: MSRRN, calibration: Calibration, metrics: EpochMetrics, manifest: Manifest, settings: TrainSettings
) -> Card:
    weights = b"".join(tensor.contiguous().numpy().tobytes() for tensor in model.state_dict().values())
    return Card(
        version=hashlib.sha256(weights).hexdigest()[:12],
        crop_margin=manifest.settings["crop_margin"],
        detector=manifest.settings["detector"],
        config=model.config,
        calibration=calibration,
        training={
            "run": run_name(manifest, settings),
            "dataset": manifest.name,
            "faces": manifest.counts["train"],
            "faces_by_source": manifest.faces_by_source,
            "dataset_settings": manifest.settings,
            "settings": settings.model_dump(),
            "code_version": version("msrrn"),
        },
        licence=_licence(manifest, settings.init),
        metrics={
            "protocol": "validation faces of the dataset, crops from detector boxes, NRMSE over the pupils' "
            "distance (IP), fractions",
            **metrics,
        },
    )


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
    card = Card.model_validate_json(artifact.read_bytes(CARD))
    return TrainedModel(artifact, name, card, json.loads(artifact.read_bytes(HISTORY)), reused)
