"""Prefect and MLflow as infra/compose.yaml starts them refuse whoever does not say who they are; so does TLS.

The commands are those of the compose files; only hosts, ports and databases are this test's own.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.infra.files import INFRA, ROOT, compose, image_environment
from tests.servers import free_ports, serving

USER, PASSWORD = "operator", "a-long-enough-password"
PATIENCE = 60.0
"""Seconds for an answer of a server that has little of the machine."""
SETTINGS = dict.fromkeys(
    ["POSTGRES_PASSWORD", "PREFECT_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"], "unused"
) | {
    "PREFECT_AUTH": f"{USER}:{PASSWORD}",
    "MLFLOW_USER": USER,
    "MLFLOW_PASSWORD": PASSWORD,
    "MLFLOW_SECRET_KEY": "signs-forms",
    "MLFLOW_HOSTS": "127.0.0.1:*,localhost:*",
    "PREFECT_PUBLIC_URL": "https://127.0.0.1",
    "MLFLOW_PUBLIC_URL": "https://faces.example:5000",
    "RAY_TOKEN": "unused",
}
PROGRAMS = {"prefect": ["-m", "prefect"], "mlflow": ["-m", "mlflow"], "python": []}


def service(name: str, folder: Path, port: int, *files: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a service, on loopback, with its files in `folder`."""
    found = compose(SETTINGS, *files)[name]
    (published,) = found["ports"]
    program, *arguments = found["command"]
    changed = {"0.0.0.0": "127.0.0.1", published.rpartition(":")[2]: str(port), "2": "1", "s3://mlflow": str(folder)}
    command = [sys.executable, *PROGRAMS[program], *(changed.get(each, each) for each in arguments)]
    own = {**image_environment(), **found["environment"]}
    own = {key: value.replace("/etc/tls", str(folder)) for key, value in own.items() if key not in {"PATH", "USER"}}
    own = {key: value for key, value in own.items() if "DATABASE" not in key and not key.startswith(("AWS_", "PG"))}
    own |= {"HOME": str(folder), "PREFECT_UI_STATIC_DIRECTORY": str(folder / "ui")}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return [each.replace("/etc/tls", str(folder)) for each in command], inherited | own


