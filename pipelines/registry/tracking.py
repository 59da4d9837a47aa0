"""MLflow tracking: one training is one run, found again by its key.

The store is `MLFLOW_TRACKING_URI`, or MLflow's own default, `mlflow.db` (SQLite) in the current directory
with the artifacts in `mlartifacts` beside it. Everything goes through `MlflowClient` with run ids; there is
no active run. Only one process of a training (rank 0) writes.
"""

import hashlib
import re
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from sqlalchemy import URL, NullPool, create_engine

from pipelines.cache import cache_directory, writing
from pipelines.errors import UserError
from pipelines.registry.reaching import reaching_mlflow
from pipelines.registry.store import database_address, sqlite_file, tracking_uri, variables
from pipelines.secrecy import has_password

KEY_TAG: Final = "msrrn.key"
OPENED_TAG: Final = "msrrn.opened"
"""When a run was begun or taken up again, in milliseconds since 1970: MLflow says the former alone."""
_KEY: Final = re.compile(r"[0-9A-Za-z._:-]{1,200}")
_REFUSED: Final = re.compile(r"[^\w.\- /]|^(?:[./]|\Z)|/(?=\.{0,2}(?:/|\Z))")
"""What MLflow refuses in the name of a metric: characters, and what leads nowhere in a path."""
_LONGEST: Final = 200
"""Of the 250 characters that MLflow takes, so that others have place beside them."""
_SENDING: Final = threading.RLock()
_BATCH: Final = {"metrics": 1000, "params": 100, "tags": 100}  # what one log_batch request may hold


@dataclass(frozen=True)
class RunRecord:
    """A run of MLflow; `experiment` is the name of its own."""

    run_id: str
    experiment: str


def client() -> MlflowClient:
    """A client of `tracking_uri()`; a new SQLite store is created on first use, which takes seconds."""
    if tracking_uri().startswith("http") and has_password(tracking_uri()):
        # MLflow would write it into warnings and errors of its own.
        raise UserError(
            "user and password go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, not into "
            "MLFLOW_TRACKING_URI"
        )
    if database := sqlite_file():
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            # MLflow would try to open what is no database for 100 seconds.
            with closing(sqlite3.connect(database, timeout=60)) as connection:
                connection.execute("PRAGMA schema_version")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"MLflow store {database}: {error}; correct MLFLOW_TRACKING_URI") from error
    elif re.match(rf"({'|'.join(DATABASE_ENGINES)})(\+\w+)?://", tracking_uri()):
        _require_database(database_address())
    # Two processes that create the tables of one new database at once both fail.
    with reaching_mlflow(), store_lock() if database else nullcontext():
        if database and not database.stat().st_size:
            _create(database.resolve())
        return MlflowClient(tracking_uri=tracking_uri())


def _create(database: Path) -> None:
    """Gives a new store its tables, all of them or none: what a process leaves that ends between two of MLflow's
    migrations, which take seconds, is refused by MLflow from then on."""
    made = database.with_name(f".{database.name}.new")
    for left in (made, made.with_name(f"{made.name}-journal")):
        left.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{made}")
    made.replace(database)


@cache
def _require_database(address: URL) -> None:
    """Raises UserError where the store is a database that does not answer, or refuses: MLflow, which opens it once in
    a process, would try for 100 seconds."""
    with reaching_mlflow(), create_engine(address, poolclass=NullPool).connect():
        pass


@contextmanager
def connected() -> Iterator[MlflowClient]:
    """A `client`, and what MLflow raises meanwhile as `reaching_mlflow` tells it."""
    mlflow = client()
    with reaching_mlflow():
        yield mlflow


@contextmanager
def sent_once(seconds: float) -> Iterator[None]:
    """A request to a server is not repeated by MLflow meanwhile, and is given up after so long.

    What is sent late can undo what others wrote since. MLflow asks the environment before each request.
    """
    told = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{max(1, round(seconds))}"}
    # Of two threads, the later would take what the earlier told for what was there before.
    with _SENDING, variables(told):
        yield


@contextmanager
def store_lock() -> Iterator[None]:
    """One process at a time creates what must be there once.

    Beside a SQLite store it holds off everyone who uses the store; for a server, the processes of this user
    on this machine. Nothing worse than a run or a version too many comes of it where it does not reach;
    aliases do not rely on it (see `pipelines.registry.succession`).
    `client()` takes it for a moment, so it must not be called inside.

    Raises:
        UserError: for a server, the cache cannot be written.
    """
    if database := sqlite_file():
        path = database.with_name(f"{database.name}.lock")
    else:
        digest = hashlib.sha256(tracking_uri().encode()).hexdigest()[:16]
        path = cache_directory() / "locks" / f"mlflow-{digest}.lock"
    with nullcontext() if database else writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path).acquire()
    with held:
        yield


