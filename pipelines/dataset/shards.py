"""Training shards: the schema, in this one place, and the bytes of a shard.

A shard is a Parquet file, a row a sample. Its row groups are the copies of its faces: the first holds every
face as it is, the next the first augmented copy of each, and so on. So a reader that takes row groups in any
order meets many faces before it meets a second copy of one.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from msrrn.geometry import LEVELS
from msrrn.landmarks import NUM_LANDMARKS, SCHEME
from pipelines.errors import UserError
from pipelines.storage import Store

SCHEMA_VERSION: Final = "2"

Split = Literal["train", "val"]
TRAINED_SPLITS: Final[tuple[Split, ...]] = ("train", "val")


def _image(size: int) -> pa.Field:
    # Ten times faster to read than a list of numbers, which Parquet would keep as four bytes each.
    shape = {"msrrn.shape": f"{size},{size}", "msrrn.dtype": "uint8"}
    return pa.field(f"image_{size}", pa.binary(size * size), nullable=False, metadata=shape)


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
        *(_image(size) for size in reversed(LEVELS)),
        pa.field("landmarks", pa.list_(pa.float32(), 2 * NUM_LANDMARKS), nullable=False),
        # Upright pixels → [0, 1] of the crop, row by row: (2, 3).
        pa.field("to_crop", pa.list_(pa.float64(), 6), nullable=False),
        pa.field("box", pa.list_(pa.float64(), 4), nullable=False),
        pa.field("detected", pa.bool_(), nullable=False),
        pa.field("detector_score", pa.float64()),
        pa.field("padding", pa.float32(), nullable=False),
        # Of the face as it is, on every copy: the slope of its eyes in degrees, clockwise on screen; the mean
        # grey value of its crop, 0 to 255; the variance of the crop's Laplacian, small when it is blurred.
        pa.field("face_roll", pa.float32(), nullable=False),
        pa.field("brightness", pa.float32(), nullable=False),
        pa.field("sharpness", pa.float32(), nullable=False),
        # How this copy was drawn: see msrrn.augmentation.Draw.
        pa.field("roll", pa.float64(), nullable=False),
        pa.field("mirrored", pa.bool_(), nullable=False),
        pa.field("shift", pa.list_(pa.float64(), 2), nullable=False),
        pa.field("scale", pa.float64(), nullable=False),
        pa.field("noise_sigma", pa.float64(), nullable=False),
    ],
    metadata={"msrrn.schema": SCHEMA_VERSION, "msrrn.scheme": SCHEME},
)


def encode_shard(rows: Iterable[dict[str, Any]], settings: str) -> bytes:
    """Rows → the bytes of a Parquet file; images are arrays (size, size) uint8, or
    their bytes. Same rows, same bytes.

    Rows are sorted by `copy`, and keep their order within one.
    """
    schema = SCHEMA.with_metadata({**SCHEMA.metadata, b"msrrn.settings": settings.encode()})
    sink = io.BytesIO()
    others = [field.name for field in SCHEMA if not pa.types.is_fixed_size_binary(field.type)]
    options = {
        # Noisy pictures shrink by a twentieth, and would take most of the time.
        "compression": {name: "zstd" if name in others else "none" for name in SCHEMA.names},
        "use_dictionary": others,
        "write_statistics": others,
        "write_page_checksum": True,
    }
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for _, same_copy in groupby(sorted(rows, key=lambda row: row["copy"]), lambda row: row["copy"]):
            writer.write_table(_table(list(same_copy), schema))
    return sink.getvalue()


def _table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_fixed_size_binary(field.type):
            values = [image if isinstance(image, bytes) else image.tobytes() for image in values]
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def images(table: pa.Table, size: int) -> NDArray[np.uint8]:
    """The column `image_SIZE` of a table as (N, size, size) uint8, read-only."""
    column = table[f"image_{size}"].combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [
        np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, size, size)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in chunks
    ]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays or [np.zeros((0, size, size), np.uint8)])


def landmarks(table: pa.Table) -> NDArray[np.float32]:
    """The column `landmarks` as (N, 68, 2) float32 in [0, 1] of the crop."""
    flat = [np.asarray(chunk.flatten(), np.float32) for chunk in table["landmarks"].chunks]
    return np.concatenate(flat or [np.zeros(0, np.float32)]).reshape(-1, NUM_LANDMARKS, 2)


@contextmanager
def open_shard(
    pool: Store, shard: str, remedy: str = "delete it, and run the `msrrn prepare` again that made it"
) -> Iterator[BinaryIO]:
    """A shard as a file; what pyarrow finds wrong with it becomes a `UserError` that says what to do."""
    try:
        with pool.open(shard) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        # Failures of the disk or the network have a number or a class of their own: they are not damage.
        if not isinstance(error, pa.ArrowException) and (error.errno or type(error) is not OSError):
            raise
        raise UserError(f"{pool.url}/{shard}: damaged ({str(error).splitlines()[0]}); {remedy}") from error
