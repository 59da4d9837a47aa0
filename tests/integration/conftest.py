"""What integration tests share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick import made_once


@pytest.fixture(scope="session")
def empty_prefect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a Prefect server in which nothing is yet: creating its tables takes seconds."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        subprocess.run(command, env=os.environ | {"PREFECT_HOME": str(folder)}, capture_output=True, check=True)

    return made_once(tmp_path_factory, "prefect", make) / "prefect.db"


@pytest.fixture(scope="module")
def prefect_home(empty_prefect: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a Prefect server of a module's own."""
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(empty_prefect, home)
    return home
