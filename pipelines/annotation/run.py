"""Bulk annotation: every picture of an archive → a row with its status, every face → its landmarks.

The archive is cut into units of consecutive inputs (`pipelines.annotation.plan`). A unit writes one part of each
table, and last its completion record (`pipelines.annotation.unit`); `summary.json` and the page come after
all of them. A run that was killed, started again, does the units that have no record.
"""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from pipelines.annotation.claim import claim_of, continued, publish_claim
from pipelines.annotation.page import PAGE, annotation_page
from pipelines.annotation.pictures import end_sandbox
from pipelines.annotation.plan import Plan, Unit, fingerprint, make_plan
from pipelines.annotation.readying import prepared
from pipelines.annotation.sightings import Task
from pipelines.annotation.tables import REASONS, STATUSES, SUMMARY, Annotations
from pipelines.annotation.unit import (
    RECORDS,
    STAGED,
    TABLES,
    Job,
    Pending,
    UnitRecord,
    annotate_unit,
    read_record,
)
from pipelines.archives import list_inputs
from pipelines.detection import open_detector
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.forgotten import read_forgotten
from pipelines.lease import LEASE, hold
from pipelines.models import Model
from pipelines.outages import MissingError
from pipelines.progress import Progress
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store

READS_AT_ONCE: Final = 16
"""Records that are read at the same time: on S3 each takes a while."""
_OF_A_UNIT: Final = re.compile(rf"(?:{RECORDS}/|(?:{'|'.join(TABLES)})/part-)(\d{{6,}})\.(?:json|parquet)")
"""The key of a record or of a part, and the unit's own."""


class Throughput(BaseModel):
    """Of the last run that had something to do: pictures done in it, and how fast."""

    pictures: int
    seconds: float
    pictures_per_second: float
    workers: int


class Summary(BaseModel):
    """`summary.json`: images = annotated + no_face + quarantined."""

    images: int
    annotated: int
    no_face: int
    quarantined: int
    faces: int
    ignored: int
    """files beside the pictures that are no input: annotations, tables, hidden files"""
    gone: int
    """images that were in the archive when they were done, and are no longer"""
    reasons: dict[str, int]
    model: str
    settings: dict[str, Any]
    digest: str
    """SHA-256 over the SHA-256 of every part"""
    throughput: Throughput | None = None


@dataclass(frozen=True)
class Again:
    """Which finished pictures are to be done again: those of a status, or of one reason."""

    status: str
    reason: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Again":
        """`quarantined`, `quarantined:timeout` or `no_face`; raises ValueError for anything else."""
        status, _, reason = text.partition(":")
        if status not in STATUSES or (reason and status != "quarantined"):
            raise ValueError(
                f"{text!r}: write no_face, quarantined, or quarantined:REASON, as in quarantined:timeout"
            )
        if reason and reason not in REASONS:
            close = get_close_matches(reason, REASONS, 1)
            raise ValueError(f"{text!r}: there is no such reason{f'; is it {close[0]}?' if close else ''}")
        return cls(status, reason or None)

    def counts_in(self, record: UnitRecord) -> bool:
        return bool(record.reasons.get(self.reason) if self.reason else record.statuses.get(self.status))

    def rows(self, annotations: Annotations, unit: str) -> set[int]:
        columns = annotations.images(unit).select(["status", "reason"]).to_pylist()
        return {
            row
            for row, image in enumerate(columns)
            if image["status"] == self.status and self.reason in {None, image["reason"]}
        }


def annotate(
    source: str,
    out: str,
    model: Model,
    settings: AnnotateSettings,
    workers: int,
    progress: Progress = lambda done, total, what: None,
    *,
    limit: int | None = None,
    again: Again | None = None,
) -> Summary:
    """Annotates every picture of an archive into `out`; what is finished is not done again, but for `again`.

    Pictures that came into the archive since, or were replaced in it, are done; the rows of those that were
    removed stay. With `limit` only the first pictures of the archive count.

    Raises:
        UserError: the source cannot be listed, or `out` holds a run of another model or other settings.
    """
    place = Store(out).absolute()
    archive = Store(source).absolute().url
    chosen = continued(place, source, model, settings)
    detector = open_detector(chosen.detector)
    listing = list_inputs(archive, place)
    asked, inputs = prepared(model, chosen, islice(listing, limit), progress)
    with hold(place, LEASE, lambda note: progress(0, 0, f"another run is at work here ({note}): waiting")) as lease:
        since = continued(place, source, model, settings)
        if since != chosen:  # another began while this one made ready, and chose what this one has left to choose
            chosen = since
            detector = open_detector(chosen.detector)
            asked, inputs = prepared(model, chosen, inputs, progress)
        said = {"detector": detector.name, "precision": asked.precision, "engine": asked.engine}
        chosen = chosen.model_copy(update=said)
        publish_claim(place, claim_of(source, asked, chosen))
        task = Task(archive, detector, chosen, model.card.crop_margin, read_forgotten(place).digests)
        job = Job(place, asked.for_workers(), task)
        plan = make_plan(
            inputs,
            place,
            chosen.images_per_unit,
            lambda: limit is None or next(listing, None) is None,
            lambda listed: progress(listed, 0, "listing pictures"),
        )
        work = _Work(job, plan, again)
        if limit is not None and work.anew:
            raise UserError(f"{place.url} has finished units but no plan: make it anew first, without --limit")
        if limit is not None and plan.inputs > limit and work.left:
            raise UserError(
                f"{place.url}: the run has {plan.inputs} pictures already, of which {work.left} are to be done, and "
                f"cannot do the first {limit} alone: leave --limit out, or give another --out"
            )
        work.begin()

        def told(done: int) -> None:
            progress(done, plan.inputs, "annotating, pictures")
            lease.note(f"{done} of {plan.inputs} pictures")

        throughput = work.run(workers, told)
        before = summary_before(place)
        ignored, gone = listing.ignored, int(plan.gone.sum())
        if limit is not None and before:  # a part of the archive does not tell
            ignored, gone = max(ignored, before.ignored), before.gone
        summary = work.summary(ignored, gone, throughput or (before.throughput if before else None))
        # The page first: where the summary says the same as now, the page is of now, too.
        if summary != before or not place.exists(PAGE):
            place.publish(PAGE, annotation_page(Annotations(place), summary).encode())
        place.publish(SUMMARY, summary.model_dump_json(indent=1).encode())
    return summary


