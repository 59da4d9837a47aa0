"""What a run of `prepare` will do: inputs → checks → splits → units, without looking at a face's pixels."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from pipelines.dataset.appending import Base, as_held, read_base, refuse_trained_tests
from pipelines.dataset.manifest import LeftOut
from pipelines.dataset.photos import (
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
from pipelines.dataset.planned import Plan, PlannedPhoto, Unit
from pipelines.dataset.screening import near_duplicates_found, refused, screened
from pipelines.dataset.shards import SCHEMA_VERSION, TRAINED_SPLITS
from pipelines.dataset.unit_records import made_before
from pipelines.detection.annotated import AnnotatedBoxes
from pipelines.errors import UserError
from pipelines.forgotten import MESSAGE, REASON, read_forgotten
from pipelines.progress import Progress
from pipelines.settings import PrepareSettings
from pipelines.storage import Store

RECIPE: Final = 8
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
    given, left_out = read_photos(sources, workers, progress, source_format)
    places = _places(given)
    groups, bad = screened(given)
    left_out += bad
    # Without photos nothing is looked at, and no detector has to be at hand.
    find = face_finder(settings.detector, groups) if groups else AnnotatedBoxes()
    digest = _digest(SCHEMA_VERSION, RECIPE, settings.model_dump_json())
    store = Store(out).absolute()
    records = f"records/{digest}"
    forgotten = read_forgotten(store).digests
    base = read_base(store, append_to, records, settings, forgotten) if append_to else Base([], [], {})
    finished, made_in = made_before(store, records)
    groups = [as_held(group, base.held, append_to) for group in groups]
    without_face = [as_held(group, base.held, append_to) for group in refused(given, groups)]
    alike = _alike([*groups, *without_face], base, append_to)
    new = _assigned(groups, assign_splits(alike, settings.val_share), base, forgotten, find, append_to)
    left_out += new.left_out
    told = {(item.uri, item.reason) for item in left_out}
    left_out += [item for item in base.left_out if (item.uri, item.reason) not in told]
    left_out.sort(key=lambda item: (item.uri, item.reason, item.message))
    photos = [*base.photos, *(replace(photo, made_in=made_in.get(photo.key)) for photo in new.photos)]
    photos.sort(key=lambda photo: (photo.seen.uri, photo.seen.sha256))
    held_too = _held(without_face, base, forgotten, append_to)
    in_units = {photo.seen.sha256 for photo in photos}  # a face that was refused may have come again, mended
    held_out = sorted((base.held | new.held | held_too).items())
    held = tuple(seen for sha256, seen in held_out if sha256 not in in_units)
    units = tuple(
        Unit(f"{split}-{_digest(digest, *(photo.key for photo in part))}", split, tuple(part))
        for split in TRAINED_SPLITS
        for part in cut([photo for photo in photos if photo.split == split], settings.photos_per_shard)
    )
    name = _digest(
        digest,
        *(unit.key for unit in units),
        *(item.model_dump_json() for item in left_out),
        *(f"{seen.sha256}\x1f{seen.uri}\x1f{seen.declared}" for seen in held),
    )
    return Plan(
        name=name,
        sources=tuple(sources),
        out=store,
        records=records,
        units=units,
        finished=finished,
        left_out=tuple(left_out),
        warnings=tuple(near_duplicates_found(alike)),
        find=find,
        faces=sum(photo.faces for photo in photos) + len(left_out),
        held=held,
        places=places,
        forgotten=forgotten,
    )


def _places(groups: Sequence[PhotoGroup]) -> dict[str, tuple[str, str] | None]:
    """See `Plan.places`."""
    places: dict[str, tuple[str, str] | None] = {}
    for face in (face for group in groups for face in group.faces):
        place = face.root, face.uri
        places[face.annotation_uri] = place if places.get(face.annotation_uri, place) == place else None
    return places


def _alike(groups: Sequence[PhotoGroup], base: Base, append_to: str) -> list[list[Seen]]:
    """The `clusters` of what is given and of what the dataset that is appended to has, or holds out.

    Raises:
        UserError: a test photo among those given shows what that dataset has in a unit.
    """
    known = {photo.seen.sha256 for photo in base.photos}
    new = [group.seen for group in groups if group.sha256 not in known]
    fresh = {seen.sha256 for seen in new}
    before = [
        *(photo.seen for photo in base.photos),
        *(seen for digest, seen in base.held.items() if digest not in fresh),
    ]
    alike = clusters([*new, *before])
    refuse_trained_tests(alike, fresh, append_to)
    return alike


class _Assigned(NamedTuple):
    """What becomes of the photos that were given: those of units, faces that are left out, and photos held out."""

    photos: list[PlannedPhoto]
    left_out: list[LeftOut]
    held: dict[str, Seen]


def _assigned(
    groups: Sequence[PhotoGroup],
    split_of: Mapping[str, str],
    base: Base,
    forgotten: Collection[str],
    find: Finder,
    append_to: str,
) -> _Assigned:
    """Puts each photo where its split says; what the dataset that is appended to has already stays as it is there.

    Raises:
        UserError: that one has a photo in another split than it is declared to be of now.
    """
    known = {photo.seen.sha256: photo for photo in base.photos}
    made = _Assigned([], [], {})
    for group in groups:
        split = split_of[group.sha256]
        if split not in TRAINED_SPLITS and group.sha256 not in forgotten:
            made.held[group.sha256] = group.seen
        if split == SHADOWED:
            message = "it shows what a photo of another split shows"
            made.left_out.extend(group.left_out("near_duplicate_in_two_splits", message))
            continue
        if split not in TRAINED_SPLITS:
            made.left_out.extend(group.left_out("test_split", "test photos are never trained on"))
            continue
        if group.sha256 in forgotten:
            made.left_out.extend(group.left_out(REASON, MESSAGE))
            continue
        same = known.get(group.sha256)
        key = _photo_key(group, split, same.seen.declared if same else group.seen.declared, find)
        if same:
            _refuse_other_split(group, split, append_to)
        if same is None:
            made.photos.append(PlannedPhoto(key, split, group.seen, len(group.faces), group, None))
        elif key != same.key:
            # Without its name, in which each dataset that comes of another would differ from that.
            message = "the dataset has it with other annotations, or by another name: prepare all sources together"
            made.left_out.extend(group.left_out("known_photo", message))
    return made


def _held(
    without_face: Sequence[PhotoGroup], base: Base, forgotten: Collection[str], append_to: str
) -> dict[str, Seen]:
    """Of the photos that are held out though no face of theirs is left: those that no unit has.

    Raises:
        UserError: see `_assigned`.
    """
    known = {photo.seen.sha256: photo.split for photo in base.photos}
    held: dict[str, Seen] = {}
    for group in without_face:
        if group.sha256 in known:
            _refuse_other_split(group, known[group.sha256], append_to)
        elif group.sha256 not in forgotten:
            held[group.sha256] = group.seen
    return held


def _refuse_other_split(group: PhotoGroup, split: str, append_to: str) -> None:
    if group.seen.declared in HELD - {split}:
        raise UserError(
            f"{group.faces[0].root}/{group.uri} is declared {group.seen.declared}, and "
            f"{append_to} has it in {split}; a photo must be in one split only: prepare all sources together"
        )


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
