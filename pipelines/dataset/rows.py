"""Are the rows of a shard what they must be? What follows from something else is worked out again."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msrrn.augmentation import mirror_shape
from msrrn.geometry import LEVELS, Box, Similarity
from pipelines.dataset.manifest import UnitEntry
from pipelines.dataset.shards import SCHEMA, images, landmarks
from pipelines.pyramid import frame_around, pyramid
from pipelines.settings import PrepareSettings

Found = tuple[int | None, str, str]
"""A row of the file, a stable code, what is wrong. No row: the shard as a whole."""

_Row = dict[str, Any]

_NUMBERS: Final = {
    field.name: field.type.list_size if pa.types.is_fixed_size_list(field.type) else 1
    for field in SCHEMA
    if pa.types.is_floating(getattr(field.type, "value_type", field.type))
    and not field.nullable
    and field.name != "landmarks"
}
"""Columns of numbers beside the landmarks, and how many each holds."""
_OF_FACE: Final = (
    "photo_uri",
    "annotation_uri",
    "source",
    "box",
    "detected",
    "detector_score",
    "face_roll",
    "brightness",
    "sharpness",
)
"""The same on every copy of a face."""
_FRAME_SLACK: Final = 1e-6
"""Of the crop's side: the same few products, on any processor."""
_SHAPE_SLACK: Final = 1e-4
"""Of the crop's side: landmarks are float32, and may lie some sides outside."""
_GREY_SLACK: Final = 1e-2


def row_problems(file: pq.ParquetFile, unit: UnitEntry, settings: PrepareSettings) -> Iterator[Found]:
    """Problems of a shard that has the right schema. Reads a row group at a time."""
    copies = settings.augmentation.copies + 1 if unit.split == "train" else 1
    if file.num_row_groups != copies:
        message = f"it has {file.num_row_groups} row groups, a shard of {unit.split} has {copies}, one a copy"
        yield None, "copies", message
    faces: dict[str, _Row] = {}
    start = 0
    for copy in range(file.num_row_groups):
        rows = _rows(file.read_row_group(copy))
        if copy == 0:
            faces = {row["face_id"]: row for row in reversed(rows)}
        for index, row in enumerate(rows):
            for code, message in _row_problems(row, copy, faces.get(row["face_id"]), unit, settings):
                yield start + index, code, message
        yield from _set_problems(rows, copy, faces, start)
        start += len(rows)


def _rows(table: pa.Table) -> list[_Row]:
    """Rows without pictures, these being replaced by what is to be said of them."""
    small: list[_Row] = table.drop_columns([f"image_{size}" for size in LEVELS]).to_pylist()
    levels = [images(table, size) for size in reversed(LEVELS)]
    for row, shape, *pictures in zip(small, landmarks(table), *levels, strict=True):
        row["landmarks"] = shape.astype(np.float64)
        for name, count in _NUMBERS.items():
            # A number that is absent from a list becomes one that is not finite.
            row[name] = np.asarray(row[name], np.float64).reshape(count)
        made = pyramid(pictures[0])
        row["levels"] = [np.array_equal(own, picture) for own, picture in zip(made[1:], pictures[1:], strict=True)]
        row["mean"] = float(pictures[0].mean())
    return small


def _set_problems(rows: list[_Row], copy: int, faces: dict[str, _Row], start: int) -> Iterator[Found]:
    """Each face is there once a copy."""
    seen: set[str] = set()
    for index, row in enumerate(rows):
        if row["face_id"] in seen:
            yield start + index, "face_twice", f"face {row['face_id']} is there twice as copy {copy}"
        seen.add(row["face_id"])
    for face in sorted(faces.keys() - seen):
        yield None, "copies", f"face {face} has no copy {copy}"


def _row_problems(
    row: _Row, copy: int, face: _Row | None, unit: UnitEntry, settings: PrepareSettings
) -> Iterator[tuple[str, str]]:
    if row["split"] != unit.split:
        yield "split", f"it says split {row['split']}, its unit is of {unit.split}"
    if row["copy"] != copy:
        yield "copies", f"it is copy {row['copy']}, in the row group of copy {copy}"
    identity = f"{row['photo_sha256']}:{row['face_index']}"
    if row["face_id"] != identity:
        yield "face_id", f"its face is {row['face_id']}, its photo and number give {identity}"
    if row["detected"] != (row["detector_score"] is not None):
        yield "detector_score", "a face that was detected has a score, one that was missed has none"
    for size, equal in zip(LEVELS[-2::-1], row["levels"], strict=True):
        if not equal:
            yield "levels", f"image_{size} is not the area average of the level above it"
    infinite = [name for name in ("landmarks", *_NUMBERS) if not np.isfinite(row[name]).all()]
    if infinite:
        yield "not_finite", f"{', '.join(infinite)} holds what is no finite number"
        return
    if not 0 <= row["padding"][0] <= 1:
        yield "padding", f"padding is {row['padding'][0]:g}, a share of the crop is 0 to 1"
    to_crop = _to_crop(row)
    if not _invertible(to_crop):
        yield "to_crop", "to_crop has no inverse"
        return
    yield from _frame_problems(row, to_crop, settings)
    if face is None:
        yield "copies", f"face {row['face_id']} has no copy 0"
    else:
        yield from _face_problems(row, face, to_crop)


def _to_crop(row: _Row) -> Similarity:
    both = row["to_crop"].reshape(2, 3)
    return Similarity(both[:, :2], both[:, 2])


def _invertible(to_crop: Similarity) -> bool:
    return bool(abs(np.linalg.det(to_crop.matrix)) > np.finfo(np.float64).tiny)


def _frame_problems(row: _Row, to_crop: Similarity, settings: PrepareSettings) -> Iterator[tuple[str, str]]:
    """The crop follows from the box and what was drawn."""
    try:
        box = Box(*row["box"].tolist())
    except ValueError as error:
        yield "box", str(error)
        return
    scale = float(row["scale"][0])
    if scale <= 0:
        yield "to_crop", f"scale is {scale:g}, it must be more than 0"
        return
    shift = (float(row["shift"][0]), float(row["shift"][1]))
    roll = float(np.deg2rad(row["roll"][0]))
    frame = frame_around(box, settings.crop_margin, shift, scale, roll, row["mirrored"]).to_crop
    # Where either map takes the corners of the box, in sides of the crop.
    corners = row["box"].reshape(2, 2)
    if np.abs(frame(corners) - to_crop(corners)).max() > _FRAME_SLACK:
        yield "to_crop", "to_crop is not what its box, shift, scale, roll and mirrored give"


def _face_problems(row: _Row, face: _Row, to_crop: Similarity) -> Iterator[tuple[str, str]]:
    """A copy shows the face that copy 0 shows."""
    if row is face:
        if abs(row["brightness"][0] - row["mean"]) > _GREY_SLACK:
            yield "brightness", f"brightness is {row['brightness'][0]:.2f}, image_200 has {row['mean']:.2f}"
        return
    differing = [name for name in _OF_FACE if not np.array_equal(row[name], face[name])]
    if differing:
        yield "copies", f"{', '.join(differing)} is not that of copy 0 of the face"
    of_face = _to_crop(face)
    finite = all(np.isfinite(face[name]).all() for name in ("landmarks", "to_crop"))
    if not finite or not _invertible(of_face):
        return  # said of that row
    expected = to_crop(of_face.inverse()(face["landmarks"]))
    if row["mirrored"]:
        expected = mirror_shape(expected)
    if np.abs(expected - row["landmarks"]).max() > _SHAPE_SLACK:
        yield "landmarks", "its landmarks are not those of copy 0 of the face, brought into this crop"
