"""A unit of an annotation run: its pictures are looked at in a sandbox, its faces get their landmarks.

A unit writes one part of each table and last its completion record. Where it has a record already, only the
inputs that were replaced or are to be tried again are looked at; the rows of the others are kept. Then the new
parts are staged before the record, and put in their places after it, so that a kill leaves either state whole.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from msrrn.geometry import within
from msrrn.landmarks import NUM_LANDMARKS, face_roll
from pipelines.annotations import FACES, IMAGES, Annotations
from pipelines.archives import Input
from pipelines.asked import Asked
from pipelines.looking import SeenFace
from pipelines.outages import MissingError
from pipelines.plan import Unit, fingerprint
from pipelines.pyramid import sharpness
from pipelines.sandbox import Died, Sandbox
from pipelines.sightings import Sighting, Task, died, sightings
from pipelines.storage import Store

RECORDS: Final = "records"
STAGED: Final = "staged"
TABLES: Final = {"images": IMAGES, "faces": FACES}
FACES_AT_ONCE: Final = 256
"""Crops that wait for the network: 10 MB."""


class UnitRecord(BaseModel):
    """The completion record of a unit."""

    inputs: list[str]
    """fingerprints of what its rows are made from, in order"""
    parts: dict[str, str]
    """SHA-256 of each table's part"""
    statuses: dict[str, int]
    reasons: dict[str, int]
    faces: int
    staged: bool = False
    """whether the parts may still lie in `staged/`"""


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
    try:
        record = UnitRecord.model_validate_json(out.read_bytes(f"{RECORDS}/{unit}.json"))
    except (MissingError, ValidationError):
        return None  # a damaged record stands for nothing: the unit is done again
    return _settled(out, unit, record) if record.staged else record


def annotate_unit(job: Job, pending: Pending) -> tuple[str, UnitRecord]:
    """Does the rows that are pending, writes the unit's parts and its record; returns its key and the record."""
    unit = pending.unit
    images, faces = _kept(job.out, pending) if len(pending.rows) < len(unit.inputs) else ({}, {})
    asked = [unit.inputs[row] for row in pending.rows]
    for row, (sighting, rows) in zip(pending.rows, annotated(job.task, job.model, asked), strict=True):
        images[row], faces[row] = sighting.row, rows
    order = range(len(unit.inputs))
    tables = {
        "images": [images[row] for row in order],
        "faces": [face for row in order for face in faces.get(row, [])],
    }
    return unit.key, write_unit(job.out, unit.key, [fingerprint(item) for item in unit.inputs], tables, pending.again)


def write_unit(
    out: Store, unit: str, inputs: list[str], tables: Mapping[str, list[dict[str, Any]]], again: bool
) -> UnitRecord:
    """Publishes rows of both tables and the record; `again`: over those of a finished unit, which stays whole."""
    data = {name: encode_table(schema, tables[name]) for name, schema in TABLES.items()}
    record = UnitRecord(
        inputs=inputs,
        parts={name: hashlib.sha256(part).hexdigest() for name, part in data.items()},
        statuses=dict(sorted(Counter(row["status"] for row in tables["images"]).items())),
        reasons=dict(sorted(Counter(row["reason"] for row in tables["images"] if row["reason"]).items())),
        faces=len(tables["faces"]),
        staged=again,
    )
    for name, part in data.items():
        out.publish(_staged(name, unit) if again else _part(name, unit), part)
    _publish(out, unit, record)
    return _settled(out, unit, record) if again else record


def encode_table(schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as the bytes of a Parquet file: the same rows, the same bytes."""
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


_sandbox: tuple[Task, Sandbox[Task, Input, Sighting]] | None = None


def end_sandbox() -> None:
    """Ends the process in which pictures are looked at; the next unit starts another."""
    global _sandbox
    if _sandbox is not None:
        _sandbox[1].close()
    _sandbox = None


def _sandbox_of(task: Task) -> Sandbox[Task, Input, Sighting]:
    """This process's sandbox, kept from unit to unit."""
    global _sandbox
    if _sandbox is None or _sandbox[0] != task:
        end_sandbox()
        _sandbox = task, Sandbox(sightings, task, task.settings.timeout)
    return _sandbox[1]


def annotated(task: Task, model: Asked, inputs: Sequence[Input]) -> Iterator[tuple[Sighting, list[dict[str, Any]]]]:
    """What is seen in each input, and its rows of `FACES`, in order."""
    waiting: list[Sighting] = []
    faces = 0
    results = _sandbox_of(task).run(inputs)
    for item, result in zip(inputs, results, strict=True):
        waiting.append(died(item, result) if isinstance(result, Died) else result)
        faces += len(waiting[-1].faces)
        if faces >= FACES_AT_ONCE:
            yield from _with_faces(task, model, waiting)
            waiting, faces = [], 0
    yield from _with_faces(task, model, waiting)


def _with_faces(
    task: Task, model: Asked, waiting: Sequence[Sighting]
) -> Iterator[tuple[Sighting, list[dict[str, Any]]]]:
    crops = [face.crop for sighting in waiting for face in sighting.faces]
    prediction = model.on_one_core(np.stack(crops)) if crops else None
    done = 0
    for sighting in waiting:
        rows = []
        for index, face in enumerate(sighting.faces):
            assert prediction is not None
            row = _face_row(sighting, index, face, prediction.shapes[done], prediction.confidence[done])
            rows.append(row | {"detector": task.detector.name, "model": model.name, "model_version": model.version})
            done += 1
        yield sighting, rows


def _face_row(
    sighting: Sighting,
    index: int,
    face: SeenFace,
    in_crop: np.ndarray[Any, np.dtype[np.float32]],
    confidence: float,
) -> dict[str, Any]:
    shape = face.frame.shape_to_upright(in_crop.astype(np.float64)).reshape(NUM_LANDMARKS, 2)
    return {
        "uri": sighting.row["uri"],
        "sha256": sighting.row["sha256"],
        "face_index": index,
        "box": face.detection.box.edges,
        "detector_score": face.detection.score,
        "landmarks": within(shape, (sighting.row["width"], sighting.row["height"])).astype(np.float32).ravel(),
        "confidence": confidence,
        "face_roll": float(face_roll(shape)),
        "brightness": float(face.crop.mean()),
        "sharpness": sharpness(face.crop),
    }


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
            data = out.read_bytes(_staged(name, unit))
        except MissingError:
            continue  # it is in its place
        if hashlib.sha256(data).hexdigest() == digest:
            out.publish(_part(name, unit), data)
    record = record.model_copy(update={"staged": False})
    _publish(out, unit, record)
    for name in record.parts:
        out.delete(_staged(name, unit))
    return record


def _publish(out: Store, unit: str, record: UnitRecord) -> None:
    out.publish(f"{RECORDS}/{unit}.json", record.model_dump_json().encode())


def _part(table: str, unit: str) -> str:
    return f"{table}/part-{unit}.parquet"


def _staged(table: str, unit: str) -> str:
    return f"{STAGED}/{table}-{unit}.parquet"
