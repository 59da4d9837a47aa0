"""What MLflow and its databases say where they cannot be used, in a line of ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.registry.store import shown_uri, sqlite_file
from pipelines.secrecy import without_secrets


@contextmanager
def reaching_mlflow() -> Iterator[None]:
    """Turns what MLflow raises (unreachable, refused, no such thing, a full disk) into a `UserError` of one line.

    Where no server answers, or one with nothing but errors of its own, it is an `OutageError`.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if re.search("No space left on device|Disk quota exceeded|disk is full", str(error)):
            raise UserError(
                f"MLflow at {shown_uri()}: disk full, there or where temporary files go (TMPDIR): free some space, "
                "and run again"
            ) from None
        if "too many 500 error responses" in str(error):
            raise OutageError(
                f"The MLflow server at {shown_uri()} answers 500 again and again: its own log says why, as that its "
                "disk is full"
            ) from None
        if "ProxyError" in str(error):
            raise OutageError(
                f"The proxy that HTTP_PROXY or HTTPS_PROXY names does not lead to MLflow at {shown_uri()}: correct "
                "it, or name the server's host in NO_PROXY"
            ) from None
        if re.search("Max retries exceeded|Connection refused|timed out", str(error)):
            raise OutageError(
                f"No MLflow server answers at {shown_uri()}: start it, or correct MLFLOW_TRACKING_URI"
            ) from None
        if "the database system is" in str(error):  # PostgreSQL: starting up, ...
            raise OutageError(f"The database at {shown_uri()} starts or stops: run again soon") from None
        if re.search(r"\(sqlite3\.\w+\) (table \w+ already exists|duplicate column)", str(error)):
            raise UserError(
                f"MLflow store {sqlite_file()}: whoever made or upgraded it was stopped half-way. Where it "
                "was new, nothing is in it yet: delete it, and run again; else put back the copy of before"
            ) from None
        line = without_secrets(str(error).split("\n")[0])
        raise UserError(f"MLflow at {shown_uri()}: {line[:400]}") from None
