"""What a dataset's faces are like, and which of them to look at: one pass over the small columns of copy 0.

Counts go into bins that are fixed, and of each kind of face only the few most telling are kept, so memory
does not grow with the dataset. Pictures are read for those alone.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from pipelines.dataset.manifest import Manifest, UnitEntry
from pipelines.dataset.shards import images, landmarks, open_shard
from pipelines.drawing import TRUTH, Picture, draw_shape
from pipelines.pyramid import CROP
from pipelines.storage import Store

FEATURES: Final = "features.json"
SHOWN: Final = 12

_COLUMNS: Final = ("face_id", "photo_uri", "box", "detected", "padding", "face_roll", "brightness", "sharpness")
_DRAWN: Final = ("roll", "mirrored", "shift", "scale", "noise_sigma")


@dataclass(frozen=True)
class Measure:
    """A property of faces, or of pictures, with its bins; what lies beyond them counts in the outermost."""

    label: str
    edges: NDArray[np.float64]
    log: bool = False
    of: str = "faces"


def binned(values: Sequence[float] | NDArray[np.floating], measure: Measure) -> NDArray[np.int64]:
    """How many of `values` are in each of the measure's bins; all are counted, one that is no number as 0."""
    inside = np.clip(np.nan_to_num(np.asarray(values, np.float64)), measure.edges[0], measure.edges[-1])
    return np.histogram(inside, measure.edges)[0].astype(np.int64)


MEASURES: Final = {
    "size": Measure("side of the face box, px", np.geomspace(8, 8192, 61), log=True),
    "roll": Measure("roll of the eyes, degrees", np.linspace(-180, 180, 73)),
    "sharpness": Measure("sharpness: variance of the crop's Laplacian", np.geomspace(0.1, 1e5, 61), log=True),
    "brightness": Measure("brightness: mean grey value", np.linspace(0, 256, 33)),
}


@dataclass(frozen=True)
class Face:
    """A face to look at: where it is, and its row without pictures."""

    unit: UnitEntry
    row: dict[str, Any]

    @property
    def side(self) -> float:
        x0, y0, x1, y1 = self.row["box"]
        return float(np.sqrt(max(0.0, (x1 - x0) * (y1 - y0))))


def _digest(face: Face) -> str:
    return hashlib.sha256(face.row["face_id"].encode()).hexdigest()


KINDS: Final[dict[str, tuple[Callable[[Face], bool], Callable[[Face], float]]]] = {
    "train": (lambda face: face.unit.split == "train", lambda face: 0.0),
    "val": (lambda face: face.unit.split == "val", lambda face: 0.0),
    "padding": (lambda face: face.row["padding"] > 0, lambda face: -face.row["padding"]),
    "small": (lambda face: True, lambda face: face.side),
    "blurred": (lambda face: True, lambda face: face.row["sharpness"]),
    "missed": (lambda face: not face.row["detected"], lambda face: 0.0),
}
"""Which faces come into question, and their order: least first, of equal ones by their digests."""


@dataclass(frozen=True)
class Survey:
    """`counts`: measure → split → faces in each bin. `chosen`: kind → the first `SHOWN` faces."""

    counts: dict[str, dict[str, NDArray[np.int64]]]
    chosen: dict[str, list[Face]]

    def features(self) -> "Features":
        """The counts alone."""
        counts = {name: {split: found.tolist() for split, found in by.items()} for name, by in self.counts.items()}
        return Features(edges={name: measure.edges.tolist() for name, measure in MEASURES.items()}, counts=counts)


class Features(BaseModel):
    """`features.json` of a dataset: what its faces are like, for `msrrn monitor`.

    `edges`: measure → edges of its bins. `counts`: measure → split → faces in each bin.
    """

    edges: dict[str, list[float]]
    counts: dict[str, dict[str, list[int]]]


def features_of(dataset: Store, manifest: Manifest) -> Features:
    """What the dataset says of its faces; its shards are looked at where it does not, or had other bins."""
    if dataset.exists(FEATURES):
        with suppress(ValidationError):
            said = Features.model_validate_json(dataset.read_bytes(FEATURES))
            if said.edges == {name: measure.edges.tolist() for name, measure in MEASURES.items()}:
                return said
    return survey(dataset.parent, manifest).features()


def survey(pool: Store, manifest: Manifest) -> Survey:
    """Looks at every face of the dataset once, without its pictures."""
    counts: dict[str, dict[str, NDArray[np.int64]]] = {name: {} for name in MEASURES}
    chosen: dict[str, list[Face]] = {kind: [] for kind in KINDS}
    for unit in manifest.shards():
        faces = [Face(unit, row) for row in _read(pool, unit, _COLUMNS).to_pylist()]
        values = {
            "size": [face.side for face in faces],
            "roll": [face.row["face_roll"] for face in faces],
            "sharpness": [face.row["sharpness"] for face in faces],
            "brightness": [face.row["brightness"] for face in faces],
        }
        for name, measure in MEASURES.items():
            found = binned(values[name], measure)
            before = counts[name].get(unit.split, np.zeros_like(found))
            counts[name][unit.split] = before + found
        for kind, (wanted, rank) in KINDS.items():
            candidates = sorted([*chosen[kind], *filter(wanted, faces)], key=_digest)
            chosen[kind] = sorted(candidates, key=rank)[:SHOWN]
    return Survey(counts, chosen)


def tiles(pool: Store, faces: Iterable[Face]) -> dict[str, Picture]:
    """face id → its crop (200, 200, 3) with its landmarks; each shard is read once."""
    by_unit: dict[UnitEntry, set[str]] = {}
    for face in faces:
        by_unit.setdefault(face.unit, set()).add(face.row["face_id"])
    made: dict[str, Picture] = {}
    for unit, wanted in by_unit.items():
        table = _read(pool, unit, ("face_id", "image_200", "landmarks"))
        table = table.filter(pc.is_in(table["face_id"], pa.array(sorted(wanted))))
        made |= dict(zip(table["face_id"].to_pylist(), _tiles(table), strict=True))
    return made


def copies(pool: Store, face: Face, most: int = SHOWN) -> list[tuple[Picture, dict[str, Any]]]:
    """The first copies of a face, each with how it was drawn."""
    made: list[tuple[Picture, dict[str, Any]]] = []
    with open_shard(pool, face.unit.shard) as file:
        groups = pq.ParquetFile(file)
        for group in range(min(most, groups.num_row_groups)):
            table = groups.read_row_group(group, ["face_id", "image_200", "landmarks", *_DRAWN])
            table = table.filter(pc.equal(table["face_id"], face.row["face_id"]))
            made += zip(_tiles(table), table.select(list(_DRAWN)).to_pylist(), strict=True)
    return made


def _read(pool: Store, unit: UnitEntry, columns: Sequence[str]) -> pa.Table:
    """Copy 0 of a shard: its first row group."""
    with open_shard(pool, unit.shard) as file:
        return pq.ParquetFile(file).read_row_group(0, list(columns))


def _tiles(table: pa.Table) -> list[Picture]:
    return [
        draw_shape(np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8), CROP * shape - 0.5, TRUTH)
        for grey, shape in zip(images(table, CROP), landmarks(table), strict=True)
    ]