def write_certificate(folder: Path) -> None:
    """`ca.crt` and, signed by it, `tls.crt` with `tls.key` for 127.0.0.1, as the runbook has them made."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    runbook = (INFRA / "README.md").read_text("utf-8")
    (script,) = (code for code in re.findall(r"```sh\n(.*?)```", runbook, re.S) if "openssl req" in code)
    _, made = script.split("&& HOST=faces.example\n")
    strict = "openssl verify -x509_strict -CAfile ca.crt tls.crt"  # as clients from Python 3.13 on do
    commands = f"set -e; HOST=faces.example\n{made.partition('chown')[0]}{strict}"
    subprocess.run(["sh", "-c", commands], cwd=folder, check=True, capture_output=True)


APPLY = str(INFRA / "prefect" / "apply.py")


def apply(api: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Applies the automations as an operator does."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_API_URL": api, "PREFECT_CLIENT_MAX_RETRIES": "0", **settings}
    return subprocess.run(
        [sys.executable, APPLY], env=environment, capture_output=True, text=True, check=False, timeout=90
    )


@pytest.mark.line
def test_prefect_over_tls_refuses_a_client_without_credentials_and_applies_the_automations_twice(
    empty_prefect: Path, tmp_path: Path
) -> None:
    write_certificate(tmp_path)
    (tmp_path / ".prefect").mkdir()
    shutil.copy(empty_prefect, tmp_path / ".prefect")
    (port,) = free_ports(1)
    command, environment = service("prefect-server", tmp_path, port, "compose.yaml", "compose.tls.yaml")
    api = f"https://127.0.0.1:{port}/api"
    known = {"PREFECT_API_SSL_CERT_FILE": str(tmp_path / "ca.crt")}
    with serving(command, environment, tmp_path, f"{api}/health"):

        def found(kind: str, auth: tuple[str, str] | None = (USER, PASSWORD)) -> httpx.Response:
            return httpx.post(f"{api}/{kind}/filter", json={}, auth=auth, verify=False, timeout=PATIENCE)

        for auth in (None, (USER, "wrong"), ("", "")):
            assert found("flows", auth).status_code == 401
        assert found("flows").json() == []
        assert "CERTIFICATE_VERIFY_FAILED" in apply(api, PREFECT_API_AUTH_STRING=f"{USER}:{PASSWORD}").stderr
        assert "401" in apply(api, **known).stderr

        seen = []
        for _ in range(2):
            applied = apply(api, PREFECT_API_AUTH_STRING=f"{USER}:{PASSWORD}", **known)
            assert applied.returncode == 0, applied.stderr
            assert PASSWORD not in applied.stdout + applied.stderr
            automations, (pool,) = found("automations").json(), found("work_pools").json()
            assert all(each["enabled"] for each in automations)
            assert (pool["name"], pool["type"]) == ("msrrn", "process")
            seen.append([pool["id"], *(each["id"] for each in automations)])
        assert seen[0] == seen[1]
        assert len(seen[0]) == 3
    assert PASSWORD not in (tmp_path / "log.txt").read_text()


def mlflow_client(monkeypatch: pytest.MonkeyPatch, uri: str, user: str = "", password: str = "") -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MlflowClient(tracking_uri=uri)


@pytest.mark.line
def test_mlflow_over_tls_refuses_a_client_without_credentials(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.server import get_app_client  # seconds to import, for one test

    write_certificate(tmp_path)
    (port,) = free_ports(1)
    command, environment = service("mlflow", tmp_path, port, "compose.yaml", "compose.tls.yaml")
    users = (INFRA / "mlflow" / "basic_auth.ini").read_text()
    assert "postgresql://mlflow@postgres/mlflow_auth" in users
    (tmp_path / "auth.ini").write_text(
        users.replace("postgresql://mlflow@postgres/mlflow_auth", f"sqlite:///{tmp_path}/auth.db")
    )
    environment |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    shutil.copy(empty_store, tmp_path)
    uri = f"https://127.0.0.1:{port}"
    with serving(command, environment, tmp_path, f"{uri}/health"):
        with pytest.raises(MlflowException, match="CERTIFICATE_VERIFY_FAILED"):
            mlflow_client(monkeypatch, uri, USER, PASSWORD).search_experiments()
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "ca.crt"))
        for user, password in (("", ""), (USER, "wrong"), ("admin", "password1234")):
            with pytest.raises(MlflowException, match="401"):
                mlflow_client(monkeypatch, uri, user, password).search_experiments()
        client = mlflow_client(monkeypatch, uri, USER, PASSWORD)
        run = client.create_run(client.create_experiment("faces"))
        (tmp_path / "note").write_text("kept")
        client.log_artifact(run.info.run_id, str(tmp_path / "note"))
        assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["note"]
        accounts = get_app_client("basic-auth", tracking_uri=uri)
        accounts.create_user("reader", "reads-everything")
        reader = mlflow_client(monkeypatch, uri, "reader", "reads-everything")
        assert reader.get_run(run.info.run_id).info.run_id == run.info.run_id
        with pytest.raises(MlflowException, match="403"):
            reader.set_tag(run.info.run_id, "mine", "now")
        mlflow_client(monkeypatch, uri, USER, PASSWORD)
        accounts.update_user_password(USER, "another-long-password", PASSWORD)
        with pytest.raises(MlflowException, match="401"):
            client.search_experiments()
        assert mlflow_client(monkeypatch, uri, USER, "another-long-password").search_experiments()
        for host in ("evil.example", f"evil.example:{port}"):
            refused = httpx.get(f"{uri}/", headers={"Host": host}, verify=False, timeout=PATIENCE)
            assert refused.status_code == 403, "another site's name must not lead here"
        for origin, status in (("https://faces.example:5000", 200), ("https://evil.example", 403)):
            asked = httpx.post(
                f"{uri}/ajax-api/2.0/mlflow/runs/search",
                json={"experiment_ids": ["0"]},
                headers={"Origin": origin},  # as browsers say it, which load the page from there
                auth=(USER, "another-long-password"),
                verify=False,
                timeout=PATIENCE,
            )
            assert asked.status_code == status, origin
    assert PASSWORD not in (tmp_path / "log.txt").read_text()


def test_automations_are_as_prefect_wants_them() -> None:
    automations = runpy.run_path(APPLY)["read_automations"]()
    (dead, stuck) = automations
    pool = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["definitions"]["pool"]
    frequency = int(pool["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert dead.trigger.within > timedelta(seconds=3 * frequency)
    assert {action.state for each in (dead, stuck) for action in each.actions} == {"CRASHED"}
