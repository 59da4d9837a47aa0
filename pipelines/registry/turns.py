"""How a turn of the ledger is carried out, and finished where its process died.

A turn that does not end within `PATIENCE_SECONDS` belongs to a process that died. Whoever comes next, a promotion, a
rollback or `reconcile`, is its heir, one at a time, and finishes it: the aliases that it names are made what it says.
Where they are not as that process can have left them, a person has moved one since, by hand, and the turn is given
up: people win, and nobody judges its version anew unasked. What nothing tells apart is an alias that the turn moved
and a person put back, and one that it had not come to, but for the tag by which a person says that the version was
rolled back. A process that was only frozen finds its time to write over (`HOLD_SECONDS`) and lets go.
"""

import getpass
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import dropwhile
from typing import Final

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.errors import UserError
from pipelines.registry.ledger import DONE, Ledger, Line, Move, Turn
from pipelines.registry.tracking import sent_once
from pipelines.registry.versions import ROLLED_BACK, ModelVersion, aliases_of, versions_of

HOLD_SECONDS: Final = 15.0
"""For how long a process may write aliases and tags after it wrote its turn down."""
PATIENCE_SECONDS: Final = 60.0
"""How long others wait for that, by their own clocks."""
JUDGED_TAG: Final = "msrrn.judged"
DECISION_TAG: Final = "msrrn.decision"
GIVEN_UP: Final = "given up"

_PAUSE_SECONDS: Final = 0.5
_SAID: Final = {"promoted": "promoted", "kept": "kept the champion", "undecided": "undecided"}
_AGAIN: Final = "champion again"
_MET: Final = {"promoted": "took over", "kept": "was kept out", "undecided": "undecided"}

Waiting = Callable[[str], None]
Plan = Callable[[list[Line], dict[str, int]], Turn | Line]
"""Lines and aliases → what is to be done; or the line of what did it: somebody else, or an heir of one's own try."""


def take_turn(ledger: Ledger, name: str, plan: Plan, on_wait: Waiting) -> Line:
    """Writes down what `plan` makes of the lines and aliases of now, and does it; what is done already is left so."""
    while True:
        # First the ledger, then the aliases: if its next line is still free, nobody has moved them in between.
        lines, _ = finish_last(ledger, name, PATIENCE_SECONDS, on_wait)
        turn = plan(lines, aliases_of(ledger.mlflow, name))
        if isinstance(turn, Line):
            return turn
        number = lines[-1].number + 1 if lines else 1
        until = time.monotonic() + HOLD_SECONDS
        if ledger.take(number, turn):
            _apply(ledger.mlflow, name, turn, until)
            ledger.end(number, DONE)
            return Line(number=number, turn=turn, end=DONE, heirs=0)


def finish_last(ledger: Ledger, name: str, patience: float, on_wait: Waiting) -> tuple[list[Line], Line | None]:
    """The lines, of which the last is over then; and that one, where it was finished here."""
    since, seen = time.monotonic(), (0, 0)
    while True:
        lines = ledger.lines()
        last = lines[-1] if lines else None
        if last is None or last.end is not None:
            return lines, None
        if (last.number, last.heirs) != seen:
            since, seen = time.monotonic(), (last.number, last.heirs)
            on_wait(
                f"{name}: a decision is under way (version {last.turn.version} {last.turn.what}, by "
                f"{last.turn.who}): waiting for it, at most {patience:g} s"
            )
        until = time.monotonic() + HOLD_SECONDS
        if time.monotonic() - since >= patience and ledger.inherit(last, whoami()):
            how = _finish(ledger, name, last.turn, until)
            ledger.end(last.number, how)
            finished = last.model_copy(update={"end": how})
            return [*lines[:-1], finished], finished
        time.sleep(min(_PAUSE_SECONDS, patience))


def was_rolled_back(version: ModelVersion) -> bool:
    """As the last that was decided about it."""
    return version.tags.get(DECISION_TAG, "").startswith(ROLLED_BACK)


def became_champion(version: ModelVersion) -> bool:
    """As the last that was decided about it."""
    return version.tags.get(DECISION_TAG, "").startswith((_SAID["promoted"], _AGAIN))


def whoami() -> str:
    """The user of this process; in a container it may have no name."""
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return "unknown"


