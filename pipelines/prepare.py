"""Annotated photographs → a dataset of shards: detect, crop, pyramid, augment, write.

A dataset is a directory named by the digest of its inputs and settings. Photos are cut into units; a
unit makes one shard and, last, one completion record; the manifest comes after all of them. A run that
was killed, started again, does the units that have no record and ends with the same bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ValidationError

from msrrn.augmentation import add_noise, draw, generator, mirror_shape
from pipelines.decoding import Photo, Undecodable, decode
from pipelines.detection import Detection, HogDetector
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.photos import PhotoGroup, assign_splits, boxed_faces, group_photos
from pipelines.pyramid import crop, frame_around, padding, pyramid
from pipelines.settings import PrepareSettings
from pipelines.shards import (
    MANIFEST,
    SCHEMA_VERSION,
    TRAINED_SPLITS,
    LeftOut,
    Manifest,
    ShardEntry,
    Split,
    encode_shard,
    read_manifest,
)
from pipelines.sources import AnnotatedPhoto
from pipelines.storage import Store

RECIPE: Final = 2
"""Part of every dataset's name. Raise it with any change of code that changes shards: detection, cropping, draws."""


@dataclass(frozen=True, eq=False)
class Unit:
    """The work of one shard."""

    key: str
    split: Split
    photos: tuple[PhotoGroup, ...]


@dataclass(frozen=True)
class Plan:
    """What a run of `prepare` will do, and what it leaves out before looking at any pixel."""

    name: str
    dataset: Store
    units: tuple[Unit, ...]
    left_out: tuple[LeftOut, ...]
    faces_in: int


class UnitRecord(BaseModel):
    """The completion record of a unit."""

    shard: ShardEntry | None
    faces: dict[str, int]
    missed: int
    left_out: list[LeftOut]


def plan(
    sources: Sequence[str], out: str, settings: PrepareSettings, step: Callable[[], None] = lambda: None
) -> Plan:
    """Reads every input once, assigns splits, names the dataset and cuts the work into units.

    Raises:
        UserError: a source is missing or has no annotations, or a photo is in two splits.
    """
    groups, left_out = group_photos(sources, step)
    faces_in = sum(len(group.faces) for group in groups) + len(left_out)
    split_of = assign_splits(groups, settings.val_share)
    for group in groups:
        if split_of[group.sha256] == "test":
            left_out.extend(
                LeftOut(uri=face.annotation_uri, reason="test_split", message="test photos are never trained on")
                for face in group.faces
            )
    name = _dataset_name(groups, split_of, settings)
    units = []
    for split in TRAINED_SPLITS:
        photos = [group for group in groups if split_of[group.sha256] == split]
        size = settings.photos_per_shard
        units += [
            Unit(f"{split}-{start // size:05d}", split, tuple(photos[start : start + size]))
            for start in range(0, len(photos), size)
        ]
    left_out.sort(key=lambda item: (item.uri, item.reason))
    return Plan(name, Store(out).child(name), tuple(units), tuple(left_out), faces_in)


