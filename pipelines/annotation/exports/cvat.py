"""`annotations.xml`: "CVAT for images 1.1"; each face is one shape of 68 points, label `face`.

CVAT counts from the corner of the first pixel, and keeps points in [0, width] (`fitPoints` in
`cvat-core/src/annotations-objects.ts`): pixel centres are half a pixel further right and down than in our tables.
It knows two decimals, and so does this file. Points, not a skeleton: a task needs one label for them instead of 69
that are drawn by hand, and CVAT keeps their order.

A task takes only labels that it has: `cvat-labels.json` beside the XML is what to paste into *Raw* where the task's
labels are made. Pictures are found by name, with folders and without suffix; where the task has them under others, by
`id`, their place in its list, which is here that in the run: the archive's own order unless pictures came in later.
A task that has only a part of them would so get faces of others, and `a.jpg` and `a.png` are one to it.
CVAT turns pictures as their EXIF orientation says, as we do.

Source: https://docs.cvat.ai/docs/other/xml_format and `cvat/apps/dataset_manager/formats/cvat.py`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.annotation.exports.pictures import AnnotatedPictures, Face, Picture, numbers
from pipelines.annotation.exports.xml import attribute
from pipelines.sources.cvat import ORIGIN
from pipelines.storage import Store

FILE: Final = "annotations.xml"
LABELS: Final = "cvat-labels.json"
ATTRIBUTES: Final = ("face_index", "confidence")
_CHECKBOX: Final = {"input_type": "checkbox", "mutable": False, "values": ["false"], "default_value": "false"}
_TEXT: Final = {"input_type": "text", "mutable": False, "values": [""], "default_value": ""}
CHECKBOXES: Final = frozenset({"doubtful", "checked"})

Shape = tuple[Face, Mapping[str, str]]
"""A face, and the attributes that it has."""


def write(pictures: AnnotatedPictures, out: Store) -> str:
    """See `Exporter`."""
    out.publish(LABELS, labels(ATTRIBUTES))
    with out.writing(FILE) as file:
        images = (
            (picture.id - 1, picture, pictures.name(picture), [(face, attributes(face)) for face in picture.faces])
            for picture in pictures
        )
        write_document(file, ATTRIBUTES, images)
    return FILE


def older(out: Store) -> list[str]:
    """See `Exporter`."""
    return out.present(LABELS, FILE)


def attributes(face: Face) -> dict[str, str]:
    """The values of `ATTRIBUTES`."""
    return {"face_index": str(face.index), "confidence": str(numbers([face.confidence])[0])}


def labels(names: Sequence[str]) -> bytes:
    """What to paste into *Raw* of a task's labels: `face`, with attributes of these names."""
    label = {"name": "face", "type": "points", "attributes": [{"name": name, **_kind(name)} for name in names]}
    return (json.dumps([label], indent=1) + "\n").encode()


def write_document(
    file: BinaryIO, names: Sequence[str], images: Iterable[tuple[int, Picture, str, Sequence[Shape]]]
) -> None:
    """A whole document of pictures, each with its place in the task, the name of its file, and its faces; one is held
    at a time.
    """
    declared = "".join(map(_declaration, names))
    file.write(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n'
        "      <name>faces by msrrn</name>\n      <mode>annotation</mode>\n      <labels>\n        <label>\n"
        f"          <name>face</name>\n          <type>points</type>\n          <attributes>\n{declared}"
        "          </attributes>\n        </label>\n      </labels>\n    </task>\n  </meta>\n".encode()
    )
    for place, picture, name, shapes in images:
        size = f'width="{picture.width}" height="{picture.height}"'
        drawn = "".join(_points(face.landmarks, values) for face, values in shapes)
        file.write(f'  <image id="{place}" name={attribute(name)} {size}>\n{drawn}  </image>\n'.encode())
    file.write(b"</annotations>\n")


def _kind(name: str) -> dict[str, Any]:
    return _CHECKBOX if name in CHECKBOXES else _TEXT


def _declaration(name: str) -> str:
    kind = _kind(name)
    return (
        f"            <attribute>\n              <name>{name}</name>\n              <mutable>False</mutable>\n"
        f"              <input_type>{kind['input_type']}</input_type>\n"
        f"              <default_value>{kind['default_value']}</default_value>\n"
        f"              <values>{kind['values'][0]}</values>\n            </attribute>\n"
    )


def _points(landmarks: NDArray[np.float32], values: Mapping[str, str]) -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in landmarks.astype(np.float64) + ORIGIN)
    inside = "".join(f'      <attribute name="{name}">{value}</attribute>\n' for name, value in values.items())
    return (
        f'    <points label="face" source="auto" occluded="0" points="{points}" z_order="0">\n{inside}    </points>\n'
    )
