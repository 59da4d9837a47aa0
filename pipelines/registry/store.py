"""Where the MLflow store is: what can be said without MLflow, which takes a second to import."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipelines.errors import UserError
from pipelines.secrecy import without_secrets

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

STORE: Final = "MLFLOW_TRACKING_URI"
DEFAULT: Final = "mlflow.db"


def tracking_uri() -> str:
    """The MLflow store: `MLFLOW_TRACKING_URI`, or SQLite in `mlflow.db` of the current directory.

    Raises:
        UserError: no address of SQLite can name that directory.
    """
    if told := os.environ.get(STORE):
        return told
    database = Path.cwd() / DEFAULT
    if "?" in str(database):  # what follows would be settings of a database that is called as what is before
        raise UserError(f"{database}: MLflow takes no ? in the name of a folder: call elsewhere, or set {STORE}")
    return f"sqlite:///{database}"


def shown_uri() -> str:
    """The store for messages: without user and password."""
    return without_secrets(tracking_uri())


def sqlite_file() -> Path | None:
    """The database file where the store is SQLite (absolute), None for a server or another database."""
    if not os.environ.get(STORE):
        return Path.cwd() / DEFAULT
    uri = tracking_uri()
    if not re.match(r"sqlite(\+\w+)?:", uri):  # SQLAlchemy lets one name the driver, too
        return None
    return Path(database_address().database or DEFAULT).absolute()


def database_address() -> "URL":
    """The store, where it is a database.

    Raises:
        UserError: it is no address of one, or would be taken for another.
    """
    from sqlalchemy.engine import make_url  # it takes as long to import as all else here, and few have a store
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(tracking_uri())
    except (ArgumentError, ValueError):  # the latter where a port is no number
        raise UserError(f"MLFLOW_TRACKING_URI={shown_uri()} is no database address") from None
    if "@" in f"{address.host}{address.database}" and address.password is not None:
        # A password is taken to end at its first @: the rest would be told as the name of a host.
        raise UserError(f"MLFLOW_TRACKING_URI={shown_uri()}: the password holds an @: write %40 for it")
    return address


def store_exists() -> bool:
    """False for a SQLite store that nothing was written to yet: to look for something, none must be created."""
    database = sqlite_file()
    return database is None or database.exists()


@contextmanager
def default_store() -> Iterator[None]:
    """Makes `tracking_uri()` the store that MLflow takes by itself.

    What it does with `models:/` asks that one, whatever client it is asked through; and where an old folder `mlruns`
    lies in the current directory, it is that folder.
    """
    with variables({STORE: tracking_uri()}):
        yield


@contextmanager
def variables(told: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment, which are afterwards as they were."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
