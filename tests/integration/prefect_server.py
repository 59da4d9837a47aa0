"""A Prefect server on loopback that knows every deployment of `prefect.yaml`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))


@contextmanager
def prefect_server(home: Path, *deploy: str) -> Iterator[str]:
    """Its API's URL, which the environment names, too; `deploy` says what is deployed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    with pytest.MonkeyPatch.context() as patch, (home / "server.log").open("wb") as log:
        for name, value in {
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }.items():
            patch.setenv(name, value)
        server = subprocess.Popen([PREFECT, "server", "start", "--port", str(port)], stdout=log, stderr=log)
        try:
            wait_for(lambda: _answers(f"{url}/health"), 120)
            prefect("work-pool", "create", "msrrn", "--type", "process")
            prefect("--no-prompt", "deploy", *(deploy or ["--all"]))
            yield url
        finally:
            server.terminate()
            server.wait(30)


def prefect(*arguments: str) -> None:
    done = subprocess.run([PREFECT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for(found: Callable[[], Any], seconds: float) -> Any:
    """What `found` gives, as soon as it is something."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)
    return value


def post(url: str, body: dict[str, Any]) -> Any:
    """The answer; a server whose SQLite is busy says 503, and is asked again."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    for attempt in range(20):
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or attempt == 19:
                raise
            time.sleep(1)
    return None


def runs_of(api: str, flow: str) -> list[dict[str, Any]]:
    """The runs of a flow, without those that wait for their schedule."""
    runs: list[dict[str, Any]] = post(f"{api}/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
    return [run for run in runs if not run["auto_scheduled"]]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
