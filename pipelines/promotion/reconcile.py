"""The safety net: finishes what something missed or left half done, and says what it did. Run again, it does nothing.

- A promotion or rollback whose process died between two aliases is completed, or undone
  (`pipelines.registry.turns`).
- A version that was registered and never judged, because the event was lost or its flow died, is judged.
- What a dead process holds, leases of datasets and open runs of decisions, is freed.

What only a person can do (approve, name the photos of a version, choose a champion where it was deleted, restore a
ledger) is said every time, and stops nothing.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from pipelines.errors import UserError
from pipelines.lease import free_stale
from pipelines.outages import OutageError
from pipelines.registry.evaluated_on import SOURCES_TAG
from pipelines.registry.ledger import experiment_of
from pipelines.registry.succession import AWAITING, finish_turn, log, lost_champion, show_champion
from pipelines.registry.tracking import OPENED_TAG, connected
from pipelines.registry.turns import DECISION_TAG, PATIENCE_SECONDS
from pipelines.registry.versions import CHAMPION, DIGEST_TAG, ModelVersion, models, names
from pipelines.settings import RECONCILE_MINUTES
from pipelines.storage import Store


class Finding(BaseModel):
    """Something that was not as it should be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    what: str
    done: str


Judge = Callable[[ModelVersion], str]
"""Judges a version, and says what was decided."""


def reconcile(
    judge: Judge,
    name: str | None = None,
    places: Sequence[str] = (),
    minutes: float = RECONCILE_MINUTES,
    patience: float = PATIENCE_SECONDS,
    on_wait: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Mends one registered model, or all, and the leases below `places`; returns what it found.

    Versions and runs younger than `minutes` are left alone; a turn or lease that does not change for `patience`
    seconds belongs to nobody.

    Raises:
        UserError: others are registered, but not `name`.
        OutageError: MLflow or a place cannot be reached.
    """
    found: list[Finding] = []
    for each in names(name):
        found += _as_far_as_it_goes(each, _of_model(each, judge, minutes, patience, on_wait))
    for place in places:
        found += _as_far_as_it_goes(place, _of_place(place, patience))
    return found


def _as_far_as_it_goes(where: str, found: Iterator[Finding]) -> Iterator[Finding]:
    """What is found at one model or place; what a person has to mend there keeps nobody from the others."""
    try:
        yield from found
    except OutageError:  # the others would not answer either
        raise
    except UserError as error:
        yield Finding(where=where, what="cannot be looked after", done=f"nothing: {error}")


def _of_model(
    name: str, judge: Judge, minutes: float, patience: float, on_wait: Callable[[str], None]
) -> Iterator[Finding]:
    line = finish_turn(name, patience, on_wait)
    if line:
        what = f"{line.turn.what}, version {line.turn.version}, by {line.turn.who} was cut off"
        yield Finding(where=name, what=what, done=line.end or "")
    yield from _dead_runs(name, minutes)
    versions = models(name)
    # Also what a person moved or deleted, which no command of ours has seen.
    show_champion(name, versions, log(name))
    if lost := lost_champion(name):
        yield Finding(where=name, what="its champion is gone", done=f"nothing: {lost}")
        return  # whoever is judged would be the first model
    known: set[str] = set()
    for version in reversed(versions):
        digest = version.tags.get(DIGEST_TAG, "")
        if digest not in known:  # else machines registered an artifact at once: the oldest is judged for all
            yield from _unjudged(version, judge, minutes)
        known.add(digest)


def _of_place(place: str, patience: float) -> Iterator[Finding]:
    for key in free_stale(Store(place), patience):
        yield Finding(where=f"{place}/{key}", what="a lease whose holder is dead", done="freed")


def _unjudged(version: ModelVersion, judge: Judge, minutes: float) -> list[Finding]:
    where = version.uri
    promote = shlex.join(["msrrn", "promote", "--name", version.name, "--model", where])
    if CHAMPION in version.aliases:
        return []  # a person may have made it so while it awaited approval, or before it was judged
    if version.tags.get(DECISION_TAG) == AWAITING:
        what = f"awaits approval since {version.tags.get('msrrn.when', '?')}"
        remedy = f"nothing: resume the paused flow run, or call {promote} --approve"
        return [Finding(where=where, what=what, done=remedy)]
    if DECISION_TAG in version.tags or _age(version.created_ms) < minutes:
        return []
    if DIGEST_TAG not in version.tags:
        return []  # somebody else's: no gate takes it
    what = "registered, but never judged"
    if SOURCES_TAG not in version.tags:
        remedy = f"nothing: it does not say where it was evaluated; call {promote} --data ..."
        return [Finding(where=where, what=what, done=remedy)]
    try:
        return [Finding(where=where, what=what, done=judge(version))]
    except UserError as error:
        return [Finding(where=where, what=what, done=f"nothing: {error}")]


def _dead_runs(name: str, minutes: float) -> list[Finding]:
    with connected() as mlflow:
        experiment = mlflow.get_experiment_by_name(experiment_of(name))
        if experiment is None:
            return []
        runs = mlflow.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
        dead = [run for run in runs if _age(int(run.data.tags.get(OPENED_TAG, run.info.start_time))) >= minutes]
        for run in dead:
            mlflow.set_terminated(run.info.run_id, status="KILLED")
    what = "the run of a decision that was never finished"
    return [Finding(where=f"{name}, MLflow run {run.info.run_id}", what=what, done="ended") for run in dead]


def _age(milliseconds: int) -> float:
    """Minutes; also of what was made in the future, before a clock was set back."""
    return abs(time.time() - milliseconds / 1000) / 60
