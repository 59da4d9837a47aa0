"""The databases as a new volume gets them, by a real PostgreSQL."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.files import INFRA

PASSWORDS = {"PREFECT_DB_PASSWORD": "of ' prefect", "MLFLOW_DB_PASSWORD": 'of "mlflow\\'}


@pytest.fixture(scope="module")
def bin_folder() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "initdb")]
    if not found[-1].exists() or not shutil.which("psql"):
        pytest.skip("no PostgreSQL: install the package postgresql")
    return found[-1].resolve().parent


@pytest.fixture(scope="module")
def server(bin_folder: Path) -> Iterator[dict[str, str]]:
    """What psql needs to reach it as its superuser. PostgreSQL refuses to be root's: it runs as its own user."""
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as free:
        folder, port = Path(name), str(free.getsockname()[1])
        (folder / "password").write_text("superuser")
        if user:
            shutil.chown(folder, user)
            shutil.chown(folder / "password", user)
        data = folder / "data"
        initialise = [f"{bin_folder}/initdb", "-D", str(data), "-U", "postgres", "-A", "scram-sha-256", "--no-sync"]
        initialise.append(f"--pwfile={folder / 'password'}")
        made = subprocess.run(initialise, user=user, cwd=folder, check=False, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        free.close()
        start = [f"{bin_folder}/postgres", "-D", str(data), "-k", str(folder), "-h", "127.0.0.1", "-p", port, "-F"]
        process = subprocess.Popen(start, user=user, cwd=folder, stderr=subprocess.DEVNULL)
        connection = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "postgres", "PGPASSWORD": "superuser"}
        try:
            ready = [f"{bin_folder}/pg_isready", "-h", "127.0.0.1", "-p", port]
            while subprocess.run(ready, check=False, capture_output=True).returncode and process.poll() is None:
                time.sleep(0.1)
            psql(connection | PASSWORDS, "--dbname", "postgres", "--file", str(INFRA / "postgres" / "databases.sql"))
            yield connection
        finally:
            process.terminate()
            process.wait(20)


def psql(connection: dict[str, str], *arguments: str) -> str:
    command = ["psql", "--no-psqlrc", "--no-password", "-v", "ON_ERROR_STOP=1", "-At", *arguments]
    return subprocess.run(command, env=os.environ | connection, check=True, capture_output=True, text=True).stdout


def test_each_server_has_its_databases_and_no_others(server: dict[str, str]) -> None:
    users = {"prefect": PASSWORDS["PREFECT_DB_PASSWORD"], "mlflow": PASSWORDS["MLFLOW_DB_PASSWORD"]}
    for database, owner in {"prefect": "prefect", "mlflow": "mlflow", "mlflow_auth": "mlflow"}.items():
        for user, password in users.items():
            own = server | {"PGUSER": user, "PGPASSWORD": password, "PGDATABASE": database}
            if user == owner:
                psql(own, "-c", "CREATE TABLE t (x int)", "-c", "CREATE EXTENSION pg_trgm")
            else:
                with pytest.raises(subprocess.CalledProcessError) as refused:
                    psql(own, "-c", "SELECT 1")
                assert "permission denied for database" in refused.value.stderr
    with pytest.raises(subprocess.CalledProcessError) as wrong:
        psql(server | {"PGUSER": "prefect", "PGPASSWORD": "mlflow", "PGDATABASE": "prefect"}, "-c", "SELECT 1")
    assert "password authentication failed" in wrong.value.stderr


def test_a_backup_of_the_runbook_is_restored_over_what_is_there(server: dict[str, str], bin_folder: Path) -> None:
    database = server | {"PGDATABASE": "prefect"}
    psql(database, "-c", "CREATE TABLE kept (x int)", "-c", "INSERT INTO kept VALUES (7)")
    dump = [f"{bin_folder}/pg_dump", "--username", "postgres", "--format", "custom", "prefect"]
    backup = subprocess.run(dump, env=os.environ | server, check=True, capture_output=True).stdout
    psql(database, "-c", "UPDATE kept SET x = 8")
    restore = [f"{bin_folder}/pg_restore", "--username", "postgres", "--clean", "--if-exists", "--exit-on-error"]
    subprocess.run([*restore, "--dbname", "prefect"], env=os.environ | server, input=backup, check=True)
    assert psql(database, "-c", "SELECT x FROM kept") == "7\n"
    owner = server | {"PGUSER": "prefect", "PGPASSWORD": PASSWORDS["PREFECT_DB_PASSWORD"], "PGDATABASE": "prefect"}
    assert psql(owner, "-c", "SELECT x FROM t") == ""
    runbook = (INFRA / "README.md").read_text("utf-8")
    for command in (dump, restore):
        assert " ".join(command[1:5]).removesuffix(" prefect") in runbook
