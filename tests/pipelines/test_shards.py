import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.prepare import prepare
from pipelines.shards import MANIFEST, SCHEMA, Manifest, Split, encode_shard, read_manifest, read_samples
from pipelines.storage import Store
from tests.factories import SETTINGS

Dataset = tuple[Store, Manifest]


def shard(dataset: Dataset, split: str = "train") -> bytes:
    store, manifest = dataset
    return store.read_bytes(next(entry.key for entry in manifest.shards if entry.split == split))


def test_a_shard_tells_its_schema_scheme_and_settings(dataset: Dataset) -> None:
    table = pq.read_table(io.BytesIO(shard(dataset)))
    assert table.schema.equals(SCHEMA)
    metadata = table.schema.metadata
    assert metadata[b"msrrn.schema"] == b"1"
    assert metadata[b"msrrn.scheme"] == b"ibug-68"
    assert json.loads(metadata[b"msrrn.settings"]) == json.loads(SETTINGS.model_dump_json())
    for size in (200, 100, 50):
        kind = table.schema.field(f"image_{size}").type
        assert isinstance(kind, pa.FixedShapeTensorType)
        assert (kind.shape, kind.value_type) == ([size, size], pa.uint8())
    assert table.schema.field("landmarks").type == pa.list_(pa.float32(), 136)


def test_rows_survive_encoding(dataset: Dataset) -> None:
    data = shard(dataset)
    table = pq.read_table(io.BytesIO(data))
    rows = table.to_pylist()
    for index, row in enumerate(rows):
        for size in (200, 100, 50):
            row[f"image_{size}"] = table[f"image_{size}"].combine_chunks().to_numpy_ndarray()[index]
    assert encode_shard(rows, SETTINGS.model_dump_json()) == data
    assert encode_shard(rows[:-1], SETTINGS.model_dump_json()) != data


def test_samples_are_the_rows_of_a_split(dataset: Dataset) -> None:
    store, manifest = dataset
    wanted: dict[Split, int] = {"train": 32, "val": 2}
    for split, count in wanted.items():
        samples = read_samples(store, manifest, split)
        assert len(samples) == count == len(samples.source)
        assert samples.image_200.shape == (count, 200, 200)
        assert samples.image_200.dtype == np.uint8
        assert samples.landmarks.shape == (count, 68, 2)
        assert samples.landmarks.dtype == np.float32
    assert samples.copy.tolist() == [0, 0]
    first = pq.read_table(io.BytesIO(shard(dataset, "val"))).to_pylist()[0]
    assert samples.landmarks[0].ravel().tolist() == first["landmarks"]
    assert samples.image_200[0].ravel().tolist() == list(first["image_200"])


def test_a_split_without_faces_has_no_samples(dataset: Dataset) -> None:
    store, manifest = dataset
    kept = [entry for entry in manifest.shards if entry.split == "train"]
    none = read_samples(store, manifest.model_copy(update={"shards": kept}), "val")
    assert (len(none), none.image_200.shape, none.landmarks.shape) == (0, (0, 200, 200), (0, 68, 2))


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


def test_a_missing_shard_is_named_and_made_again(dataset: Dataset, annotated: Path, tmp_path: Path) -> None:
    local = dataset[0].local_path()
    assert local is not None
    store = Store(str(shutil.copytree(local, tmp_path / local.name)))
    (tmp_path / local.name / "shards" / "val-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"shards/val-00000\.parquet does not exist"):
        read_samples(store, dataset[1], "val")
    (tmp_path / local.name / MANIFEST).unlink()
    assert prepare([str(annotated)], str(tmp_path), SETTINGS, 1)[1] == dataset[1]
    assert len(read_samples(store, dataset[1], "val")) == 2
