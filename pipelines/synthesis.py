"""Synthetic photographs with exact landmarks, written in the layout of 300-W, and archives to annotate."""

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from msrrn.synthetic import draw_photo
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.progress import Counted
from pipelines.sources.pts import format_pts
from pipelines.storage import Store

SYNTHETIC: Final = "msrrn-synth"
"""The folder of drawn photos, and so the subset that they belong to. Models of these alone are free, so it is a name
that no other pictures have by chance.
"""

RECORD: Final = "synthetic.json"
CLAIM: Final = "synthetic-claim.json"
PHOTOS_PER_UNIT: Final = 16


class _Claim(BaseModel):
    """`synthetic-claim.json`, written first: what the folder is to hold."""

    photos: int
    seed: int


class SyntheticSet(_Claim):
    """`synthetic.json`, written last: what the folder holds."""

    faces: int


_Written = TypeVar("_Written", bound=_Claim)


def synthesise(
    out: str,
    photos: int,
    seed: int,
    workers: int,
    progress: Counted = lambda done, total: None,
) -> tuple[SyntheticSet, bool]:
    """Draws photos 0 to `photos` - 1 of a seed into `out`; returns the set, and whether it was there already.

    A photo with several faces is written once for each, `ID_1.jpg` beside `ID_1.pts`, as AFW does.

    Raises:
        UserError: `out` holds another set, or a part of one; what says which is damaged.
    """
    store = Store(out)
    claim = _Claim(photos=photos, seed=seed)
    # Claimed first: the photos of a run that was killed must not mix with another seed's.
    if not store.create(CLAIM, json.dumps(claim.model_dump()).encode()):
        there = _read(store, CLAIM, _Claim, "give another folder, or delete that one")
        if there != claim:
            raise UserError(
                f"{out} holds {there.photos} photos of seed {there.seed}, not {photos} of seed {seed}; "
                "give another folder, or delete that one"
            )
    if store.exists(RECORD):
        return _read(store, RECORD, SyntheticSet, "delete it and run again"), True
    units = [range(start, min(start + PHOTOS_PER_UNIT, photos)) for start in range(0, photos, PHOTOS_PER_UNIT)]
    faces = done = 0
    for drawn, count in run_units(_draw_unit, (store.absolute(), seed), units, workers):
        faces += count
        done += drawn
        progress(done, photos)
    made = SyntheticSet(photos=photos, seed=seed, faces=faces)
    store.publish(RECORD, made.model_dump_json().encode())
    return made, False


def _read(store: Store, key: str, kind: type[_Written], remedy: str) -> _Written:
    try:
        return kind.model_validate_json(store.read_bytes(key))
    except ValidationError:
        raise UserError(f"{store.url}/{key} is damaged: {remedy}") from None


def _draw_unit(shared: tuple[Store, int], unit: Sequence[int]) -> tuple[int, int]:
    store, seed = shared
    faces = 0
    for index in unit:
        photo = draw_photo(seed, index)
        several = len(photo.shapes) > 1
        for number, shape in enumerate(photo.shapes, start=1):
            stem = f"{SYNTHETIC}/{index:06d}" + (f"_{number}" if several else "")
            store.publish(f"{stem}.jpg", photo.jpeg)
            store.publish(f"{stem}.pts", format_pts(shape))
        faces += len(photo.shapes)
    return len(unit), faces


def synthetic_archive(out: str, key: str, seed: int, first: int, photos: int) -> bool:
    """Writes a tar of photos that no synthetic set of fewer than `first` photos holds, and of broken files.

    Returns whether it was there already.
    """
    store = Store(out)
    if store.exists(key):
        return True
    drawn = [draw_photo(seed, index).jpeg for index in range(first, first + photos)]
    members = {f"album/{index:04d}.jpg": jpeg for index, jpeg in enumerate(drawn)}
    members["album/empty.jpg"] = b""
    members["album/half.jpg"] = drawn[0][: len(drawn[0]) // 2]
    members["album/letter.jpg"] = b"Dear grandmother, here are the pictures.\n" * 20
    members["album/notes.txt"] = b"not a picture\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    store.publish(key, buffer.getvalue())
    return False
