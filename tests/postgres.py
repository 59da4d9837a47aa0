"""A real PostgreSQL on loopback, where one is installed, with the databases of infra/."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.infra.files import INFRA
from tests.servers import free_ports


def postgres_programs() -> Path:
    """The folder of its programs; skips the test where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "initdb")]
    if not found[-1].exists() or not shutil.which("psql"):
        pytest.skip("no PostgreSQL: install the package postgresql")
    return found[-1].resolve().parent


@contextmanager
def postgres(passwords: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """What psql needs to reach it as its superuser; `passwords` as infra/postgres/databases.sql wants them.

    PostgreSQL refuses to be root's: it runs as its own user.
    """
    programs = postgres_programs()
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:
        folder, (port,) = Path(name), map(str, free_ports(1))
        (folder / "password").write_text("superuser")
        if user:
            shutil.chown(folder, user)
            shutil.chown(folder / "password", user)
        data = folder / "data"
        initialise = [f"{programs}/initdb", "-D", str(data), "-U", "postgres", "-A", "scram-sha-256", "--no-sync"]
        initialise.append(f"--pwfile={folder / 'password'}")
        made = subprocess.run(initialise, user=user, cwd=folder, check=False, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        start = [f"{programs}/postgres", "-D", str(data), "-k", str(folder), "-h", "127.0.0.1", "-p", port, "-F"]
        process = subprocess.Popen(start, user=user, cwd=folder, stderr=subprocess.DEVNULL)
        connection = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "postgres", "PGPASSWORD": "superuser"}
        try:
            ready = [f"{programs}/pg_isready", "-h", "127.0.0.1", "-p", port]
            while subprocess.run(ready, check=False, capture_output=True).returncode and process.poll() is None:
                time.sleep(0.1)
            databases = str(INFRA / "postgres" / "databases.sql")
            psql(connection | dict(passwords), "--dbname", "postgres", "--file", databases)
            yield connection
        finally:
            process.terminate()
            process.wait(20)


def psql(connection: dict[str, str], *arguments: str) -> str:
    command = ["psql", "--no-psqlrc", "--no-password", "-v", "ON_ERROR_STOP=1", "-At", *arguments]
    return subprocess.run(command, env=os.environ | connection, check=True, capture_output=True, text=True).stdout
