"""COCO keypoints JSON: annotations of 68 keypoints, or the `face_kpts` of COCO-WholeBody.

Keypoints are x, y, v with 0-based pixel indices, which are our pixel centres; v = 0 is a point that was not
labelled. Boxes (`face_box`, else `bbox`) are x, y, width, height in [0, width] of the picture, whose first pixel
begins at 0, so that all edges move by half a pixel. The two conventions differ within one file: "segmentation
coordinates are floating points in [0, H or W], but keypoint coordinates are integers in [0, H-1 or W-1]"
(detectron2, `data/datasets/coco.py`). Not every tool keeps to that: CVAT and Label Studio count from the first
pixel's corner, the latter in whole pixels, and FiftyOne cuts what lies behind the point off. Nothing in their files
says so, so they are read as COCO.

Source: https://cocodataset.org/#format-data; Jin et al., "Whole-Body Human Pose Estimation in the Wild", ECCV
2020, and the `data_format.md` of its repository ("each keypoint has a 0-indexed location").
"""

import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.landmarks import NUM_LANDMARKS
from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected
from pipelines.sources.annotation import BadAnnotation, pixel_box, usable_shape
from pipelines.sources.files import Files, open_files
from pipelines.sources.held import root_parts
from pipelines.sources.listed import Entry, OtherKind, heads, near, scan_listed
from pipelines.sources.splits import said_split
from pipelines.storage import Store

SUFFIXES: Final = (".json",)
MAX_BYTES: Final = 1 << 30
_LEAST: Final = 20
"""Bytes of text that a list or an object, and an entry of either table, has on average in any real file. An empty one
takes thirty times its text in memory, and an entry is a row.
"""
_FEW: Final = 1 << 17
"""So many are no burden, however short they are."""
_START: Final = re.compile(
    rb'(\xef\xbb\xbf)?\s*\{\s*("info"\s*:\s*\{|"(licenses|images|annotations|categories)"\s*:\s*\[)'
)
_OF_IMAGES: Final = {"id", "file_name", "split", "subset"}
_OF_FACES: Final = {"image_id", "keypoints", "bbox", "iscrowd", "face_kpts", "face_box", "face_valid", "attributes"}
_KEPT: Final = frozenset({"images", "annotations", "checked"} | _OF_IMAGES | _OF_FACES)
_Id = int | float | str
"""Tables that were joined write whole numbers as 7.0, which is 7."""
_REMEDY: Final = "give a COCO keypoints JSON with images and annotations, or a folder or an archive that holds one"


@dataclass(frozen=True)
class Coco:
    """A COCO keypoints JSON, or a folder or an archive that holds some; pictures where COCO has them.

    A JSON in a folder `annotations` has its pictures beside that, so the root is then the folder above.
    """

    url: str

    @staticmethod
    def recognises(files: Files) -> bool:
        """See `Reader.recognises`: a JSON starts with one of COCO's tables."""
        return any(_START.match(head) for head in heads(files, SUFFIXES, 4096))

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """See `AnnotatedSource.scan`; every annotation of keypoints is a row, and every picture without one."""
        files = open_files(self.url)
        folder = root_parts(files.url)[-1]
        if files.only and folder.lower() == "annotations":
            files = Files(Store(files.url).absolute().parent.url, f"{folder}/{files.only}")
        return scan_listed(files, SUFFIXES, read_coco, _REMEDY, near)


def read_coco(files: Files, name: str) -> Iterator[Entry]:
    """The annotations of keypoints in a JSON in its order, then the pictures without any.

    Numbers count all annotations from 1. Those of other things are left alone: Label Studio writes the box of a face
    beside its points. The file is read whole, of at most `MAX_BYTES`; of its objects only the fields that matter are
    kept.
    """
    where = f"{files.url}/{name}"
    document = _document(files.read(name, MAX_BYTES), where)
    images: dict[_Id | None, dict[str, Any]] = {}
    odd: list[tuple[str, BadAnnotation]] = []
    for image in document["images"]:
        key = _key(image, "id")
        if key is None:
            odd.append(
                (_file_name(image), BadAnnotation("syntax", "an image without id, which is a number or a text"))
            )
        elif images.setdefault(key, image) is not image:
            raise UserError(f"{where}: two images have the id {key!r}: give each its own")
    named = set()
    for count, annotation in enumerate(document["annotations"], start=1):
        if isinstance(annotation, dict) and not _has_points(annotation):
            continue
        named.add(_key(annotation, "image_id"))
        yield _entry(annotation, images.get(_key(annotation, "image_id")), count)
    alone = BadAnnotation("no_annotation", "a picture without annotation of keypoints")
    odd += [(_file_name(image), alone) for key, image in images.items() if key not in named]
    for count, (name_of, reason) in enumerate(odd, start=len(document["annotations"]) + 1):
        yield Entry(name_of, count, reason)


