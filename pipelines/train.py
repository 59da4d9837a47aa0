"""Dataset → model artifact: Ray Train around the loop of `pipelines.training`, resumable by name.

A run is named by the digest of its dataset and settings. Its checkpoints lie below `OUT/runs/NAME`; its
artifact appears at `OUT/models/NAME` when it is finished: the weights first, the card last.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any, Final

import numpy as np

from msrrn.artifact import CARD, WEIGHTS, Card, save
from msrrn.calibration import Calibration
from msrrn.network import PRESETS
from pipelines.engine import start_ray
from pipelines.errors import UsageError, UserError
from pipelines.loader import Loader
from pipelines.manifest import Manifest, read_manifest
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.synthesis import SYNTHETIC
from pipelines.training import EpochMetrics, TrainState, calibrate, train

HISTORY: Final = "history.json"
STATE: Final = "state.pt"
RECIPE: Final = 5
"""Part of every run's name. Raise it with any change of code that changes weights: network, objective, loop, order
of samples."""
CHECKPOINTS_KEPT: Final = 2
WORKER_FAILURES: Final = 3

Progress = Callable[[EpochMetrics], None]


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


def train_model(
    dataset: str, out: str, settings: TrainSettings, workers: int, progress: Progress = lambda metrics: None
) -> TrainedModel:
    """Trains on up to `workers` Ray workers (0: in this process), or finds the artifact finished.

    Every worker has an equal share of each batch, and on GPUs one of its own: so many work as that allows.

    Raises:
        UserError: the dataset is not finished or too small, or training failed.
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
    if artifact.exists(CARD):
        return _trained(artifact, name, reused=True)
    if workers == 0:
        state = _train_here(store, manifest, settings, progress)
    else:
        state = _train_on_ray(store, Store(out).child("runs"), name, settings, workers, progress)
    calibration = calibrate(state.averaged.cpu(), Loader(store, manifest, "val"))
    _publish(artifact, state, calibration, manifest, settings)
    return _trained(artifact, name, reused=False)


def _train_here(store: Store, manifest: Manifest, settings: TrainSettings, progress: Progress) -> TrainState:
    data = Loader(store, manifest, "train")
    state = TrainState(settings, data.mean_shape())

    def report(now: TrainState) -> None:
        if now.step == 0:
            progress(now.history[-1])

    train(state, settings, data, Loader(store, manifest, "val"), report)
    return state


def _train_on_ray(
    store: Store, runs: Store, name: str, settings: TrainSettings, workers: int, progress: Progress
) -> TrainState:
    start_ray(workers)
    import ray.train
    from ray.train.torch import TorchTrainer

    here = ray.cluster_resources()
    gpus = int(here.get("GPU", 0))
    most = min(workers, gpus) if gpus else workers
    if not os.environ.get("RAY_ADDRESS"):
        # A local Ray never grows: it would wait for more CPUs than it has without end.
        most = min(most, int(here["CPU"]))
    workers = max(count for count in range(1, most + 1) if settings.batch % count == 0)
    with _followed(progress) as reports:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"dataset": store.absolute(), "settings": settings, "reports": reports},
            scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus > 0),
            run_config=ray.train.RunConfig(
                # Ray resumes a run by itself when its name and storage path are those of an earlier one.
                name=name,
                storage_path=runs.absolute().url,
                failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            known = next((line for line in lines if "UserError: " in line), lines[-1])
            raise UserError(f"training {name} failed: {known.rpartition('UserError: ')[2]}") from error
    if result.checkpoint is None:
        raise UserError(f"training {name} left no checkpoint below {runs.url}; run it again with --debug")
    with result.checkpoint.as_directory() as directory:
        return _restored(Path(directory), settings)


def _worker(config: dict[str, Any]) -> None:
    """The loop on one Ray worker."""
    import ray.train
    from ray.train.torch import prepare_model

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings: TrainSettings = config["settings"]
    manifest = read_manifest(config["dataset"])
    device = ray.train.torch.get_device()
    data = Loader(config["dataset"], manifest, "train", pinned=device.type == "cuda")
    state = TrainState(settings, data.mean_shape(), str(device))
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as directory:
            state.load_bytes((Path(directory) / STATE).read_bytes())

    def report(now: TrainState) -> None:
        place = {"epoch": now.epoch, "step": now.step}
        if rank != 0:
            ray.train.report(place)
            return
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / STATE).write_bytes(now.to_bytes())
            ray.train.report(place, checkpoint=ray.train.Checkpoint.from_directory(directory))
        if now.step == 0:
            config["reports"].put(now.history[-1])

    train(state, settings, data, Loader(config["dataset"], manifest, "val"), report, rank, world, prepare_model)


@contextmanager
def _followed(progress: Progress) -> Iterator[Any]:
    """A queue that workers put their epochs into; `progress` is called here, in a thread, for each."""
    from ray.util.queue import Queue

    reports = Queue(actor_options={"num_cpus": 0})

    def follow() -> None:
        while (metrics := reports.get()) is not None:
            progress(metrics)

    thread = Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield reports
    finally:
        reports.put(None)
        thread.join(timeout=10)
        reports.shutdown()


def _restored(directory: Path, settings: TrainSettings) -> TrainState:
    state = TrainState(settings, np.zeros((68, 2), np.float32))
    state.load_bytes((directory / STATE).read_bytes())
    return state


def _publish(
    artifact: Store, state: TrainState, calibration: Calibration, manifest: Manifest, settings: TrainSettings
) -> None:
    weights = b"".join(
        tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in state.averaged.state_dict().values()
    )
    card = Card(
        version=hashlib.sha256(weights).hexdigest()[:12],
        crop_margin=manifest.settings["crop_margin"],
        detector=manifest.settings["detector"],
        config=state.averaged.config,
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
        licence=_licence(manifest),
        metrics={
            "protocol": "validation faces of the dataset, crops from detector boxes, NRMSE over the pupils' "
            "distance (IP), fractions",
            **{key: value for key, value in state.history[-1].items() if key.startswith("val_")},
        },
    )
    with tempfile.TemporaryDirectory() as directory:
        save(Path(directory), state.averaged, card)
        artifact.publish(HISTORY, json.dumps(state.history, indent=1).encode())
        for name in (WEIGHTS, CARD):
            artifact.publish(name, (Path(directory) / name).read_bytes())


def _licence(manifest: Manifest) -> str:
    if set(manifest.faces_by_source) == {SYNTHETIC}:
        return "Apache-2.0: trained on synthetic faces alone"
    return "that of the annotations it was trained on; those of 300-W allow research only"


def _trained(artifact: Store, name: str, reused: bool) -> TrainedModel:
    card = Card.model_validate_json(artifact.read_bytes(CARD))
    return TrainedModel(artifact, name, card, json.loads(artifact.read_bytes(HISTORY)), reused)
