"""Annotation runs that no model made: their tables by hand."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.annotation.plan import make_plan
from pipelines.annotation.summary import Summary
from pipelines.annotation.tables import FACES, IMAGES, RUN, STATUSES, Annotations
from pipelines.archives import Input
from pipelines.decoding import Undecodable
from pipelines.storage import Store

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Run(Annotations):
    """A run whose archive is `files`; what is not among them is gone."""

    files: Mapping[str, bytes] = field(default_factory=dict)

    def pictures(self, uris: Collection[str], unit: str | None = None) -> Iterator[tuple[str, bytes | Undecodable]]:
        for uri in sorted(uris):
            yield uri, self.files.get(uri, Undecodable("unreadable", "it is gone"))


def quarantined(uri: str, reason: str, message: str) -> dict[str, Any]:
    """A row of IMAGES."""
    nothing = dict.fromkeys(IMAGES.names)
    return nothing | {
        "uri": uri,
        "status": "quarantined",
        "reason": reason,
        "message": message,
        "faces": 0,
        "bytes": 9,
    }


def looked_at(uri: str, width: int, height: int, faces: int, data: bytes = b"") -> dict[str, Any]:
    """A row of IMAGES."""
    row = quarantined(uri, "", "") | {"reason": None, "message": None, "bytes": len(data), "faces": faces}
    row |= {"status": "annotated" if faces else "no_face", "sha256": hashlib.sha256(data or uri.encode()).hexdigest()}
    return row | {"width": width, "height": height, "orientation": 1, "turned": 0}


def face(image: dict[str, Any], index: int, shape: NDArray[np.floating], **changes: Any) -> dict[str, Any]:
    """A row of FACES: a face in the box of its points."""
    x0, y0 = shape.min(axis=0).tolist()
    x1, y1 = shape.max(axis=0).tolist()
    of_image = {"uri": image["uri"], "sha256": image["sha256"], "face_index": index}
    found = {"box": [x0, y0, x1, y1], "landmarks": np.asarray(shape, np.float32).ravel(), "detector": "hog"}
    measured = {"detector_score": 1.0, "confidence": 0.5, "face_roll": 0.0, "brightness": 100.0, "sharpness": 50.0}
    return of_image | found | measured | {"model": "tiny", "model_version": "1"} | changes


def write_run(
    folder: Path, images: Rows, faces: Rows, per_unit: int = 64, files: Mapping[str, bytes] | None = None, **run: Any
) -> tuple[Run, Summary]:
    """The tables of a run, and its summary; `faces` are in the order of their images."""
    store = Store(str(folder))
    store.publish(RUN, json.dumps({"source": "archive", "model_sha256": "m", "detector": "hog", **run}).encode())
    inputs = (Input(row["uri"], row["uri"], 0, row["bytes"], row["bytes"], "", "") for row in images)
    make_plan(inputs, store, per_unit).publish(store)
    done = 0
    for number, start in enumerate(range(0, len(images), per_unit)):
        part = images[start : start + per_unit]
        count = sum(row["faces"] for row in part)
        store.publish(f"images/part-{number:06d}.parquet", _encoded(IMAGES, part))
        store.publish(f"faces/part-{number:06d}.parquet", _encoded(FACES, faces[done : done + count]))
        store.publish(f"records/{number:06d}.json", b"{}")
        done += count
    assert done == len(faces)
    statuses = Counter(row["status"] for row in images)
    summary = Summary(
        images=len(images),
        **{status: statuses[status] for status in STATUSES},
        faces=len(faces),
        ignored=3,
        gone=0,
        reasons=dict(Counter(row["reason"] for row in images if row["reason"])),
        model="tiny 1",
        settings={"detector": "hog", "min_face": 0.1},
        digest="0123456789abcdef" * 4,
    )
    return Run(store, files or {}), summary


def run_of(
    folder: Path, shapes: Mapping[str, Sequence[NDArray[np.floating]]], per_unit: int = 2, **changes: Any
) -> Run:
    """A run over pictures whose bytes are their names, each with these faces, the later the less certain."""
    files = {uri: uri.encode() for uri in shapes}
    images = [looked_at(uri, 640, 480, len(found), files[uri]) for uri, found in shapes.items()]
    drawn = [(image, index, shape) for image in images for index, shape in enumerate(shapes[image["uri"]])]
    faces = [
        face(image, index, shape, **({"confidence": 1 - number / len(drawn)} | changes))
        for number, (image, index, shape) in enumerate(drawn)
    ]
    return write_run(folder, images, faces, per_unit, files)[0]


def _encoded(schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    columns = [pa.array([row[column.name] for row in rows], column.type) for column in schema]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink)
    return sink.getvalue()


def drawn_run(
    folder: Path,
    seed: int,
    pictures: int = 600,
    brighter: float = 0.0,
    scale: float = 1.0,
    bad: float = 0.02,
    **run: Any,
) -> tuple[Run, Summary]:
    """A run over pictures of one or two faces, drawn at random: another seed, another sample of one population.

    `brighter` is added to the brightness of each face, `scale` multiplies its size, `bad` of the pictures are none.
    """
    rng = np.random.default_rng(seed)
    square = np.linspace(0, 1, 136).reshape(68, 2)
    images: Rows = []
    faces: Rows = []
    for number in range(pictures):
        if rng.random() < bad:
            images.append(quarantined(f"{number:05d}.jpg", "truncated", "it ends early"))
            continue
        images.append(looked_at(f"{number:05d}.jpg", 1000, 750, 1 + int(rng.random() < 0.25)))
        for index in range(images[-1]["faces"]):
            side = scale * float(rng.lognormal(5, 0.5))
            measured = {
                "confidence": float(rng.beta(5, 2)),
                "face_roll": float(rng.normal(0, 10)),
                "brightness": float(np.clip(rng.normal(110, 40) + brighter, 0, 255)),
                "sharpness": float(rng.lognormal(5, 1)),
            }
            faces.append(face(images[-1], index, square * side, **measured))
    return write_run(folder, images, faces, **run)
