"""Units for a machine without containers: systemd takes them, and what they start is there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.cli import parser
from tests.infra.files import INFRA, ROOT

UNITS = INFRA / "systemd"
BIN = "/srv/msrrn/.venv/bin/"


def said(unit: str, key: str) -> list[str]:
    """What a unit says of a key, in order."""
    lines = (UNITS / unit).read_text("utf-8").splitlines()
    return [value for name, _, value in (line.partition("=") for line in lines) if name == key]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_them(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        text = unit.read_text("utf-8").replace(BIN, f"{Path(sys.executable).parent}/")
        (tmp_path / unit.name).write_text(text, "utf-8")
    checked = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stderr == ""
    assert checked.returncode == 0


def test_they_start_what_there_is_on_one_server() -> None:
    for unit in UNITS.iterdir():
        (command,) = said(unit.name, "ExecStart")
        program, *arguments = command.removeprefix(BIN).split()
        assert Path(sys.executable).with_name(program).exists()
        if program == "msrrn":
            assert parser().parse_args(arguments).file == "prefect.yaml"
    (host, port) = said("prefect-server.service", "ExecStart")[0].split()[-3::2]
    assert f"PREFECT_API_URL=http://{host}:{port}/api" in said("msrrn.service", "Environment")
    (leases,) = (each for each in said("prefect-server.service", "Environment") if "LEASE_STORAGE" in each)
    server = yaml.safe_load((INFRA / "compose.yaml").read_text("utf-8"))["services"]["prefect-server"]
    name, _, value = leases.partition("=")
    assert server["environment"][name] == value
    assert (ROOT / "prefect.yaml").is_file()


def test_what_runs_is_ended_by_msrrn_alone() -> None:
    assert said("msrrn.service", "KillMode") == ["mixed"]
