"""A unit of an annotation run: its pictures are annotated and its rows published.

A unit writes one part of each table and last its completion record. Where it has a record already, only the
inputs that were replaced or are to be tried again are looked at; the rows of the others are kept. Then the new
parts are staged before the record, and put in their places after it, so that a kill leaves either state whole.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.annotation.pictures import annotated
from pipelines.annotation.plan import Unit, fingerprint
from pipelines.annotation.records import RECORDS, UnitRecord, found_record, staged_key
from pipelines.annotation.sightings import Task
from pipelines.annotation.tables import TABLES, Annotations, part_key, without
from pipelines.archives import has_vanished
from pipelines.asked import Asked
from pipelines.forgotten import forgotten_of_run
from pipelines.outages import MissingError
from pipelines.storage import Store


@dataclass(frozen=True)
class Job:
    """What every unit of a run shares."""

    out: Store
    model: Asked
    task: Task


@dataclass(frozen=True)
class Pending:
    """A unit with the rows of it that are to be done; `again` where it has a record that stands until they are."""

    unit: Unit
    rows: tuple[int, ...]
    again: bool = False


def read_record(out: Store, unit: str) -> UnitRecord | None:
    """The record of a unit, its parts in their places; None where there is none, or a damaged one."""
    record = found_record(out, unit)
    if record is None or not record.staged:
        return record
    return _settled(out, unit, record).model_copy(update={"sizes": {}})  # whoever listed parts has seen the old ones


def annotate_unit(job: Job, pending: Pending) -> tuple[str, UnitRecord]:
    """Does the rows that are pending, writes the unit's parts and its record; returns its key and the record."""
    unit = pending.unit
    inputs = [fingerprint(item) for item in unit.inputs]
    images: dict[int, dict[str, Any]] = {}
    faces: dict[int, list[dict[str, Any]]] = {}
    if len(pending.rows) < len(inputs):
        before = read_record(job.out, unit.key)
        images, faces = _kept(job.out, pending)
        assert before is not None, unit.key
        # One that was replaced may have to wait: its row is of what was there.
        inputs = [before.inputs[row] if row in images else now for row, now in enumerate(inputs)]
    asked = [unit.inputs[row] for row in pending.rows]
    for row, rows in zip(pending.rows, annotated(job.task, job.model, asked), strict=True):
        images[row], faces[row] = rows.image, rows.faces
        if has_vanished(unit.inputs[row], rows.image["message"]):
            inputs[row] = ""  # where a listing finds it again, even as it was, it is done
    order = range(len(unit.inputs))
    tables = {
        "images": [images[row] for row in order],
        "faces": [face for row in order for face in faces.get(row, [])],
    }
    record = write_unit(job.out, unit.key, inputs, tables, pending.again)
    # Forgetting waits for a run, but not for one that was frozen for longer than its lease.
    forgotten = forgotten_of_run(job.out)
    if not forgotten.isdisjoint(row["sha256"] for row in tables["images"]):
        record = write_unit(job.out, unit.key, inputs, without(forgotten, **tables), again=True)
    return unit.key, record


def write_unit(
    out: Store, unit: str, inputs: list[str], tables: Mapping[str, list[dict[str, Any]]], again: bool
) -> UnitRecord:
    """Publishes rows of both tables and the record; `again`: over those of a finished unit, which stays whole."""
    data = {name: encode_table(schema, tables[name]) for name, schema in TABLES.items()}
    record = UnitRecord(
        inputs=inputs,
        parts={name: hashlib.sha256(part).hexdigest() for name, part in data.items()},
        sizes={name: len(part) for name, part in data.items()},
        statuses=dict(sorted(Counter(row["status"] for row in tables["images"]).items())),
        reasons=dict(sorted(Counter(row["reason"] for row in tables["images"] if row["reason"]).items())),
        faces=len(tables["faces"]),
        staged=again,
    )
    for name, part in data.items():
        out.publish(staged_key(name, unit) if again else part_key(name, unit), part)
    _publish(out, unit, record)
    return _settled(out, unit, record) if again else record


def encode_table(schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as the bytes of a Parquet file: the same rows, the same bytes."""
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def _kept(out: Store, pending: Pending) -> tuple[dict[int, dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """The rows of a finished unit that stay, by their place in it."""
    done = Annotations(out)
    images = dict(enumerate(done.images(pending.unit.key).to_pylist()))
    rest = iter(done.faces(pending.unit.key).to_pylist())
    faces = {row: [next(rest) for _ in range(image["faces"])] for row, image in images.items()}
    for row in pending.rows:
        images.pop(row, None)
        faces.pop(row, None)
    return images, faces


def _settled(out: Store, unit: str, record: UnitRecord) -> UnitRecord:
    """Puts staged parts in their places; whatever of it was done already is done again."""
    for name, digest in record.parts.items():
        try:
            data = out.read_bytes(staged_key(name, unit))
        except MissingError:
            continue  # it is in its place
        if hashlib.sha256(data).hexdigest() == digest:
            out.publish(part_key(name, unit), data)
    record = record.model_copy(update={"staged": False})
    _publish(out, unit, record)
    for name in record.parts:
        out.delete(staged_key(name, unit))
    return record


def _publish(out: Store, unit: str, record: UnitRecord) -> None:
    out.publish(f"{RECORDS}/{unit}.json", record.model_dump_json().encode())
