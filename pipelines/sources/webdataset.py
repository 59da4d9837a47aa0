"""WebDataset: tars in which the files of one sample share a key, the name up to its first dot.

A sample is a picture with a `.pts` (1-based) or a `.json` (0-based) of the same key. The JSON is an object:

- `landmarks`, `keypoints` or `points`: 68 pairs, or 136 numbers x, y, x, y, …; 0-based pixel centres of the
  upright picture;
- `box` (may be absent): left, top, right and bottom edge of the face in the same pixels;
- `split` (may be absent): `train`, `val` or `test`;
- `subset` (may be absent): a name; otherwise that of the tar or of the folder of tars;
- `sha256` (may be absent): that of the picture which was annotated;
- `faces`: instead of points and box, a list of objects that each have them, as `msrrn export` writes it.

Where a sample has both, the points are the `.pts`'s. Of several annotations of one kind the first is taken: faces of
one picture are written as a list.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.archives.names import IMAGE_SUFFIXES, is_picture
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.sources import AnnotatedPhoto, DeclaredSplit, Rejected, rejected_files
from pipelines.sources.annotation import BadAnnotation, box_of, points_of, subset_name, usable_shape
from pipelines.sources.files import Files, open_files
from pipelines.sources.held import root_parts
from pipelines.sources.pts import parse_pts

POINTS: Final = ("landmarks", "keypoints", "points")
FACES: Final = "faces"
MAX_JSON: Final = 64 << 20
"""Bytes of a `.json`, which may hold a crowd."""
LOOKED_AT: Final = 8
"""Samples by which it is recognised: some may be broken."""
_REMEDY: Final = "a WebDataset holds tars of pictures, each with a .pts or a .json of the same key"


@dataclass(frozen=True)
class WebDataset:
    """A tar, or a folder of tars; samples unpacked into a folder are read as well."""

    url: str

    @staticmethod
    def recognises(files: Files) -> bool:
        """See `Reader.recognises`: a picture has a `.json` of its key with points, and nothing has a `.pts`."""
        samples = _samples(files)
        if any(PurePosixPath(name).suffix.lower() == ".pts" for names in samples.values() for name in names):
            return False
        whole = (parts for names in samples.values() if all(parts := _parts(names)))
        return any(_has_points(files, annotations[0]) for _, annotations in islice(whole, LOOKED_AT))

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """See `AnnotatedSource.scan`; every picture, and every annotation that was taken for none, is a row."""
        files = open_files(self.url)
        samples = _samples(files)
        if not any(all(_parts(names)) for names in samples.values()):
            raise UserError(f"{self.url} has no picture with an annotation of its key: {_REMEDY}")
        return self._rows(files, samples)

    def _rows(self, files: Files, samples: dict[str, list[str]]) -> Iterator[AnnotatedPhoto | Rejected]:
        unreadable = {row.uri: row for row in rejected_files(files, IMAGE_SUFFIXES | {".pts", ".json"})}
        rows: list[tuple[str, list[str], list[str]]] = [(uri, [], []) for uri in unreadable]
        for names in samples.values():
            pictures, annotations = _parts(names)  # once: thousands of `shot.0001.jpg` are one sample
            others = [name for name in annotations[1:] if _is_json(name) == _is_json(annotations[0])]
            rows += [(uri, pictures, annotations) for uri in ([*pictures, *others] if pictures else annotations)]
        for uri, pictures, annotations in sorted(rows, key=lambda row: row[0]):
            if uri in unreadable:
                yield unreadable[uri]
            else:
                yield from self._faces(files, uri, pictures, annotations)

    def _faces(
        self, files: Files, uri: str, pictures: Sequence[str], annotations: Sequence[str]
    ) -> Iterator[AnnotatedPhoto | Rejected]:
        if not pictures:
            yield Rejected(uri, "no_image", "an annotation without a picture of the same key")
        elif not annotations:
            yield Rejected(uri, "no_annotation", "a picture without a .pts or .json of the same key")
        elif not is_picture(uri):
            if not _is_json(uri) or _has_points(files, uri):  # else it tells of other things than faces
                yield Rejected(uri, "face_twice", f"{annotations[0]} was taken for the annotation of this key")
        elif uri != pictures[0]:
            yield Rejected(uri, "second_image", f"its annotation was taken for {pictures[0]}")
        else:
            try:
                yield from _photos(files, uri, annotations)
            except BadAnnotation as error:
                yield Rejected(uri, error.reason, f"{annotations[0]}: {error.message}")
            except OutageError:
                raise
            except UserError:  # its text names the source's place, which differs from machine to machine
                yield Rejected(uri, "unreadable", f"{annotations[0]} cannot be read, or is too large")


def _has_points(files: Files, name: str) -> bool:
    try:
        return any(field in _object(files.read(name, MAX_JSON)) for field in (*POINTS, FACES))
    except OutageError:
        raise
    except (BadAnnotation, UserError):
        return False


def _samples(files: Files) -> dict[str, list[str]]:
    """Readable pictures and annotations by their key; archives and folders are part of it."""
    samples: dict[str, list[str]] = defaultdict(list)
    for name, size in files.sizes().items():
        if size is not None and (is_picture(name) or PurePosixPath(name).suffix.lower() in {".pts", ".json"}):
            folder, _, own = name.rpartition("/")
            samples[f"{folder}/{own.partition('.')[0]}"].append(name)
    return samples


def _parts(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """A sample's pictures and its annotations, a `.pts` first."""
    annotations = sorted((name for name in names if not is_picture(name)), key=_is_json)
    return [name for name in names if is_picture(name)], annotations


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json")


