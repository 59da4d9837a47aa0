"""The whole line, with a real Prefect API, a real Ray and a real MLflow store."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from prefect.client.orchestration import get_client

from flows.retrain import RetrainResult, retrain
from msrrn.augmentation import AugmentationSettings
from pipelines.errors import UserError
from pipelines.registry.versions import champion, models
from pipelines.settings import GateSettings, PrepareSettings, TrainSettings
from pipelines.synthesis import synthesise, synthetic_archive
from pipelines.training.train import train_model

PREPARE = PrepareSettings(augmentation=AugmentationSettings(copies=2), val_share=0.25)
TRAIN = TrainSettings(epochs=2, batch=8, learning_rate=0.003)
STEPS = {
    "prepare dataset",
    "train network",
    "open model",
    "evaluate model",
    "register model",
    "judge",
    "carry out",
    "annotate archive",
    "write page",
}


@pytest.fixture(scope="module")
def place(empty_store: Path, prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from prefect.testing import utilities  # seconds to import, for few tests

    folder = tmp_path_factory.mktemp("line")
    shutil.copy(empty_store, folder)
    (prefect_home / "prefect.db").rename(prefect_home / "prefect-test.db")  # as the harness calls it
    synthesise(str(folder / "photos"), 16, 3, workers=1)
    synthetic_archive(str(folder), "album.tar", 3, 16, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(prefect_home))
        with utilities.prefect_test_harness(server_startup_timeout=120):
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            patch.setenv("MSRRN_METRICS_DIR", str(folder / "metrics"))
            patch.delenv("RAY_ADDRESS", raising=False)
            yield folder


def line(place: Path, train: TrainSettings) -> RetrainResult:
    return retrain(
        [str(place / "photos")],
        str(place / "work"),
        str(place / "album.tar"),
        "line",
        PREPARE,
        train,
        GateSettings(least_faces=2, bias=1000, rank_loss=2, slower=1000),
        workers=1,
    )


@pytest.fixture(scope="module")
def first(place: Path) -> RetrainResult:
    return line(place, TRAIN)


def test_the_first_model_becomes_champion_and_annotates_the_archive(place: Path, first: RetrainResult) -> None:
    assert first.promoted
    assert first.registered == "models:/line/1"
    assert (known := champion("line")) is not None
    assert known.version == 1
    assert known.tags["msrrn.nrmse_ip"] == f"{first.nrmse_ip:.5f}"
    assert first.summary is not None
    assert first.summary.images == 6
    assert first.summary.reasons == {"empty": 1, "not_an_image": 1, "truncated": 1}
    page = Path(first.report).read_text()
    assert "album/half.jpg" in page
    assert "<img" in page


def test_an_operator_sees_every_step_and_its_artifacts(first: RetrainResult) -> None:
    async def seen() -> tuple[set[str], set[str | None]]:
        async with get_client() as client:
            tasks = await client.read_task_runs()
            artifacts = await client.read_artifacts()
            return {task.name.rsplit("-", 1)[0] for task in tasks}, {artifact.key for artifact in artifacts}

    tasks, artifacts = asyncio.run(seen())
    assert tasks >= STEPS
    assert {"dataset", "evaluation", "promotion", "annotations", "worst-faces", "report"} <= artifacts


def test_mlflow_holds_parameters_curves_figures_and_a_model_without_pickles(first: RetrainResult) -> None:
    (version,) = models("line")
    run = mlflow.MlflowClient().get_run(version.run_id)
    assert run.data.params["learning_rate"] == str(TRAIN.learning_rate)
    assert run.data.metrics["eval.all.nrmse_ip"] == pytest.approx(first.nrmse_ip)
    curve = mlflow.MlflowClient().get_metric_history(version.run_id, "val_nrmse_ip_stage_3")
    assert [point.step for point in curve] == [1, 2]
    served = mlflow.pyfunc.load_model("models:/line@champion")
    crops = np.random.default_rng(0).integers(0, 256, (2, 200, 200), np.uint8)
    assert served.predict({"image_200": crops}).shape == (2, 136)


def test_metrics_show_the_champion_and_the_archive(place: Path, first: RetrainResult) -> None:
    lines = (place / "metrics" / "msrrn.prom").read_text().splitlines()
    assert 'msrrn_champion_version{model="line"} 1.0' in lines
    assert f'msrrn_champion_nrmse_ip{{model="line"}} {round(first.nrmse_ip, 5)}' in lines
    assert 'msrrn_pictures_total{status="quarantined"} 3.0' in lines


def test_a_second_run_finds_everything_done_and_changes_nothing(place: Path, first: RetrainResult) -> None:
    def written() -> dict[Path, int]:
        made = [
            path for folder in ("datasets", "models", "annotations") for path in (place / "work" / folder).rglob("*")
        ]
        return {path: path.stat().st_mtime_ns for path in made if path.suffix in (".parquet", ".safetensors")}

    before = written()
    again = line(place, TRAIN)
    assert written() == before
    assert not again.promoted
    assert "champion already" in again.reason
    assert [version.version for version in models("line")] == [1]


def test_judging_can_be_left_to_the_flow_that_the_event_starts(
    place: Path, first: RetrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[str] = []
    monkeypatch.setattr(
        "flows.retrain.announce", lambda version: announced.append(f"{version.name} {version.version}")
    )

    def left(name: str) -> RetrainResult:
        photos, work = [str(place / "photos")], str(place / "work")
        return retrain(photos, work, None, name, PREPARE, TRAIN, judge=False, workers=1)

    result = left("left")
    assert (result.verdict, result.promoted, announced) == (None, False, ["left 1"])
    assert "Not judged yet." in Path(result.report).read_text()
    assert champion("left") is None
    result = left("line")  # this model is the champion there: nothing is new
    assert (result.verdict, announced) == ("kept", ["left 1"])


def test_no_model_that_no_gate_saw_annotates_in_place_of_a_champion_that_was_lost(
    place: Path, first: RetrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.retrain.announce", lambda version: None)
    client = mlflow.MlflowClient()
    client.create_registered_model("gone")
    before = client.create_model_version("gone", "s3://nowhere/model")
    client.set_registered_model_alias("gone", "previous", before.version)
    photos, work, album = [str(place / "photos")], str(place / "work"), str(place / "album.tar")
    with pytest.raises(UserError, match="gone has no champion any more"):
        retrain(photos, work, album, "gone", PREPARE, TRAIN, judge=False, workers=1)
    assert [version.version for version in models("gone")] == [2, 1]


def test_a_worse_challenger_does_not_become_champion(place: Path, first: RetrainResult) -> None:
    settings = TRAIN.model_copy(update={"epochs": 1, "learning_rate": 1e-6})
    train_model(first.dataset, str(place / "work"), settings, 0)  # the line finds it: it trained on Ray once
    worse = line(place, settings)
    assert worse.nrmse_ip > first.nrmse_ip
    assert not worse.promoted
    assert (known := champion("line")) is not None
    assert known.version == 1
    assert models("line")[0].aliases == ("challenger",)
