"""A Prefect server on loopback that knows every deployment of `prefect.yaml`."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.workers.process import ProcessWorker

from tests.servers import free_ports, wait_until_healthy

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))


class Server:
    """The server of `prefect server start`, on a port and with a database that it has again after a restart."""

    def __init__(self, home: Path) -> None:
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}/api"
        self._home = home

    def start(self) -> None:
        """Returns when it answers."""
        command = [PREFECT, "server", "start", "--port", str(self._port)]
        log = self._home / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        wait_until_healthy(f"{self.url}/health", self._process, log)

    def kill(self) -> None:
        """As when its machine loses power."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@contextmanager
def prefect_server(home: Path, *deploy: str) -> Iterator[Server]:
    """Its address is in the environment, too; `deploy` says what is deployed (all, if nothing)."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "PREFECT_HOME": str(home),
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",  # instead of ten seconds, as of workers
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }.items():
            patch.setenv(name, value)
        server = Server(home)
        patch.setenv("PREFECT_API_URL", server.url)
        try:
            server.start()
            template = ProcessWorker.get_default_base_job_template()
            pool = {"name": "msrrn", "type": ProcessWorker.type, "base_job_template": template}
            post(f"{server.url}/work_pools/", pool)
            prefect("--no-prompt", "deploy", *(deploy or ["--all"]))
            yield server
        finally:
            server.stop()


def prefect(*arguments: str) -> None:
    done = subprocess.run([PREFECT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def post(url: str, body: Any) -> Any:
    """The answer; a server whose SQLite is busy says 503, and is asked again."""
    return _ask(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}))


def get(url: str) -> Any:
    return _ask(urllib.request.Request(url))


def _ask(request: urllib.request.Request) -> Any:
    if user := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
    for attempt in range(20):
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer) if answer.status != 204 else None
        except urllib.error.HTTPError as error:
            if error.code != 503 or attempt == 19:
                raise
            time.sleep(1)
    return None


def runs_of(api: str, flow: str) -> list[dict[str, Any]]:
    """The runs of a flow, without those that wait for their schedule."""
    runs: list[dict[str, Any]] = post(f"{api}/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
    return [run for run in runs if not run["auto_scheduled"]]