def totals(records: Mapping[str, UnitRecord]) -> dict[str, Any]:
    """What the records of units, by their keys, say of a run: those fields of its `Summary`."""
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    digest = hashlib.sha256()
    for _, record in sorted(records.items()):
        statuses.update(record.statuses)
        reasons.update(record.reasons)
        digest.update("".join(record.parts[table] for table in sorted(record.parts)).encode())
    return {
        "images": statuses.total(),
        **{status: statuses[status] for status in STATUSES},
        "faces": sum(record.faces for record in records.values()),
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "digest": digest.hexdigest(),
    }


class _Work:
    """The units of a plan: which are finished, and what is left to do."""

    def __init__(self, job: Job, plan: Plan, again: Again | None) -> None:
        self._job = job
        self._plan = plan
        self._records: dict[str, UnitRecord] = {}
        self._left: dict[str, tuple[int, ...]] = {}
        self._recorded: set[str] = set()
        there = [key for folder in (RECORDS, *TABLES) for key in job.out.keys(folder)]
        planned = set(plan.keys())
        self._strays = [key for key in there if (own := _OF_A_UNIT.fullmatch(key)) and own[1] not in planned]
        written = set(there)
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            read = pool.map(
                lambda key: read_record(job.out, key) if f"{RECORDS}/{key}.json" in written else None, plan.keys()
            )
            for unit, record in zip(plan.units(), read, strict=True):
                if record is not None:
                    self._recorded.add(unit.key)
                whole = {f"{table}/part-{unit.key}.parquet" for table in TABLES} <= written
                self._judge(unit, record if whole else None, again)

    @property
    def anew(self) -> bool:
        """Whether the plan was deleted since units were finished."""
        return self._plan.is_first and bool(self._recorded or self._strays)

    @property
    def left(self) -> int:
        """Pictures that are to be done."""
        return sum(len(rows) for rows in self._left.values())

    def begin(self) -> None:
        """Writes the plan down, and takes away what belongs to no unit of it."""
        out = self._job.out
        if self.anew:
            out.delete(SUMMARY)  # until all units are those of the new plan, the run is not finished
        self._plan.publish(out)
        for key in out.keys(STAGED):  # of a unit that was killed before its record
            out.delete(key)
        for key in self._strays:  # of a plan that was deleted: their inputs are in other units now
            out.delete(key)

    def run(self, workers: int, progress: Callable[[int], None]) -> Throughput | None:
        """Does what is left; None where that was nothing."""
        pictures = self.left
        done = self._plan.inputs - pictures
        progress(done)
        began = time.monotonic()
        try:
            for key, record in run_units(annotate_unit, self._job, self._pending(), workers):
                self._keep(key, record)
                done += len(self._left[key])
                progress(done)
        finally:
            end_sandbox()
        seconds = time.monotonic() - began
        if not pictures:
            return None
        rate = round(pictures / seconds, 2)
        return Throughput(pictures=pictures, seconds=round(seconds, 1), pictures_per_second=rate, workers=workers)

    def summary(self, ignored: int, gone: int, throughput: Throughput | None) -> Summary:
        """What all units together have."""
        found = totals(self._records)
        assert found["images"] == self._plan.inputs, (found, self._plan.inputs)
        return Summary(
            **found,
            ignored=ignored,
            gone=gone,
            model=self._job.model.label,
            settings=self._job.task.settings.model_dump(),
            throughput=throughput,
        )

    def _judge(self, unit: Unit, record: UnitRecord | None, again: Again | None) -> None:
        """Which rows of a unit are left: all without a record, else those that were replaced or are asked for."""
        if record is None or len(record.inputs) != len(unit.inputs):
            self._left[unit.key] = tuple(range(len(unit.inputs)))
            return
        prints = map(fingerprint, unit.inputs)
        rows = {row for row, (now, then) in enumerate(zip(prints, record.inputs, strict=True)) if now != then}
        if again is not None and again.counts_in(record):
            rows |= again.rows(Annotations(self._job.out), unit.key)
        if rows := rows - unit.gone:  # what is known of those stays
            self._left[unit.key] = tuple(sorted(rows))
        self._keep(unit.key, record)

    def _keep(self, key: str, record: UnitRecord) -> None:
        self._records[key] = record.model_copy(update={"inputs": []})  # or memory would grow with the archive

    def _pending(self) -> Iterator[Pending]:
        for unit in self._plan.units():
            if unit.key in self._left:
                yield Pending(unit, self._left[unit.key], unit.key in self._recorded)


def summary_before(place: Store) -> Summary | None:
    """The summary that is there; None where there is none, or a damaged one."""
    try:
        return Summary.model_validate_json(place.read_bytes(SUMMARY))
    except (MissingError, ValidationError):
        return None
