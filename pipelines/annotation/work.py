"""What of a plan is finished, what is left to do, and that it is done."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Final

from pipelines.annotation.pictures import end_sandbox
from pipelines.annotation.plan import PLACE, Plan, Unit, fingerprint
from pipelines.annotation.records import RECORDS, STAGED, UnitRecord
from pipelines.annotation.summary import Summary, Throughput, totals
from pipelines.annotation.tables import REASONS, SUMMARY, TABLES, Annotations, part_key, unit_of
from pipelines.annotation.unit import Job, Pending, annotate_unit, read_record
from pipelines.engine import run_units

READS_AT_ONCE: Final = 16
"""Records that are read at the same time: on S3 each takes a while."""
READS_AHEAD: Final = 64
"""Records that wait for their units: each has all of its inputs, and is read faster than it is judged."""


@dataclass(frozen=True)
class Again:
    """Which finished pictures are to be done again: those of a status, or of one reason."""

    status: str
    reason: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Again":
        """`quarantined`, `quarantined:timeout` or `no_face`; raises ValueError for anything else."""
        status, _, reason = text.partition(":")
        if status not in {"no_face", "quarantined"} or (reason and status != "quarantined"):
            raise ValueError(
                f"{text!r}: write no_face, quarantined, or quarantined:REASON, as in quarantined:timeout"
            )
        if reason and reason not in REASONS:
            close = get_close_matches(reason, REASONS, 1)
            there = f"is it {close[0]}?" if close else f"there are {', '.join(sorted(REASONS))}"
            raise ValueError(f"{text!r}: there is no such reason; {there}")
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


class Work:
    """The units of a plan: which are finished, and what is left to do."""

    def __init__(self, job: Job, plan: Plan, again: Again | None) -> None:
        self._job = job
        self._plan = plan
        self._records: dict[str, UnitRecord] = {}
        self._left: dict[str, tuple[int, ...]] = {}
        self._recorded: set[str] = set()
        self._replaced = 0
        """pictures that were replaced, and are not to be done now"""
        written = {key: size for folder in (RECORDS, *TABLES) for key, size in job.out.files(folder).items()}
        planned = set(plan.keys())
        self._strays = [key for key in written if (own := unit_of(key)) and own not in planned]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for unit, record in zip(plan.units(), self._read(pool, plan.keys(), written), strict=True):
                if record is not None:
                    self._recorded.add(unit.key)
                sizes = {table: written.get(part_key(table, unit.key)) for table in TABLES}
                whole = record is not None and None not in sizes.values() and record.sizes in ({}, sizes)
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
        if self._left or self._plan.addition is not None:
            out.delete(SUMMARY)  # until all units are those of the plan, and done, the run is not finished
        self._plan.publish(out)
        for key in filter(unit_of, out.keys(STAGED)):  # of a unit that was killed before its record
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
        busy = min(workers, len(self._left))  # a unit is one worker's
        return Throughput(pictures=pictures, seconds=round(seconds, 1), pictures_per_second=rate, workers=busy)

    def end(self) -> None:
        """Takes away what writers that were killed left half-written."""
        for folder in (PLACE, RECORDS, STAGED, *TABLES):
            self._job.out.child(folder).sweep(0)

    def summary(self, ignored: int, gone: int, new: int, throughput: Throughput | None) -> Summary:
        """What all units together have."""
        found = totals(self._records)
        assert found["images"] == self._plan.inputs, (found, self._plan.inputs)
        return Summary(
            **found,
            ignored=ignored,
            gone=gone,
            waiting=self._replaced + new,
            new=new,
            model=self._job.model.label,
            settings=self._job.task.settings.model_dump(),
            throughput=throughput,
        )

    def _read(
        self, pool: ThreadPoolExecutor, units: Iterable[str], written: Collection[str]
    ) -> Iterator[UnitRecord | None]:
        """The record of each unit, in order, where there is one."""
        left = iter(units)
        while some := list(islice(left, READS_AHEAD)):
            yield from pool.map(
                lambda key: read_record(self._job.out, key) if f"{RECORDS}/{key}.json" in written else None, some
            )

    def _judge(self, unit: Unit, record: UnitRecord | None, again: Again | None) -> None:
        """Which rows of a unit are left: all without a record, else those asked for, or those that were replaced."""
        if record is None or len(record.inputs) != len(unit.inputs):
            self._left[unit.key] = tuple(range(len(unit.inputs)))
            return
        prints = map(fingerprint, unit.inputs)
        rows = {row for row, (now, then) in enumerate(zip(prints, record.inputs, strict=True)) if now != then}
        if again is not None:
            asked = again.rows(Annotations(self._job.out), unit.key) if again.counts_in(record) else set()
            self._replaced += len(rows - asked - unit.gone)
            rows = asked
        if rows := rows - unit.gone:  # what is known of those stays
            self._left[unit.key] = tuple(sorted(rows))
        self._keep(unit.key, record)

    def _keep(self, key: str, record: UnitRecord) -> None:
        self._records[key] = record.model_copy(update={"inputs": []})  # or memory would grow with the archive

    def _pending(self) -> Iterator[Pending]:
        for unit in self._plan.units():
            if unit.key in self._left:
                yield Pending(unit, self._left[unit.key], unit.key in self._recorded)
