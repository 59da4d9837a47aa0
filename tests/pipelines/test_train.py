import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from msrrn.artifact import CARD, WEIGHTS
from msrrn.network import PRESETS
from pipelines import train as station
from pipelines.errors import UsageError, UserError
from pipelines.manifest import Manifest
from pipelines.models import read_model
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.train import HISTORY, TrainedModel, run_name, train_model
from pipelines.training import EpochMetrics
from tests.factories import TINY, times, tree

Dataset = tuple[Store, Manifest]

QUICK = TrainSettings(epochs=2, batch=8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network, in this process."""
    monkeypatch.setitem(PRESETS, "paper", TINY)


def local(trained: TrainedModel) -> Path:
    path = trained.artifact.local_path()
    assert path is not None
    return path


@pytest.mark.usefixtures("tiny")
def test_a_run_makes_an_artifact_that_loads(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[EpochMetrics] = []
    trained = train_model(dataset[0].url, str(tmp_path), QUICK, 0, seen.append)
    assert not trained.reused
    assert trained.name == run_name(dataset[1], QUICK)
    assert local(trained) == tmp_path / "models" / trained.name
    assert sorted(tree(tmp_path)) == [f"models/{trained.name}/{key}" for key in (CARD, HISTORY, WEIGHTS)]
    assert seen == list(trained.history) == json.loads((local(trained) / HISTORY).read_bytes())
    card = read_model(local(trained)).card
    assert card == trained.card
    assert card.training["dataset"] == dataset[1].name
    assert card.training["faces"] == 8
    assert card.training["settings"] == QUICK.model_dump()
    assert card.crop_margin == dataset[1].settings["crop_margin"]
    assert card.metrics["val_nrmse_ip_stage_3"] == trained.history[-1]["val_nrmse_ip_stage_3"]
    assert str(tmp_path) not in (local(trained) / CARD).read_text()


@pytest.mark.usefixtures("tiny")
def test_a_second_call_finds_the_model(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    before = times(tmp_path)
    monkeypatch.setattr(station, "train", lambda *arguments: pytest.fail("it trained again"))
    second = train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    assert second.reused
    assert (second.name, second.card, second.history) == (first.name, first.card, first.history)
    assert times(tmp_path) == before


@pytest.mark.usefixtures("tiny")
def test_the_same_run_elsewhere_gives_the_same_artifact(dataset: Dataset, tmp_path: Path) -> None:
    copied = shutil.copytree(str(dataset[0].parent.local_path()), tmp_path / "copy") / dataset[1].name
    first = train_model(dataset[0].url, str(tmp_path / "a"), QUICK, 0)
    second = train_model(str(copied), str(tmp_path / "b"), QUICK, 0)
    assert tree(local(first)) == tree(local(second))


def test_a_run_is_named_by_its_dataset_and_settings(dataset: Dataset) -> None:
    manifest = dataset[1]
    names = {
        run_name(manifest, QUICK),
        run_name(manifest.model_copy(update={"name": "other"}), QUICK),
        run_name(manifest, QUICK.model_copy(update={"seed": 1})),
        run_name(manifest, QUICK.model_copy(update={"epochs": 3})),
    }
    assert len(names) == 4


@pytest.mark.usefixtures("tiny")
def test_the_card_is_published_last(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any file, a run has no artifact yet: the next call makes it."""
    written: list[str] = []
    publish = Store.publish

    def failing(store: Store, key: str, data: bytes) -> None:
        if key == CARD and len(written) < 3:
            raise UserError("disk full")
        written.append(key)
        publish(store, key, data)

    monkeypatch.setattr(Store, "publish", failing)
    with pytest.raises(UserError, match="disk full"):
        train_model(dataset[0].url, str(tmp_path), QUICK, 0)
    assert written == [HISTORY, WEIGHTS]
    written.append("from now on")
    assert not train_model(dataset[0].url, str(tmp_path), QUICK, 0).reused
    assert written[-1] == CARD


def test_calls_that_cannot_work_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    url = dataset[0].url
    with pytest.raises(UsageError, match=r"--batch 64 is more than the \d+ training samples .* more --copies"):
        train_model(url, str(tmp_path), TrainSettings(), 3)
    with pytest.raises(UserError, match=r"no manifest\.json, so it is no finished dataset"):
        train_model(str(tmp_path), str(tmp_path), QUICK, 0)
    assert tree(tmp_path) == {}


def test_two_workers_train_as_one_does_though_one_is_killed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_of_two: int
) -> None:
    """They share every batch, so their figures differ by rounding alone: measured, by one part in a million."""
    settings = TrainSettings(preset="best", epochs=3, batch=16, checkpoint_steps=1)
    alone = train_model(dataset[0].url, str(tmp_path / "alone"), settings, 0)
    killed: list[int] = []
    epochs: list[float] = []

    def kill_one(metrics: EpochMetrics) -> None:
        epochs.append(metrics["epoch"])
        workers = [process for process in _descendants() if "RayTrainWorker" in " ".join(process.info["cmdline"])]
        if not killed and workers:
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    monkeypatch.chdir(tmp_path)
    both = train_model(dataset[0].url, "both", settings, ray_of_two, kill_one)
    assert killed
    assert set(epochs) == {1, 2, 3}
    assert len(both.history) == 3
    for row, other in zip(both.history, alone.history, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert read_model(local(both)).card.version == both.card.version


def _descendants() -> list[Any]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            process.info = {"cmdline": process.cmdline()}
            found.append(process)
        except psutil.Error:
            continue
    return found
