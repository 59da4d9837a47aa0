"""Annotated photographs → a dataset of shards: detect, crop, pyramid, augment, write.

Photos are cut into units; a unit makes one shard and, last, one completion record; the manifest comes after
all of them. A run that was killed, started again, does the units that have no record and ends with the same
bytes. A unit is named by what is in it, so a dataset that grew shares the shards that stayed the same, and
in the others copies the rows of photos that were done before.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archives.ahead import begun
from pipelines.checks import shifted_source
from pipelines.dataset.card import CARD, dataset_card
from pipelines.dataset.faces import FEATURES, survey
from pipelines.dataset.manifest import MANIFEST, CheckResult, HeldPhoto, Manifest, UnitEntry, read_manifest
from pipelines.dataset.page import PAGE, dataset_page
from pipelines.dataset.photos import Finder, PhotoGroup
from pipelines.dataset.planned import Plan, PlannedPhoto, Unit
from pipelines.dataset.planning import plan
from pipelines.dataset.samples import photo_rows, sideways_offsets
from pipelines.dataset.screening import checks_of, enforce, warning
from pipelines.dataset.shards import SCHEMA, TRAINED_SPLITS, Split, encode_shard
from pipelines.dataset.unit_records import PhotoRecord, UnitRecord, made_before, read_record
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.forgotten import read_forgotten
from pipelines.lease import hold
from pipelines.outages import MissingError
from pipelines.progress import Progress
from pipelines.settings import PrepareSettings, Tolerance
from pipelines.storage import Store


class NoFaceError(UserError):
    """Nothing is left to train on."""


Job = tuple[Store, str, PrepareSettings, Finder]


def prepare(
    sources: Sequence[str],
    out: str,
    settings: PrepareSettings,
    workers: int,
    progress: Progress = lambda done, total, text: None,
    source_format: str = "auto",
    append_to: str = "",
    tolerance: Tolerance | None = None,
) -> tuple[Store, Manifest]:
    """Makes the dataset below `out`, or finds it finished; returns its place and its manifest.

    `progress(done, total, what)` is called as work goes on. Where another run is making the same dataset,
    this one waits for it, and takes over when it is dead.

    Raises:
        NoFaceError: not one face is left to train on.
        UserError: a source is unusable.
    """
    tolerance = tolerance or Tolerance()
    work = plan(sources, out, settings, workers, progress, source_format, append_to)
    enforce(tolerance, work.left_out, work.faces)
    if work.pending or not work.dataset.exists(MANIFEST):
        total = len(work.units)

        def wait(note: str) -> None:
            progress(0, total, f"waiting for another run: {note}")

        with hold(work.dataset, wait) as lease:
            # Another run may have made some of it, or all, since this one looked.
            work = replace(work, finished=made_before(work.out, work.records)[0])
            if work.pending or not work.dataset.exists(MANIFEST):
                done = total - len(work.pending)
                progress(done, total, "making shards")
                job: Job = (work.out, work.records, settings, work.find)
                for _ in run_units(_make_shard, job, work.pending, workers):
                    done += 1
                    lease.note(f"{done} of {total} shards")
                    progress(done, total, "making shards")
                _finish(work, settings, tolerance)
    else:
        progress(len(work.units), len(work.units), "shards made before, reused")
    manifest = read_manifest(work.dataset)
    enforce(tolerance, manifest.left_out, manifest.counts["faces_in"])  # it may have been made with another
    return work.dataset, manifest


def _finish(work: Plan, settings: PrepareSettings, tolerance: Tolerance) -> None:
    photos = [photo for unit in work.units for photo in unit.photos]
    written = [(work.dataset, key) for key in (MANIFEST, PAGE, FEATURES, CARD)]
    _refuse_forgotten(work.out, photos)
    try:
        _publish(work, settings, tolerance)
    except MissingError:  # `forget` may have removed a unit that was being read
        _refuse_forgotten(work.out, photos, written)
        raise
    _refuse_forgotten(work.out, photos, written)  # `forget` may have looked for datasets before this was one


def _publish(work: Plan, settings: PrepareSettings, tolerance: Tolerance) -> None:
    manifest = _manifest(work, settings)
    enforce(tolerance, manifest.left_out, manifest.counts["faces_in"])
    if not manifest.counts["train"]:
        reasons = Counter(item.reason for item in manifest.left_out)
        reasons += Counter({"held out for validation": manifest.counts["val"]})
        listed = ", ".join(f"{reason} × {count}" for reason, count in reasons.most_common(4))
        raise NoFaceError(f"{', '.join(work.sources)}: no face is left to train on ({listed or 'no inputs'})")
    found = survey(work.out, manifest)
    work.dataset.publish(CARD, dataset_card(manifest).encode())
    work.dataset.publish(FEATURES, found.features().model_dump_json().encode())
    work.dataset.publish(PAGE, dataset_page(work.dataset, manifest, found, work.picture).encode())
    work.dataset.publish(MANIFEST, manifest.model_dump_json(indent=1).encode())


def _refuse_forgotten(out: Store, photos: Sequence[PlannedPhoto], written: Sequence[tuple[Store, str]] = ()) -> None:
    """Raises UserError, and takes back what was written, where one of the photos was forgotten meanwhile."""
    if read_forgotten(out).digests.isdisjoint(photo.seen.sha256 for photo in photos):
        return
    for place, key in written:
        place.delete(key)
    raise UserError("a picture was forgotten while its dataset was made: run the same again, which leaves it out")


def _make_shard(job: Job, unit: Unit) -> str:
    out, records, settings, find = job
    rows: list[dict[str, Any]] = []
    photos: list[PhotoRecord] = []
    earlier = _Earlier(out, records, unit.photos)
    new = (_annotated(photo).faces[0] for photo in unit.photos if photo.made_in is None)
    with closing(begun((face.root, face.read) for face in new)) as reads:
        for photo in unit.photos:
            read = next(reads) if photo.made_in is None else None
            photo_made, record = earlier.photo(photo) or _make_photo(photo, read, unit.split, settings, find)
            rows += photo_made
            photos.append(record)
    entry = UnitEntry(key=unit.key, split=unit.split, photos=len(photos))
    if rows:
        data = encode_shard(rows, settings.model_dump_json())
        digest = hashlib.sha256(data).hexdigest()
        entry = entry.model_copy(update={"rows": len(rows), "bytes": len(data), "sha256": digest})
        out.publish(entry.shard, data)
    record_key = f"{records}/{unit.key}.json"
    out.publish(record_key, UnitRecord(entry=entry, photos=photos).model_dump_json().encode())
    _refuse_forgotten(out, unit.photos, [(out, record_key), (out, entry.shard)])
    return unit.key


def _annotated(photo: PlannedPhoto) -> PhotoGroup:
    if photo.group is None:
        raise UserError(
            f"the shard that held {photo.seen.uri} ({photo.made_in}) is gone or damaged: run the `msrrn prepare` "
            "again that made it, or prepare all sources together"
        )
    return photo.group


def _make_photo(
    photo: PlannedPhoto, read: Callable[[], bytes] | None, split: Split, settings: PrepareSettings, find: Finder
) -> tuple[list[dict[str, Any]], PhotoRecord]:
    group = _annotated(photo)
    data = read() if read else group.faces[0].read()
    rows, left_out = photo_rows(group, data, split, settings, find)
    originals = [row for row in rows if row["copy"] == 0]
    return rows, PhotoRecord(
        key=photo.key,
        uri=photo.seen.uri,
        sha256=photo.seen.sha256,
        declared=photo.seen.declared,
        print=photo.seen.print,
        faces=dict(sorted(Counter(row["source"] for row in originals).items())),
        missed=sum(not row["detected"] for row in originals),
        left_out=left_out,
        offsets=sideways_offsets(rows),
    )


class _Earlier:
    """Rows of a unit's photos that other units of the same settings hold; each of these is read once."""

    def __init__(self, out: Store, records: str, photos: Sequence[PlannedPhoto]) -> None:
        self._out = out
        self._records = records
        self._unread: dict[str, list[PlannedPhoto]] = {}
        for photo in photos:
            if photo.made_in is not None:
                self._unread.setdefault(photo.made_in, []).append(photo)
        self._found: dict[str, tuple[list[dict[str, Any]], PhotoRecord]] = {}

    def photo(self, photo: PlannedPhoto) -> tuple[list[dict[str, Any]], PhotoRecord] | None:
        """The photo's rows and its record; None where it was never made, or its shard is gone or damaged."""
        if photo.made_in is not None and photo.made_in in self._unread:
            self._take(photo.made_in)
        return self._found.pop(photo.key, None)

    def _take(self, key: str) -> None:
        """What a unit holds of these photos: of two sources with the same names, they come by turns."""
        photos = self._unread.pop(key)
        unit = read_record(self._out, self._records, key)
        table = self._read(unit.entry)
        if table is None:
            return
        of_photo = {record.key: record for record in unit.photos}
        for photo in photos:
            rows = table.filter(pc.equal(table["photo_sha256"], photo.seen.sha256)).to_pylist()
            self._found[photo.key] = rows, of_photo[photo.key]

    def _read(self, entry: UnitEntry) -> pa.Table | None:
        if not entry.rows:
            return SCHEMA.empty_table()
        try:
            data = self._out.read_bytes(entry.shard)
        except MissingError:
            return None
        return pq.read_table(pa.BufferReader(data)) if hashlib.sha256(data).hexdigest() == entry.sha256 else None


