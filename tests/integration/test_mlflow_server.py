import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from msrrn.artifact import Card, save
from msrrn.config import PRESETS, ModelConfig
from msrrn.network import MSRRN
from pipelines.dataset.manifest import Manifest
from pipelines.errors import UserError
from pipelines.registry import tracking
from pipelines.registry import versions as registry
from pipelines.registry.artifacts import artifact_digest, fetch, register
from pipelines.registry.succession import finish_turn, log, settle
from pipelines.retraining import train_tracked
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.training.examples import due
from tests.faulty import FaultyEndpoint, serve_faulty
from tests.infra.files import INFRA
from tests.pipelines.registry.test_succession import crashed, make_versions, start
from tests.servers import free_ports, serving

TINY = ModelConfig(patch=12, patch_channels=(2, 2), initial_channels=(2, 2, 2), hidden=8)


@pytest.fixture(scope="module")
def folder(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps everything."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "server.db")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """An MLflow server that keeps the artifacts itself, so that clients need nothing but its address."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with serving(command, environment, folder, f"{address}/health"):
        yield address


def test_a_model_goes_through_a_server(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    torch.manual_seed(0)
    save(artifact, MSRRN(TINY), Card(version="1", crop_margin=1.3, detector="dlib", config=TINY))

    run = tracking.open_run("training", "key", {"epochs": 2}, {"dataset": "d"})
    assert tracking.open_run("training", "key", {}, {}) == run
    history = [{"epoch": epoch, "loss": 1 / epoch, "broken": float("nan")} for epoch in (1, 2, 3)]
    tracking.log_history(run, history[:2])
    tracking.log_history(run, history)
    logged = tracking.client().get_metric_history(run.run_id, "loss")
    assert sorted(each.step for each in logged) == [1, 2, 3]
    tracking.log_files(run, {"tables/report.csv": b"a,b\n"})
    first = register(run, "msrrn", artifact, {"dataset": "d"})
    assert register(run, "msrrn", artifact, {}) == first
    tracking.finish_run(run, "FINISHED")

    settle("msrrn", "promoted", first.version, None, "first model", "me")
    champion = registry.champion("msrrn")
    assert champion is not None
    assert champion.aliases == ("champion",)
    assert champion.tags["msrrn.reason"] == "first model"
    fetched = fetch("models:/msrrn@champion")
    assert fetched.is_relative_to(tmp_path / "cache")
    assert artifact_digest(fetched) == artifact_digest(artifact)
    with pytest.raises(UserError, match=r"No model 'other'.*there is msrrn"):
        fetch("models:/other@champion")
    # Everything is on the server: nothing was written where the client runs.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "cache"]
    assert capsys.readouterr().out == ""  # it is for what a command gives to machines


def test_what_a_person_deleted_is_gone_for_good_as_the_runbook_says(
    server: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    run = tracking.open_run("forgets", "key", {}, {})
    tracking.log_files(run, {"examples/epoch_0001.jpg": b"a face"})
    tracking.client().delete_run(run.run_id)
    assert list(folder.rglob("epoch_0001.jpg"))
    runbook = (INFRA / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^dc exec mlflow (sh -c '[^']*mlflow gc[^']*')$", runbook, re.MULTILINE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    of_container = {
        "PATH": path,
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'server.db'}",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "secret",
    }
    done = subprocess.run(shlex.split(command), env=os.environ | of_container, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert not list(folder.rglob("epoch_0001.jpg"))


def test_files_that_a_server_lost_are_told_with_what_is_left_to_do(
    server: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    save(artifact, MSRRN(TINY), Card(version="2", crop_margin=1.3, detector="dlib", config=TINY))
    version = register(tracking.open_run("lost", "key", {}, {}), "lost", artifact, {})
    source = tracking.client().get_model_version("lost", str(version.version)).source
    (lost,) = folder.rglob(source.removeprefix("models:/"))
    shutil.rmtree(lost)
    with pytest.raises(UserError, match=r"^models:/lost/1: its files are gone .* put them back, .*msrrn rollback"):
        fetch(version.uri, tmp_path / "cache")


def test_of_promotions_at_once_through_a_server_one_wins(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    make_versions("contested", 3)
    settle("contested", "promoted", 1, None, "first", "me")
    started = [start("contested", version, champion=1) for version in (2, 3)]
    for process in started:
        process.join(600)
    assert sorted(process.exitcode or 0 for process in started) == [0, 3]
    winner = 2 if started[0].exitcode == 0 else 3
    aliases = {alias: each.version for each in registry.models("contested") for alias in each.aliases}
    assert aliases == {"champion": winner, "previous": 1}

    crashed("contested", 5 - winner, champion=winner, crash=1)
    line = finish_turn("contested", patience=0)
    assert line is not None
    assert (champion := registry.champion("contested")) is not None
    assert champion.version == 5 - winner
    assert [each.turn.version for each in log("contested")] == [1, winner, 5 - winner]


@pytest.fixture
def outages(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyEndpoint]:
    """Steers what answers in the name of the server, asked once for each request."""
    with serve_faulty(server) as (address, endpoint):
        endpoint.kinds = ["503"]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setitem(PRESETS, "paper", TINY)
        yield endpoint


def logged(experiment: str) -> tuple[str, list[tuple[int, float]], list[str]]:
    """Status of the one run, its losses, its pictures."""
    client = tracking.client()
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    losses = client.get_metric_history(run.info.run_id, "loss")
    pictures = [each.path for each in client.list_artifacts(run.info.run_id, "examples")]
    return run.info.status, sorted((each.step, each.value) for each in losses), pictures


SIX = TrainSettings(epochs=6, batch=8)


def test_a_training_does_not_wait_for_mlflow_and_its_curves_are_whole_afterwards(
    outages: FaultyEndpoint, dataset: tuple[Store, Manifest], tmp_path: Path
) -> None:
    def follow(metrics: Mapping[str, float]) -> None:
        if metrics["epoch"] == 2:
            outages.share = 1
        if metrics["epoch"] == 5:
            while not outages.failed:
                time.sleep(0.01)
            outages.share = 0

    trained = train_tracked(dataset[0].url, str(tmp_path), SIX, 0, "outage", follow)
    status, losses, pictures = logged("outage")
    assert outages.failed
    assert status == "FINISHED"
    assert losses == [(row["epoch"], row["loss"]) for row in trained.history]
    assert pictures == [f"examples/epoch_{epoch:04d}.jpg" for epoch in range(1, 7) if due(epoch, 6)]


def test_where_mlflow_does_not_come_back_the_model_is_kept_and_the_next_call_logs_it(
    outages: FaultyEndpoint, dataset: tuple[Store, Manifest], tmp_path: Path
) -> None:
    def follow(metrics: Mapping[str, float]) -> None:
        outages.share = 1

    with pytest.raises(
        UserError, match=r"No MLflow server answers.*\nThe model is trained, at .*with the same settings"
    ):
        train_tracked(dataset[0].url, str(tmp_path), SIX, 0, "gone", follow)
    outages.share = 0
    trained = train_tracked(dataset[0].url, str(tmp_path), SIX, 0, "gone", follow)
    assert trained.reused
    status, losses, _ = logged("gone")
    assert status == "FINISHED"
    assert losses == [(row["epoch"], row["loss"]) for row in trained.history]


OPEN_RUN = """
from pipelines.registry import tracking
print(tracking.open_run("training", "key", {"epochs": 2}, {}).run_id)
"""


@pytest.mark.line
def test_processes_that_start_together_share_one_new_store(tmp_path: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    started = [
        subprocess.Popen([sys.executable, "-c", OPEN_RUN], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    runs = {process.communicate(timeout=600)[0] for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert len(runs) == 1
