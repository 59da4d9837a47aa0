"""The faces that the model is least certain of, for a person to correct, and the way back.

`review` writes a folder: pictures, one annotation file with the landmarks of all of their faces drawn, a README for
the person, and last `review.json`. With the corrected file in the place of the annotation file, the folder is a
source for `prepare`, in which faces that a person changed are `corrections`: see `pipelines.sources.corrections`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Final

from pydantic import BaseModel

from pipelines.annotation.exports import MARK, coco, cvat, mark, require_own
from pipelines.annotation.exports.pictures import AnnotatedPictures, Face, Picture, numbers, picture_suffix
from pipelines.annotation.tables import Annotations
from pipelines.archives.names import printable
from pipelines.errors import UserError
from pipelines.progress import Counted
from pipelines.settings import ReviewFormat
from pipelines.sources.corrections import REVIEW, Review, ReviewedPicture
from pipelines.storage import Store

README: Final = "README.txt"
IMAGES: Final = "images"
DOUBTFUL: Final = "doubtful"
CHECKED: Final = "checked"
_ATTRIBUTES: Final = (*cvat.ATTRIBUTES, DOUBTFUL, CHECKED)
_LONGEST_NAME: Final = 60

Copies = tuple[str, int]
"""A picture's SHA-256 and a face's place in it. Confidence may differ in its last bit from copy to copy."""
Rank = tuple[float, int, int]
"""confidence, and the numbers of the picture and of the face in the run; the least certain first"""


class Reviewing(BaseModel):
    """What a review holds."""

    out: str
    annotations: str
    """the file to correct"""
    pictures: int
    faces: int
    doubtful: int
    """faces among them that were asked for"""
    unreadable: dict[str, int]
    """reason → pictures that are left out because the archive no longer gives their bytes"""
    finished: bool
    """whether the run was: else these are of its finished units"""


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture of the review: the name of its file in `images`, and the ids of its doubtful faces."""

    name: str
    picture: Picture
    doubtful: frozenset[int]


def review(
    annotations: Annotations,
    worst: int,
    format: ReviewFormat,  # noqa: A002 - as the command line says it
    out: str,
    progress: Counted = lambda done, total: None,
) -> Reviewing:
    """Writes the pictures of the `worst` least certain faces, with all of their faces drawn, below `out`; a picture
    of which the archive has copies is there once.

    Raises:
        UserError: there is no run, no finished unit or no face, none of the pictures can be read, or `out` holds
            anything else, such as a review that a person may have worked on.
    """
    store = Store(out)
    if store.exists(REVIEW):
        raise UserError(f"{store.url} holds a review, perhaps with work in it: give another --out")
    run = annotations.run
    annotations.require_units()
    pictures = AnnotatedPictures(annotations, progress=progress)
    chosen = _chosen(pictures, worst)
    if not chosen:
        raise UserError(f"{annotations.store.url} has no face to review: annotate pictures with faces first")
    mark(store, f"review-{format}", _anything)
    require_own(store, IMAGES)
    for key in store.keys(IMAGES):  # of one that was cut off, perhaps of other faces
        store.delete(key)
    shown = sorted(_written(pictures, chosen, store), key=lambda it: it.name)
    if not shown:
        reasons = ", ".join(f"{reason} × {count}" for reason, count in sorted(pictures.unreadable.items()))
        raise UserError(
            f"none of the {len(chosen)} pictures to review can be read ({reasons}): see that the archive of "
            f"{annotations.store.url} is where it was"
        )
    file = _write_cvat(shown, store) if format == "cvat" else _write_coco(shown, store)
    store.publish(README, _readme(printable(store.url), file).encode())
    remembered = Review(
        source=printable(str(run.get("archive") or run.get("source", ""))),
        model=str(run.get("model", "")),
        pictures={f"{IMAGES}/{it.name}": _remembered(it.picture) for it in shown},
    )
    store.publish(REVIEW, remembered.model_dump_json(indent=1).encode())
    return Reviewing(
        out=store.url,
        annotations=f"{store.url}/{file}",
        pictures=len(shown),
        faces=sum(len(it.picture.faces) for it in shown),
        doubtful=sum(len(it.doubtful) for it in shown),
        unreadable=dict(sorted(pictures.unreadable.items())),
        finished=annotations.finished,
    )


def _chosen(pictures: AnnotatedPictures, worst: int) -> dict[int, list[int]]:
    """Ids of the pictures of the least certain faces, and of those faces; the least certain picture first."""
    kept: dict[Copies, Rank] = {}
    for _, found in pictures.units():
        for picture in found:
            for face in picture.faces:
                kept.setdefault((picture.sha256, face.index), (face.confidence, picture.id, face.id))
        kept = dict(nsmallest(worst, kept.items(), key=itemgetter(1)))
    chosen: dict[int, list[int]] = {}
    for _, picture_id, face_id in kept.values():
        chosen.setdefault(picture_id, []).append(face_id)
    return chosen


