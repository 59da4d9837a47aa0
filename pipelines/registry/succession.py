"""Who is champion: the aliases champion, previous and challenger move here, and nowhere else.

MLflow moves one alias at a time and asks no questions: of two promotions the later would win unseen, and a crash
between two aliases leaves half a promotion. So a move is a turn of the ledger. It is written down first, aliases
before and after; writing it down is what only one of several can do, and whoever is refused looks again, finds
another champion, and must be judged against that one. Then the aliases move, and the turn ends
(`pipelines.registry.turns`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from pipelines.errors import UserError
from pipelines.metrics_export import export_champion
from pipelines.registry.before import Lost, before, way_back
from pipelines.registry.ledger import DONE, Line, Move, Turn, find_ledger, open_ledger, plain
from pipelines.registry.store import store_exists
from pipelines.registry.tracking import connected
from pipelines.registry.turns import (
    Waiting,
    finish_last,
    take_turn,
    was_rolled_back,
)
from pipelines.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    ModelVersion,
    aliases_of,
    find_version,
    require_model,
    require_store,
    versions_of,
)

AWAITING: Final = "awaits approval"


class OvertakenError(UserError):
    """What was judged is not so any more: another version became champion, or the challenger was rolled back."""


def settle(
    name: str,
    what: Literal["promoted", "kept", "undecided"],
    version: int,
    champion: int | None,
    reason: str,
    who: str,
    run: str = "",
    judged: str = "",
    known: int = 0,
    on_wait: Waiting = lambda text: None,
) -> Line:
    """Records a decision about `version` and moves the aliases that follow from it.

    `promoted`: it is champion, and the champion of before is `previous`. `kept`, `undecided`: it is `challenger`.
    A promotion that an heir of this process's own try before, or another one with the same `run`, has carried out by
    now, behind the line `known`, is not overtaken: it is done. So is what leaves the champion and is there word for
    word.

    Raises:
        OvertakenError: `champion` is not the champion any more, or `version` was rolled back.
        UserError: there is no such version, or MLflow cannot be reached.
    """

    told = plain(reason, 2000)

    def plan(lines: list[Line], aliases: dict[str, int]) -> Turn | Line:
        # Before them a model of this name, deleted since, may have had the same decision.
        since = [line for line in lines if run and line.number > known and line.done and is_this(line.turn)]
        if aliases.get(CHAMPION) != champion:
            if since and since[-1] == lines[-1]:
                return since[-1]
            raise OvertakenError(
                f"{name}: version {aliases.get(CHAMPION)} became champion while version {version} was judged against "
                f"version {champion}: judge it again"
            )
        # It may have been champion meanwhile, and the champion of before may be so again.
        _require_not_rolled_back(find_version(mlflow, name, version))
        if what != "promoted" and since and since[-1].turn.reason == told:
            return since[-1]
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
            reason=told,
            who=plain(who, 200),
            when=now(),
            run=run,
            judged=judged,
        )

    def is_this(turn: Turn) -> bool:
        return (turn.what, turn.version, turn.champion, turn.run) == (what, version, champion, run)

    with connected() as mlflow:
        find_version(mlflow, name, version)
        ledger = open_ledger(mlflow, name)
        line = take_turn(ledger, name, plan, on_wait)
        show_champion(name, versions_of(mlflow, name), ledger.lines())
        return line


def rollback(
    name: str, reason: str, who: str, on_wait: Waiting = lambda text: None, lost: Lost = lambda version: ""
) -> tuple[ModelVersion, ModelVersion | None]:
    """Swaps champion and previous, and returns them as they are then: (champion, previous).

    `lost` is asked about who would be champion (`pipelines.registry.artifacts.lost`).

    What goes is the champion of now. Where another rollback is under way, or the last turn was one that was finished
    for the dead, that was all there is to do, and `on_wait` is told so: to swap once more would bring the bad version
    back. A person may have deleted that one since: then there is no previous one. What was rolled back before comes
    back to who asks for it later, and `on_wait` is told so, too.

    Raises:
        OvertakenError: another version became champion meanwhile.
        UserError: there is no such model, no champion, or none before it that anybody could use.
    """
    require_store(f"{name}@{CHAMPION}")
    with connected() as mlflow:
        require_model(mlflow, name)
        ledger = open_ledger(mlflow, name)
        # First the ledger, then the alias: whoever moves it in between writes a line that is not known here.
        known = ledger.lines()
        if known and known[-1].end != DONE:
            known.pop()
        bad = aliases_of(mlflow, name).get(CHAMPION)

        def plan(lines: list[Line], aliases: dict[str, int]) -> Turn | Line:
            if CHAMPION not in aliases and (gone := lost_champion(name)):
                raise UserError(gone)
            for line in lines[len(known) :]:
                if line.turn.what == "rolled back" and line.done and line.turn.version != aliases.get(CHAMPION):
                    on_wait(
                        f"{line.turn.who} rolled version {line.turn.version} back: nothing is left to do (should it "
                        "be champion again after all, give it the alias in MLflow's UI)"
                    )
                    return line
            old, new = aliases.get(CHAMPION), before(mlflow, name, lines, aliases)
            if old != bad:
                raise OvertakenError(
                    f"{name}: version {old} became champion while version {bad} was to be rolled back: call again if "
                    f"version {old} is to go"
                )
            if old is None or new is None:
                lacking = CHAMPION if old is None else PREVIOUS
                raise UserError(f"Model {name!r} has no {lacking} version: there is nothing to go back to")
            if old == new:  # a person gave it back by hand
                raise UserError(
                    f"{name}: version {old} is both {CHAMPION} and {PREVIOUS}: give the alias {PREVIOUS!r} to the "
                    "version to go back to, in MLflow's UI"
                )
            back = find_version(mlflow, name, new)
            if why := lost(back):
                raise UserError(way_back(versions_of(mlflow, name), old, back, why, lost))
            if was_rolled_back(back):  # as by the second of two who see the same
                on_wait(
                    f"{name}: version {new} was rolled back itself, by {back.tags.get('msrrn.who', '?')} "
                    f"({back.tags.get('msrrn.reason', '?')}): call again if it is not to be champion"
                )
            # Here the champion comes first: what is urgent is to be rid of the present one.
            moves = _moves(aliases, {CHAMPION: new, PREVIOUS: old}, (CHAMPION, PREVIOUS))
            return Turn(
                what="rolled back",
                version=old,
                champion=old,
                moves=moves,
                reason=plain(reason, 2000),
                who=plain(who, 200),
                when=now(),
            )

        take_turn(ledger, name, plan, on_wait)
        versions = versions_of(mlflow, name)
        show_champion(name, versions, ledger.lines())
        after = {alias: each for each in versions for alias in each.aliases}
        return after[CHAMPION], after.get(PREVIOUS)


def log(name: str) -> list[Line]:
    """The ledger of a registered model, oldest first; of one that was deleted, too.

    Raises:
        UserError: others are registered, but not `name`, and it has no line; MLflow cannot be reached.
    """
    if not store_exists():
        return []
    with connected() as mlflow:
        ledger = find_ledger(mlflow, name)
        lines = ledger.lines() if ledger else []
        if not lines:
            require_model(mlflow, name, or_none=True)
        return lines


def await_approval(name: str, version: int, reason: str) -> None:
    """Says on a version that a person must approve its promotion.

    Raises:
        OvertakenError: it was rolled back.
    """
    with connected() as mlflow:
        _require_not_rolled_back(find_version(mlflow, name, version))
        tags = {"decision": AWAITING, "reason": reason, "when": now()}
        for key, value in tags.items():
            mlflow.set_model_version_tag(name, str(version), f"msrrn.{key}", value)


def lost_champion(name: str) -> str | None:
    """What to do where a model has no champion any more, as its version or the alias was deleted; else None.

    Without a champion any model would be promoted as the first one.
    """
    if not store_exists():
        return None
    with connected() as mlflow:
        # First the ledger, then the aliases: what is promoted in between is not lost.
        ledger = find_ledger(mlflow, name)
        turns = [line.turn for line in ledger.lines() if line.done] if ledger else []
        aliases = aliases_of(mlflow, name)
        rolled_back = [each.version for each in versions_of(mlflow, name) if was_rolled_back(each)]
    were = [move.after for turn in turns for move in turn.moves if move.alias == CHAMPION]
    previous = aliases.get(PREVIOUS)
    if CHAMPION in aliases or not (were or previous):
        return None
    was = f"version {were[-1]} was" if were else "there was one"
    which = f"version {previous}, the one before, or another" if previous else "one of its versions"
    if previous in rolled_back:
        which = f"one of its versions, but not to {previous}, which was rolled back,"
    return f"{name} has no champion any more ({was}): give the alias {CHAMPION!r} to {which} in MLflow's UI"


def finish_turn(name: str, patience: float, on_wait: Waiting = lambda text: None) -> Line | None:
    """Finishes what a process that died was about to do; None where nothing is left over.

    Waits until it is sure that nobody is at it.
    """
    if not store_exists():
        return None
    with connected() as mlflow:
        ledger = find_ledger(mlflow, name)
        return finish_last(ledger, name, patience, on_wait)[1] if ledger else None


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _require_not_rolled_back(version: ModelVersion) -> None:
    if was_rolled_back(version):
        raise OvertakenError(f"{version.name}: version {version.version} was rolled back while it was judged")


def show_champion(name: str, versions: Sequence[ModelVersion], lines: Sequence[Line]) -> None:
    """Who is champion among the versions of a model, and when one last became so, for dashboards."""
    best = next((version for version in versions if CHAMPION in version.aliases), None)
    when = [line.turn.when for line in lines if line.done and line.turn.what == "promoted"]
    promoted = datetime.fromisoformat(when[-1]).timestamp() if when else None
    export_champion(name, best.version if best else None, best.tags if best else {}, promoted)


def _moves(aliases: dict[str, int], after: dict[str, int | None], order: tuple[str, ...]) -> tuple[Move, ...]:
    return tuple(
        Move(alias=alias, before=aliases.get(alias), after=after[alias])
        for alias in order
        if alias in after and aliases.get(alias) != after[alias]
    )
