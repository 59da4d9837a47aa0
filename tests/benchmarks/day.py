"""One unattended day in minutes: python -m tests.benchmarks.day [--out day.md] [--pace 60]

A Prefect server with a process worker, every deployment of prefect.yaml with intervals instead of its crons, the
automations of infra/prefect, and an MLflow server. Then things happen to them:

- a first few annotated photographs lie in the watched folder; later many more come in;
- the worker loses power in mid-training, and is started again;
- a setting comes in that makes a worse model;
- an archive is annotated as it should be, then one of dark, blurred pictures of far faces.

What fired and what was decided is read from Prefect's API and from the ledger in MLflow. What a person would have had
to do is what is left over in the end: runs that wait or never end, versions that nobody judged, promotions half done,
no champion, a crash that nothing made good. If there is any, the exit code is 1.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from PIL import Image, ImageFilter

from flows.monitor import DRIFT_DETECTED
from msrrn.augmentation import AugmentationSettings
from msrrn.synthetic import draw_photo
from pipelines.registry.tracking import client
from pipelines.registry.versions import champion
from pipelines.settings import NAME, DriftSettings, PrepareSettings, TrainSettings
from pipelines.synthesis import synthesise
from tests.benchmarks.timeline import Timeline, all_runs, left_to_do
from tests.cluster import kill_tree
from tests.integration.prefect_server import PREFECT, ROOT, Server, post, prefect, prefect_server
from tests.servers import free_ports, listens, wait_for

FEW, MANY, PICTURES = 48, 240, 100
PREPARE: Final = PrepareSettings(augmentation=AugmentationSettings(copies=2), val_share=0.3)
TRAIN: Final = TrainSettings(epochs=6, batch=32, learning_rate=0.02)
WORSE: Final = TRAIN.model_copy(update={"epochs": 1, "learning_rate": 1e-5})
PATIENCE: Final = 900.0
"""Seconds that one thing may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the timeline there")
    parser.add_argument("--pace", type=int, default=60, help="seconds between two retrainings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _draw(folder)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "PREFECT_LOGGING_LEVEL": "WARNING"}
        (folder / "prefect.yaml").write_text(_short_schedules(folder, arguments.pace))
        with _mlflow_server(folder) as os.environ["MLFLOW_TRACKING_URI"]:
            file = ("--prefect-file", str(folder / "prefect.yaml"))
            with prefect_server(folder, *file, "--all") as server:
                timeline, stopped = Timeline(server.url), []
                try:
                    _live(folder, server, timeline)
                except TimeoutError as error:
                    stopped.append(str(error))
                text, left = timeline.text(NAME), [*stopped, *left_to_do(server.url, NAME)]
        if stopped:
            print((folder / "worker.log").read_text(errors="replace")[-5000:], file=sys.stderr)
    text = text.replace(f"{name}/", "")
    text += "\n\nWhat a person had to do: " + ("; ".join(left) or "nothing") + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    return 1 if left else 0


def _live(folder: Path, server: Server, timeline: Timeline) -> None:
    apply = [sys.executable, str(ROOT / "infra" / "prefect" / "apply.py")]
    subprocess.run(apply, check=True, stdout=subprocess.DEVNULL)
    prefect_file = ("--prefect-file", str(folder / "prefect.yaml"))
    worker = _worker(folder)
    try:
        timeline.note(f"the worker starts; {FEW} annotated photographs lie in the watched folder")
        _until(lambda: _is_champion(1), "a first champion")
        _until(lambda: _completed(server, "retrain") >= 2, "a retraining that finds nothing new")

        timeline.note(f"{MANY} more annotated photographs come in")
        shutil.copytree(folder / "many", folder / "watched" / "many")
        _until(lambda: list((folder / "out" / "runs").glob("*/state.pt")), "a training that goes on")
        kill_tree(worker)
        timeline.note("the worker loses power in mid-training")
        time.sleep(5)
        worker = _worker(folder)
        timeline.note("the worker is started again")
        _until(lambda: _is_champion(2), "a better champion")

        _annotate(server, folder, "ordinary")
        timeline.note("an archive of ordinary pictures comes in")
        _until(lambda: _completed(server, "annotate") == 1, "annotations")

        described = yaml.safe_load((folder / "prefect.yaml").read_text())
        described["deployments"][0]["parameters"]["train_settings"] = WORSE.model_dump(mode="json")
        (folder / "prefect.yaml").write_text(yaml.safe_dump(described))
        prefect("--no-prompt", "deploy", *prefect_file, "--name", "retrain")
        timeline.note("retraining is told to train less, and too slowly")
        _until(lambda: _judged(3), "a worse model that is judged")

        _annotate(server, folder, "drifted")
        timeline.note("an archive of dark, blurred pictures of far faces comes in")
        since = datetime.now(UTC).isoformat()
        drift = _until(
            lambda: [each for each in timeline.events(DRIFT_DETECTED) if each["occurred"] > since], "drift"
        )
        _until(
            lambda: [
                run
                for run in all_runs(server.url)
                if run["flow"] == "retrain"
                and (run["created_by"] or {}).get("type") == "AUTOMATION"
                and run["created"] > drift[0]["occurred"]
                and run["state"]["type"] == "COMPLETED"
            ],
            "a retraining because of it",
        )
        for each in post(f"{server.url}/deployments/filter", {}):
            if each["schedules"]:
                post(f"{server.url}/deployments/{each['id']}/pause_deployment", {})
        timeline.note("the schedules are paused: the day is over")
        _until(lambda: not _busy(server), "the end of what goes on")
    finally:
        kill_tree(worker)


def _draw(folder: Path) -> None:
    """What comes in in the course of the day."""
    synthesise(str(folder / "watched" / "few"), FEW, 1, 1)
    synthesise(str(folder / "many"), MANY, 2, 1)
    for name in ("ordinary", "drifted"):
        (folder / name).mkdir()
    for index in range(PICTURES):
        jpeg = draw_photo(3, index).jpeg
        (folder / "ordinary" / f"{index:04d}.jpg").write_bytes(jpeg)
        picture = Image.open(io.BytesIO(draw_photo(4, index).jpeg)).convert("RGB")
        dark = picture.point(lambda value: value * 0.4).filter(ImageFilter.GaussianBlur(2))
        wide = Image.new("RGB", (picture.width * 3 // 2, picture.height * 3 // 2), (20, 20, 20))
        wide.paste(dark)
        wide.save(folder / "drifted" / f"{index:04d}.jpg", quality=85)


def _short_schedules(folder: Path, pace: int) -> str:
    """prefect.yaml with intervals for crons, places in `folder`, and what little work there is."""
    out = folder / "out"
    own: dict[str, dict[str, Any]] = {
        "retrain": {
            "data": [str(folder / "watched")],
            "out": str(out),
            "prepare_settings": PREPARE.model_dump(mode="json"),
            "train_settings": TRAIN.model_dump(mode="json"),
            "workers": 1,
        },
        "promote": {"workers": 1},
        "reconcile": {"places": [str(out / "datasets"), str(out / "annotations")], "minutes": 2, "workers": 1},
        "annotate": {"workers": 1},
        "monitor": {
            "runs": [str(out / "annotations")],
            "dataset": str(out / "datasets"),
            "out": str(out / "drift"),
            "settings": DriftSettings(least=40).model_dump(mode="json"),
        },
    }
    described = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))
    for each in described["deployments"]:
        each["parameters"] |= own[each["name"]]
        if "schedules" in each:
            each["schedules"] = [{"interval": pace if each["name"] == "retrain" else 2 * pace}]
    return str(yaml.safe_dump(described))


@contextmanager
def _mlflow_server(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_for(lambda: listens(port), 120)
        yield uri
    finally:
        kill_tree(process)


def _worker(folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / "worker.log").open("ab") as log:
        command = [PREFECT, "worker", "start", "--pool", "msrrn", "--limit", "2"]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def _annotate(server: Server, folder: Path, name: str) -> None:
    """What a person asks for in the UI."""
    parameters = {"source": str(folder / name), "out": str(folder / "out" / "annotations" / name)}
    (found,) = post(f"{server.url}/deployments/filter", {"deployments": {"name": {"any_": ["annotate"]}}})
    post(f"{server.url}/deployments/{found['id']}/create_flow_run", {"parameters": parameters})


def _until(found: Callable[[], Any], what: str) -> Any:
    print(f"waiting for {what}", file=sys.stderr, flush=True)
    until = time.monotonic() + PATIENCE
    while not (value := found()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come within {PATIENCE:.0f} s")
        time.sleep(1)
    return value


def _completed(server: Server, flow: str) -> int:
    return sum((run["flow"], run["state"]["type"]) == (flow, "COMPLETED") for run in all_runs(server.url))


def _busy(server: Server) -> bool:
    return any(run["state"]["type"] in {"PENDING", "RUNNING"} for run in all_runs(server.url))


def _is_champion(version: int) -> bool:
    return (known := champion(NAME)) is not None and known.version == version


def _judged(version: int) -> bool:
    found = client().search_model_versions(f"name = '{NAME}'")
    return any(int(each.version) == version and "msrrn.decision" in each.tags for each in found)


if __name__ == "__main__":
    sys.exit(main())