def _anything(out: Store) -> list[str]:
    """A review among other files, as those of the archive, would be taken for some of them.

    A link for `images` leads to files that are not seen here.
    """
    return [key for key in (*out.keys(""), *out.present(IMAGES)) if key != MARK]


def _written(pictures: AnnotatedPictures, chosen: dict[int, list[int]], out: Store) -> Iterator[Shown]:
    """Writes the files of the pictures, as they are; the one with the least certain face has the first name."""
    ranks = {picture: rank for rank, picture in enumerate(chosen, start=1)}
    width = max(4, len(str(len(ranks))))
    for unit, found in pictures.units():
        for picture, data in pictures.read(unit, [picture for picture in found if picture.id in ranks]):
            name = f"{ranks[picture.id]:0{width}}-{_plain(picture.uri)}{picture_suffix(picture, data)}"
            out.publish(f"{IMAGES}/{name}", data)
            yield Shown(name, picture, frozenset(chosen[picture.id]))


def _plain(uri: str) -> str:
    """The picture's own name in letters that every tool and file system takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(uri).stem)[:_LONGEST_NAME]


def _write_cvat(shown: Sequence[Shown], out: Store) -> str:
    """Names are those of the files alone, as a task has them that was made from the files of `images`."""
    out.publish(cvat.LABELS, cvat.labels(_ATTRIBUTES))
    with out.writing(cvat.FILE) as file:
        images = (
            (place, it.picture, it.name, [(face, _attributes(face, it)) for face in it.picture.faces])
            for place, it in enumerate(shown)
        )
        cvat.write_document(file, _ATTRIBUTES, images)
    return cvat.FILE


def _attributes(face: Face, shown: Shown) -> dict[str, str]:
    marks = {DOUBTFUL: str(face.id in shown.doubtful).lower(), CHECKED: "false"}
    return cvat.attributes(face) | marks


def _write_coco(shown: Sequence[Shown], out: Store) -> str:
    with out.writing(coco.FILE) as file:
        images = (coco.image(it.picture, it.name) for it in shown)
        faces = [
            coco.annotation(face, it.picture.id, {DOUBTFUL: face.id in it.doubtful, CHECKED: False})
            for it in shown
            for face in it.picture.faces
        ]
        coco.write_document(file, images, faces)
    return coco.FILE


def _remembered(picture: Picture) -> ReviewedPicture:
    faces = [numbers(face.landmarks) for face in picture.faces]
    return ReviewedPicture(uri=picture.uri, sha256=picture.sha256, faces=faces)


def _readme(url: str, file: str) -> str:
    tool = (
        f"1. In CVAT make one task with the labels of {cvat.LABELS} (paste it into Raw) and all files of {IMAGES}/.\n"
        "   (On a task of some of them CVAT would draw faces of the others. Several people share its jobs.)\n"
        f"2. Upload {file} to the task, format CVAT 1.1 (Upload annotations).\n"
        if file == cvat.FILE
        else f"1. Open {file} and {IMAGES}/ in a tool for COCO keypoints. (CVAT shows COCO half a pixel off: take\n"
        "   `msrrn review --format cvat` for it.)\n"
        "2. Category `face` has 68 keypoints; `attributes` and `score` must stay where your tool lets them.\n"
        "   Where it writes whole pixels, a face that moved by one or less is changed only if `checked`.\n"
    )
    export = (
        f"Export as CVAT for images 1.1, unpack the zip that it gives, and put its {file} in the place of this one"
        if file == cvat.FILE
        else f"Export as COCO keypoints and put the JSON (unpack a zip) in the place of {file} here"
    )
    return (
        "Faces that the model is least certain of. The worst picture has the first name.\n\n"
        f"{tool}"
        f"3. Faces with `{DOUBTFUL}` are those to look at; the others in the same pictures are drawn, too.\n"
        "4. Drag points to where they belong: always 68, in their order (the iBUG scheme of 300-W).\n"
        f"5. Right as it is? Set `{CHECKED}`. No face at all? Delete the shape.\n"
        f"6. {export}.\n   Leave {REVIEW} and {IMAGES}/ alone.\n"
        f"7. Bring it back: msrrn prepare --data 300w {url} --out datasets\n"
        "   What you changed, added or checked is of the subset `corrections`, the rest of `predictions`.\n"
        f"{REVIEW} says where each picture came from.\n"
    )
