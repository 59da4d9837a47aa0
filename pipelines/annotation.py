"""Bulk annotation: every picture of an archive → a row with its status, every face → its landmarks.

The archive is cut into units of consecutive inputs. A unit writes one part of each table and the `.pts`
files of its faces, and last its completion record; `summary.json` comes after all of them. A run that was
killed, started again, does the units that have no record.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from msrrn.geometry import CropFrame
from msrrn.landmarks import NUM_LANDMARKS, SCHEME
from pipelines.decoding import Undecodable, decode
from pipelines.detection import Detection, Detector, open_detector
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.models import Model
from pipelines.pyramid import crop, frame_around
from pipelines.settings import AnnotateSettings
from pipelines.sources.archive import Archive, open_archive
from pipelines.sources.pts import format_pts
from pipelines.storage import Store

SCHEMA_VERSION: Final = "1"
RUN: Final = "run.json"
SUMMARY: Final = "summary.json"
MAX_NAME: Final = 200
"""Bytes of a file name; file systems end at 255."""
MAX_FOLDERS: Final = 600
"""Bytes of a picture's folders; a path ends at 4096, and making folders goes one call deeper for each."""
STATUSES: Final = ("annotated", "no_face", "quarantined")

_METADATA: Final = {
    "msrrn.schema": SCHEMA_VERSION,
    "msrrn.scheme": SCHEME,
    "msrrn.coordinates": "0-based pixel centres of the upright image, x before y",
}

IMAGES: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("faces", pa.int32(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("orientation", pa.int32()),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),
    ],
    metadata=_METADATA,
)
"""One row for every input, in input order; width and height are the upright image's."""

FACES: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("face_index", pa.int32(), nullable=False),
        pa.field("box", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("detector", pa.string(), nullable=False),
        pa.field("detector_score", pa.float64(), nullable=False),
        pa.field("landmarks", pa.list_(pa.float32(), 2 * NUM_LANDMARKS), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
    ],
    metadata=_METADATA,
)
"""One row for every face, largest box first within its image."""


class Summary(BaseModel):
    """`summary.json`: images = annotated + no_face + quarantined."""

    images: int
    annotated: int
    no_face: int
    quarantined: int
    faces: int
    ignored: int
    """files beside the pictures that are no input: annotations, tables, hidden files"""
    reasons: dict[str, int]
    model: str
    settings: dict[str, Any]
    digest: str
    """SHA-256 over the SHA-256 of every part"""


class UnitRecord(BaseModel):
    """The completion record of a unit; `inputs` names what it was made from."""

    inputs: str
    parts: dict[str, str]
    statuses: dict[str, int]
    reasons: dict[str, int]
    faces: int


@dataclass(frozen=True)
class Job:
    """What every unit of a run shares."""

    out: Store
    model: Model
    settings: AnnotateSettings
    detector: Detector


