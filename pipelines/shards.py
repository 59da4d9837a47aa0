"""Training shards: the schema, in this one place, and reading and writing of them."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from msrrn.landmarks import NUM_LANDMARKS, SCHEME
from msrrn.network import LEVELS
from pipelines.errors import UserError
from pipelines.storage import Store

SCHEMA_VERSION: Final = "1"
MANIFEST: Final = "manifest.json"

Split = Literal["train", "val"]
TRAINED_SPLITS: Final[tuple[Split, ...]] = ("train", "val")


def _image(size: int) -> pa.DataType:
    return pa.fixed_shape_tensor(pa.uint8(), (size, size))


SCHEMA: Final = pa.schema(
    [
        pa.field("face_id", pa.string(), nullable=False),
        pa.field("photo_uri", pa.string(), nullable=False),
        pa.field("photo_sha256", pa.string(), nullable=False),
        pa.field("face_index", pa.int32(), nullable=False),
        pa.field("annotation_uri", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("copy", pa.int32(), nullable=False),
        *(pa.field(f"image_{size}", _image(size), nullable=False) for size in reversed(LEVELS)),
        pa.field("landmarks", pa.list_(pa.float32(), 2 * NUM_LANDMARKS), nullable=False),
        # Upright pixels → [0, 1] of the crop, row by row: (2, 3).
        pa.field("to_crop", pa.list_(pa.float64(), 6), nullable=False),
        pa.field("box", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("detected", pa.bool_(), nullable=False),
        pa.field("detector_score", pa.float64()),
        pa.field("padding", pa.float32(), nullable=False),
        pa.field("roll", pa.float64(), nullable=False),
        pa.field("mirrored", pa.bool_(), nullable=False),
        pa.field("shift", pa.list_(pa.float64(), 2), nullable=False),
        pa.field("scale", pa.float64(), nullable=False),
        pa.field("noise_sigma", pa.float64(), nullable=False),
    ],
    metadata={"msrrn.schema": SCHEMA_VERSION, "msrrn.scheme": SCHEME},
)


class ShardEntry(BaseModel):
    """A shard in the manifest, and its completion record."""

    model_config = ConfigDict(frozen=True)

    key: str
    split: Split
    rows: int
    bytes: int
    sha256: str


class LeftOut(BaseModel):
    """An input that is not in the dataset, and why."""

    model_config = ConfigDict(frozen=True)

    uri: str
    reason: str
    message: str


class Manifest(BaseModel):
    """`manifest.json`, written last: a dataset without it is not finished."""

    name: str
    schema_version: str = SCHEMA_VERSION
    scheme: str = SCHEME
    code_version: str
    settings: dict[str, Any]
    counts: dict[str, int]
    faces_by_source: dict[str, dict[str, int]]
    """source → split → faces"""
    missed: int
    """faces that the detector missed and that got a box predicted from their annotation"""
    shards: list[ShardEntry]
    left_out: list[LeftOut]


def encode_shard(rows: Sequence[dict[str, Any]], settings: str) -> bytes:
    """Rows → the bytes of a Parquet file; images are arrays (size, size) uint8. Same rows, same bytes."""
    columns = []
    for field in SCHEMA:
        values = [row[field.name] for row in rows]
        if isinstance(field.type, pa.FixedShapeTensorType):
            columns.append(pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(values)))
        else:
            columns.append(pa.array(values, field.type))
    schema = SCHEMA.with_metadata({**SCHEMA.metadata, b"msrrn.settings": settings.encode()})
    sink = io.BytesIO()
    images = [f"image_{size}" for size in LEVELS]
    others = [field.name for field in SCHEMA if field.name not in images]
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema),
        sink,
        compression="zstd",
        compression_level=1,
        # Parquet keeps a uint8 as four bytes. Split into streams, three of them vanish: a quarter smaller than
        # plain pages and twice as fast, both ways.
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in images},
        use_dictionary=others,
        write_statistics=others,
    )
    return sink.getvalue()


def read_manifest(dataset: Store) -> Manifest:
    """The dataset's manifest.

    Raises:
        UserError: there is none (not a dataset, or not finished), or it has another schema.
    """
    if not dataset.exists(MANIFEST):
        raise UserError(
            f"{dataset.url}: no {MANIFEST}, so it is no finished dataset; "
            "give the URL that `msrrn prepare` printed, or run it again to finish"
        )
    name = f"{dataset.url}/{MANIFEST}"
    try:
        content = json.loads(dataset.read_bytes(MANIFEST))
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version not in (None, SCHEMA_VERSION):
            raise UserError(
                f"{name}: field `schema_version` is {version}, this version reads {SCHEMA_VERSION}; "
                "prepare the dataset again"
            )
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{name}: field `{field}`: {first['msg']}; it is no dataset of msrrn, or a damaged one: "
            "give the URL that `msrrn prepare` printed"
        ) from error
    except ValueError as error:
        raise UserError(f"{name}: not JSON ({error}); give the URL that `msrrn prepare` printed") from error


@dataclass(frozen=True)
class Samples:
    """Crops (N, 200, 200) uint8, landmarks (N, 68, 2) float32 in [0, 1] of the crop, copy (N,), source (N,)."""

    image_200: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    copy: NDArray[np.int32]
    source: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.copy)


def read_samples(dataset: Store, manifest: Manifest, split: Split) -> Samples:
    """Every sample of a split, in the order of the manifest; the coarser levels follow from `image_200`.

    Raises:
        UserError: a shard's bytes are not those that the manifest promises.
    """
    tables = list(_tables(dataset, [entry for entry in manifest.shards if entry.split == split]))
    side = LEVELS[-1]
    if not tables:
        empty = np.zeros((0, side, side), np.uint8)
        return Samples(empty, np.zeros((0, NUM_LANDMARKS, 2), np.float32), np.zeros(0, np.int32), ())
    table = pa.concat_tables(tables)
    images = np.concatenate([chunk.to_numpy_ndarray() for chunk in table["image_200"].chunks])
    landmarks = np.concatenate([chunk.flatten().to_numpy() for chunk in table["landmarks"].chunks])
    return Samples(
        images,
        landmarks.reshape(-1, NUM_LANDMARKS, 2),
        table["copy"].to_numpy(),
        tuple(table["source"].to_pylist()),
    )


def _tables(dataset: Store, entries: Sequence[ShardEntry]) -> Iterator[pa.Table]:
    for entry in entries:
        data = dataset.read_bytes(entry.key)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise UserError(
                f"{dataset.url}/{entry.key}: its SHA-256 is not the manifest's; the shard is damaged, "
                f"delete it together with {MANIFEST} and prepare again"
            )
        yield pq.read_table(io.BytesIO(data), columns=["image_200", "landmarks", "copy", "source"])
