"""Training on a cluster that was started by itself, as an operator starts one."""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.manifest import Manifest
from pipelines.settings import TrainSettings
from pipelines.storage import Store
from pipelines.train import HISTORY, train_model
from tests.factories import start_msrrn

PORT = 26379
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head of two CPUs on loopback, far from the local Ray that other tests share."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:  # sockets' paths must be short
        start = [*RAY, "start", "--block", "--head", "--num-cpus", "2", "--port", str(PORT)]
        where = ["--node-ip-address", "127.0.0.1", "--temp-dir", folder, "--include-dashboard", "false"]
        head = subprocess.Popen([*start, *where], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            listening(60)
            yield f"127.0.0.1:{PORT}"
        finally:
            # Asked to end, it would take half a minute.
            for process in (*psutil.Process(head.pid).children(recursive=True), head):
                process.kill()
            head.wait()


def listening(seconds: float) -> None:
    """Waits until somebody answers at the port."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", PORT), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end, "the head did not start"
            time.sleep(0.1)


def test_training_begins_with_the_workers_that_are_there(
    cluster: str, dataset: tuple[Store, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three are asked for, two have room, and what they share ends as it would with one."""
    settings = TrainSettings(epochs=2, batch=8, learning_rate=1e-4)
    alone = train_model(dataset[0].url, str(tmp_path / "alone"), settings, 0)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    process = start_msrrn(
        "train", "--dataset", dataset[0].url, "--out", str(tmp_path / "shared"), "--epochs", "2", "--batch", "8",
        "--learning-rate", "0.0001", "--workers", "3",
    )  # fmt: skip
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    history = json.loads((tmp_path / "shared" / "models" / alone.name / HISTORY).read_bytes())
    for row, other in zip(history, alone.history, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
