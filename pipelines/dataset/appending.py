"""A finished dataset as an input of another: what it has, and what it holds out, must stay what it is there."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from pipelines.dataset.manifest import LeftOut, read_manifest
from pipelines.dataset.photos import HELD, PhotoGroup, Seen
from pipelines.dataset.planned import PlannedPhoto
from pipelines.dataset.unit_records import forgotten_faces, read_record
from pipelines.errors import UserError
from pipelines.settings import PrepareSettings
from pipelines.storage import Store


def as_held(group: PhotoGroup, held: Mapping[str, Seen], append_to: str) -> PhotoGroup:
    """The group as what it is to the dataset that is appended to, which may have the same photo from elsewhere.

    Raises:
        UserError: it is declared another split there.
    """
    there = held.get(group.sha256)
    if there is None or there.declared in (None, group.seen.declared):
        return group
    if group.seen.declared is not None:
        raise UserError(
            f"{group.faces[0].root}/{group.uri} is declared {group.seen.declared}, and {append_to} has it as "
            f"{there.uri}, declared {there.declared}; a photo must be in one split only: correct one of them"
        )
    return replace(group, seen=replace(group.seen, declared=there.declared))


def refuse_trained_tests(alike: Sequence[Sequence[Seen]], fresh: Collection[str], append_to: str) -> None:
    """Raises UserError where a test photo among the `fresh` ones shows what the dataset that is appended to has in a
    unit, unless that was declared to be of another split, too: then both stay."""
    for cluster in alike:
        inside = next((seen for seen in cluster if seen.settled and seen.declared not in HELD), None)
        test = next((seen for seen in cluster if seen.declared == "test" and seen.sha256 in fresh), None)
        if inside and test:
            raise UserError(
                f"{test.uri} is declared test, and shows what {inside.uri} shows, which {append_to} has in "
                f"{inside.settled}: prepare all sources together, which leaves that out"
            )


@dataclass(frozen=True)
class Base:
    """What a finished dataset has: its photos, the inputs that it left out before it looked at any face, or now does,
    and the photos that it holds out of all units, by their digests.
    """

    photos: list[PlannedPhoto]
    left_out: list[LeftOut]
    held: dict[str, Seen]


def read_base(out: Store, name: str, records: str, settings: PrepareSettings, forgotten: Collection[str]) -> Base:
    """Reads the dataset of this name below `out`, without what was forgotten.

    Raises:
        UserError: it is not finished, damaged, or was made with other settings or by another version.
    """
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
    held = {
        photo.sha256: Seen(photo.sha256, photo.uri, photo.declared, photo.print)
        for photo in manifest.held
        if photo.sha256 not in forgotten
    }
    return Base(photos, list((Counter(manifest.left_out) - late).elements()) + now_left_out, held)
