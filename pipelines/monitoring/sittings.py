"""Which annotation runs are compared: a run, and each time that pictures were added to it, is a sitting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipelines.annotation.plan import additions
from pipelines.annotation.tables import Annotations, runs_at
from pipelines.archives.names import printable
from pipelines.errors import NothingYetError, UserError

ALIKE: Final = ("model_sha256", "detector", "min_face", "max_faces", "min_score", "any_rotation", "recipe")
"""What runs must have in common, so that a difference is one of their pictures."""


@dataclass(frozen=True)
class Sitting:
    """A run, or what it did of pictures that were added later: its finished units."""

    name: str
    """the place as it was given, for people"""
    identity: tuple[str, int]
    """the place however it is given, and the number of the addition, 0 at first"""
    run: Annotations
    record: dict[str, Any]
    """`run.json`: model and settings"""
    units: tuple[str, ...]
    planned: int
    """units, with those that are not finished yet"""
    began: float


def sittings(urls: Sequence[str]) -> list[Sitting]:
    """What was done at these places, or at those directly below them, oldest first. Runs of another version, whose
    tables are not read here, are passed over beside others.

    Raises:
        NothingYetError: at one of them no run was made, or nothing of it is finished.
        UserError: all that is there is of another version.
    """
    found: dict[tuple[str, int], Sitting] = {}
    for url in urls:
        runs = [Annotations(place) for place in runs_at(url)]
        readable = [run for run in runs if run.is_of_this_version] or runs
        made = {sitting.identity: sitting for run in readable for sitting in _sittings(run)}
        if not made:
            raise NothingYetError(f"{url}: nothing is finished yet of the annotation run there")
        found |= made
    return sorted(found.values(), key=lambda sitting: sitting.began)


def _sittings(run: Annotations) -> list[Sitting]:
    store = run.store
    record, finished = run.run, set(run.units())
    found = []
    for number, (key, units) in enumerate(additions(store)):
        if done := tuple(unit for unit in units if unit in finished):
            place = printable(store.url)  # for the report
            name = f"{place}, addition {number}" if number else place
            identity = store.absolute().url, number
            found.append(Sitting(name, identity, run, record, done, len(units), store.modified(key)))
    return found


def chosen(
    found: Sequence[Sitting], most: int, reference: str | None
) -> tuple[list[Sitting], Sitting | None, list[str]]:
    """The recent runs, the one to compare them with, and what a reader should know of the choice."""
    newest = found[-1]
    alike = [run for run in found if not _differing(run, newest)]
    notes = []
    if len(alike) < len(found):
        notes.append(
            f"{len(found) - len(alike)} runs of another model, or of other settings, than the newest are set aside."
        )
    if reference is None:
        first = alike[0] if len(alike) > 1 else None
    else:
        first = sittings([reference])[0]
        if differing := _differing(first, newest):
            notes.append(f"The reference run has another {', '.join(differing)}: nothing is compared with it.")
            first = None
    others = [run for run in alike if first is None or run.identity != first.identity]
    if not others:
        raise UserError(f"{newest.name} is the reference, and there is no other run to compare with it")
    return others[-most:], first, notes


def _differing(run: Sitting, newest: Sitting) -> list[str]:
    return [name for name in ALIKE if run.record.get(name) != newest.record.get(name)]