def prepare(
    sources: Sequence[str],
    out: str,
    settings: PrepareSettings,
    workers: int,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> tuple[Store, Manifest]:
    """Makes the dataset below `out`, or finds it finished; returns its place and its manifest.

    `progress(done, total, what)` is called as work goes on.

    Raises:
        UserError: a source is unusable, or not one face is left to train on.
    """
    read = 0

    def step() -> None:
        nonlocal read
        read += 1
        progress(read, 0, "reading annotations")

    work = plan(sources, out, settings, step)
    if work.dataset.exists(MANIFEST):
        progress(len(work.units), len(work.units), "shards made before, reused")
        return work.dataset, read_manifest(work.dataset)
    records = _finished(work)
    pending = [unit for unit in work.units if unit.key not in records]
    progress(len(records), len(work.units), "making shards")
    for key, record in run_units(_make_shard, (work.dataset.absolute(), settings), pending, workers):
        records[key] = record
        progress(len(records), len(work.units), "making shards")
    manifest = _manifest(work, [records[unit.key] for unit in work.units], settings)
    if not manifest.counts["train"]:
        reasons = Counter(item.reason for item in manifest.left_out)
        listed = ", ".join(f"{reason} × {count}" for reason, count in reasons.most_common(4))
        raise UserError(f"{', '.join(sources)}: no face is left to train on ({listed or 'no inputs'})")
    work.dataset.publish(MANIFEST, manifest.model_dump_json(indent=1).encode())
    return work.dataset, manifest


def _dataset_name(groups: Sequence[PhotoGroup], split_of: dict[str, str], settings: PrepareSettings) -> str:
    digest = hashlib.sha256(f"{SCHEMA_VERSION} {RECIPE}\n{settings.model_dump_json()}\n".encode())
    for group in groups:
        digest.update(f"{group.sha256} {split_of[group.sha256]}\n".encode())
        for face in group.faces:
            digest.update(f"{face.uri} {face.annotation_uri} {face.subset}\n".encode())
            digest.update(np.ascontiguousarray(face.shape, "<f8").tobytes())
    return digest.hexdigest()[:16]


def _finished(work: Plan) -> dict[str, UnitRecord]:
    known = {unit.key for unit in work.units}
    shards = work.dataset.sizes("shards")
    records = {}
    for key in work.dataset.keys("records"):
        unit = key.removeprefix("records/").removesuffix(".json")
        if unit in known:
            try:
                record = UnitRecord.model_validate_json(work.dataset.read_bytes(key))
            except ValidationError:
                continue  # a damaged record stands for nothing: the unit is done again
            # A damaged shard is mended by deleting it: its record then stands for nothing.
            if record.shard is None or shards.get(record.shard.key) == record.shard.bytes:
                records[unit] = record
    return records


def _make_shard(shared: tuple[Store, PrepareSettings], unit: Unit) -> tuple[str, UnitRecord]:
    dataset, settings = shared
    rows: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    for group in unit.photos:
        photo_rows, rejected = _photo_rows(group, unit.split, settings)
        rows += photo_rows
        left_out += rejected
    originals = [row for row in rows if row["copy"] == 0]
    shard = None
    if rows:
        data = encode_shard(rows, settings.model_dump_json())
        key = f"shards/{unit.key}.parquet"
        dataset.publish(key, data)
        digest = hashlib.sha256(data).hexdigest()
        shard = ShardEntry(key=key, split=unit.split, rows=len(rows), bytes=len(data), sha256=digest)
    record = UnitRecord(
        shard=shard,
        faces=dict(sorted(Counter(row["source"] for row in originals).items())),
        missed=sum(not row["detected"] for row in originals),
        left_out=left_out,
    )
    dataset.publish(f"records/{unit.key}.json", record.model_dump_json().encode())
    return unit.key, record


def _photo_rows(
    group: PhotoGroup, split: Split, settings: PrepareSettings
) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    try:
        photo = decode(group.faces[0].read())
    except Undecodable as error:
        return [], [
            LeftOut(uri=face.annotation_uri, reason=error.reason, message=error.message) for face in group.faces
        ]
    detections = HogDetector()(photo.rgb)
    rows: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    for index, (face, detection) in enumerate(boxed_faces(group, photo, detections, left_out)):
        copies = settings.augmentation.copies if split == "train" else 0
        rows += [_sample(group, face, index, photo, detection, split, copy, settings) for copy in range(copies + 1)]
    return rows, left_out


def _sample(
    group: PhotoGroup,
    face: AnnotatedPhoto,
    index: int,
    photo: Photo,
    boxed: tuple[Detection, bool],
    split: Split,
    copy: int,
    settings: PrepareSettings,
) -> dict[str, Any]:
    detection, detected = boxed
    face_id = f"{group.sha256}:{index}"
    rng = generator(settings.seed, face_id, copy)
    drawn = draw(settings.augmentation, rng, copy)
    frame = frame_around(
        detection.box,
        settings.crop_margin,
        drawn.shift,
        drawn.scale,
        np.deg2rad(drawn.roll),
        drawn.mirrored,
    )
    levels = pyramid(add_noise(crop(photo.rgb, frame), drawn.noise_sigma, rng))
    shape = frame.shape_to_crop(face.shape)
    if drawn.mirrored:
        shape = mirror_shape(shape)
    height, width = photo.rgb.shape[:2]
    return {
        "face_id": face_id,
        "photo_uri": face.uri,
        "photo_sha256": group.sha256,
        "face_index": index,
        "annotation_uri": face.annotation_uri,
        "source": face.subset,
        "split": split,
        "copy": copy,
        "image_200": levels.level_200,
        "image_100": levels.level_100,
        "image_50": levels.level_50,
        "landmarks": shape.astype(np.float32).ravel(),
        "to_crop": np.hstack([frame.to_crop.matrix, frame.to_crop.offset[:, None]]).ravel(),
        "box": detection.box.edges,
        "detected": detected,
        "detector_score": detection.score if detected else None,
        "padding": padding(frame, width, height),
        "roll": drawn.roll,
        "mirrored": drawn.mirrored,
        "shift": drawn.shift,
        "scale": drawn.scale,
        "noise_sigma": drawn.noise_sigma,
    }


def _manifest(work: Plan, records: Sequence[UnitRecord], settings: PrepareSettings) -> Manifest:
    faces: dict[str, Counter[str]] = {}
    left_out = list(work.left_out)
    for unit, record in zip(work.units, records, strict=True):
        for source, count in record.faces.items():
            faces.setdefault(source, Counter())[unit.split] += count
        left_out += record.left_out
    total = {split: sum(count[split] for count in faces.values()) for split in TRAINED_SPLITS}
    shards = [record.shard for record in records if record.shard]
    counts: dict[str, int] = {
        "faces_in": work.faces_in,
        "train": total["train"],
        "val": total["val"],
        "left_out": len(left_out),
        "photos": sum(len(unit.photos) for unit in work.units),
        "rows": sum(shard.rows for shard in shards),
    }
    assert counts["faces_in"] == sum(total.values()) + len(left_out), counts
    return Manifest(
        name=work.name,
        code_version=version("msrrn"),
        settings=json.loads(settings.model_dump_json()),
        counts=counts,
        faces_by_source={source: dict(sorted(faces[source].items())) for source in sorted(faces)},
        missed=sum(record.missed for record in records),
        shards=shards,
        left_out=sorted(left_out, key=lambda item: (item.uri, item.reason)),
    )