def _manifest(work: Plan, settings: PrepareSettings) -> Manifest:
    faces: dict[str, Counter[str]] = {}
    left_out = list(work.left_out)
    units: list[UnitEntry] = []
    missed = 0
    offsets: dict[str, list[tuple[float, float]]] = {}
    for unit in work.units:
        record = read_record(work.out, work.records, unit.key)
        units.append(record.entry)
        for photo in record.photos:
            for source, count in photo.faces.items():
                faces.setdefault(source, Counter())[unit.split] += count
            missed += photo.missed
            left_out += photo.left_out
            for source, some in photo.offsets.items():
                offsets.setdefault(source, []).extend(some)
    total = {split: sum(count[split] for count in faces.values()) for split in TRAINED_SPLITS}
    return Manifest(
        name=work.name,
        code_version=version("msrrn"),
        settings=settings.model_dump(mode="json"),
        counts={
            "faces_in": sum(total.values()) + len(left_out),
            "train": total["train"],
            "val": total["val"],
            "left_out": len(left_out),
            "photos": sum(unit.photos for unit in units),
            "rows": sum(unit.rows for unit in units),
        },
        faces_by_source={source: dict(sorted(faces[source].items())) for source in sorted(faces)},
        missed=missed,
        checks=checks_of(left_out, [*work.warnings, *_shifted(offsets)]),
        units=units,
        left_out=sorted(left_out, key=lambda item: (item.uri, item.reason, item.message)),
        held=[HeldPhoto.model_validate(seen, from_attributes=True) for seen in work.held],
    )


def _shifted(offsets: dict[str, list[tuple[float, float]]]) -> list[CheckResult]:
    found = ((source, shifted_source(np.array(some))) for source, some in sorted(offsets.items()))
    return [warning(problem.code, source, problem.message) for source, problem in found if problem]
