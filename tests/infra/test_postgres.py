"""The databases as a new volume gets them, by a real PostgreSQL."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.files import INFRA
from tests.postgres import postgres, postgres_programs, psql

PASSWORDS = {"PREFECT_DB_PASSWORD": "of ' prefect", "MLFLOW_DB_PASSWORD": 'of "mlflow\\'}


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with postgres(PASSWORDS) as connection:
        yield connection


@pytest.fixture
def bin_folder() -> Path:
    return postgres_programs()


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
