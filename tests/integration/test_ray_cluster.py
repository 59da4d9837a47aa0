"""Training on a cluster that was started by itself, as an operator starts one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.dataset.manifest import Manifest
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.training.outcome import HISTORY
from pipelines.training.train import train_model
from tests.cluster import cluster
from tests.factories import start_msrrn


@pytest.fixture
def ray_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head of two CPUs."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with cluster(2) as made:
        yield made.address


@pytest.mark.line
def test_training_begins_with_the_workers_that_are_there(
    ray_head: str, dataset: tuple[Store, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three are asked for, two have room, and what they share ends as it would with one."""
    settings = TrainSettings(epochs=2, batch=8, learning_rate=1e-4)
    alone = train_model(dataset[0].url, str(tmp_path / "alone"), settings, 0)
    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    process = start_msrrn(
        "train", "--dataset", dataset[0].url, "--out", str(tmp_path / "shared"), "--epochs", "2", "--batch", "8",
        "--learning-rate", "0.0001", "--workers", "3",
    )  # fmt: skip
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    history = json.loads((tmp_path / "shared" / "models" / alone.name / HISTORY).read_bytes())
    for row, other in zip(history, alone.history, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
