import errno
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from msrrn.artifact import CARD, WEIGHTS
from msrrn.config import PRESETS
from msrrn.provenance import InitialWeights
from pipelines import engine, retraining
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import MANIFEST, Manifest
from pipelines.errors import UserError
from pipelines.models import PHOTO_DIGITS, Model, initial_weights, read_model
from pipelines.opening import open_model
from pipelines.registry import tracking
from pipelines.registry.tracking import RunRecord
from pipelines.retraining import (
    annotator,
    begun_from,
    followed,
    require_unseen,
    require_validation,
    started_from,
    train_tracked,
)
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.training.epochs import Epoch
from pipelines.training.outcome import TrainedModel
from pipelines.training.train import Followed, run_name, train_model
from tests.factories import TINY, write_model
from tests.pipelines.registry.test_succession import make_versions, promote_two

Dataset = tuple[Store, Manifest]


@pytest.fixture(scope="module", autouse=True)
def _tiny(mlflow_store: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "paper", TINY)
        yield


def run_of(name: str, key: str) -> Any:
    return tracking.client().get_run(tracking.open_run(name, key, {}, {}).run_id)


def test_mlflow_follows_a_training(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    settings = TrainSettings(epochs=3, batch=8)
    trained = train_tracked(dataset[0].url, str(tmp_path), settings, 0, "followed", lambda metrics: None)
    client = tracking.client()
    (experiment,) = client.search_experiments(filter_string="name = 'followed'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["batch"] == "8"
    assert run.data.params["copies"] == "3"
    assert run.data.tags["msrrn.dataset"] == dataset[1].name
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert sorted({(each.step, each.value) for each in losses}) == [
        (row["epoch"], row["loss"]) for row in trained.history
    ]
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "examples")]
    assert pictures == [f"examples/epoch_000{epoch}.jpg" for epoch in (1, 2, 3)]
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_the_run_of_a_model_that_is_found_says_the_dataset_of_the_model(dataset: Dataset, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, batch=8)
    first = train_tracked(dataset[0].url, str(tmp_path), settings, 0, "found", lambda metrics: None)
    same_shards = Store(f"{tmp_path}/datasets/other")
    same_shards.publish(MANIFEST, dataset[1].model_copy(update={"name": "other"}).model_dump_json().encode())
    again = train_tracked(same_shards.url, str(tmp_path), settings, 0, "another", lambda metrics: None)
    assert again.reused
    for name in ("found", "another"):
        run = run_of(name, first.name)
        assert run.data.tags["msrrn.dataset"] == again.card.training.dataset == dataset[1].name
        assert run.data.metrics["loss"] == first.history[-1]["loss"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("part", ["__init__", "collect_metrics", "publish_metrics"])
def test_a_training_outlives_what_watches_the_machine(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise OSError("no /proc here")

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    monkeypatch.setattr(f"pipelines.registry.tracking.SystemMetricsMonitor.{part}", fails)
    settings = TrainSettings(epochs=1, batch=8)
    train_tracked(dataset[0].url, str(tmp_path), settings, 0, part.strip("_"), lambda metrics: None)
    assert run_of(part.strip("_"), run_name(dataset[1], settings)).data.metrics["loss"] > 0


def test_a_training_outlives_a_disk_that_takes_no_pictures(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipelines.retraining.log_files", full)
    settings = TrainSettings(epochs=2, batch=8)
    train_tracked(dataset[0].url, str(tmp_path), settings, 0, "full", lambda metrics: None)
    mlflow = tracking.client()
    experiment = mlflow.get_experiment_by_name("full")
    (run,) = mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert len(mlflow.get_metric_history(run.info.run_id, "loss")) == 2


def test_what_an_outage_kept_back_is_logged_with_the_next_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    curves: list[list[float]] = []
    files: list[dict[str, bytes]] = []
    tried, logged = Event(), Event()

    def log_files(run: RunRecord, pictures: dict[str, bytes]) -> None:
        if not tried.is_set():
            tried.set()
            raise UserError("No MLflow server answers")
        files.append(pictures)
        logged.set()

    monkeypatch.setattr(retraining, "log_history", lambda run, rows: curves.append([row["epoch"] for row in rows]))
    monkeypatch.setattr(retraining, "log_files", log_files)
    with followed(RunRecord("1", "kept back")) as tell:
        tell(Epoch({"epoch": 1}, b"first"))
        assert tried.wait(60)
        tell(Epoch({"epoch": 2}, b"second"))
        assert logged.wait(60)
        tell(Epoch({"epoch": 3}, None))
    assert curves == [[1], [1, 2], [3]]
    assert files == [{"examples/epoch_0001.jpg": b"first", "examples/epoch_0002.jpg": b"second"}, {}]


def test_nothing_follows_a_training_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Future[None]] = []

    def in_a_thread(work: Callable[[], None]) -> Future[None]:
        started.append(engine.in_a_thread(work))
        return started[-1]

    monkeypatch.setattr(retraining, "in_a_thread", in_a_thread)
    with pytest.raises(UserError, match="the loss is nan"), followed(RunRecord("1", "failed")):
        raise UserError("the loss is nan")
    started[0].result(60)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("training: the loss is nan"), "FAILED"),
        (SystemExit("as when a flow is cancelled"), "KILLED"),
    ],
)
def test_a_training_that_fails_or_is_cancelled_is_seen_to(
    error: BaseException, status: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(
        dataset: str, out: str, settings: TrainSettings, workers: int, followed: Followed, *told: object
    ) -> None:
        with followed():
            raise error

    monkeypatch.setattr(retraining, "train_model", ends)
    with pytest.raises(type(error), match=str(error)):
        train_tracked(dataset[0].url, str(tmp_path), TrainSettings(), 0, status, lambda metrics: None)
    client = tracking.client()
    (experiment,) = client.search_experiments(filter_string=f"name = '{status}'")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == [status]


@pytest.mark.parametrize("reached", [True, False])
def test_an_interrupted_training_is_seen_to_be_and_says_how_to_go_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    def interrupted(url: str, out: str, settings: TrainSettings, workers: int, at: Followed, *told: object) -> None:
        with at():
            raise KeyboardInterrupt

    def unreachable(*arguments: object) -> None:
        raise UserError("No MLflow server answers")

    settings = TrainSettings(init=InitialWeights(version="7", dataset="", faces_by_source={}, licence="any"))
    name, key = f"interrupted-{reached}", run_name(dataset[1], settings)
    monkeypatch.setattr(retraining, "train_model", interrupted)
    if not reached:
        monkeypatch.setattr(retraining, "finish_run", unreachable)
    with pytest.raises(KeyboardInterrupt) as said:
        train_tracked(dataset[0].url, f"{tmp_path}/my work", settings, 0, name, lambda metrics: None)
    call = f"msrrn train --resume {key} --out '{tmp_path}/my work'"
    assert str(said.value).splitlines()[1].strip() == call
    client = tracking.client()
    (experiment,) = client.search_experiments(filter_string=f"name = '{name}'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == ("KILLED" if reached else "RUNNING")
    assert (run.data.params["init"], run.data.params["dataset.seed"]) == ("7", "0")
    assert run.data.tags["msrrn.code_version"] == dataset[1].code_version
    assert run.data.tags["msrrn.boxes"] == dataset[1].settings["detector"]


def test_who_waits_for_another_training_says_nothing_of_it_to_mlflow(dataset: Dataset, tmp_path: Path) -> None:
    begun, done = Event(), Event()
    settings = TrainSettings(epochs=1, batch=8)
    mine = partial(train_tracked, dataset[0].url, str(tmp_path), settings, 0, "waited-for")

    def first(metrics: Mapping[str, float]) -> None:
        begun.set()
        assert done.wait(600)

    def ctrl_c(note: str) -> None:
        raise KeyboardInterrupt

    with ThreadPoolExecutor() as pool:
        training = pool.submit(mine, first)
        assert begun.wait(600)
        try:
            with pytest.raises(KeyboardInterrupt) as said:
                mine(lambda metrics: None, on_wait=ctrl_c)
            mlflow = tracking.client()
            experiment = mlflow.get_experiment_by_name("waited-for")
            assert [run.info.status for run in mlflow.search_runs([experiment.experiment_id])] == ["RUNNING"]
            assert str(said.value) == ""  # no training was stopped
        finally:
            done.set()
        assert not training.result().reused


def test_an_alias_that_leads_to_what_the_same_call_made_is_not_started_from(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new champion comes of a call that started from the champion; the same call again finds it."""
    settings, out = TrainSettings(epochs=1, batch=8), str(tmp_path)

    def trained(init: str) -> TrainedModel:
        told, network = begun_from(init, settings, dataset[0].url, out)
        made = train_model(dataset[0].url, out, told, 0, init=network)
        monkeypatch.setattr(retraining, "open_model", lambda model: read_model(tmp_path / "models" / made.name))
        return made

    first = trained("none")
    second = trained("models:/msrrn@champion")
    again = trained("models:/msrrn@champion")
    assert (again.name, again.reused) == (second.name, True)
    assert second.name != first.name
    for alias, place in (("other", out), ("champion", f"{out}/elsewhere")):  # of another call, or not made there
        assert begun_from(f"models:/msrrn@{alias}", settings, dataset[0].url, place)[1] is not None
    with monkeypatch.context() as patch:
        patch.setattr(retraining, "made_before", lambda *_: True)
        longer = TrainSettings(epochs=2, batch=8)
        assert begun_from("models:/msrrn@champion", longer, dataset[0].url, out)[1] is not None
    assert not trained("models:/msrrn/2").reused  # a version is what was meant


def test_what_a_training_starts_from_is_known_by_its_alias_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version is always the same one, and a place may hold an @; `best` starts from a model that nobody names."""
    opened: list[str] = []

    def opening(name: str) -> Model:
        opened.append(name)
        return model

    monkeypatch.setattr(retraining, "open_model", opening)
    aliases = {"models:/msrrn@champion": "models:/msrrn@champion", "models:/msrrn/2": "", "/home/me@work/model": ""}
    for name, alias in aliases.items():
        init = started_from(name, TrainSettings())[0].init
        assert init is not None
        assert (init.version, init.alias) == (model.version, alias)
    assert started_from(None, TrainSettings()) == (TrainSettings(), None)
    assert started_from(None, TrainSettings(preset="best"))[1] is not None
    assert opened == [*aliases, "synthetic"]


def test_a_model_is_opened_wherever_it_is(model: Model, tmp_path: Path, s3: str) -> None:
    for name, data in model.files:
        Store(f"{s3}/models").publish(name, data)
    assert open_model(f"{s3}/models") == model
    assert open_model(write_model(tmp_path / "here", model)) == model
    with pytest.raises(UserError, match=rf"absent/({WEIGHTS}|{CARD}) does not exist"):
        open_model(f"{s3}/absent")
    with pytest.raises(UserError, match="nowhere"):
        open_model(str(tmp_path / "nowhere"))


def test_the_new_model_annotates_only_where_there_never_was_a_champion() -> None:
    make_versions("annotates", 2)
    assert annotator("annotates", "the new one") == "the new one"
    promote_two("annotates")
    assert annotator("annotates", "the new one") == "models:/annotates/2"
    tracking.client().delete_model_version("annotates", "2")
    with pytest.raises(UserError, match=r"no champion any more .* to version 1, .* and call again, which finds"):
        annotator("annotates", "the new one")


def test_a_run_is_found_again_by_what_it_was_trained_on(dataset: Dataset) -> None:
    key = run_name(dataset[1], TrainSettings())
    assert run_of("again", key).info.run_id == run_of("again", key).info.run_id


def test_a_dataset_without_validation_faces_is_refused_before_training(dataset: Dataset) -> None:
    _, manifest = dataset
    require_validation(manifest)
    with pytest.raises(UserError, match="--val-share"):
        require_validation(manifest.model_copy(update={"counts": {**manifest.counts, "val": 0}}))


def test_weights_that_know_every_validation_photo_are_refused_before_training(dataset: Dataset, model: Model) -> None:
    store, manifest = dataset
    photos = tuple(photo[:PHOTO_DIGITS] for photo in Loader(store, manifest, "val").photos())
    _, weights = initial_weights(model)

    def start(*known: str) -> TrainSettings:
        return TrainSettings(init=weights.model_copy(update={"photos": known}))

    for told in (TrainSettings(), start(), start(*photos[1:], "0" * PHOTO_DIGITS)):
        require_unseen(store.url, told)
    with pytest.raises(UserError, match=r"trained on every validation photo .* leave --init out"):
        require_unseen(store.url, start(*photos, "0" * PHOTO_DIGITS))
