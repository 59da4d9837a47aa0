"""A real Prefect server: the deployments of `prefect.yaml`, and drift that starts a retraining."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.runs import drawn_run

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that knows every deployment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }.items():
            patch.setenv(name, value)
        log = (home / "server.log").open("wb")
        server = subprocess.Popen([PREFECT, "server", "start", "--port", str(port)], stdout=log, stderr=log)
        try:
            _wait(lambda: _answers(f"{url}/health"), 120)
            _prefect("work-pool", "create", "msrrn", "--type", "process")
            _prefect("--no-prompt", "deploy", "--all")
            yield url
        finally:
            server.terminate()
            server.wait(30)
            log.close()


def _prefect(*arguments: str) -> None:
    done = subprocess.run([PREFECT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait(true: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def _monitored(place: Path, *names: str) -> list[str]:
    """Runs the flow for the runs of each name, in another process; gives the verdicts that it published."""
    calls = [f"monitor([{str(place / name)!r}], {str(place / name / 'out')!r})" for name in names]
    code = "; ".join(["from flows.monitor import monitor", *calls])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((place / name / "out" / "drift.json").read_bytes())["verdict"] for name in names]


def _retrainings(api: str) -> int:
    runs = _post(f"{api}/flow_runs/filter", {"flows": {"name": {"any_": ["retrain"]}}})
    return sum(run["auto_scheduled"] is False for run in runs)


def _events(api: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _post(f"{api}/events/filter", {"filter": {"event": {"prefix": ["msrrn."]}}})[
        "events"
    ]
    return found


def test_drift_starts_a_retraining_and_its_absence_does_not(api: str, tmp_path: Path) -> None:
    for name, brighter in (("alike", 0), ("dark", -40)):
        drawn_run(tmp_path / name / "a", 0)
        drawn_run(tmp_path / name / "b", 1, brighter=brighter)
    assert _monitored(tmp_path, "alike", "dark") == ["stable", "drifted"]
    _wait(lambda: _events(api), 30)
    (event,) = _events(api)
    assert event["event"] == "msrrn.drift.detected"
    assert event["payload"]["features"] == ["brightness"]
    assert event["payload"]["page"] == f"{tmp_path}/dark/out/index.html"
    _wait(lambda: _retrainings(api) == 1, 60)
    artifacts = _post(f"{api}/artifacts/latest/filter", {})
    assert [artifact["key"] for artifact in artifacts] == ["drift"]


def test_the_deployment_is_scheduled_and_its_parameters_are_typed(api: str) -> None:
    (deployment,) = _post(f"{api}/deployments/filter", {"deployments": {"name": {"any_": ["monitor"]}}})
    assert [schedule["schedule"]["timezone"] for schedule in deployment["schedules"]] == ["UTC"]
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    schema = deployment["parameter_openapi_schema"]
    assert set(schema["required"]) == {"runs", "out"}
    assert schema["properties"]["runs"]["description"].startswith("places of annotation runs")
    assert "psi_alarm" in json.dumps(schema["definitions"]["DriftSettings"])
