"""Removes pictures from annotation runs, by the digests of their bytes, and keeps them out.

Every input keeps its row, so that the run still accounts for all of its archive; of a picture that was forgotten
the row has the name alone, and its faces have none.
"""

from collections import Counter
from collections.abc import Collection

from pipelines.annotation.page import annotation_page
from pipelines.annotation.records import RECORDS, STAGED, UnitRecord
from pipelines.annotation.summary import summary_before, totals
from pipelines.annotation.tables import PAGE, RUN, SUMMARY, TABLES, Annotations, part_key, runs_at, unit_of, without
from pipelines.annotation.unit import read_record, write_unit
from pipelines.forgotten import Forgot, forgot_at, read_forgotten, remember, remember_found
from pipelines.lease import hold
from pipelines.progress import Progress
from pipelines.storage import Store


def forget_in_run(place: Store, digests: Collection[str], progress: Progress) -> Forgot:
    """Removes pictures from the run at a place; going on with it leaves them out."""
    place = place.absolute()
    with hold(place, lambda note: progress(0, 0, f"a run is at work there ({note}): waiting")):
        remember(place, digests)
        wanted = read_forgotten(place).digests
        annotations = Annotations(place)
        _drop_unfinished(place)
        holding: list[str] = []
        found: dict[str, list[int]] = {}
        units = annotations.units()
        for number, unit in enumerate(units, start=1):
            rows = Counter(digest for digest in annotations.images(unit)["sha256"].to_pylist() if digest in wanted)
            for digest, count in rows.items():
                found.setdefault(digest, []).append(count)
            if rows:
                holding.append(unit)
            progress(number, len(units), "looking through units")
        remember_found(place, found)
        for unit in holding:
            _rewrite(place, unit, wanted)
        _summarise(place)
        place.sweep()
    return forgot_at(place, digests, found)


def readable_runs(url: str) -> list[Store]:
    """The run at this place, or those directly below it.

    Raises:
        UserError: there is none, or one is of another version: nothing would be found in it.
    """
    runs = runs_at(url)
    for place in runs:
        _ = Annotations(place).run  # it raises
    return runs


def keep_out(place: Store, digests: Collection[str], progress: Progress) -> None:
    """Where a place is a folder of runs: keeps pictures out of those that begin there later, as of a new champion."""
    place = place.absolute()
    if place.exists(RUN):
        return
    with hold(place, lambda note: progress(0, 0, "another call is forgetting there: waiting")):
        remember(place, digests)


def _drop_unfinished(place: Store) -> None:
    """Deletes records without their parts, and parts without a record: the run makes them again.

    What was staged is put in its place.
    """
    records = {unit: key for key in place.keys(RECORDS) if (unit := unit_of(key))}
    recorded = {unit for unit in records if read_record(place, unit) is not None}
    finished = recorded & Annotations(place).whole_units()
    kept = {part_key(table, unit) for table in TABLES for unit in finished}
    stray = {key for folder in (*TABLES, STAGED) for key in place.keys(folder) if unit_of(key)} - kept
    for key in (*(records[unit] for unit in records.keys() - finished), *stray):
        place.delete(key)


def _rewrite(place: Store, unit: str, wanted: Collection[str]) -> None:
    record = read_record(place, unit)
    assert record is not None, unit
    annotations = Annotations(place)
    tables = without(wanted, annotations.images(unit).to_pylist(), annotations.faces(unit).to_pylist())
    write_unit(place, unit, record.inputs, tables, again=True)


def _summarise(place: Store) -> None:
    """Counts and draws again what a finished run said of itself: its page may show the pictures."""
    before = summary_before(place)
    # Where units are missing, or what the run said of itself is damaged, the next one says it anew.
    if before is None or not Annotations(place).finished:
        place.delete(PAGE)
        place.delete(SUMMARY)
        return
    records: dict[str, UnitRecord] = {}
    for unit in Annotations(place).units():
        record = read_record(place, unit)
        assert record is not None, unit
        records[unit] = record.model_copy(update={"inputs": []})
    summary = before.model_copy(update=totals(records))
    place.publish(PAGE, annotation_page(Annotations(place), summary).encode())
    place.publish(SUMMARY, summary.model_dump_json(indent=1).encode())