def annotate(
    source: str,
    out: str,
    model: Model,
    settings: AnnotateSettings,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Annotates every picture of a folder or tar into `out`; finished units are not done again.

    Raises:
        UserError: the source cannot be listed, or `out` holds a run of another model or other settings.
    """
    archive = open_archive(source)
    archive = replace(archive, url=Store(archive.url).absolute().url)
    job = Job(Store(out).absolute(), model, settings, open_detector(settings.detector))
    _claim(job, source)
    size = settings.images_per_unit
    parts = {
        f"{start // size:05d}": archive.part(start, start + size) for start in range(0, len(archive.items), size)
    }
    # Parts beyond the end are of an archive that was larger; they become empty, and stay out of the summary.
    written = {key.rpartition("part-")[2].removesuffix(".parquet") for key in job.out.keys("images")}
    beyond = {key: archive.part(0, 0) for key in sorted(written - parts.keys())}
    records = _finished(job.out, parts | beyond)
    done = sum(len(parts[key].items) for key in records.keys() & parts.keys())
    progress(done, len(archive.items))
    pending = [(key, part) for key, part in (parts | beyond).items() if key not in records]
    for key, record in run_units(_annotate_unit, job, pending, workers):
        records[key] = record
        done += len(parts[key].items) if key in parts else 0
        progress(done, len(archive.items))
    summary = _summary(job, archive, [records[key] for key in parts])
    job.out.publish(SUMMARY, summary.model_dump_json(indent=1).encode())
    return summary


def read_table(out: Store, table: str) -> pa.Table:
    """The whole `images` or `faces` table of a run, in input order."""
    parts = [pq.read_table(io.BytesIO(out.read_bytes(key))) for key in out.keys(table)]
    return pa.concat_tables(parts) if parts else (IMAGES if table == "images" else FACES).empty_table()


def _claim(job: Job, source: str) -> None:
    """Writes what this run is, or checks that the run that is there is the same."""
    mine = {
        "source": source,
        "model": job.model.label,
        "model_sha256": job.model.digest,
        "schema": SCHEMA_VERSION,
        **job.settings.model_dump(),
    }
    if job.out.create(RUN, json.dumps(mine, indent=1).encode()):
        return
    try:
        theirs = dict(json.loads(job.out.read_bytes(RUN)))
    except (ValueError, TypeError) as error:
        raise UserError(f"{job.out.url}/{RUN} is not the record of a run ({error}); give another --out") from error
    for field, value in mine.items():
        if theirs.get(field) != value:
            raise UserError(
                f"{job.out.url} holds a run with {field} = {theirs.get(field)}, this one has {value}; "
                "give another --out, or delete that one"
            )


def _inputs(part: Archive) -> str:
    """Names a unit's inputs by name and size: a picture that another of its size replaced is not noticed."""
    text = "\n".join(f"{item.uri}\t{item.size}\t{item.problem}" for item in part.items)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _finished(out: Store, parts: dict[str, Archive]) -> dict[str, UnitRecord]:
    records = {}
    written = {*out.keys("images"), *out.keys("faces")}
    for key in out.keys("records"):
        unit = key.removeprefix("records/").removesuffix(".json")
        if unit not in parts or not {f"{table}/part-{unit}.parquet" for table in ("images", "faces")} <= written:
            continue
        try:
            record = UnitRecord.model_validate_json(out.read_bytes(key))
        except ValidationError:
            continue  # a damaged record stands for nothing: the unit is done again
        if record.inputs == _inputs(parts[unit]):
            records[unit] = record
    return records


def _annotate_unit(job: Job, unit: tuple[str, Archive]) -> tuple[str, UnitRecord]:
    key, archive = unit
    images: list[dict[str, Any]] = []
    found: list[tuple[dict[str, Any], Detection, CropFrame]] = []
    crops: list[np.ndarray[Any, Any]] = []
    for item, data in archive.read(archive.items):
        image, detections, faces = _look(item.uri, item.size, data, job)
        images.append(image)
        for detection, (frame, pixels) in zip(detections, faces, strict=True):
            found.append((image, detection, frame))
            crops.append(pixels)
    faces_rows = _face_rows(job, found, crops)
    parts = {}
    for table, schema, rows in (("images", IMAGES, images), ("faces", FACES, faces_rows)):
        data = _encode(schema, rows)
        job.out.publish(f"{table}/part-{key}.parquet", data)
        parts[table] = hashlib.sha256(data).hexdigest()
    for row in faces_rows:
        shape = np.asarray(row["landmarks"], np.float64).reshape(NUM_LANDMARKS, 2)
        job.out.publish(_pts_key(row["uri"], row["face_index"]), format_pts(shape))
    record = UnitRecord(
        inputs=_inputs(archive),
        parts=parts,
        statuses=dict(sorted(Counter(row["status"] for row in images).items())),
        reasons=dict(sorted(Counter(row["reason"] for row in images if row["reason"]).items())),
        faces=len(faces_rows),
    )
    job.out.publish(f"records/{key}.json", record.model_dump_json().encode())
    return key, record


def _look(
    uri: str, size: int, data: bytes | Undecodable, job: Job
) -> tuple[dict[str, Any], list[Detection], list[tuple[CropFrame, np.ndarray[Any, Any]]]]:
    """One input: its row, its faces, and their crops. Whatever goes wrong with it stays in its row."""
    row: dict[str, Any] = dict.fromkeys(IMAGES.names) | {"uri": uri, "bytes": size, "faces": 0}
    try:
        if isinstance(data, Undecodable):
            raise data
        row["sha256"] = hashlib.sha256(data).hexdigest()
        photo = decode(data)
        row["height"], row["width"] = photo.rgb.shape[:2]
        row["orientation"] = photo.orientation
        detections = job.detector(photo.rgb)
        frames = [frame_around(detection.box, job.model.card.crop_margin) for detection in detections]
        crops = [(frame, crop(photo.rgb, frame)) for frame in frames]
    except Undecodable as error:
        return row | {"status": "quarantined", "reason": error.reason, "message": error.message}, [], []
    except Exception as error:
        # A picture that upsets a library is a fact about the picture; the run goes on without it.
        message = f"{type(error).__name__}: {str(error)[:200]}"
        return row | {"status": "quarantined", "reason": "failed", "message": message}, [], []
    status = "annotated" if detections else "no_face"
    return row | {"status": status, "faces": len(detections)}, detections, crops


def _face_rows(
    job: Job,
    found: Sequence[tuple[dict[str, Any], Detection, CropFrame]],
    crops: Sequence[np.ndarray[Any, Any]],
) -> list[dict[str, Any]]:
    if not found:
        return []
    prediction = job.model.predictor.predict(np.stack(crops))
    rows: list[dict[str, Any]] = []
    for index, (image, detection, frame) in enumerate(found):
        first = index == 0 or found[index - 1][0] is not image
        shape = frame.shape_to_upright(prediction.shapes[index].astype(np.float64))
        rows.append(
            {
                "uri": image["uri"],
                "sha256": image["sha256"],
                "face_index": 0 if first else rows[-1]["face_index"] + 1,
                "box": detection.box.edges,
                "detector": job.settings.detector,
                "detector_score": detection.score,
                "landmarks": shape.astype(np.float32).ravel(),
                "confidence": prediction.confidence[index],
                "model": job.model.card.name,
                "model_version": job.model.card.version,
            }
        )
    return rows


def _encode(schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> bytes:
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def _pts_key(uri: str, face_index: int) -> str:
    """`pts/` + the picture's own path + the face's index: it joins back. Members of one name in a tar share it.

    What no file system holds is shortened to its beginning and a digest.
    """
    folder, _, name = uri.rpartition("/")
    deep = len(folder.encode()) > MAX_FOLDERS
    parts = [_digested(folder)] if deep else [_file_name(part) for part in folder.split("/") if part]
    return "/".join(("pts", *parts, f"{_file_name(name)}.{face_index}.pts"))


def _file_name(part: str) -> str:
    # A folder that ends in .pts could have the name of another picture's file.
    unusable = len(part.encode()) > MAX_NAME or "\0" in part or part.endswith(".pts")
    return _digested(part) if unusable else part


def _digested(name: str) -> str:
    return name[:40].replace("\0", "_").replace("/", "_") + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]


def _summary(job: Job, archive: Archive, records: Sequence[UnitRecord]) -> Summary:
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    digest = hashlib.sha256()
    for record in records:
        statuses.update(record.statuses)
        reasons.update(record.reasons)
        digest.update("".join(record.parts[table] for table in sorted(record.parts)).encode())
    counts = {status: statuses[status] for status in STATUSES}
    assert sum(counts.values()) == len(archive.items), (counts, len(archive.items))
    return Summary(
        images=len(archive.items),
        **counts,
        faces=sum(record.faces for record in records),
        ignored=archive.ignored,
        reasons=dict(reasons.most_common()),
        model=job.model.label,
        settings=job.settings.model_dump(),
        digest=digest.hexdigest(),
    )
