"""`imglab.xml`: dlib's own format, a box with 68 parts `00` to `67`; for its trainers and its tool imglab.

dlib holds boxes and parts as whole pixels, 0-based, and its reader refuses anything else: coordinates are rounded
to the nearest pixel, which moves a landmark by half a pixel at most. A box has at least one pixel. `detection_score`
is the face's confidence. Paths are relative to the XML's folder: put it into that of the pictures.

Known limits of dlib: it does not turn pictures as their EXIF orientation says, though the annotations are of the
upright ones; and it opens no file whose name has one of & < >, or quotes of both kinds, because it does not decode
what XML demands there, and its trainers end at the first file that they cannot open.

Source: dlib, `dlib/data_io/image_dataset_metadata.cpp`; see `pipelines.sources.imglab`.
"""

from typing import Final

import numpy as np

from pipelines.annotation.exports.pictures import AnnotatedPictures, Face, numbers
from pipelines.annotation.exports.xml import attribute
from pipelines.storage import Store

FILE: Final = "imglab.xml"
_HEAD: Final = "<?xml version='1.0' encoding='UTF-8'?>\n<dataset>\n<name>faces by msrrn</name>\n<images>\n"


def write(pictures: AnnotatedPictures, out: Store) -> str:
    """See `Exporter`."""
    with out.writing(FILE) as file:
        file.write(_HEAD.encode())
        for picture in pictures:
            size = f"width='{picture.width}' height='{picture.height}'"
            boxes = "".join(map(_box, picture.faces))
            file.write(f"  <image file={attribute(pictures.name(picture))} {size}>\n{boxes}  </image>\n".encode())
        file.write(b"</images>\n</dataset>\n")
    return FILE


def older(out: Store) -> list[str]:
    """See `Exporter`."""
    return out.present(FILE)


def _box(face: Face) -> str:
    left, top, right, bottom = (int(edge) for edge in np.rint(np.asarray(face.edges) + 0.5))
    parts = "".join(
        f"      <part name='{index:02}' x='{x}' y='{y}'/>\n"
        for index, (x, y) in enumerate(np.rint(face.landmarks).astype(int))
    )
    size = f"width='{max(right - left, 1)}' height='{max(bottom - top, 1)}'"
    score = numbers([face.confidence])[0]
    return f"    <box top='{top}' left='{left}' {size} detection_score='{score}'>\n{parts}    </box>\n"
