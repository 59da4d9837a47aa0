"""A real Prefect server, a real process worker, a real MLflow store: events start flows, a person approves."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.concurrency import _leases
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Pending

from flows import gate
from flows.gate import HeldRunCancelled, announce
from flows.promote import promote
from pipelines.errors import UserError
from pipelines.models import Model
from pipelines.registry.succession import log
from pipelines.registry.versions import champion
from pipelines.settings import GateSettings
from tests.factories import tiny_model, write_model
from tests.integration.prefect_server import PREFECT, ROOT, post, prefect_server, runs_of
from tests.pipelines.runs import drawn_run
from tests.registered import register_model
from tests.servers import wait_for


@pytest.fixture(scope="module")
def api(mlflow_store: Path, prefect_home: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_store / 'mlflow.db'}")
        patch.setenv("XDG_CACHE_HOME", str(mlflow_store / "cache"))
        patch.setenv("PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED", "false")  # a real `reconcile` would have the place
        patch.delenv("RAY_ADDRESS", raising=False)
        with prefect_server(prefect_home) as server, temporary_settings({PREFECT_API_URL: server.url}):
            yield server.url
            # What this process has to tell that server must not be told, for ever, to the next one.
            for worker in (EventsWorker, APILogWorker):
                worker.drain_all(timeout=30)


@pytest.fixture(scope="module")
def artifact(model: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("artifact"), model)


@contextmanager
def running(log: Path, *command: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def deployment(api: str, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = post(f"{api}/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    return found[0]


def ended(api: str, flow: str) -> dict[str, Any] | None:
    over = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
    return next((run for run in runs_of(api, flow) if run["state"]["type"] in over), None)


def refused(url: str, body: dict[str, Any]) -> int | None:
    """With which status; None where it is not."""
    try:
        post(url, body)
    except urllib.error.HTTPError as error:
        return error.code
    return None


def test_parameters_are_typed_so_that_nonsense_never_runs(api: str) -> None:
    schema = deployment(api, "promote")["parameter_openapi_schema"]
    assert schema["required"] == ["model"]
    assert schema["properties"]["model"]["description"].startswith("the challenger")
    assert "least_gain" in json.dumps(schema["definitions"]["GateSettings"])
    create = f"{api}/deployments/{deployment(api, 'promote')['id']}/create_flow_run"
    for nonsense in (
        {},
        {"model": ""},
        {"model": "s3://key:secret@bucket/model"},
        {"model": "models:/msrrn/1", "worker": 2},
        {"model": "models:/msrrn/1", "workers": 0},
        {"model": "models:/msrrn/1", "name": "a:b"},
        {"model": "models:/msrrn/1", "selection": "some"},
        {"model": "models:/msrrn/1", "settings": {"confidence": 2}},
    ):
        assert refused(create, {"parameters": nonsense}) == 409, nonsense
    assert runs_of(api, "promote") == []


def test_what_the_file_promises_is_deployed(api: str) -> None:
    assert deployment(api, "retrain")["parameters"]["judge"] is False
    assert deployment(api, "promote")["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert [each["schedule"]["cron"] for each in deployment(api, "reconcile")["schedules"]] == ["20,50 * * * *"]


def test_the_deployment_of_monitor_is_scheduled_and_its_parameters_are_typed(api: str) -> None:
    monitor = deployment(api, "monitor")
    assert [schedule["schedule"]["timezone"] for schedule in monitor["schedules"]] == ["UTC"]
    assert monitor["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    schema = monitor["parameter_openapi_schema"]
    assert set(schema["required"]) == {"runs", "out"}
    assert schema["properties"]["runs"]["description"].startswith("places of annotation runs")
    assert "psi_alarm" in json.dumps(schema["definitions"]["DriftSettings"])


def monitored(place: Path, *names: str) -> list[str]:
    """Runs the flow for the runs of each name, in another process; gives the verdicts that it published."""
    calls = [f"monitor([{str(place / name)!r}], {str(place / name / 'out')!r})" for name in names]
    code = "; ".join(["from flows.monitor import monitor", *calls])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((place / name / "out" / "drift.json").read_bytes())["verdict"] for name in names]


def events(api: str) -> list[dict[str, Any]]:
    ours = {"filter": {"event": {"prefix": ["msrrn."]}}}
    found: list[dict[str, Any]] = post(f"{api}/events/filter", ours)["events"]
    return found


@pytest.mark.line
def test_drift_starts_a_retraining_and_its_absence_does_not(api: str, tmp_path: Path) -> None:
    for name, brighter in (("alike", 0), ("dark", -40)):
        drawn_run(tmp_path / name / "a", 0)
        drawn_run(tmp_path / name / "b", 1, brighter=brighter)
    assert monitored(tmp_path, "alike", "dark") == ["stable", "drifted"]
    wait_for(lambda: events(api))
    (event,) = events(api)
    assert event["event"] == "msrrn.drift.detected"
    assert event["payload"]["features"] == ["brightness"]
    assert event["payload"]["page"] == f"{tmp_path}/dark/out/index.html"
    (run,) = wait_for(lambda: runs_of(api, "retrain"))
    artifacts = post(f"{api}/artifacts/latest/filter", {})
    assert [artifact["key"] for artifact in artifacts] == ["drift"]
    # Workers that come now have nothing to train with.
    post(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}})


@pytest.mark.line
def test_the_event_that_training_emits_starts_promote_on_a_worker(
    api: str, artifact: str, annotated: Path, tmp_path: Path
) -> None:
    version = register_model(artifact, "told", annotated)
    with running(tmp_path / "worker.log", PREFECT, "worker", "start", "--pool", "msrrn", "--limit", "1"):
        announce(version)
        run = wait_for(lambda: ended(api, "promote"))
    said = (tmp_path / "worker.log").read_text(errors="replace")[-3000:]
    assert run["state"]["type"] == "COMPLETED", said
    assert run["parameters"]["model"] == "models:/told/1"
    assert (known := champion("told")) is not None
    assert known.version == 1
    assert [line.turn.what for line in log("told")] == ["promoted"]


def resumed(api: str, run: str, note: str = "") -> None:
    """Ann approves. A run is Paused a moment before the server has its question, and refuses answers until then."""
    answer = {"run_input": {"approve": True, "note": note, "who": "ann"}}
    wait_for(lambda: post(f"{api}/flow_runs/{run}/resume", answer)["status"] == "ACCEPT")


def test_a_promotion_is_held_until_a_person_resumes_the_paused_run(
    api: str, artifact: str, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "POLL_SECONDS", 1)
    said: list[Any] = []

    def resume() -> None:
        def paused() -> dict[str, Any] | None:
            return next((run for run in runs_of(api, "promote") if run["state"]["type"] == "PAUSED"), None)

        run = wait_for(paused)
        said.append(champion("held"))
        resumed(api, run["id"], "seen the faces")

    person = threading.Thread(target=resume)
    person.start()
    result = promote(artifact, "held", [str(annotated)], approve=True, workers=1)
    person.join()
    assert said == [None]
    assert result.promoted
    assert result.reason.endswith("Approved by ann: seen the faces.")
    assert (known := champion("held")) is not None
    assert known.tags["msrrn.who"] == "ann"
    shown = {each["key"]: each["data"] for each in post(f"{api}/artifacts/latest/filter", {})}
    assert "held 1: to be promoted, if approved" in shown["promotion"]


def test_who_resumes_without_an_answer_has_not_said_no(
    api: str, artifact: str, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "POLL_SECONDS", 1)
    said: list[Any] = []

    def paused(but: str | None = None) -> dict[str, Any] | None:
        held = (run for run in runs_of(api, "promote") if run["state"]["type"] == "PAUSED")
        return next((run for run in held if run["state"]["state_details"]["pause_key"] != but), None)

    def resume() -> None:
        run = wait_for(paused)
        answer = {"details": {"reason": "Run input schema not found."}}  # a moment before the server has its question
        while "schema not found" in str(answer):
            answer = post(f"{api}/flow_runs/{run['id']}/resume", {})
        said.append(answer["status"])
        if said != ["REJECT"]:
            return
        # As `reconcile` does where the server was away and took its own silence for the run's.
        post(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": "RUNNING"}, "force": True})
        again = wait_for(lambda: paused(run["state"]["state_details"]["pause_key"]))
        said.append(again["id"] == run["id"])
        resumed(api, run["id"])

    person = threading.Thread(target=resume)
    person.start()
    result = promote(artifact, "unanswered", [str(annotated)], approve=True, workers=1)
    person.join()
    assert said == ["REJECT", True]
    assert result.promoted


def test_a_promotion_that_is_cancelled_while_it_is_held_ends(
    api: str, artifact: str, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "POLL_SECONDS", 1)

    def of_this() -> dict[str, Any] | None:
        return next((run for run in runs_of(api, "promote") if run["parameters"]["name"] == "cancelled"), None)

    def cancel() -> None:
        run = wait_for(lambda: (run := of_this()) and run["state"]["type"] == "PAUSED" and run)
        state = {"type": "CANCELLING", "name": "Cancelling"}  # as Prefect's UI asks for
        post(f"{api}/flow_runs/{run['id']}/set_state", {"state": state})

    person = threading.Thread(target=cancel)
    person.start()
    # No `Exception`: after one of a version, `reconcile` goes on with the next.
    assert not issubclass(HeldRunCancelled, Exception)
    with pytest.raises(HeldRunCancelled, match=r"version 1 was cancelled: .* --model models:/cancelled/1 asks again"):
        promote(artifact, "cancelled", [str(annotated)], approve=True, workers=1)
    person.join()
    assert (run := of_this()) is not None
    assert run["state"]["type"] == "CANCELLED"
    assert champion("cancelled") is None


def begun(api: str, parameters: dict[str, Any]) -> str:
    """A run of the deployment `promote` as a worker begins it, its id."""
    create = f"{api}/deployments/{deployment(api, 'promote')['id']}/create_flow_run"
    return str(post(create, {"parameters": parameters})["id"])


@contextmanager
def person(api: str, run: str, when: Callable[[], Any]) -> Iterator[None]:
    """Who approves, as soon as it is time; where the run ends before, nobody was asked."""
    over, asked = threading.Event(), threading.Event()

    def resume() -> None:
        wait_for(lambda: over.is_set() or when())
        if not over.is_set():
            asked.set()
            resumed(api, run)

    thread = threading.Thread(target=resume)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert asked.is_set()


@pytest.mark.line
def test_a_promotion_that_a_worker_began_is_held_though_its_place_is_given_to_others(
    api: str, artifact: str, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "POLL_SECONDS", 1)
    monkeypatch.setattr(_leases, "_RENEWAL_FRACTION", 0.002)  # of 300 seconds
    renewed: list[bool] = []

    def renew(*told: Any) -> bool:
        try:
            renewed.append(_renew(*told))
        except PrefectHTTPStatusError:
            renewed.append(False)
            raise
        return renewed[-1]

    _renew = _leases._renew_concurrency_lease_with_retries
    monkeypatch.setattr(_leases, "_renew_concurrency_lease_with_retries", renew)
    parameters = {"model": artifact, "name": "queued", "data": [str(annotated)], "approve": True, "workers": 1}
    run = begun(api, parameters)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), Pending())  # here it gets its place
        with person(api, run, lambda: False in renewed):
            run_flow(promote, client.read_flow_run(UUID(run)), parameters)
        assert client.read_flow_run(UUID(run)).state_name == "Completed"
    assert renewed[0]
    assert champion("queued") is not None


def test_a_promotion_that_died_while_it_was_held_is_held_again(
    api: str, artifact: str, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "POLL_SECONDS", 1)
    parameters = {"model": artifact, "name": "reborn", "data": [str(annotated)], "approve": True, "workers": 1}
    run = begun(api, parameters)
    with get_client(sync_client=True) as client:
        with pytest.raises(
            UserError, match=r"^nobody approved reborn version 1 .* --name reborn --model models:/reborn/1 "
        ):
            run_flow(promote, client.read_flow_run(UUID(run)), parameters | {"approval_hours": 1e-4})
        client.set_flow_run_state(UUID(run), AwaitingRetry(), force=True)  # as `reconcile` does
        again = client.read_flow_run(UUID(run))
        with person(api, run, lambda: client.read_flow_run(UUID(run)).state_name == "Paused"):
            run_flow(promote, again, parameters)
        assert client.read_flow_run(UUID(run)).state_name == "Completed"
    assert champion("reborn") is not None


def test_table_and_pictures_of_a_comparison_are_artifacts(
    api: str, artifact: str, annotated: Path, tmp_path: Path
) -> None:
    tiny_model(tmp_path / "bad", np.full((68, 2), 0.9, np.float32), seed=3)
    lenient = GateSettings(least_faces=2, resamples=200, bias=1000, rank_loss=2, slower=1000)
    promote(artifact, "shown", [str(annotated)], workers=1, settings=lenient)
    result = promote(str(tmp_path / "bad"), "shown", [str(annotated)], workers=1, settings=lenient)
    assert result.verdict == "kept"
    found = {each["key"]: each for each in post(f"{api}/artifacts/latest/filter", {})}
    rows = json.loads(found["promotion-figures"]["data"])
    assert rows[0]["figure"] == r"NRMSE \(IP\)", "Prefect's UI takes it for Markdown"
    assert found["promotion-errors"]["data"].startswith("data:image/svg+xml;base64,")
    assert found["promotion-faces"]["data"].startswith("data:image/jpeg;base64,")


@pytest.mark.line
def test_one_machine_serves_the_same_without_a_work_pool(api: str, tmp_path: Path) -> None:
    before = {name: deployment(api, name) for name in ("retrain", "promote", "reconcile", "annotate", "monitor")}
    command = [sys.executable, "-c", "from flows.cli import entry; entry()", "serve", "--limit", "1"]
    with running(tmp_path / "serve.log", *command):
        wait_for(lambda: deployment(api, "monitor")["entrypoint"] == "flows.monitor.monitor")
        for name, known in before.items():
            served = deployment(api, name)
            assert served["parameter_openapi_schema"] == known["parameter_openapi_schema"]
            for key in ("description", "parameters", "concurrency_options"):
                assert served[key] == known[key], (name, key)
            schedules = [each["schedule"] for each in served["schedules"]]
            assert [each["cron"] for each in schedules] == [each["schedule"]["cron"] for each in known["schedules"]]
        create = f"{api}/deployments/{deployment(api, 'reconcile')['id']}/create_flow_run"
        post(create, {"parameters": {"minutes": 0, "workers": 1}})
        run = wait_for(lambda: ended(api, "reconcile"))
    assert run["state"]["type"] == "COMPLETED", (tmp_path / "serve.log").read_text(errors="replace")[-3000:]
    automations = post(f"{api}/automations/filter", {})
    assert sum("promote" in each["name"] for each in automations) == 1


@pytest.mark.line
@pytest.mark.parametrize(
    ("number", "state", "send"),
    [
        (signal.SIGINT, "CRASHED", os.killpg),
        (signal.SIGTERM, "CANCELLED", os.kill),
        (signal.SIGHUP, "CANCELLED", os.killpg),
    ],
)
def test_what_runs_is_ended_and_known_to_be_when_serving_is_stopped(
    api: str, tmp_path: Path, number: int, state: str, send: Callable[[int, int], None]
) -> None:
    """A terminal tells all of its processes; a service manager, a container or a person that of `msrrn serve`."""
    mark = tmp_path / "mark"
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "tests.integration.lasting", str(mark)]
        serving = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: b"serving lasting" in (tmp_path / "log").read_bytes())
        made = post(f"{api}/deployments/{deployment(api, 'lasting')['id']}/create_flow_run", {})
        wait_for(mark.exists)
        send(serving.pid, number)
        assert serving.wait(120) == 0, (tmp_path / "log").read_text(errors="replace")[-3000:]
    finally:
        if serving.poll() is None:
            os.killpg(serving.pid, signal.SIGKILL)
            serving.wait()
    assert mark.read_text("utf-8") == "ended"
    known = next(run for run in runs_of(api, "lasting") if run["id"] == made["id"])
    assert known["state"]["type"] == state
