"""Who is champion: the aliases champion, previous and challenger move here, and nowhere else.

MLflow moves one alias at a time and asks no questions: of two promotions the later would win unseen, and a crash
between two aliases leaves half a promotion. So a move is a turn of the ledger. It is written down first, aliases
before and after; writing it down is what only one of several can do, and whoever is refused looks again, finds
another champion, and must be judged against that one. Then the aliases move, and the turn ends.

A turn that does not end within `PATIENCE_SECONDS` belongs to a process that died. Whoever comes next, a promotion, a
rollback or `reconcile`, is its heir, one at a time, and finishes it: the aliases that it names are made what it says.
Where one of them is neither as before nor as after, a person has moved it since, by hand, and the turn is given up:
people win. A process that was only frozen finds its time to write over (`HOLD_SECONDS`) and lets go.
"""

import getpass
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.errors import UserError
from pipelines.metrics_export import export_champion
from pipelines.registry.ledger import DONE, Ledger, Line, Move, Turn, find_ledger, open_ledger
from pipelines.registry.tracking import client, reaching_mlflow, store_exists
from pipelines.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    ROLLED_BACK,
    ModelVersion,
    aliases_of,
    find_version,
    require_store,
    versions_of,
)

HOLD_SECONDS: Final = 15.0
"""For how long a process may move aliases after it wrote its turn down."""
PATIENCE_SECONDS: Final = 60.0
"""How long others wait for that, by their own clocks."""
JUDGED_TAG: Final = "msrrn.judged"
DECISION_TAG: Final = "msrrn.decision"
AWAITING: Final = "awaits approval"

_PAUSE_SECONDS: Final = 0.5
_SAID: Final = {"promoted": "promoted", "kept": "kept the champion", "undecided": "undecided"}
_MET: Final = {"promoted": "took over", "kept": "was kept out", "undecided": "undecided"}

Waiting = Callable[[str], None]


class OvertakenError(UserError):
    """The champion is another one than the challenger was judged against."""


def settle(
    name: str,
    what: Literal["promoted", "kept", "undecided"],
    version: int,
    champion: int | None,
    reason: str,
    who: str,
    run: str = "",
    judged: str = "",
    on_wait: Waiting = lambda text: None,
) -> Line:
    """Records a decision about `version` and moves the aliases that follow from it.

    `promoted`: it is champion, and the champion of before is `previous`. `kept`, `undecided`: it is `challenger`.

    Raises:
        OvertakenError: `champion` is not the champion any more.
        UserError: there is no such version, or MLflow cannot be reached.
    """

    def plan(aliases: dict[str, int]) -> Turn:
        if aliases.get(CHAMPION) != champion:
            raise OvertakenError(
                f"{name}: version {aliases.get(CHAMPION)} became champion while version {version} was judged against "
                f"version {champion}: judge it again"
            )
        after: dict[str, int | None] = {CHALLENGER: version}
        if what == "promoted":
            after = {CHAMPION: version}
            if champion is not None:
                after[PREVIOUS] = champion
            if aliases.get(CHALLENGER) == version:
                after[CHALLENGER] = None
        return Turn(
            what=what,
            version=version,
            champion=champion,
            # A crash leaves a champion, whichever of them it is.
            moves=_moves(aliases, after, (PREVIOUS, CHAMPION, CHALLENGER)),
            reason=reason[:2000],
            who=who[:200],
            when=now(),
            run=run,
            judged=judged,
        )

    mlflow = client()
    with reaching_mlflow():
        find_version(mlflow, name, version)
        line = _take_turn(mlflow, name, plan, on_wait)
        _export(versions_of(mlflow, name), promoted=what == "promoted")
        return line


def rollback(
    name: str, reason: str, who: str, on_wait: Waiting = lambda text: None
) -> tuple[ModelVersion, ModelVersion]:
    """Swaps champion and previous, and returns them as they are then: (champion, previous).

    Raises:
        UserError: there is no champion, or none before it.
    """
    require_store(f"{name}@{CHAMPION}")

    def plan(aliases: dict[str, int]) -> Turn:
        old, new = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if old is None or new is None or old == new:
            lacking = CHAMPION if old is None else PREVIOUS
            raise UserError(f"Model {name!r} has no {lacking} version: there is nothing to go back to")
        # Here the champion comes first: what is urgent is to be rid of the present one.
        moves = _moves(aliases, {CHAMPION: new, PREVIOUS: old}, (CHAMPION, PREVIOUS))
        return Turn(
            what="rolled back",
            version=old,
            champion=old,
            moves=moves,
            reason=reason[:2000],
            who=who[:200],
            when=now(),
        )

    mlflow = client()
    with reaching_mlflow():
        _take_turn(mlflow, name, plan, on_wait)
        versions = versions_of(mlflow, name)
        _export(versions, promoted=False)
        aliases = {alias: each for each in versions for alias in each.aliases}
        return aliases[CHAMPION], aliases[PREVIOUS]


def log(name: str) -> list[Line]:
    """The ledger of a registered model, oldest first."""
    if not store_exists():
        return []
    mlflow = client()
    with reaching_mlflow():
        ledger = find_ledger(mlflow, name)
        return ledger.lines() if ledger else []


def await_approval(name: str, version: int, reason: str) -> None:
    """Says on a version that a person must approve its promotion."""
    mlflow = client()
    with reaching_mlflow():
        tags = {"decision": AWAITING, "reason": reason, "when": now()}
        for key, value in tags.items():
            mlflow.set_model_version_tag(name, str(version), f"msrrn.{key}", value)


