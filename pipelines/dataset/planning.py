"""What a run of `prepare` will do: inputs → checks → splits → units, without looking at a face's pixels."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from pipelines.dataset.appending import Base, as_held, read_base, refuse_trained_tests
from pipelines.dataset.manifest import LeftOut
from pipelines.dataset.photos import (
    HELD,
    SHADOWED,
    Finder,
    PhotoGroup,
    assign_splits,
    clusters,
    face_finder,
    read_photos,
)
from pipelines.dataset.planned import Plan, PlannedPhoto, Unit
from pipelines.dataset.screening import near_duplicates_found, screened
from pipelines.dataset.shards import SCHEMA_VERSION, TRAINED_SPLITS
from pipelines.dataset.unit_records import made_before
from pipelines.detection.annotated import AnnotatedBoxes
from pipelines.errors import UserError
from pipelines.forgotten import MESSAGE, REASON, read_forgotten
from pipelines.progress import Progress
from pipelines.settings import PrepareSettings
from pipelines.storage import Store

RECIPE: Final = 5
"""Part of every dataset's name. Raise it with any change of code that changes shards: detection, cropping, draws."""


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
    places: dict[str, tuple[str, str] | None] = {}
    for face in (face for group in groups for face in group.faces):
        place = face.root, face.uri
        places[face.annotation_uri] = place if places.get(face.annotation_uri, place) == place else None
    groups, bad = screened(groups)
    left_out += bad
    # Without photos nothing is looked at, and no detector has to be at hand.
    find = face_finder(settings.detector, groups) if groups else AnnotatedBoxes()
    digest = _digest(SCHEMA_VERSION, RECIPE, settings.model_dump_json())
    store = Store(out).absolute()
    records = f"records/{digest}"
    forgotten = read_forgotten(store).digests
    base = read_base(store, append_to, records, settings, forgotten) if append_to else Base([], [], {})
    photos, held = base.photos, base.held
    finished, made_in = made_before(store, records)
    known = {photo.seen.sha256: photo for photo in photos}
    groups = [as_held(group, held, append_to) for group in groups]
    new = [group for group in groups if group.sha256 not in known]
    fresh = {group.sha256 for group in new}
    before = [*(photo.seen for photo in photos), *(seen for digest, seen in held.items() if digest not in fresh)]
    alike = clusters([*(group.seen for group in new), *before])
    refuse_trained_tests(alike, fresh, append_to)
    split_of = assign_splits(alike, settings.val_share)
    for group in groups:
        split = split_of[group.sha256]
        if split not in TRAINED_SPLITS and group.sha256 not in forgotten:
            held[group.sha256] = group.seen
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
        same = known.get(group.sha256)
        key = _photo_key(group, split, same.seen.declared if same else group.seen.declared, find)
        if same and group.seen.declared in HELD - {split}:
            raise UserError(
                f"{group.faces[0].root}/{group.uri} is declared {group.seen.declared}, and "
                f"{append_to} has it in {split}; a photo must be in one split only: prepare all sources together"
            )
        if same is None:
            photos.append(PlannedPhoto(key, split, group.seen, len(group.faces), group, made_in.get(key)))
        elif same and key != same.key:
            message = f"{append_to} has it with other annotations, or by another name: prepare all sources together"
            left_out += _all_faces(group, "known_photo", message)
    told = set(left_out)
    left_out += [item for item in base.left_out if item not in told]
    photos.sort(key=lambda photo: (photo.seen.uri, photo.seen.sha256))
    units = tuple(
        Unit(f"{split}-{_digest(digest, *(photo.key for photo in part))}", split, tuple(part))
        for split in TRAINED_SPLITS
        for part in cut([photo for photo in photos if photo.split == split], settings.photos_per_shard)
    )
    left_out.sort(key=lambda item: (item.uri, item.reason))
    outside = tuple(seen for _, seen in sorted(held.items()))
    name = _digest(
        digest,
        *(unit.key for unit in units),
        *(item.model_dump_json() for item in left_out),
        *(f"{seen.sha256}\x1f{seen.uri}\x1f{seen.declared}" for seen in outside),
    )
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
        outside,
        places,
        forgotten,
    )


def _all_faces(group: PhotoGroup, reason: str, message: str) -> list[LeftOut]:
    return [LeftOut(uri=face.annotation_uri, reason=reason, message=message) for face in group.faces]


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


def _photo_key(group: PhotoGroup, split: str, declared: str | None, find: Finder) -> str:
    boxes = [find(face) if isinstance(find, AnnotatedBoxes) else None for face in group.faces]
    faces = [
        f"{face.uri}\x1f{face.annotation_uri}\x1f{face.subset}\x1f"
        f"{np.ascontiguousarray(face.shape, '<f8').tobytes().hex()}\x1f{found and found.box.edges}"
        for face, found in zip(group.faces, boxes, strict=True)
    ]
    # What is appended later is split by whether photos were declared to be of another split than train.
    return _digest(group.sha256, split, *([declared] if declared in HELD else []), *faces)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]
