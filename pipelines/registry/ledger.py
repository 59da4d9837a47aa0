"""The log of a registered model: who became champion, who did not, who was taken back, and why. Lines are only added.

It is one MLflow run, `ledger`, in the experiment `NAME-promotions`, and a line is a parameter of it, because MLflow
writes a parameter once: its key is unique in the database, and a second write of another value is refused. So no
line can be changed through MLflow; and of two that write line 8 at once, one is refused. That is the compare-and-set
which aliases lack (see `pipelines.registry.succession`), and it needs no place beside MLflow: it is the same in a
SQLite file, behind a server, and for clients on other machines. People read it in the tracking server's UI, or with
`msrrn models --log`.

The ledger is made aside and published by renaming its experiment, which only one of several can do.
"""

import secrets
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Literal

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field

from pipelines.errors import UserError
from pipelines.registry.tracking import KEY_TAG, artifact_location
from pipelines.registry.versions import CHAMPION

DONE: Final = "done"
_KEY: Final = "ledger"
_TURN: Final = "turn-"
_END: Final = "end-"
_HEIR: Final = "heir-"
_NOTE: Final = (
    "Every decision about the champion, in order. `turn-N` says what was about to be done before the first alias was "
    "moved, `end-N` that it was, `heir-N-M` who finished it for a process that died. Do not delete this run: "
    "promotions need it."
)

What = Literal["promoted", "kept", "undecided", "rolled back"]


class Move(BaseModel):
    """An alias that points to another version than before; None: to no version."""

    model_config = ConfigDict(frozen=True)

    alias: str
    before: int | None
    after: int | None


class Turn(BaseModel):
    """What is about to be done, written before the first alias moves, so that anyone can finish it."""

    model_config = ConfigDict(frozen=True)

    what: What
    version: int
    """the challenger; the version that was taken back, where one was"""
    champion: int | None
    """the champion before"""
    moves: tuple[Move, ...]
    """in the order in which they are made"""
    reason: str = Field(max_length=2000)
    who: str = Field(max_length=200)
    when: str
    run: str = ""
    """the MLflow run that holds the decision's table and pictures"""
    judged: str = ""
    """digest of what was judged: champion, faces and thresholds"""
    token: str = Field(default_factory=lambda: secrets.token_hex(8))
    """no two turns are the same text"""

    @property
    def champion_after(self) -> int | None:
        """Who is champion once it is done."""
        return next((move.after for move in self.moves if move.alias == CHAMPION), self.champion)


class Line(BaseModel):
    """A turn of the ledger."""

    model_config = ConfigDict(frozen=True)

    number: int
    turn: Turn
    end: str | None
    """`done`, or why it was given up; None while nobody has finished it"""
    heirs: int
    """how many processes took over to finish it, each after the one before was silent too long"""

    @property
    def done(self) -> bool:
        """By whoever began it, or by an heir; False where it was given up, too."""
        return self.end is not None and self.end.startswith(DONE)