def _document(data: bytes, where: str) -> dict[str, Any]:
    kind = UserError if _START.match(data) else OtherKind
    most = max(_FEW, len(data) // _LEAST)
    hollow = f"{where} has more entries than text for them, as no list of faces has: make it again, or leave it out"
    if data.count(b"[") + data.count(b"{") > most:
        raise kind(hollow)
    try:
        document = json.loads(data, object_hook=_slim)
    except (ValueError, RecursionError) as error:
        raise kind(f"{where} is not whole JSON ({error}): mend it there, or fetch it again") from error
    if not isinstance(document, dict) or not all(
        isinstance(document.get(k), list) for k in ("images", "annotations")
    ):
        raise OtherKind(f"{where} has no lists images and annotations: {_REMEDY}")
    if len(document["images"]) + len(document["annotations"]) > most:
        raise kind(hollow)
    with_points = (isinstance(a, dict) and _has_points(a) for a in document["annotations"])
    if document["annotations"] and not any(with_points):
        raise OtherKind(f"{where} has annotations without keypoints: {_REMEDY}")
    return document


def _has_points(annotation: dict[str, Any]) -> bool:
    return "keypoints" in annotation or "face_kpts" in annotation


def _slim(value: dict[str, Any]) -> dict[str, Any]:
    """An object with the fields that are read, long lists of numbers packed: large files are mostly polygons."""
    return {key: _packed(field) for key, field in value.items() if key in _KEPT}


def _packed(field: Any) -> Any:
    if isinstance(field, list) and len(field) > 4:
        try:
            return array("d", field)
        except (TypeError, OverflowError):
            return field
    return field


def _key(entry: Any, field: str) -> _Id | None:
    key = entry.get(field) if isinstance(entry, dict) else None
    return key if isinstance(key, int | float | str) else None


def _file_name(image: Any) -> str:
    name = image.get("file_name") if isinstance(image, dict) else None
    return name if isinstance(name, str) else ""


def _entry(annotation: Any, image: dict[str, Any] | None, count: int) -> Entry:
    name = _file_name(image) if image else ""
    try:
        if not isinstance(annotation, dict):
            raise BadAnnotation("syntax", f"annotation {count} is not an object")
        if image is None:
            raise BadAnnotation("no_image", f"image_id is {annotation.get('image_id')!r}"[:100] + ", not in images")
        said = annotation.get("attributes")
        checked = isinstance(said, dict) and said.get("checked") in (True, "true")
        shape, box = _face(annotation)
        split, subset = said_split(annotation.get("split", image.get("split"))), image.get("subset")
        return Entry(name, count, shape, box, split, subset if isinstance(subset, str) else "", checked)
    except BadAnnotation as error:
        return Entry(name, count, error)


def _face(annotation: dict[str, Any]) -> tuple[NDArray[np.float64], Box | None]:
    if annotation.get("iscrowd"):
        raise BadAnnotation("crowd", "an annotation of many at once (iscrowd)")
    prefix = "face_kpts" in annotation
    if prefix and not annotation.get("face_valid", True):
        raise BadAnnotation("not_labelled", "face_valid is false: its face was not labelled")
    values = annotation.get("face_kpts" if prefix else "keypoints", [])
    if isinstance(values, list | array) and len(values) % 3:
        raise BadAnnotation("count", f"{len(values)} numbers are not x, y, v of {NUM_LANDMARKS} keypoints each")
    if isinstance(values, list | array) and len(values) != 3 * NUM_LANDMARKS:
        raise BadAnnotation("count", f"{len(values) // 3} keypoints instead of {NUM_LANDMARKS}")
    if not isinstance(values, array):
        raise BadAnnotation("syntax", "the keypoints are not a list of numbers")
    points = np.array(values, np.float64).reshape(NUM_LANDMARKS, 3)
    unlabelled = int((~(points[:, 2] > 0)).sum())
    if unlabelled:
        raise BadAnnotation("not_labelled", f"{unlabelled} of {NUM_LANDMARKS} keypoints are not labelled (v = 0)")
    return usable_shape(points[:, :2]), _box(annotation.get("face_box" if prefix else "bbox"))


def _box(value: Any) -> Box | None:
    """None where there is no box; converters of landmark sets often write four zeros for that."""
    if value is None or value in ([], [0, 0, 0, 0]):
        return None
    try:
        x, y, width, height = (float(edge) for edge in value)
        return pixel_box(x, y, width, height)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadAnnotation(
            "syntax", f"the box is {value!r}"[:100] + ": write x, y, and a width and a height above 0"
        ) from error
