import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.manifest import MANIFEST, Manifest, read_manifest
from pipelines.dataset.shards import SCHEMA, SCHEMA_VERSION, Split, encode_shard, images, landmarks
from pipelines.errors import UserError
from pipelines.storage import Store
from tests.factories import SETTINGS

Dataset = tuple[Store, Manifest]


def shard(dataset: Dataset, split: Split = "train") -> bytes:
    store, manifest = dataset
    return store.parent.read_bytes(manifest.shards(split)[0].shard)


def test_a_shard_tells_its_schema_scheme_and_settings(dataset: Dataset) -> None:
    table = pq.read_table(io.BytesIO(shard(dataset)))
    assert table.schema.equals(SCHEMA)
    metadata = table.schema.metadata
    assert metadata[b"msrrn.schema"] == SCHEMA_VERSION.encode()
    assert metadata[b"msrrn.scheme"] == b"ibug-68"
    assert json.loads(metadata[b"msrrn.settings"]) == json.loads(SETTINGS.model_dump_json())
    for size in (200, 100, 50):
        field = table.schema.field(f"image_{size}")
        assert field.type == pa.binary(size * size)
        assert field.metadata == {b"msrrn.shape": f"{size},{size}".encode(), b"msrrn.dtype": b"uint8"}
    assert table.schema.field("landmarks").type == pa.list_(pa.float32(), 136)


def test_rows_survive_encoding(dataset: Dataset) -> None:
    data = shard(dataset)
    table = pq.read_table(io.BytesIO(data))
    rows = table.to_pylist()
    for size in (200, 100, 50):
        for row, image in zip(rows, images(table, size), strict=True):
            assert image.tobytes() == row[f"image_{size}"]
            row[f"image_{size}"] = image
    assert [shape.ravel().tolist() for shape in landmarks(table)] == [row["landmarks"] for row in rows]
    assert encode_shard(rows, SETTINGS.model_dump_json()) == data
    assert encode_shard(rows[:-1], SETTINGS.model_dump_json()) != data


def test_a_row_group_is_one_copy_of_every_face(dataset: Dataset) -> None:
    file = pq.ParquetFile(io.BytesIO(shard(dataset)))
    groups = [file.read_row_group(index) for index in range(file.num_row_groups)]
    assert [set(group["copy"].to_pylist()) for group in groups] == [{0}, {1}, {2}, {3}]
    faces = [group["face_id"].to_pylist() for group in groups]
    assert faces.count(faces[0]) == 4
    assert pq.ParquetFile(io.BytesIO(shard(dataset, "val"))).num_row_groups == 1


def test_a_manifest_that_cannot_be_used_is_explained(dataset: Dataset, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match=r"no manifest\.json, so it is no finished dataset"):
        read_manifest(store)
    good = json.loads(dataset[0].read_bytes(MANIFEST))
    for content, explained in (
        (b"{", r"manifest\.json: not JSON"),
        (b"\xff", r"manifest\.json: not JSON"),
        (b"[]", r"manifest\.json: field ``: .* no dataset of msrrn"),
        (b'{"name": "My web app", "icons": []}', r"field `code_version`: Field required; it is no dataset"),
        (json.dumps(good | {"counts": 3}).encode(), "field `counts`"),
        (json.dumps(good | {"schema_version": "0", "counts": 3}).encode(), "field `schema_version` is 0, this"),
    ):
        store.publish(MANIFEST, content)
        with pytest.raises(UserError, match=explained):
            read_manifest(store)
    store.publish(MANIFEST, json.dumps(good).encode())
    assert read_manifest(store) == dataset[1]