@dataclass(frozen=True)
class Ledger:
    """The lines of one registered model."""

    mlflow: MlflowClient
    run_id: str
    experiment: str

    def lines(self) -> list[Line]:
        """In order.

        Raises:
            UserError: one is damaged, or of a newer version.
        """
        params: dict[str, str] = self.mlflow.get_run(self.run_id).data.params
        turns: dict[int, Turn] = {}
        for key in sorted(key for key in params if key.startswith(_TURN)):
            try:
                turns[int(key.removeprefix(_TURN))] = Turn.model_validate_json(params[key])
            except ValueError as error:
                raise UserError(
                    "the ledger is damaged, or of a newer version of msrrn: in MLflow experiment "
                    f"{self.experiment!r}, parameter {key!r} of run {self.run_id} is no decision that this version "
                    "knows. Use the newest. If that says the same, restore the database, or rename the experiment, "
                    "which keeps what it says: the next promotion or rollback begins a new ledger with the aliases "
                    "as they are"
                ) from error
        heirs = Counter(key.rpartition("-")[0] for key in params if key.startswith(_HEIR))
        return [
            Line(
                number=each,
                turn=turn,
                end=params.get(_key(_END, each)),
                heirs=heirs[_key(_HEIR, each)],
            )
            for each, turn in turns.items()
        ]

    def take(self, number: int, turn: Turn) -> bool:
        """Writes a line; False where another one has that number."""
        return self._write(_key(_TURN, number), turn.model_dump_json())

    def inherit(self, line: Line, who: str) -> bool:
        """Takes over a turn whose process, or whose last heir, is dead; False where another heir was first."""
        return self._write(f"{_key(_HEIR, line.number)}-{line.heirs + 1}", f"{who} {secrets.token_hex(8)}")

    def end(self, number: int, how: str) -> None:
        """Says that a turn is over; the first word stands."""
        self._write(_key(_END, number), how)

    def _write(self, key: str, text: str) -> bool:
        try:
            self.mlflow.log_param(self.run_id, key, text)
        except MlflowException:
            written = self.mlflow.get_run(self.run_id).data.params.get(key)
            if written is None:
                raise
            return bool(written == text)  # the answer to one's own write may have been lost
        return True


def open_ledger(mlflow: MlflowClient, name: str) -> Ledger:
    """The ledger of a registered model, made where there is none yet.

    Raises:
        UserError: it was deleted.
    """
    return find_ledger(mlflow, name) or _create(mlflow, name)


def find_ledger(mlflow: MlflowClient, name: str) -> Ledger | None:
    """The ledger of a registered model; None where nothing was decided yet.

    Raises:
        UserError: it was deleted.
    """
    title = experiment_of(name)
    experiment = mlflow.get_experiment_by_name(title)
    if experiment is None:
        return None
    number = experiment.experiment_id
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {title!r} is deleted, and with it who became champion and why: restore it with "
            f"`mlflow experiments restore -x {number}`"
        )
    filter_string = f"tags.`{KEY_TAG}` = '{_KEY}'"
    runs: list[Any] = mlflow.search_runs(
        [number], filter_string, ViewType.ALL, order_by=["attributes.start_time ASC"]
    )
    if not runs:
        raise UserError(f"MLflow experiment {title!r} has no run {_KEY!r}: it is not one of msrrn; rename it")
    if runs[0].info.lifecycle_stage != "active":
        raise UserError(
            f"run {_KEY!r} of MLflow experiment {title!r} is deleted: restore it with "
            f"`mlflow runs restore --run-id {runs[0].info.run_id}`"
        )
    return Ledger(mlflow, str(runs[0].info.run_id), title)


def plain(text: str, most: int) -> str:
    """Words of a person as a line can hold them: MLflow cuts a line that is too long, and nobody could read it then.

    In JSON a control character has the length of six others, and half of a character cannot be written at all.
    """
    return "".join(each if each.isprintable() else " " for each in text)[:most]


def experiment_of(name: str) -> str:
    """The experiment that holds the ledger, and a run for each decision."""
    return f"{name}-promotions"


def _create(mlflow: MlflowClient, name: str) -> Ledger:
    title = experiment_of(name)
    draft = mlflow.create_experiment(f"{title}.{secrets.token_hex(4)}", artifact_location=artifact_location())
    run = mlflow.create_run(draft, tags={KEY_TAG: _KEY, "mlflow.note.content": _NOTE}, run_name=_KEY)
    mlflow.set_terminated(run.info.run_id, status="FINISHED")
    try:
        mlflow.rename_experiment(draft, title)
    except MlflowException:
        if (other := find_ledger(mlflow, name)) is None:
            raise
        mlflow.delete_experiment(draft)
        return other
    return Ledger(mlflow, str(run.info.run_id), title)


def _key(kind: str, number: int) -> str:
    return f"{kind}{number:06d}"
