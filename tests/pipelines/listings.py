"""Writers of the list formats, and the places where a source may lie."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from msrrn.synthetic.anatomy import MEAN
from pipelines.sources import AnnotatedPhoto, AnnotatedSource, Rejected
from tests.pipelines import containers

Face = tuple[str, NDArray[np.floating]]
"""A picture's path and a shape in it."""
PLACES = ["faces", "faces.zip", "faces.tar", "s3"]


def a_face(seed: int = 0) -> NDArray[np.float64]:
    """A shape that looks like one."""
    rng = np.random.default_rng(seed)
    return MEAN[:68, :2] * rng.uniform(30, 60) + rng.uniform(80, 150, 2) + rng.normal(0, 0.5, (68, 2))


def imglab(faces: Sequence[Face], head: str = "") -> bytes:
    """Every face in an `<image>` of its own, with a box of 10 × 20 pixels from (3, 5)."""
    images = ""
    for name, shape in faces:
        parts = "".join(f"<part name='{i:02d}' x='{x:.6f}' y='{y:.6f}'/>\n" for i, (x, y) in enumerate(shape))
        images += f"<image file='{name}'>\n<box top='5' left='3' width='10' height='20'>\n{parts}</box></image>\n"
    xml = f"<?xml version='1.0' encoding='UTF-8'?>\n<?xml-stylesheet type='text/xsl' href='image.xsl'?>\n{head}"
    return f"{xml}<dataset><name>n</name><images>{images}</images></dataset>".encode()


def coco(faces: Sequence[Face]) -> bytes:
    """A document of one category, all points visible, with a box of 10 × 20 pixels from (3, 5)."""
    return json.dumps(coco_document(faces)).encode()


def coco_document(faces: Sequence[Face]) -> dict[str, list[dict[str, object]]]:
    names = sorted({name for name, _ in faces})
    return {
        "images": [{"id": index, "file_name": name} for index, name in enumerate(names)],
        "annotations": [
            {
                "id": 7,
                "image_id": names.index(name),
                "category_id": 1,
                "bbox": [3, 5, 10, 20],
                "keypoints": np.column_stack([shape, np.full(68, 2)]).ravel().tolist(),
                "segmentation": [[0, 1, 2, 3, 4, 5]],
            }
            for name, shape in faces
        ],
        "categories": [{"id": 1, "name": "face", "keypoints": [str(n) for n in range(68)]}],
    }


def table(faces: Sequence[Face]) -> bytes:
    header = ["file", "left", "top", "width", "height", *(f"{axis}{n}" for n in range(68) for axis in "xy")]
    rows = [",".join([name, "3", "5", "10", "20", *(f"{v:.6f}" for v in shape.ravel())]) for name, shape in faces]
    return "\n".join([",".join(header), *rows, ""]).encode()


def put(place: str, files: Mapping[str, bytes], tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The URL of these files as a folder, an archive, or on S3."""
    url = f"{request.getfixturevalue('s3')}/faces" if place == "s3" else str(tmp_path / place)
    return containers.put(url, files)


def write(folder: Path, files: Mapping[str, bytes]) -> str:
    return containers.publish(str(folder), files)


def rows_of(source: AnnotatedSource) -> list[AnnotatedPhoto | Rejected]:
    """The rows, which come twice alike and sorted."""
    rows, again = list(source.scan()), list(source.scan())
    assert list(map(_key, rows)) == list(map(_key, again))
    assert list(map(_key, rows)) == sorted(map(_key, rows)) or any(isinstance(row, Rejected) for row in rows)
    assert [row.uri for row in rows] == sorted(row.uri for row in rows)
    return rows


def faces_of(source: AnnotatedSource) -> list[AnnotatedPhoto]:
    """The rows of a source that rejects nothing."""
    faces = []
    for row in rows_of(source):
        assert isinstance(row, AnnotatedPhoto), row
        faces.append(row)
    assert len({face.annotation_uri for face in faces}) == len(faces)
    return faces


def reasons_of(source: AnnotatedSource) -> dict[str, str]:
    """Each uri with its reason, empty for a face."""
    return {row.uri: row.reason if isinstance(row, Rejected) else "" for row in rows_of(source)}


def rejected(source: AnnotatedSource) -> Rejected:
    """The one row of a source, which is rejected."""
    (row,) = rows_of(source)
    assert isinstance(row, Rejected), row
    return row


def _key(row: AnnotatedPhoto | Rejected) -> tuple[str, str]:
    return row.uri, row.annotation_uri if isinstance(row, AnnotatedPhoto) else ""
