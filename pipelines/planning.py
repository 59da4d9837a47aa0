"""What a run of `prepare` will do: inputs → checks → splits → units, without looking at a face's pixels."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import ValidationError

from pipelines.detection.annotated import AnnotatedBoxes
from pipelines.errors import UserError
from pipelines.forgotten import MESSAGE, REASON, read_forgotten
from pipelines.manifest import CheckResult, LeftOut, read_manifest
from pipelines.photos import (
    HELD,
    SHADOWED,
    Finder,
    PhotoGroup,
    Seen,
    assign_splits,
    clusters,
    face_finder,
    read_photos,
)
from pipelines.progress import Progress
from pipelines.screening import near_duplicates_found, screened
from pipelines.settings import PrepareSettings
from pipelines.shards import SCHEMA_VERSION, TRAINED_SPLITS, Split
from pipelines.sources import AnnotatedPhoto
from pipelines.sources.files import Files
from pipelines.storage import Store
from pipelines.unit_records import forgotten_faces, made_before, read_record

RECIPE: Final = 4
"""Part of every dataset's name. Raise it with any change of code that changes shards: detection, cropping, draws."""


@dataclass(frozen=True, eq=False)
class PlannedPhoto:
    """A photo of a unit: its annotations, or the unit that holds its rows already, or both."""

    key: str
    split: Split
    seen: Seen
    faces: int
    group: PhotoGroup | None
    made_in: str | None


