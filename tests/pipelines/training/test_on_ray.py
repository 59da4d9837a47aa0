"""What workers of a training on a cluster agree on before it begins, and how one ends whose Ray is gone."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import ray.util
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError

from pipelines.dataset.manifest import Manifest
from pipelines.storage import Store
from pipelines.training.on_ray import listen_at_the_node, why
from pipelines.training.train import resumable
from tests.factories import start_msrrn


def interfaces() -> dict[str, str]:
    """Of this machine, by an IPv4 address of each."""
    found = psutil.net_if_addrs().items()
    return {each.address: name for name, its in found for each in its if each.family == socket.AF_INET}


def test_workers_listen_where_ray_reaches_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where the machine's name leads: on Debian that is 127.0.1.1, and no other machine reaches it."""
    for address, name in interfaces().items():
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda address=address: address)
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that what it sets is undone
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
        listen_at_the_node()
        assert os.environ["GLOO_SOCKET_IFNAME"] == name


def test_the_interface_that_an_operator_names_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    listen_at_the_node()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ControllerError(ActorDiedError()),
        WorkerGroupError(f"[Rank 0 Error Snippet]:\nA worker health check failed.\n{ActorDiedError()}\n\n", {}),
    ],
)
def test_that_processes_died_is_told_with_what_to_do(error: Exception) -> None:
    """As in a container of 2 GB, whose kernel kills any of them; Ray tells it in a page of its own words."""
    assert why(error).startswith(
        "its processes died, perhaps for want of memory; what is finished is kept: run again"
    )


def test_what_a_worker_says_last_is_why_a_training_failed() -> None:
    told = (
        "Traceback (most recent call last):\n  File ...\npipelines.outages.OutageError: s3://b: no answer\n\nat last"
    )
    assert why(WorkerGroupError(told, {})) == "s3://b: no answer"
    assert why(WorkerGroupError("Traceback:\nValueError: of something else\n", {})) == "ValueError: of something else"


@pytest.fixture
def training(
    dataset: tuple[Store, Manifest], empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> subprocess.Popen[str]:
    """A long one on Ray, into `tmp_path/work`, with its first checkpoint; its processes are a group."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = tmp_path / "work"
    call = ("train", "--dataset", dataset[0].url, "--out", str(out), "--workers", "1")
    steps = ("--epochs", "100000", "--batch", "8", "--learning-rate", "1e-6")
    process = start_msrrn(*call, *steps, process_group=0)
    while not list(out.glob("runs/*/state.pt")) and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.line
def test_a_training_ends_whose_controller_died(training: subprocess.Popen[str], tmp_path: Path) -> None:
    """Ray starts workers again, not what watches over them."""
    below = psutil.Process(training.pid).children(recursive=True)
    (controller,) = (each for each in below if each.name().startswith("ray::TrainCont"))
    controller.kill()
    _, errors = training.communicate(timeout=600)
    assert training.returncode == 1, errors
    assert "failed: its processes died, perhaps for want of memory; what is finished is kept: run again" in errors
    assert resumable(str(tmp_path / "work"))[1].epochs == 100000


@pytest.mark.line
def test_a_signal_to_all_processes_of_a_training_ends_it_with_what_to_call_next(
    training: subprocess.Popen[str], tmp_path: Path
) -> None:
    """As of `timeout`, Slurm and systemd: Ray's own end before the workers have heard of it."""
    os.killpg(training.pid, signal.SIGTERM)
    _, errors = training.communicate(timeout=600)
    assert training.returncode == 130, errors
    assert "training stopped; the same command goes on from its last checkpoint, and so does" in errors
    assert resumable(str(tmp_path / "work"))[1].epochs == 100000
