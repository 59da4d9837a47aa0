import errno
import os
import re
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.cli import main
from flows.serve import deployments
from pipelines.errors import UserError

FILE = Path(__file__).parents[2] / "prefect.yaml"


def test_what_prefect_deploys_is_served() -> None:
    described = {each["name"]: each for each in yaml.safe_load(FILE.read_text())["deployments"]}
    made, environment = deployments(FILE)
    found = {each.name: each for each in made}
    assert found.keys() == described.keys()
    assert found["promote"].entrypoint == "flows.promote.promote"
    assert found["promote"].work_pool_name is None
    (trigger,) = found["promote"].triggers
    assert isinstance(trigger, DeploymentEventTrigger)
    assert trigger.parameters == described["promote"]["triggers"][0]["parameters"]
    assert found["retrain"].parameters == described["retrain"]["parameters"]
    assert [each.schedule for each in found["retrain"].schedules or []] == [
        CronSchedule(cron="0 3 * * 1", timezone="UTC")
    ]
    assert found["retrain"].concurrency_limit == 1
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"


def test_what_else_prefect_takes_is_served(tmp_path: Path) -> None:
    described = {
        "name": "retrain",
        "entrypoint": "flows/retrain.py:retrain",
        "tags": ["faces"],
        "paused": True,
        "concurrency_limit": 2,
        "schedules": [{"interval": 3600, "active": False}, {"cron": "0 3 * * 1", "timezone": "Europe/Berlin"}],
    }
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump({"deployments": [described]}))
    ((made,), _) = deployments(tmp_path / "prefect.yaml")
    hourly, weekly = made.schedules or []
    assert isinstance(hourly.schedule, IntervalSchedule)
    assert (hourly.schedule.interval, hourly.active) == (timedelta(hours=1), False)
    assert weekly.schedule == CronSchedule(cron="0 3 * * 1", timezone="Europe/Berlin")
    assert (made.tags, made.paused, made.concurrency_limit) == (["faces"], True, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"prefect\.yaml cannot be read \(No such file or directory\): give --file"),
        ("deployments: [", "describes no deployments"),
        ("name: msrrn", "describes no deployments: 'deployments'"),
        ("deployments: [{name: gone, entrypoint: flows/gone.py:run}]", "describes no deployments: No module named"),
        (
            "deployments: [{name: odd, entrypoint: flows/retrain.py:retrain, schedules: [{cron: often}]}]",
            "describes no deployments: 0.schedules.0: .*Invalid cron",
        ),
        (
            "deployments: [{name: odd, entrypoint: flows/retrain.py:retrain, schedules: [{crom: 0 3 * * 1}]}]",
            "describes no deployments: 0.schedules.0.crom: ",
        ),
        ("deployments: [{name: evil, entrypoint: ../elsewhere.py:run}]", "describes no deployments: 0.entrypoint: "),
        (
            "deployments: [{name: odd, entrypoint: flows/promote.py:promote, triggers: [{posture: odd}]}]",
            "describes no",
        ),
    ],
)
def test_says_what_is_wrong_with_the_file(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "prefect.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        deployments(tmp_path / "prefect.yaml")


_ASKED = httpx.Request("POST", "http://x/flows/")


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("All connection attempts failed"),
        RuntimeError("Failed to reach API at http://x/"),
        # What the server says beside its API.
        httpx.HTTPStatusError("404", request=_ASKED, response=httpx.Response(404, request=_ASKED)),
    ],
)
def test_a_server_that_does_not_answer_is_named(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(file: Path, limit: int) -> None:
        raise error

    monkeypatch.setattr("flows.serve.serve", serve)
    with temporary_settings({PREFECT_API_URL: "http://user:planted@127.0.0.1:1/api"}):
        assert main(["serve"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("msrrn: no Prefect server answers at http://127.0.0.1:1/api: start it")
    assert "unset PREFECT_API_URL, whose address ends in /api" in said
    assert "planted" not in said


@pytest.mark.parametrize("call", [("demo",), ("retrain", "--data", "photos", "--out", "work")])
def test_a_home_that_cannot_be_written_is_told_at_once(
    call: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect tells of its database in 200 lines, and then waits for it."""
    monkeypatch.chdir(tmp_path)
    with temporary_settings({PREFECT_HOME: Path("/proc/none"), PREFECT_API_URL: None}):
        assert main(call) == 1
    assert re.fullmatch("msrrn: /proc/none cannot be written.*PREFECT_HOME.*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_home_on_a_full_disk_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**where: Path) -> None:
        assert where == {"dir": tmp_path}
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with temporary_settings({PREFECT_HOME: tmp_path, PREFECT_API_URL: None}):
        assert main(["retrain", "--data", "photos", "--out", "work"]) == 1
    assert f"{tmp_path} cannot be written (No space left on device), where Prefect" in capsys.readouterr().err


def test_a_full_disk_is_told_whatever_was_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(file: Path, limit: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flows.serve.serve", serve)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err.startswith("msrrn: disk full, perhaps where temporary files go (TMPDIR): free")


def test_no_part_of_a_password_is_told_as_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_settings({PREFECT_API_URL: "http://user:planted/1@127.0.0.1:1/api"}):
        assert main(["serve", "--file", str(FILE)]) == 1
    said = capsys.readouterr().err
    assert "PREFECT_API_URL" in said
    assert "planted" not in said


def test_a_parameter_that_the_server_refuses_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(made: object, limit: int) -> None:
        answer = httpx.Response(409, request=_ASKED, json={"detail": "Validation failed for field 'epochs'"})
        raise PrefectHTTPStatusError("409", request=_ASKED, response=answer)

    monkeypatch.setattr("flows.serve.run", refused)
    monkeypatch.setattr("os.environ", dict(os.environ))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert main(["serve", "--file", str(FILE)]) == 1
    said = capsys.readouterr().err
    assert said == f"msrrn: the Prefect server refuses what {FILE} says: Validation failed for field 'epochs'\n"


def test_serving_needs_a_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("flows.serve.has_server", lambda: False)
    assert main(["serve", "--file", str(FILE)]) == 2
    assert "PREFECT_API_URL" in capsys.readouterr().err


def test_a_disk_that_fails_is_told_with_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(file: Path, limit: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "work/state.pt")

    monkeypatch.setattr("flows.serve.serve", serve)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err.startswith("msrrn: the disk failed at work/state.pt (Input/output error): dmesg")


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ("http://user:planted@127.0.0.1:1/api", "the Prefect server at http://127.0.0.1:1/api answers 500: its own"),
        (None, "perhaps as that disk is full: free some space"),
    ],
)
def test_a_server_whose_disk_is_full_is_told_with_what_to_do(
    server: str | None, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(file: Path, limit: int) -> None:
        raise httpx.HTTPStatusError("500", request=_ASKED, response=httpx.Response(500, request=_ASKED))

    monkeypatch.setattr("flows.serve.serve", serve)
    with temporary_settings({PREFECT_API_URL: server}):
        assert main(["serve"]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("msrrn: ")
    assert told in said