def open_run(experiment: str, key: str, params: Mapping[str, object], tags: Mapping[str, str]) -> RunRecord:
    """The run of `key` in `experiment`, running: created, or continued where one with this key exists.

    `key` names the training (a digest: letters, digits and `._:-`). A parameter is written once: opening the
    run again adds those that are missing and leaves the others as they were. Tags are overwritten.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"a run's key is 1 to 200 letters, digits and ._:- but this is {key!r}")
    with connected() as mlflow, store_lock():
        experiment_id = _experiment_id(mlflow, experiment)
        found = mlflow.search_runs(
            [experiment_id],
            filter_string=f"tags.`{KEY_TAG}` = '{key}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        if found:
            run = found[0]
            mlflow.update_run(run.info.run_id, status="RUNNING")
        else:
            run = mlflow.create_run(experiment_id, tags={KEY_TAG: key}, run_name=key[:16])
        missing = {name: str(value) for name, value in params.items() if name not in run.data.params}
        _log(mlflow, run.info.run_id, "params", [Param(*item) for item in missing.items()])
        stated = {**tags, OPENED_TAG: str(time.time_ns() // 1_000_000)}
        _log(mlflow, run.info.run_id, "tags", [RunTag(*item) for item in stated.items()])
    return RunRecord(run_id=str(run.info.run_id), experiment=experiment)


def _experiment_id(mlflow: MlflowClient, name: str) -> str:
    existing = mlflow.get_experiment_by_name(name)
    if existing is None:
        return str(mlflow.create_experiment(name, artifact_location=artifact_location()))
    if existing.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {name!r} is deleted: restore it with"
            f" `mlflow experiments restore -x {existing.experiment_id}`, or choose another name"
        )
    return str(existing.experiment_id)


def artifact_location() -> str | None:
    """Where a new experiment's artifacts go: beside a SQLite store; None where the server says."""
    # Without this MLflow would write to `mlruns` of whatever directory a later command runs in.
    database = sqlite_file()
    return database.with_name("mlartifacts").as_uri() if database else None


def metric_names(names: Iterable[str]) -> dict[str, str]:
    """Name → what MLflow takes for it; of names that would become the same, each gets a digest of its own."""
    taken = {name: _REFUSED.sub("_", name[:_LONGEST]) for name in names}
    times = Counter(taken.values())
    return {name: short if times[short] == 1 else f"{short}-{short_digest(name)}" for name, short in taken.items()}


def short_digest(text: str) -> str:
    """Eight hexadecimal digits that stand for a text in a name."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def log_history(run: RunRecord, history: Sequence[Mapping[str, float]]) -> None:
    """Logs each row's metrics at step `epoch`; a metric already logged for an epoch is left alone.

    So the whole history may be logged again after every epoch and after a restart.
    """
    names = {name for row in history for name in row} - {"epoch"}
    now = time.time_ns() // 1_000_000
    with connected() as mlflow:
        logged = {
            name: {metric.step for metric in mlflow.get_metric_history(run.run_id, name)} for name in sorted(names)
        }
        metrics = [
            Metric(name, float(value), now, int(row["epoch"]))
            for row in history
            for name, value in row.items()
            if name != "epoch" and int(row["epoch"]) not in logged[name]
        ]
        _log(mlflow, run.run_id, "metrics", metrics)


def log_metrics(run: RunRecord, metrics: Mapping[str, float]) -> None:
    """Logs the run's final metrics; one that has this value already is left alone."""
    now = time.time_ns() // 1_000_000
    with connected() as mlflow:
        known = mlflow.get_run(run.run_id).data.metrics
        # repr, because nan != nan
        new = {
            name: float(value)
            for name, value in metrics.items()
            if name not in known or repr(float(value)) != repr(float(known[name]))
        }
        _log(mlflow, run.run_id, "metrics", [Metric(name, value, now, 0) for name, value in new.items()])


def log_files(run: RunRecord, files: Mapping[str, bytes]) -> None:
    """Stores small files with the run under their relative POSIX names; a file of that name is replaced."""
    with connected() as mlflow, tempfile.TemporaryDirectory(prefix="msrrn-") as folder:
        for name, content in files.items():
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts or not relative.name:
                raise ValueError(f"the name of a run's file must be relative and without '..': {name!r}")
            path = Path(folder, relative)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if files:
            mlflow.log_artifacts(run.run_id, folder)


@contextmanager
def system_metrics(run: RunRecord) -> Iterator[None]:
    """Logs what this machine is busy with (CPU, memory, disk, network, GPU where `nvidia-ml-py` is installed), every
    ten seconds or as `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` says. It raises nothing of its own: a job is worth
    more than these figures."""
    with ExitStack() as ending:
        with suppress(Exception):
            monitor = SystemMetricsMonitor(run.run_id, resume_logging=True, tracking_uri=tracking_uri())
            monitor.start()
            ending.callback(monitor.finish)
        yield


def finish_run(run: RunRecord, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Ends the run; `open_run` with its key takes it up again."""
    with connected() as mlflow:
        mlflow.set_terminated(run.run_id, status=status)


def _log(mlflow: MlflowClient, run_id: str, kind: str, entries: Sequence[Any]) -> None:
    for start in range(0, len(entries), _BATCH[kind]):
        mlflow.log_batch(run_id, **{kind: entries[start : start + _BATCH[kind]]})