@dataclass(frozen=True, eq=False)
class Unit:
    """The work of one shard."""

    key: str
    split: Split
    photos: tuple[PlannedPhoto, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run of `prepare` will do, and what it leaves out before looking at any face."""

    name: str
    sources: tuple[str, ...]
    out: Store
    records: str
    """where records of these settings lie, below `out`"""
    units: tuple[Unit, ...]
    finished: frozenset[str]
    """keys of units that were made before, for this dataset or for others"""
    left_out: tuple[LeftOut, ...]
    warnings: tuple[CheckResult, ...]
    find: Finder
    faces: int
    """inputs: annotated faces, and what was left out"""

    rejected: Mapping[str, AnnotatedPhoto]
    """faces by the name of their annotation, where they may be left out"""
    forgotten: frozenset[str]
    """SHA-256 of pictures that the place must not hold, nor its pages show"""

    def picture(self, item: LeftOut) -> bytes | None:
        """The bytes of an input that was left out; None where it is no picture, is gone, or was forgotten."""
        face = self.rejected.get(item.uri)
        places = [(face.root, face.uri)] if face else [(source, item.uri) for source in self.sources]
        for root, uri in places:
            with suppress(UserError, OSError):
                data = Files(root).read(uri)
                return None if hashlib.sha256(data).hexdigest() in self.forgotten else data
        return None

    @property
    def dataset(self) -> Store:
        return self.out.child(self.name)

    @property
    def pending(self) -> list[Unit]:
        """What is to be done, the largest first: no worker is left alone with a large one at the end."""
        return sorted(
            (unit for unit in self.units if unit.key not in self.finished),
            key=lambda unit: sum(photo.faces for photo in unit.photos),
            reverse=True,
        )


def plan(
    sources: Sequence[str],
    out: str,
    settings: PrepareSettings,
    workers: int = 1,
    progress: Progress = lambda done, total, text: None,
    source_format: str = "auto",
    append_to: str = "",
) -> Plan:
    """Reads every input once, assigns splits, cuts the work into units and names the dataset.

    `append_to` names a finished dataset below `out`: its photos are inputs too, and are not read again.

    Raises:
        UserError: a source is missing or has no annotations, a photo is in two splits, or the dataset to
            append to was made with other settings.
    """
    groups, left_out = read_photos(sources, workers, progress, source_format)
    rejected = {face.annotation_uri: face for group in groups for face in group.faces}
    groups, bad = screened(groups)
    left_out += bad
    # Without photos nothing is looked at, and no detector has to be at hand.
    find = face_finder(settings.detector, groups) if groups else AnnotatedBoxes()
    digest = _digest(SCHEMA_VERSION, RECIPE, settings.model_dump_json())
    store = Store(out).absolute()
    records = f"records/{digest}"
    forgotten = read_forgotten(store).digests
    photos, base_left_out = _base(store, append_to, records, settings, forgotten) if append_to else ([], [])
    finished, made_in = made_before(store, records)
    known = {photo.seen.sha256: photo for photo in photos}
    new = [group for group in groups if group.sha256 not in known]
    alike = clusters([*(group.seen for group in new), *(photo.seen for photo in photos)])
    split_of = assign_splits(alike, settings.val_share)
    for group in groups:
        split = split_of[group.sha256]
        if split == SHADOWED:
            left_out += _all_faces(
                group, "near_duplicate_in_two_splits", "it shows what a photo of another split shows"
            )
            continue
        if split not in TRAINED_SPLITS:
            left_out += _all_faces(group, "test_split", "test photos are never trained on")
            continue
        if group.sha256 in forgotten:
            left_out += _all_faces(group, REASON, MESSAGE)
            continue
        key = _photo_key(group, split, find)
        if group.sha256 in known and group.seen.declared in HELD - {split}:
            raise UserError(
                f"{group.faces[0].root}/{group.uri} is declared {group.seen.declared}, and "
                f"{append_to} has it in {split}; a photo must be in one split only: prepare all sources together"
            )
        if group.sha256 not in known:
            photos.append(PlannedPhoto(key, split, group.seen, len(group.faces), group, made_in.get(key)))
        elif key != known[group.sha256].key:
            message = f"{append_to} has this photo with other annotations: prepare all sources together"
            left_out += _all_faces(group, "known_photo", message)
    told = set(left_out)
    left_out += [item for item in base_left_out if item not in told]
    photos.sort(key=lambda photo: (photo.seen.uri, photo.seen.sha256))
    units = tuple(
        Unit(f"{split}-{_digest(digest, *(photo.key for photo in part))}", split, tuple(part))
        for split in TRAINED_SPLITS
        for part in cut([photo for photo in photos if photo.split == split], settings.photos_per_shard)
    )
    left_out.sort(key=lambda item: (item.uri, item.reason))
    name = _digest(digest, *(unit.key for unit in units), *(item.model_dump_json() for item in left_out))
    faces = sum(photo.faces for photo in photos) + len(left_out)
    warnings = tuple(near_duplicates_found(alike))
    return Plan(
        name,
        tuple(sources),
        store,
        records,
        units,
        finished,
        tuple(left_out),
        warnings,
        find,
        faces,
        rejected,
        forgotten,
    )


def _all_faces(group: PhotoGroup, reason: str, message: str) -> list[LeftOut]:
    return [LeftOut(uri=face.annotation_uri, reason=reason, message=message) for face in group.faces]


def _base(
    out: Store, name: str, records: str, settings: PrepareSettings, forgotten: Collection[str]
) -> tuple[list[PlannedPhoto], list[LeftOut]]:
    """The photos of a finished dataset, and the inputs that it left out before it looked at any face, or now does."""
    manifest = read_manifest(out.child(name))
    for field, value in settings.model_dump(mode="json").items():
        if manifest.settings.get(field) != value:
            raise UserError(
                f"{out.url}/{name} was made with {field} = {manifest.settings.get(field)}, this run has {value}: "
                "append with the same settings, or prepare all sources together"
            )
    photos: list[PlannedPhoto] = []
    late: Counter[LeftOut] = Counter()
    now_left_out: list[LeftOut] = []
    mend = "run the `msrrn prepare` again that made it, or prepare all sources together"
    for unit in manifest.units:
        if not out.exists(f"{records}/{unit.key}.json"):
            raise UserError(
                f"{out.url}/{name} was made by another version of msrrn: nothing can be appended to it; "
                "prepare all sources together"
            )
        try:
            record = read_record(out, records, unit.key)
        except ValidationError as error:
            raise UserError(f"{out.url}/{records}/{unit.key}.json is damaged: {mend}") from error
        for photo in record.photos:
            late.update(photo.left_out)
            if photo.sha256 in forgotten:
                now_left_out += forgotten_faces(out, record.entry, photo)
                continue
            faces = sum(photo.faces.values()) + len(photo.left_out)
            photos.append(PlannedPhoto(photo.key, unit.split, photo.seen(unit.split), faces, None, unit.key))
    return photos, list((Counter(manifest.left_out) - late).elements()) + now_left_out


def cut(photos: Sequence[PlannedPhoto], mean: int) -> Iterator[list[PlannedPhoto]]:
    """Cuts sorted photos into units of about `mean`, at photos that their own digests choose.

    So photos that come in later change only the units that they fall into: the cuts elsewhere stay.
    (Content-defined chunking, as in rsync and in backup tools.)
    """
    least = max(1, mean // 2)
    part: list[PlannedPhoto] = []
    for photo in photos:
        part.append(photo)
        chosen = int(photo.seen.sha256[-8:], 16) % (mean - least + 1) == 0
        if (chosen and len(part) >= least) or len(part) == 2 * mean:
            yield part
            part = []
    if part:
        yield part


def _photo_key(group: PhotoGroup, split: str, find: Finder) -> str:
    boxes = [find(face) if isinstance(find, AnnotatedBoxes) else None for face in group.faces]
    faces = [
        f"{face.uri}\x1f{face.annotation_uri}\x1f{face.subset}\x1f"
        f"{np.ascontiguousarray(face.shape, '<f8').tobytes().hex()}\x1f{found and found.box.edges}"
        for face, found in zip(group.faces, boxes, strict=True)
    ]
    return _digest(group.sha256, split, *faces)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]
