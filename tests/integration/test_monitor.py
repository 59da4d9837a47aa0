"""A real Prefect server: the deployments of `prefect.yaml`, and drift that starts a retraining."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.prefect_server import post, prefect_server, runs_of
from tests.pipelines.runs import drawn_run
from tests.servers import wait_for


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server.url


def _monitored(place: Path, *names: str) -> list[str]:
    """Runs the flow for the runs of each name, in another process; gives the verdicts that it published."""
    calls = [f"monitor([{str(place / name)!r}], {str(place / name / 'out')!r})" for name in names]
    code = "; ".join(["from flows.monitor import monitor", *calls])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((place / name / "out" / "drift.json").read_bytes())["verdict"] for name in names]


def _events(api: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = post(f"{api}/events/filter", {"filter": {"event": {"prefix": ["msrrn."]}}})[
        "events"
    ]
    return found


def test_drift_starts_a_retraining_and_its_absence_does_not(api: str, tmp_path: Path) -> None:
    for name, brighter in (("alike", 0), ("dark", -40)):
        drawn_run(tmp_path / name / "a", 0)
        drawn_run(tmp_path / name / "b", 1, brighter=brighter)
    assert _monitored(tmp_path, "alike", "dark") == ["stable", "drifted"]
    wait_for(lambda: _events(api))
    (event,) = _events(api)
    assert event["event"] == "msrrn.drift.detected"
    assert event["payload"]["features"] == ["brightness"]
    assert event["payload"]["page"] == f"{tmp_path}/dark/out/index.html"
    wait_for(lambda: runs_of(api, "retrain"))
    assert len(runs_of(api, "retrain")) == 1
    artifacts = post(f"{api}/artifacts/latest/filter", {})
    assert [artifact["key"] for artifact in artifacts] == ["drift"]


def test_the_deployment_is_scheduled_and_its_parameters_are_typed(api: str) -> None:
    (deployment,) = post(f"{api}/deployments/filter", {"deployments": {"name": {"any_": ["monitor"]}}})
    assert [schedule["schedule"]["timezone"] for schedule in deployment["schedules"]] == ["UTC"]
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    schema = deployment["parameter_openapi_schema"]
    assert set(schema["required"]) == {"runs", "out"}
    assert schema["properties"]["runs"]["description"].startswith("places of annotation runs")
    assert "psi_alarm" in json.dumps(schema["definitions"]["DriftSettings"])
