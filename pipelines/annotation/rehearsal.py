"""What an annotation run would do, and how long it would take: a listing, and a look at some of the pictures."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import ceil
from pathlib import PurePosixPath
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from pipelines.annotation.claim import refuse_a_part, require_recipe
from pipelines.annotation.pictures import Rows, annotated, end_sandbox
from pipelines.annotation.plan import Unit, fingerprint, keys_of, make_plan, overruled, unit_key
from pipelines.annotation.readying import prepared
from pipelines.annotation.records import found_record
from pipelines.annotation.sightings import Task
from pipelines.annotation.tables import RUN, Annotations
from pipelines.archives import Input, list_inputs
from pipelines.asked import Asked
from pipelines.forgotten import forgotten_of_run
from pipelines.models import Model
from pipelines.progress import Progress
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store

LOOKED_AT: Final = 48
"""Pictures: enough to tell the time within a fifth where they are alike."""
_OTHER: Final = "other"


class Rehearsal(BaseModel):
    """What is there, and what a look at a few pictures, drawn at random, makes expect."""

    pictures: int
    begun: bool
    """whether a run was begun where it would write"""
    to_do: int
    """of these pictures; all, where none was begun"""
    bytes: int
    ignored: int
    suffixes: dict[str, int]
    unusable: dict[str, int]
    """by reason, as the listing already tells"""
    detector: str
    looked_at: int
    statuses: dict[str, int]
    reasons: dict[str, int]
    faces: int
    seconds_per_picture: float
    """of one worker"""
    hours: float
    """expected for those to do, with the workers asked for, once they are started"""


def rehearse(
    source: str,
    model: Model,
    settings: AnnotateSettings,
    workers: int,
    limit: int | None = None,
    progress: Progress = lambda done, total, what: None,
    out: str | None = None,
) -> Rehearsal:
    """Lists the archive and looks at some of its pictures; writes nothing but what is kept of the model.

    `out` is where the run would write: what lies there is no part of the archive.

    Raises:
        UserError: the archive cannot be listed, or has no input, or the run at `out` is of another version, or
            cannot do the first pictures alone.
    """
    archive = Store(source).absolute().url
    place = Store(out).absolute() if out else None
    listing = list_inputs(archive, place)
    detector, asked, inputs = prepared(model, settings, islice(listing, limit), progress)
    forgotten = forgotten_of_run(place) if place else frozenset()
    task = Task(archive, detector, settings, model.card.crop_margin, forgotten)
    census = _Census()
    begun = place is not None and place.exists(RUN)
    counted = census.of(inputs, progress)
    if place and begun:
        left = _left(place, counted, settings, limit, lambda: limit is None or next(listing, None) is None)
    else:
        left = sum(1 for _ in counted)
    drawn = sorted(census.drawn, key=lambda item: (item.container, item.offset, item.uri))
    busy = min(workers, ceil(left / settings.images_per_unit)) or 1  # a unit is one worker's
    seen, each = _looked_at(task, asked.for_workers(), drawn, progress)
    return Rehearsal(
        pictures=census.pictures,
        begun=begun,
        to_do=left,
        bytes=census.bytes,
        ignored=listing.ignored,
        suffixes=dict(census.suffixes.most_common(12)),
        unusable=dict(census.unusable.most_common()),
        detector=detector.name,
        looked_at=len(seen),
        statuses=dict(Counter(rows.image["status"] for rows in seen).most_common()),
        reasons=dict(Counter(rows.image["reason"] for rows in seen if rows.image["reason"]).most_common()),
        faces=sum(len(rows.faces) for rows in seen),
        seconds_per_picture=round(each, 4),
        hours=round(each * left / busy / 3600, 3),
    )


def _looked_at(task: Task, model: Asked, drawn: Sequence[Input], progress: Progress) -> tuple[list[Rows], float]:
    """The rows of these pictures, and the seconds that each took on average, once all was started and loaded."""
    seen = []
    try:
        list(annotated(task, model, drawn[:1]))
        began = time.monotonic()
        for rows in annotated(task, model, drawn):
            seen.append(rows)
            progress(len(seen), len(drawn), "looking at some pictures")
    finally:
        end_sandbox()
    return seen, (time.monotonic() - began) / len(drawn)


def _left(
    place: Store, inputs: Iterator[Input], settings: AnnotateSettings, limit: int | None, is_whole: Callable[[], bool]
) -> int:
    """Of these pictures, those that a run which was begun at a place has to do: of unfinished units, and replaced."""
    plan = make_plan(inputs, place, settings.images_per_unit, is_whole)
    run = Annotations(place)
    done = run.whole_units()
    counts = pc.value_counts(plan.table.filter(pa.array(~plan.gone))["unit"]).to_pylist()
    unfinished = sum(int(each["counts"]) for each in counts if unit_key(each["values"]) not in done)
    touched = overruled(place)  # an earlier run may not have come to all that it saw was replaced
    if plan.addition is not None:
        touched.update(keys_of(plan.addition))
    touched &= done
    left = unfinished + sum(len(_replaced(place, unit)) for unit in plan.units() if unit.key in touched)
    if limit is not None:
        refuse_a_part(place, limit, plan.inputs, left, anew=plan.is_first and bool(run.units()))
    if left:
        require_recipe(place)
    return left


def _replaced(place: Store, unit: Unit) -> list[int]:
    """The rows of a unit that are not of what is there now."""
    record = found_record(place, unit.key)
    then = record.inputs if record and len(record.inputs) == len(unit.inputs) else [""] * len(unit.inputs)
    rows = enumerate(zip(map(fingerprint, unit.inputs), then, strict=True))
    return [row for row, (now, before) in rows if now != before and row not in unit.gone]


class _Census:
    """Counts of inputs, and a few of them drawn evenly, whatever their number (Vitter's algorithm R)."""

    def __init__(self) -> None:
        self.pictures = 0
        self.bytes = 0
        self.suffixes: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()
        self.drawn: list[Input] = []
        self._random = random.Random(0)

    def of(self, inputs: Iterator[Input], progress: Progress) -> Iterator[Input]:
        """These inputs, which are counted as they pass."""
        for item in inputs:
            self.add(item)
            if self.pictures % 10_000 == 0:
                progress(self.pictures, 0, "listing pictures")
            yield item

    def add(self, item: Input) -> None:
        self.pictures += 1
        self.bytes += item.size
        suffix = PurePosixPath(item.uri).suffix.lower()
        self.suffixes[suffix if 1 < len(suffix) <= 6 else _OTHER] += 1
        if item.problem:
            self.unusable[item.problem] += 1
        place = self._random.randrange(self.pictures)
        if len(self.drawn) < LOOKED_AT:
            self.drawn.append(item)
        elif place < LOOKED_AT:
            self.drawn[place] = item
