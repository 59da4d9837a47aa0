"""WebDataset: a tar a unit, `part-UNIT.tar`, with each picture's bytes beside a `.json` of its faces.

The key of a sample is the number of the picture's row in the run's `images`, from 1; its name is in the JSON:

    {"uri": …, "sha256": …, "width": …, "height": …,
     "faces": [{"face_index": 0, "landmarks": [x0, y0, …], "box": [left, top, right, bottom], "confidence": …}, …]}

Landmarks and the box's edges are 0-based pixels of the upright picture. The same run gives the same bytes: members
have no time and no owner. A picture whose bytes are no longer those that were annotated is left out, and counted.
"""

import io
import json
import re
import tarfile
from typing import Final

from pipelines.annotation.exports.pictures import AnnotatedPictures, Face, Picture, numbers, picture_suffix
from pipelines.storage import Store

_OURS: Final = re.compile(r"part-\d{6,}\.tar")


def write(pictures: AnnotatedPictures, out: Store) -> str:
    """See `Exporter`."""
    for key in older(out):
        out.delete(key)  # a unit may have nothing to give now
    for unit, found in pictures.units():
        taken = list(found)
        if not taken:
            continue
        with out.writing(f"part-{unit}.tar") as file, tarfile.open(fileobj=file, mode="w") as tar:
            for picture, data in pictures.read(unit, taken):
                key = f"{picture.id:010}"
                _add(tar, f"{key}{picture_suffix(picture, data)}", data)
                _add(tar, f"{key}.json", json.dumps(_sample(picture)).encode())
    return ""


def older(out: Store) -> list[str]:
    """See `Exporter`."""
    return [key for key in out.keys("") if _OURS.fullmatch(key)]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # as it is made: time 0, owner 0 without a name
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _sample(picture: Picture) -> dict[str, object]:
    return {
        "uri": picture.uri,
        "sha256": picture.sha256,
        "width": picture.width,
        "height": picture.height,
        "faces": list(map(_face, picture.faces)),
    }


def _face(face: Face) -> dict[str, object]:
    return {
        "face_index": face.index,
        "landmarks": numbers(face.landmarks),
        "box": numbers(face.edges),
        "confidence": numbers([face.confidence])[0],
    }