def finish_turn(name: str, patience: float = PATIENCE_SECONDS, on_wait: Waiting = lambda text: None) -> Line | None:
    """Finishes what a process that died was about to do; None where nothing is left over.

    Waits until it is sure that nobody is at it.
    """
    if not store_exists():
        return None
    mlflow = client()
    with reaching_mlflow():
        ledger = find_ledger(mlflow, name)
        return _finish_last(ledger, name, patience, on_wait)[1] if ledger else None


def whoami() -> str:
    """The user of this process; in a container it may have no name."""
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return "unknown"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _export(versions: Sequence[ModelVersion], promoted: bool) -> None:
    for version in versions:
        if CHAMPION in version.aliases:
            export_champion(version.version, version.tags, promoted)


def _moves(aliases: dict[str, int], after: dict[str, int | None], order: tuple[str, ...]) -> tuple[Move, ...]:
    return tuple(
        Move(alias=alias, before=aliases.get(alias), after=after[alias])
        for alias in order
        if alias in after and aliases.get(alias) != after[alias]
    )


def _take_turn(mlflow: MlflowClient, name: str, plan: Callable[[dict[str, int]], Turn], on_wait: Waiting) -> Line:
    ledger = open_ledger(mlflow, name)
    while True:
        # First the ledger, then the aliases: if its next line is still free, nobody has moved them in between.
        last, _ = _finish_last(ledger, name, PATIENCE_SECONDS, on_wait)
        turn = plan(aliases_of(mlflow, name))
        until = time.monotonic() + HOLD_SECONDS
        if ledger.take(last + 1, turn):
            _apply(mlflow, name, turn, until)
            ledger.end(last + 1, DONE)
            return Line(number=last + 1, turn=turn, end=DONE, heirs=0)


def _finish_last(ledger: Ledger, name: str, patience: float, on_wait: Waiting) -> tuple[int, Line | None]:
    """The number of the last line, which is over then; and the line itself, where it was finished here."""
    since, seen = time.monotonic(), (0, 0)
    while True:
        lines = ledger.lines()
        last = lines[-1] if lines else None
        if last is None or last.end is not None:
            return (last.number if last else 0), None
        if (last.number, last.heirs) != seen:
            since, seen = time.monotonic(), (last.number, last.heirs)
        until = time.monotonic() + HOLD_SECONDS
        if time.monotonic() - since >= patience and ledger.inherit(last, whoami()):
            how = _finish(ledger, name, last.turn, until)
            ledger.end(last.number, how)
            return last.number, last.model_copy(update={"end": how})
        on_wait(f"{last.turn.who}: version {last.turn.version} {last.turn.what}")
        time.sleep(min(_PAUSE_SECONDS, patience))


def _finish(ledger: Ledger, name: str, turn: Turn, until: float) -> str:
    current = aliases_of(ledger.mlflow, name)
    for move in turn.moves:
        if current.get(move.alias) not in (move.before, move.after):
            return f"given up: {move.alias} was moved by hand, to version {current.get(move.alias)}"
    known = {each.version for each in versions_of(ledger.mlflow, name)}
    gone = sorted({move.after for move in turn.moves if move.after} - known)
    if gone:
        for move in reversed(turn.moves):
            _point(ledger.mlflow, name, move.alias, move.before if move.before in known else None)
        return f"given up: version {gone[0]} is gone"
    _apply(ledger.mlflow, name, turn, until)
    return f"{DONE}, by {whoami()} after its process died"


def _apply(mlflow: MlflowClient, name: str, turn: Turn, until: float) -> None:
    for move in turn.moves:
        if time.monotonic() > until:
            raise UserError(
                f"{name}: moving the aliases took more than {HOLD_SECONDS:.0f} s; `msrrn reconcile` finishes it"
            )
        _point(mlflow, name, move.alias, move.after)
    for version, tags in _tags(turn).items():
        try:
            for key, value in tags.items():
                mlflow.set_model_version_tag(name, str(version), key, value)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # a version that a person deleted needs no tags
                raise


def _point(mlflow: MlflowClient, name: str, alias: str, version: int | None) -> None:
    if version is None:
        mlflow.delete_registered_model_alias(name, alias)
    else:
        mlflow.set_registered_model_alias(name, alias, str(version))


def _tags(turn: Turn) -> dict[int, dict[str, str]]:
    """What is said of a turn on the versions that it concerns."""
    about = {"msrrn.reason": turn.reason, "msrrn.who": turn.who, "msrrn.when": turn.when}
    if turn.what == "rolled back":
        new = next((move.after for move in turn.moves if move.alias == CHAMPION), None)
        tags = {turn.version: {DECISION_TAG: f"{ROLLED_BACK} to version {new}", **about}}
        if new is not None:
            tags[new] = {DECISION_TAG: f"champion again after version {turn.version}", **about}
        return tags
    own = {DECISION_TAG: _SAID[turn.what], **about, "msrrn.decision_run": turn.run, JUDGED_TAG: turn.judged}
    tags = {turn.version: own}
    if turn.champion is not None:
        met = f"version {turn.version} {_MET[turn.what]}: {turn.reason}"
        tags[turn.champion] = {"msrrn.last_challenge": met, "msrrn.last_challenge_run": turn.run}
    return tags
