"""Every server that the line can have, on loopback, with a password planted wherever there is one."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import fsspec
import psutil
import pytest
import torch

from pipelines.outages import MissingError
from pipelines.settings import PrepareSettings, TrainSettings
from pipelines.storage import Store
from pipelines.training.checkpoints import STATE, checked
from tests.cluster import Cluster, cluster
from tests.factories import PLANTED
from tests.faulty import FaultyEndpoint, serve_faulty
from tests.integration.prefect_server import PREFECT, post, prefect_server, runs_of
from tests.integration.test_deployments import deployment, running
from tests.postgres import postgres, postgres_programs, psql
from tests.servers import free_ports, wait_for, wait_until_healthy

USER: Final = "operator"
OVER: Final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
RANK: Final = re.compile(r"pid=(\d+)\) world_rank=0\b")


class MlflowServer:
    """PostgreSQL behind it, artifacts on S3. It can be killed and come back. Who may use it: see `test_auth`."""

    def __init__(self, folder: Path, database: dict[str, str], bucket: str) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "mlflow.log"
        address = f"postgresql://mlflow:{PLANTED}@127.0.0.1:{database['PGPORT']}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--workers", "1", "--artifacts-destination", bucket]
        self._environment = os.environ | {
            "MLFLOW_BACKEND_STORE_URI": f"{address}/mlflow",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": PLANTED,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.start()

    def start(self) -> None:
        """Does not wait: see `wait`."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.log.parent, env=self._environment, stdout=log, stderr=log
            )

    def wait(self) -> None:
        wait_until_healthy(f"{self.url}/health", self._process, self.log)

    def kill(self) -> None:
        for process in (*psutil.Process(self._process.pid).children(recursive=True), self._process):
            process.kill()
        self._process.wait()


@dataclass
class Line:
    """The servers, and what became of the line's runs."""

    folder: Path
    """with the logs and databases of all that runs here"""
    api: str
    mlflow: MlflowServer
    ray: Cluster
    s3: FaultyEndpoint
    out: str
    database: dict[str, str]
    epochs: dict[str, int] = field(default_factory=dict)
    """how many each checkpoint has, by its ETag"""

    def start_retrain(self, prepare: PrepareSettings, train: TrainSettings) -> str:
        """The id of a new run of the deployment."""
        parameters = {
            "data": [str(self.folder / "photos")],
            "out": self.out,
            "prepare_settings": prepare.model_dump(mode="json"),
            "train_settings": train.model_dump(mode="json"),
            "name": "line",
            "workers": 2,
        }
        url = f"{self.api}/deployments/{deployment(self.api, 'retrain')['id']}/create_flow_run"
        return str(post(url, {"parameters": parameters})["id"])

    def ended(self, flow: str, number: int, seconds: float = 600) -> dict[str, Any]:
        """The newest of so many runs of a flow, once all of them are over."""

        def over() -> list[dict[str, Any]]:
            runs = [run for run in runs_of(self.api, flow) if run["state"]["type"] in OVER]
            return sorted(runs, key=lambda run: run["start_time"] or "") if len(runs) == number else []

        run: dict[str, Any] = wait_for(over, seconds)[-1]
        assert run["state"]["type"] == "COMPLETED", (self.folder / "worker.log").read_text(errors="replace")[-6000:]
        return run

    def rank_0(self) -> int:
        """The process that has it in the training that goes on."""
        logs = self.ray.folder.glob("session_*/logs/train/ray-train-sys-controller*.log")
        newest = max(logs, key=lambda log: log.stat().st_mtime)
        return int(RANK.findall(newest.read_text())[-1])

    def kill_node_of(self, process: int) -> None:
        parents = {each.pid for each in psutil.Process(process).parents()}
        (index,) = [number for number, node in enumerate(self.ray.nodes) if node.pid in parents]
        self.ray.kill_node(index)

    def epochs_done(self) -> int:
        """By the checkpoint of the training that goes on; 0 without one."""
        store = Store(f"{self.out}/runs")
        for key, _, tag in store.objects():
            if key.endswith(STATE):
                if tag not in self.epochs:
                    with suppress(MissingError):  # the training may end just now
                        state = torch.load(io.BytesIO(checked(store.read_bytes(key))), weights_only=True)
                        self.epochs[tag] = int(state["epoch"])
                return self.epochs.get(tag, 0)
        return 0

    def sql(self, query: str) -> str:
        """What MLflow's database says."""
        return psql(self.database | {"PGDATABASE": "mlflow"}, "-c", query).strip()

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """All that anything here wrote or shows: files, logs, databases, objects, APIs, command lines."""
        for root, name in ((self.folder, ""), (self.ray.folder, "ray/")):
            for path in root.rglob("*"):
                if path.is_file():
                    yield name + path.relative_to(root).as_posix(), path.read_bytes()
        dump = [f"{postgres_programs()}/pg_dump", "--inserts", "mlflow"]
        yield "database", subprocess.run(dump, env=os.environ | self.database, check=True, capture_output=True).stdout
        for bucket in ("s3://line", "s3://line-mlflow"):
            store = Store(bucket)
            for key in store.files():
                yield f"{bucket}/{key}", store.read_bytes(key)
        for kind in ("flow_runs", "task_runs", "artifacts", "logs", "deployments", "events"):
            yield f"api {kind}", json.dumps(post(f"{self.api}/{kind}/filter", {})).encode()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                yield f"process {process.pid}", "\0".join(process.cmdline()).encode()

    def objects(self) -> dict[str, str]:
        """ETags of everything that was written, the page aside, which is written by every run."""
        return {key: tag for key, _, tag in Store(self.out).objects() if key != "report.html"}


@contextmanager
def line(folder: Path, seaweedfs_endpoint: str) -> Iterator[Line]:
    secrets = {
        "AWS_ACCESS_KEY_ID": "line",
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "AWS_DEFAULT_REGION": "us-east-1",
        "FSSPEC_S3_CONFIG_KWARGS": "{}",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": PLANTED,
        "PREFECT_API_AUTH_STRING": f"{USER}:{PLANTED}",
        "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{PLANTED}",
        "RAY_AUTH_MODE": "disabled",
        # For so long Ray waits for the workers of a node of which it does not know yet that it died.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
        "RAY_AUTH_TOKEN": PLANTED,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "MSRRN_METRICS_DIR": str(folder / "metrics"),
    }
    passwords = {"PREFECT_DB_PASSWORD": PLANTED, "MLFLOW_DB_PASSWORD": PLANTED}
    files = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        files.clear_instance_cache()
        stack.callback(files.clear_instance_cache)
        url, s3 = stack.enter_context(serve_faulty(seaweedfs_endpoint))
        s3.kinds = ["503"]
        for name, value in (secrets | {"AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "s3", {})
        for bucket in ("line", "line-mlflow"):
            fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
        database = stack.enter_context(postgres(passwords))
        (folder / "mlflow").mkdir()
        mlflow = MlflowServer(folder / "mlflow", database, "s3://line-mlflow")
        stack.callback(mlflow.kill)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
        ray = stack.enter_context(cluster(0))
        patch.setenv("RAY_ADDRESS", ray.address)
        for _ in range(2):
            ray.add_node()
        prefect = stack.enter_context(prefect_server(folder, "--name", "retrain", "--name", "promote"))
        mlflow.wait()
        worker = [PREFECT, "worker", "start", "--pool", "msrrn", "--limit", "2"]
        stack.enter_context(running(folder / "worker.log", *worker))
        yield Line(folder, prefect.url, mlflow, ray, s3, "s3://line/out", database)
