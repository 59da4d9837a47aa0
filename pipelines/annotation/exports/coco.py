"""`coco.json`: COCO keypoints, a person's face with 68 of them, all labelled and visible (v = 2).

Keypoints are 0-based pixel indices, which are our pixel centres, unshifted: so the format says ("0-indexed
location"), so pycocotools compares and detectron2 reads them ("in [0, H-1 or W-1]"). `bbox` is x, y, width, height
in [0, width] of the picture, whose first pixel begins at 0, so its edges lie half a pixel further right and down
than in our tables. CVAT takes keypoints as it takes all points, the first pixel's corner being 0, 0: what it shows
of such a file lies half a pixel to the left and up; give it the format `cvat`.
`segmentation` is empty, as there is none. Detectron2, and Datumaro, by which CVAT reads COCO, pass an empty one over;
a box drawn as a polygon they would take for the face's outline. Only who asks for masks (`annToMask`) cannot use it.

`file_name` is the picture's `uri`. An image's id is the number of its row in the run's `images`, an annotation's that
in `faces`, counted from 1 in input order: they stay what they are whatever confidence is asked for. `score` is the
face's confidence. The JSON has a picture, and then a face, on each line.

Source: https://cocodataset.org/#format-data; see `pipelines.sources.coco`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Final

import numpy as np

from msrrn.landmarks import CONTOURS, NUM_LANDMARKS
from pipelines.annotation.exports.pictures import AnnotatedPictures, Face, Picture, numbers
from pipelines.storage import Store

FILE: Final = "coco.json"
_GROUPS: Final = (
    *("jaw", "right_brow", "left_brow", "nose_bridge", "nostrils"),
    *("right_eye", "left_eye", "outer_lips", "inner_lips"),
)
"""What the `CONTOURS` are called."""
NAMES: Final = tuple(
    f"{group}_{number}"
    for group, (points, _) in zip(_GROUPS, CONTOURS, strict=True)
    for number in range(1, len(points) + 1)
)
"""Of the 68 keypoints: `jaw_1`, …"""
CATEGORY: Final[dict[str, Any]] = {
    "id": 1,
    "name": "face",
    "supercategory": "person",
    "keypoints": NAMES,
    "skeleton": [
        [points[index] + 1, points[(index + 1) % len(points)] + 1]
        for points, closed in CONTOURS
        for index in range(len(points) - (not closed))
    ],
}
"""Edges of a skeleton count keypoints from 1."""


def write(pictures: AnnotatedPictures, out: Store) -> str:
    """See `Exporter`. Goes through the run twice: images come before annotations."""
    with out.writing(FILE) as file:
        write_document(
            file,
            (image(picture, pictures.name(picture)) for picture in pictures),
            (annotation(face, picture.id) for picture in pictures for face in picture.faces),
        )
    return FILE


def older(out: Store) -> list[str]:
    """See `Exporter`."""
    return out.present(FILE)


def write_document(file: BinaryIO, images: Iterable[dict[str, Any]], annotations: Iterable[dict[str, Any]]) -> None:
    """A whole COCO document, of which one object is held at a time."""
    info = {"description": "68 facial landmarks (iBUG) by msrrn", "version": "1.0"}
    head = {"info": info, "licenses": [], "categories": [CATEGORY]}
    file.write(json.dumps(head).encode()[:-1])
    for name, objects in (("images", images), ("annotations", annotations)):
        file.write(f', "{name}": ['.encode())
        for number, value in enumerate(objects):
            file.write((",\n" if number else "\n").encode() + json.dumps(value).encode())
        file.write(b"\n]")
    file.write(b"}\n")


def image(picture: Picture, file_name: str) -> dict[str, Any]:
    """The entry of a picture."""
    return {"id": picture.id, "width": picture.width, "height": picture.height, "file_name": file_name}


def annotation(face: Face, image_id: int, marks: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """The entry of a face; `marks` are attributes that it has as well."""
    left, top, right, bottom = face.edges
    box = numbers([left + 0.5, top + 0.5, right - left, bottom - top])
    visible = np.hstack([face.landmarks, np.full((NUM_LANDMARKS, 1), 2, np.float32)])
    return {
        "id": face.id,
        "image_id": image_id,
        "category_id": CATEGORY["id"],
        "iscrowd": 0,
        "bbox": box,
        "area": round(box[2] * box[3], 3),
        "segmentation": [],
        "num_keypoints": NUM_LANDMARKS,
        "keypoints": [int(number) if index % 3 == 2 else number for index, number in enumerate(numbers(visible))],
        "score": numbers([face.confidence])[0],
        "attributes": {"face_index": face.index, **(marks or {})},
    }
