import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.manifest import MANIFEST, Manifest, UnitEntry
from pipelines.dataset.shards import SCHEMA, encode_shard, images
from pipelines.dataset.verify import AGAIN, PROBLEMS_PER_SHARD, Problem, Verification, verify
from pipelines.errors import UserError
from pipelines.storage import Store
from tests.factories import SETTINGS

Dataset = tuple[Store, Manifest]
Rows = list[dict[str, Any]]


@pytest.fixture
def copied(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The dataset with its shards, to be damaged."""
    store, manifest = dataset
    out = store.parent.local_path()
    assert out is not None
    for part in (manifest.name, "shards"):
        shutil.copytree(out / part, tmp_path / part)
    return Store(str(tmp_path / manifest.name)), manifest


def unit_of(manifest: Manifest, split: str = "train", faces: int = 2) -> UnitEntry:
    """The first unit of a split with at least so many faces."""
    copies = SETTINGS.augmentation.copies + 1 if split == "train" else 1
    return next(unit for unit in manifest.shards() if unit.split == split and unit.rows >= faces * copies)


def rows_of(dataset: Dataset, unit: UnitEntry) -> Rows:
    table = pq.read_table(io.BytesIO(dataset[0].parent.read_bytes(unit.shard)))
    rows: Rows = table.to_pylist()
    for size in (200, 100, 50):
        for row, picture in zip(rows, images(table, size), strict=True):
            row[f"image_{size}"] = picture
    return rows


def publish(dataset: Dataset, unit: UnitEntry, data: bytes) -> None:
    """Puts a shard in place of another, with its right size and hash in the manifest."""
    store = dataset[0]
    store.parent.publish(unit.shard, data)
    content = json.loads(store.read_bytes(MANIFEST))
    (entry,) = (entry for entry in content["units"] if entry["key"] == unit.key)
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    store.publish(MANIFEST, json.dumps(content).encode())


def edit(dataset: Dataset, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(dataset[0].read_bytes(MANIFEST))
    change(content)
    dataset[0].publish(MANIFEST, json.dumps(content).encode())


def problems(dataset: Dataset, workers: int = 1) -> list[Problem]:
    found = verify(dataset[0].url, workers).problems
    assert all(problem.message.count(";") >= 1 or "more of these" in problem.message for problem in found)
    return found


def codes(found: list[Problem]) -> set[str]:
    return {problem.code for problem in found}


def test_a_sound_dataset_has_no_problems(dataset: Dataset) -> None:
    store, manifest = dataset
    steps: list[tuple[int, int]] = []
    verified = verify(store.url, 1, lambda done, total, text: steps.append((done, total)))
    assert verified == Verification(
        manifest.name,
        [],
        {
            "shards": len(manifest.shards()),
            "rows": manifest.counts["rows"],
            "faces": manifest.counts["train"] + manifest.counts["val"],
            "photos": manifest.counts["photos"],
            "bytes": sum(unit.bytes for unit in manifest.units),
        },
    )
    assert steps == [(n + 1, len(manifest.shards())) for n in range(len(manifest.shards()))]


def test_workers_find_the_same(copied: Dataset, ray_of_two: int) -> None:
    unit = unit_of(copied[1])
    copied[0].parent.delete(unit.shard)
    assert problems(copied, ray_of_two) == problems(copied) != []


def gone(data: bytes) -> bytes | None:
    return None


def truncated(data: bytes) -> bytes:
    return data[:-100]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (gone, "missing", "not there; run the same `msrrn prepare` again"),
        (truncated, "size", f"; {AGAIN}"),
        (flipped, "sha256", f"; {AGAIN}"),
    ],
)
def test_a_damaged_shard_is_named_once(
    copied: Dataset, damage: Callable[[bytes], bytes | None], code: str, said: str
) -> None:
    unit = unit_of(copied[1])
    pool = copied[0].parent
    data = damage(pool.read_bytes(unit.shard))
    if data is None:
        pool.delete(unit.shard)
    else:
        pool.publish(unit.shard, data)
    (found,) = problems(copied)
    assert (found.place, found.code) == (unit.shard, code)
    assert said in found.message


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all" * 100])
def test_a_shard_that_is_no_parquet_is_named(copied: Dataset, data: bytes) -> None:
    unit = unit_of(copied[1])
    publish(copied, unit, data)
    (found,) = problems(copied)
    assert (found.place, found.code) == (unit.shard, "unreadable")


def test_a_flipped_byte_is_found_in_the_page_even_where_the_hash_was_forged(copied: Dataset) -> None:
    unit = unit_of(copied[1])
    publish(copied, unit, flipped(copied[0].parent.read_bytes(unit.shard)))
    assert {(found.place, found.code) for found in problems(copied)} == {(unit.shard, "unreadable")}


def swapped(column: str) -> Callable[[Rows], object]:
    """Exchanges a column between the two faces of copy 0."""

    def damage(rows: Rows) -> None:
        rows[0][column], rows[1][column] = rows[1][column], rows[0][column]

    return damage


def put(column: str, value: object, row: int = 0) -> Callable[[Rows], object]:
    return lambda rows: rows[row].update({column: value})


def element(column: str, index: int, value: float | None, row: int = 0) -> Callable[[Rows], object]:
    def damage(rows: Rows) -> None:
        values = list(rows[row][column])
        values[index] = value
        rows[row][column] = values

    return damage


def shifted(rows: Rows) -> None:
    rows[-1]["landmarks"] = np.asarray(rows[-1]["landmarks"]) + np.float32(0.01)


def inverted(size: int, row: int) -> Callable[[Rows], object]:
    return lambda rows: rows[row].update({f"image_{size}": 255 - rows[row][f"image_{size}"]})


DAMAGED_ROWS: dict[str, tuple[Callable[[Rows], object], set[str]]] = {
    "a picture of another face": (swapped("image_200"), {"levels", "brightness"}),
    "a level of another face": (swapped("image_50"), {"levels"}),
    "an inverted level": (inverted(100, 1), {"levels"}),
    "an inverted picture of a copy": (inverted(200, -1), {"levels"}),
    "landmarks of another face": (swapped("landmarks"), {"landmarks"}),
    "landmarks shifted by a hundredth": (shifted, {"landmarks"}),
    "a crop of another face": (swapped("to_crop"), {"to_crop", "landmarks"}),
    "a crop without inverse": (put("to_crop", [0.0] * 6), {"to_crop"}),
    "a crop without inverse in a copy": (put("to_crop", [0.0] * 6, -1), {"to_crop"}),
    "a box of another face": (swapped("box"), {"to_crop", "copies"}),
    "an empty box": (put("box", [5.0, 5.0, 5.0, 5.0]), {"box", "copies"}),
    "a scale of nothing": (put("scale", 0.0), {"to_crop"}),
    "landmarks that are no number": (element("landmarks", 3, float("nan")), {"not_finite"}),
    "a landmark that is absent": (element("landmarks", 3, None), {"not_finite"}),
    "a crop that is no number": (element("to_crop", 2, float("inf")), {"not_finite"}),
    "a number that is absent from a list": (element("box", 2, None), {"not_finite", "copies"}),
    "a padding that is no share": (put("padding", 1.5), {"padding"}),
    "another split": (put("split", "val"), {"split"}),
    "another number of the face": (put("face_index", 7), {"face_id"}),
    "a score of a face that was missed": (put("detected", False), {"detector_score", "copies", "counts"}),
    "another source of a copy": (put("source", "elsewhere", -1), {"copies"}),
    "another source of a face": (put("source", "elsewhere"), {"copies", "counts"}),
    "a copy that is missing": (lambda rows: rows.pop(), {"copies", "counts"}),
    "a whole copy that is missing": (lambda rows: rows.__setitem__(slice(-2, None), []), {"copies", "counts"}),
    "a face twice": (lambda rows: rows.append(rows[-1]), {"face_twice", "counts"}),
    "a copy too many": (lambda rows: rows.append(rows[-1] | {"copy": 9}), {"copies", "counts"}),
    "a copy without its face": (lambda rows: rows.pop(0), {"copies", "counts"}),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGED_ROWS.values(), ids=DAMAGED_ROWS)
def test_a_wrong_row_is_found_though_the_hash_is_right(
    copied: Dataset, damage: Callable[[Rows], object], expected: set[str]
) -> None:
    unit = unit_of(copied[1])
    rows = [row for row in rows_of(copied, unit) if row["face_id"] in two_faces(copied, unit)]
    others = [row for row in rows_of(copied, unit) if row["face_id"] not in two_faces(copied, unit)]
    damage(rows)
    publish(copied, unit, encode_shard([*rows, *others], SETTINGS.model_dump_json()))
    found = problems(copied)
    assert codes(found) == expected
    assert {problem.place.split(",")[0] for problem in found} <= {unit.shard, MANIFEST}


def test_a_number_of_any_column_must_be_one(copied: Dataset) -> None:
    unit = unit_of(copied[1])
    rows = rows_of(copied, unit)
    columns = [field.name for field in SCHEMA if pa.types.is_floating(field.type) and not field.nullable]
    rows[0] |= dict.fromkeys(columns, float("nan"))
    publish(copied, unit, encode_shard(rows, SETTINGS.model_dump_json()))
    (said,) = (found.message for found in problems(copied) if found.code == "not_finite")
    assert set(columns) == set(said.partition(" holds ")[0].split(", "))


def two_faces(dataset: Dataset, unit: UnitEntry) -> set[str]:
    """Two faces that the detector found."""
    rows = [row for row in rows_of(dataset, unit) if row["copy"] == 0 and row["detected"]]
    return {row["face_id"] for row in rows[:2]}


def test_a_wrong_row_is_named(copied: Dataset) -> None:
    unit = unit_of(copied[1])
    rows = rows_of(copied, unit)
    inverted(50, 5)(rows)
    publish(copied, unit, encode_shard(rows, SETTINGS.model_dump_json()))
    (found,) = problems(copied)
    assert found.place == f"{unit.shard}, row 5"


def test_what_is_wrong_throughout_is_said_a_few_times(copied: Dataset) -> None:
    unit = max(copied[1].units, key=lambda unit: unit.rows)
    rows = [row | {"image_50": 255 - row["image_50"]} for row in rows_of(copied, unit)]
    rows *= 1 + PROBLEMS_PER_SHARD // len(rows)
    publish(copied, unit, encode_shard(rows, SETTINGS.model_dump_json()))
    found = [problem for problem in problems(copied) if problem.code == "levels"]
    assert len(found) == PROBLEMS_PER_SHARD + 1
    assert f"{len(rows) - PROBLEMS_PER_SHARD} more of these" in {problem.message for problem in found}


def dropped(table: pa.Table) -> pa.Table:
    return table.drop_columns(["padding"])


def widened(table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index("padding")
    return table.set_column(
        index, pa.field("padding", pa.float64(), nullable=False), table["padding"].cast("float64")
    )


def nullable(table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index("source")
    return table.set_column(index, pa.field("source", pa.string()), pa.array([None] * len(table), pa.string()))


def extra(table: pa.Table) -> pa.Table:
    return table.append_column("more", pa.array(range(len(table))))


def described(**changes: str) -> Callable[[pa.Table], pa.Table]:
    keys = {f"msrrn.{name}".encode(): value for name, value in changes.items()}
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, **keys})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dropped, "column padding is missing"),
        (widened, "column padding is pyarrow.Field<padding: double not null>"),
        (nullable, "column source is"),
        (extra, "its columns are"),
        (described(schema="1"), "msrrn.schema is '1'"),
        (described(scheme="wflw-98"), "msrrn.scheme is 'wflw-98'"),
        (described(settings="{}"), "the settings in it are not those of the manifest"),
        (described(settings="["), "the settings in it are not those of the manifest"),
    ],
)
def test_a_shard_of_another_schema_is_named(
    copied: Dataset, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    unit = unit_of(copied[1])
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(copied[0].parent.read_bytes(unit.shard)))), sink)
    publish(copied, unit, sink.getvalue())
    (found,) = problems(copied)
    assert (found.place, found.code) == (unit.shard, "schema")
    assert said in found.message


def test_a_photo_in_two_splits_is_found(copied: Dataset) -> None:
    train, val = unit_of(copied[1]), unit_of(copied[1], "val", 1)
    leaked = [row | {"split": "val"} for row in rows_of(copied, train) if row["copy"] == 0]
    publish(copied, val, encode_shard([*rows_of(copied, val), *leaked], SETTINGS.model_dump_json()))
    found = [problem for problem in problems(copied) if problem.code == "split"]
    assert {problem.place for problem in found} == {val.shard}
    assert {row["photo_sha256"] for row in leaked} == {problem.message.split()[1] for problem in found}


def test_a_photo_in_two_units_of_a_split_is_found(copied: Dataset) -> None:
    first, second = copied[1].shards("train")[:2]
    rows = [*rows_of(copied, second), *rows_of(copied, first)]
    publish(copied, second, encode_shard(rows, SETTINGS.model_dump_json()))
    assert "photo_twice" in codes(problems(copied))


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda m: m["counts"].update(train=1), "counts", "`counts.train` is 1"),
        (lambda m: m["counts"].update(faces_in=1), "counts", "`counts.faces_in` is 1"),
        (lambda m: m["counts"].update(rows=1), "counts", "`counts.rows` is 1"),
        (lambda m: m["counts"].update(photos=1), "counts", "`counts.photos` is 1"),
        (lambda m: m["counts"].pop("val"), "counts", "`counts` has no val"),
        (lambda m: m["left_out"].clear(), "counts", "its parts give 0"),
        (lambda m: m.update(missed=77), "counts", "`missed` is 77"),
        (lambda m: m["faces_by_source"]["lfpw"].update(train=99), "counts", "99 faces of 'lfpw' in train"),
        (lambda m: m["faces_by_source"].update(more={"val": 1}), "counts", "1 faces of 'more' in val"),
        (lambda m: m["faces_by_source"].pop("lfpw"), "counts", "0 faces of 'lfpw' in train"),
        (lambda m: m["units"][0].update(rows=999), "counts", "has 999 rows, its shard holds"),
        (lambda m: m["units"][0].update(photos=0), "counts", "has 0 photos, its shard holds"),
        (lambda m: m["units"][0].update(split="val"), "split", "its unit is of val"),
        (lambda m: m["units"][0].update(sha256="0" * 64), "sha256", "the manifest says 000000000000…"),
        (lambda m: m["units"].append(m["units"][0]), "unit", "is listed 2 times"),
        (lambda m: m["units"][0].update(key="../../../etc/passwd"), "unit", "is no name of a shard"),
        (lambda m: m["settings"]["augmentation"].update(copies=2), "schema", "the settings in it are not those"),
        (lambda m: m["settings"].update(crop_margin="wide"), "settings", "field `settings.crop_margin`"),
        (lambda m: m.update(name="0" * 16), "name", "it is of dataset 0000000000000000, but lies in"),
        (lambda m: m.update(scheme="wflw-98"), "scheme", "field `scheme` is wflw-98"),
    ],
)
def test_an_edited_manifest_is_found(
    copied: Dataset, change: Callable[[dict[str, Any]], object], code: str, said: str
) -> None:
    edit(copied, change)
    assert any(problem.code == code and said in problem.message for problem in problems(copied))


def test_a_dataset_of_another_version_is_not_to_be_deleted(copied: Dataset) -> None:
    """This version would not make it again, nor keep its shards: it knows no such setting."""
    edit(copied, lambda manifest: manifest["settings"].update(newer=1))
    (problem,) = problems(copied)
    assert "field `settings.newer`" in problem.message
    assert f"verify it with msrrn {copied[1].code_version}, which made it" in problem.message
    assert "delete" not in problem.message


def test_a_dropped_unit_is_missed_in_the_counts(copied: Dataset) -> None:
    edit(copied, lambda m: m["units"].pop(0))
    assert codes(problems(copied)) == {"counts"}


def test_what_is_no_dataset_is_an_error(copied: Dataset) -> None:
    copied[0].publish(MANIFEST, b"{")
    with pytest.raises(UserError, match="not JSON"):
        verify(copied[0].url)
    copied[0].delete(MANIFEST)
    with pytest.raises(UserError, match="no finished dataset"):
        verify(copied[0].url)


def test_a_dataset_on_s3_is_verified(dataset: Dataset, s3: str) -> None:
    store, manifest = dataset
    there = Store(s3)
    there.publish(f"{manifest.name}/{MANIFEST}", store.read_bytes(MANIFEST))
    for unit in manifest.shards()[1:]:
        there.publish(unit.shard, store.parent.read_bytes(unit.shard))
    (found,) = verify(there.child(manifest.name).url).problems
    assert (found.place, found.code) == (manifest.shards()[0].shard, "missing")