def _finish(ledger: Ledger, name: str, turn: Turn, until: float) -> str:
    current = aliases_of(ledger.mlflow, name)
    versions = {each.version: each for each in versions_of(ledger.mlflow, name)}
    if turn.what != "rolled back" and turn.version in versions and was_rolled_back(versions[turn.version]):
        return f"{GIVEN_UP}: version {turn.version} was rolled back by hand"  # which its tags say already
    if move := _moved_by_hand(turn.moves, current):
        where = f"version {current[move.alias]}" if move.alias in current else "no version"
        why = f"{move.alias} was moved by hand, to {where}"
        return _give_up(ledger.mlflow, name, turn, why, until)
    gone = sorted({move.after for move in turn.moves if move.after} - versions.keys())
    if gone:
        for move in reversed(turn.moves):
            _point(ledger.mlflow, name, move.alias, move.before if move.before in versions else None, until)
        return _give_up(ledger.mlflow, name, turn, f"version {gone[0]} is gone", until)
    _apply(ledger.mlflow, name, turn, until)
    return f"{DONE}, by {whoami()} after its process died"


def _moved_by_hand(moves: Sequence[Move], current: Mapping[str, int]) -> Move | None:
    """The move that a person undid or overrode: behind the first alias that is as before, none can be as after."""
    left = list(dropwhile(lambda move: current.get(move.alias) == move.after, moves))
    for move in left:
        if (version := current.get(move.alias)) != move.before:
            return left[0] if version == move.after else move
    return None


def _give_up(mlflow: MlflowClient, name: str, turn: Turn, why: str, until: float) -> str:
    _tag(mlflow, name, {turn.version: {DECISION_TAG: GIVEN_UP, **_about(turn), "msrrn.reason": why}}, until)
    return f"{GIVEN_UP}: {why}"


def _apply(mlflow: MlflowClient, name: str, turn: Turn, until: float) -> None:
    for move in turn.moves:
        _point(mlflow, name, move.alias, move.after, until)
    _tag(mlflow, name, _tags(turn), until)


def _tag(mlflow: MlflowClient, name: str, tags: Mapping[int, Mapping[str, str]], until: float) -> None:
    for version, words in tags.items():
        try:
            for key, value in words.items():
                _send(name, until, partial(mlflow.set_model_version_tag, name, str(version), key, value))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # a version that a person deleted needs no tags
                raise


def _send(name: str, until: float, request: Callable[[], object]) -> None:
    """Sends a request, again where the server is in trouble, and not after `until`: others may be at the turn then.

    What was written late would undo what they wrote.
    """
    while True:
        if time.monotonic() > until:
            raise UserError(f"{name}: the turn took more than {HOLD_SECONDS:.0f} s; `msrrn reconcile` finishes it")
        try:
            with sent_once(HOLD_SECONDS):
                request()
            return
        except MlflowException as error:
            if error.get_http_status_code() < 500 or time.monotonic() + _PAUSE_SECONDS > until:
                raise
        time.sleep(_PAUSE_SECONDS)


def _point(mlflow: MlflowClient, name: str, alias: str, version: int | None, until: float) -> None:
    if version is None:
        _send(name, until, partial(mlflow.delete_registered_model_alias, name, alias))
    else:
        _send(name, until, partial(mlflow.set_registered_model_alias, name, alias, str(version)))


def _about(turn: Turn) -> dict[str, str]:
    return {"msrrn.reason": turn.reason, "msrrn.who": turn.who, "msrrn.when": turn.when}


def _tags(turn: Turn) -> dict[int, dict[str, str]]:
    """What is said of a turn on the versions that it concerns."""
    about = _about(turn)
    if turn.what == "rolled back":
        new = turn.champion_after
        tags = {turn.version: {DECISION_TAG: f"{ROLLED_BACK} to version {new}", **about}}
        if new is not None:
            tags[new] = {DECISION_TAG: f"{_AGAIN} after version {turn.version}", **about}
        return tags
    own = {DECISION_TAG: _SAID[turn.what], **about, "msrrn.decision_run": turn.run, JUDGED_TAG: turn.judged}
    tags = {turn.version: own}
    if turn.champion is not None:
        met = f"version {turn.version} {_MET[turn.what]}: {turn.reason}"
        tags[turn.champion] = {"msrrn.last_challenge": met, "msrrn.last_challenge_run": turn.run}
    return tags