def _photos(files: Files, uri: str, annotations: Sequence[str]) -> Iterator[AnnotatedPhoto | Rejected]:
    """A sample's faces; raises `BadAnnotation` before the first where what they share is wrong."""
    said: dict[str, Any] = {}
    for name in annotations:
        if _is_json(name):
            said = _object(files.read(name, MAX_JSON))
            break
    split, subset, sha256 = said.get("split"), said.get("subset"), said.get("sha256", "")
    if split is not None and split not in get_args(DeclaredSplit):
        raise BadAnnotation("syntax", f"split is {split!r}: write {', '.join(get_args(DeclaredSplit))}")
    if subset is not None and not (isinstance(subset, str) and subset):
        raise BadAnnotation("syntax", f"subset is {subset!r}: write a name")
    if not isinstance(sha256, str):
        raise BadAnnotation("syntax", "sha256 is not a text")
    annotation, name = annotations[0], subset_name(subset or "") or root_parts(files.url)[-1]
    if not _is_json(annotation):
        shape = parse_pts(files.read(annotation))
        yield AnnotatedPhoto(files.url, uri, annotation, name, split, shape, box_of(said.get("box")), sha256)
    elif FACES not in said:
        yield AnnotatedPhoto(files.url, uri, annotation, name, split, *_face(said), sha256)
    else:
        for number, face in enumerate(_listed(said[FACES])):
            own = f"{annotation}#{number}"
            try:
                yield AnnotatedPhoto(files.url, uri, own, name, split, *_face(face), sha256)
            except BadAnnotation as error:
                yield Rejected(uri, error.reason, f"{own}: {error.message}")


def _listed(faces: object) -> list[dict[str, Any]]:
    if not isinstance(faces, list) or not all(isinstance(face, dict) for face in faces):
        raise BadAnnotation("syntax", f"{FACES} is not a list of objects")
    if not faces:
        raise BadAnnotation("no_annotation", f"{FACES} is empty")
    return faces


def _face(said: dict[str, Any]) -> tuple[NDArray[np.float64], Box | None]:
    shape = usable_shape(points_of(next((said[field] for field in POINTS if field in said), None)))
    return shape, box_of(said.get("box"))


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadAnnotation("syntax", f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadAnnotation("syntax", "not a JSON object")
    return value
