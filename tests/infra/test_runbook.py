"""What the runbook has an operator type is what there is."""

import re
import subprocess
import sys

from tests.infra.files import INFRA

RUNBOOK = (INFRA / "README.md").read_text("utf-8")
COMMANDS = sorted(set(re.findall(r"`prefect (?:--no-prompt )?([a-z-]+ [a-z-]+)\b", RUNBOOK)))
ASKED = """
import sys
from contextlib import suppress
from prefect.cli import app
for command in sys.argv[1:]:
    sys.argv = ["prefect", *command.split(), "--help"]
    with suppress(SystemExit):
        app()
"""
"""In one process: Prefect takes seconds to import."""


def test_prefect_has_the_commands() -> None:
    done = subprocess.run([sys.executable, "-c", ASKED, *COMMANDS], capture_output=True, text=True, check=False)
    assert re.findall(r"^Usage: prefect ([a-z-]+ [a-z-]+)", done.stdout, re.MULTILINE) == COMMANDS, done.stderr
