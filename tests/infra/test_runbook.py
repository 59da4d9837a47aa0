"""What the runbook has an operator type is what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.files import INFRA

RUNBOOK = (INFRA / "README.md").read_text("utf-8")
COMMANDS = sorted(set(re.findall(r"`prefect (?:--no-prompt )?([a-z-]+ [a-z-]+)\b", RUNBOOK)))


@pytest.mark.parametrize("command", COMMANDS)
def test_prefect_has_the_command(command: str) -> None:
    prefect = str(Path(sys.executable).with_name("prefect"))
    done = subprocess.run([prefect, *command.split(), "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, "Unknown command" in done.stderr) == (0, False), done.stderr
