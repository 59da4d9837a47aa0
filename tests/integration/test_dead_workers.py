"""A real Prefect server, and real workers, that die under running flows: what must be true afterwards."""

import asyncio
import json
import runpy
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Pending, Running

from flows.dead_runs import free_dead_runs
from msrrn.augmentation import AugmentationSettings
from msrrn.synthetic import SyntheticPhoto
from pipelines.annotation.tables import SUMMARY
from pipelines.settings import PrepareSettings, TrainSettings
from pipelines.storage import Store
from pipelines.synthesis import synthesise
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.state import TrainState
from tests.cluster import kill_tree
from tests.infra.files import INFRA, read_yaml
from tests.integration.prefect_server import PREFECT, ROOT, Server, post, prefect_server, runs_of
from tests.servers import wait_for

WITHIN = timedelta(seconds=70)
"""Instead of 100 s; runs beat every 30 s, and one beat may come late."""
TRAIN = TrainSettings(epochs=12, batch=8, learning_rate=0.003)
MARK = 1234.5
LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
DEPLOYED = ("--name", "retrain", "--name", "annotate", "--name", "monitor")


@pytest.fixture(scope="module")
def server(mlflow_store: Path, prefect_home: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_store / 'mlflow.db'}")
        patch.setenv("XDG_CACHE_HOME", str(mlflow_store / "cache"))
        patch.setenv(LEASES, read_yaml("compose.yaml")["services"]["prefect-server"]["environment"][LEASES])
        patch.setenv("PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY", "PT1S")
        patch.setenv("PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED", "false")  # a real `reconcile` might come in between
        patch.delenv("RAY_ADDRESS", raising=False)
        with (
            prefect_server(prefect_home, *DEPLOYED) as started,
            temporary_settings({PREFECT_API_URL: started.url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}),
        ):
            asyncio.run(apply_automations())
            yield started


async def apply_automations() -> None:
    """As infra/prefect/apply.py does, but the first one is quicker."""
    infra = runpy.run_path(str(INFRA / "prefect" / "apply.py"))
    dead, stuck = infra["read_automations"]()
    dead.trigger.within = WITHIN
    async with get_client() as client:
        await infra["apply"](client, [dead, stuck])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    synthesise(str(folder / "photos"), 16, 3, workers=1)
    return folder


def start_worker(log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        command = [PREFECT, "worker", "start", "--pool", "msrrn"]
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)


def start_run(server: Server, deployment: str, **parameters: Any) -> str:
    return create_run(server, deployment, {"parameters": parameters})


def create_run(server: Server, deployment: str, told: dict[str, Any]) -> str:
    (found,) = post(f"{server.url}/deployments/filter", {"deployments": {"name": {"any_": [deployment]}}})
    return str(post(f"{server.url}/deployments/{found['id']}/create_flow_run", told)["id"])


def in_states(server: Server, *states: str, **parameters: Any) -> str:
    """A run of `monitor` that went through these states, and that no process works on."""
    run = create_run(server, "monitor", {"parameters": parameters, "state": {"type": states[0]}})
    for each in states[1:]:
        post(f"{server.url}/flow_runs/{run}/set_state", {"state": {"type": each}, "force": True})
    return run


def beat(server: Server, *runs: str) -> None:
    """What a process says that works on a run."""

    def heard(run: str) -> bool:
        of_run = {"resource": {"id": [f"prefect.flow-run.{run}"]}, "event": {"name": ["prefect.flow-run.heartbeat"]}}
        return bool(post(f"{server.url}/events/filter", {"filter": of_run})["total"])

    for run in runs:
        now, resource = datetime.now(UTC).isoformat(), {"prefect.resource.id": f"prefect.flow-run.{run}"}
        event = {"occurred": now, "event": "prefect.flow-run.heartbeat", "resource": resource, "id": str(uuid4())}
        post(f"{server.url}/events", [event])
    wait_for(lambda: all(heard(run) for run in runs))


def start_retrain(server: Server, place: Path) -> str:
    prepare = PrepareSettings(augmentation=AugmentationSettings(copies=2), val_share=0.25)
    return start_run(
        server,
        "retrain",
        data=[str(place / "photos")],
        out=str(place / "work"),
        prepare_settings=prepare.model_dump(mode="json"),
        train_settings=TRAIN.model_dump(mode="json"),
        workers=1,
    )


def state(server: Server, run: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = post(f"{server.url}/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return dict(found[0]["state"])


def ended(server: Server, run: str) -> str:
    """How a run ended that somebody works on: on a slow machine its server may take it for dead meanwhile."""
    wait_for(lambda: state(server, run)["type"] in {"COMPLETED", "FAILED", "CANCELLED"})
    return str(state(server, run)["type"])


@pytest.fixture(scope="module")
def dead(server: Server, place: Path) -> str:
    """A retraining whose worker lost power after the first epoch; its id."""
    worker = start_worker(place / "first.log")
    try:
        run = start_retrain(server, place)
        wait_for(lambda: list((place / "work" / "runs").glob("*/state.pt")))
    finally:
        kill_tree(worker)
    assert state(server, run)["type"] == "RUNNING"
    return run


@pytest.fixture(scope="module")
def worker(place: Path) -> Iterator[Path]:
    """Its log. The worker that dies must have died before: ask for `dead` first."""
    log = place / "second.log"
    process = start_worker(log)
    yield log
    kill_tree(process)


@pytest.mark.line
def test_a_run_that_is_about_to_begin_keeps_its_place_while_the_server_is_started_anew(server: Server) -> None:
    with get_client(sync_client=True) as client:  # there is no worker yet that would begin it
        run = UUID(start_run(server, "monitor"))
        client.set_flow_run_state(run, Pending())  # here it gets its place
        server.kill()
        server.start()
        client.set_flow_run_state(run, Running())
        assert client.read_flow_run(run).state_name == "Running"
        client.set_flow_run_state(run, Cancelled())  # the place is others' now


@pytest.mark.line
def test_a_server_that_is_away_while_a_run_ends_costs_it_nothing(
    server: Server, dead: str, worker: Path, photos: tuple[list[SyntheticPhoto], list[SyntheticPhoto]], tmp_path: Path
) -> None:
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    for index in range(40):
        (album / f"{index:03d}.jpg").write_bytes(photos[0][index % 8].jpeg)
    settings = {"images_per_unit": 2, "detector": "hog"}
    run = start_run(server, "annotate", source=str(album), out=str(out), model="box", settings=settings, workers=1)
    wait_for(lambda: len(list(out.glob("records/*.json"))) > 2)
    server.kill()
    assert not (out / SUMMARY).exists()
    wait_for((out / SUMMARY).exists)
    time.sleep(3)  # now it wants to tell what it made, and its end
    server.start()
    assert ended(server, run) == "COMPLETED", worker.read_text(errors="replace")[-3000:]
    assert json.loads((out / SUMMARY).read_text())["images"] == 40
    artifacts = post(f"{server.url}/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    assert [each["key"] for each in artifacts] == ["annotations"]
    of_run = {"flow_runs": {"id": {"any_": [run]}}}

    def tasks() -> set[str]:
        return {each["state_type"] for each in post(f"{server.url}/task_runs/filter", of_run)}

    wait_for(lambda: tasks() == {"COMPLETED"})  # the server hears of tasks a little later


@pytest.mark.line
def test_a_run_whose_worker_died_is_crashed_and_the_next_has_its_place_and_its_checkpoint(
    server: Server, dead: str, worker: Path, place: Path
) -> None:
    wait_for(lambda: state(server, dead)["type"] != "RUNNING")
    assert state(server, dead)["type"] == "CRASHED"
    assert state(server, dead)["message"].startswith("No sign of life")
    (checkpoint,) = (place / "work" / "runs").glob("*/state.pt")
    training = TrainState(TRAIN, np.zeros((68, 2), np.float32))
    checkpoints = Checkpoints(Store(str(checkpoint.parent)))
    assert checkpoints.restore(training)
    training.history[0]["loss"] = MARK  # a training that began anew would measure another
    checkpoints.write(training)
    run = start_retrain(server, place)
    assert ended(server, run) == "COMPLETED", worker.read_text(errors="replace")[-3000:]
    (history,) = (place / "work" / "models").glob("*/history.json")
    losses = [epoch["loss"] for epoch in json.loads(history.read_text())]
    assert (losses[0], len(losses)) == (MARK, 12)
    assert len(runs_of(server.url, "retrain")) == 2


def test_reconcile_frees_what_the_automation_missed(
    server: Server, worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SyncPrefectClient.read_flow_runs  # a server gives the latest 200: here `silent` is not among them
    monkeypatch.setattr(SyncPrefectClient, "read_flow_runs", lambda self, **told: read(self, **{"limit": 7} | told))
    where = {"runs": [str(tmp_path / "none")], "out": str(tmp_path / "out")}
    silent = in_states(server, "RUNNING", **where)
    living, away = in_states(server, "RUNNING"), in_states(server, "RUNNING", "CRASHED", reference="away")
    cancelled = in_states(server, "RUNNING", "CANCELLING")
    hopeless = in_states(server, *["RUNNING", "CRASHED"] * 3, reference="hopeless")
    unborn = in_states(server, *["PENDING", "CRASHED"] * 3, reference="unborn")  # as one that cannot load its flow
    older = in_states(server, "RUNNING", "CRASHED", reference="again")
    newer = in_states(server, "RUNNING", "COMPLETED", reference="again")
    in_states(server, "CANCELLED", **where)  # it was refused while `silent` had the place: it did not do the same
    overtaken = in_states(server, "RUNNING", "CRASHED", reference="overtaken")

    def meanwhile(seconds: float) -> None:
        in_states(server, "RUNNING", "COMPLETED", reference="overtaken")
        beat(server, living, away)

    found = free_dead_runs(0, meanwhile)
    assert sorted((each.what, each.done) for each in found) == [
        ("Running, but nobody works on it", "crashed, and started again"),
        ("crashed, but somebody works on it", "running"),
        ("its worker died before it was cancelled", "cancelled"),
    ]
    runs = (living, away, cancelled, hopeless, unborn, older, newer, overtaken)
    ends = ["RUNNING", "RUNNING", "CANCELLED", "CRASHED", "CRASHED", "CRASHED", "COMPLETED", "CRASHED"]
    # Before the worker is waited for: these beat only once, and the automation is right to crash them soon.
    assert [state(server, run)["type"] for run in runs] == ends
    assert ended(server, silent) == "COMPLETED"
    assert state(server, silent)["message"].endswith("or their folder")  # there is nothing to compare yet
