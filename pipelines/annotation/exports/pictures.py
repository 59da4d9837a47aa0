"""The annotated pictures of a run with their faces, as every export takes them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from posixpath import splitext
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from msrrn.landmarks import NUM_LANDMARKS
from pipelines.annotation.tables import Annotations
from pipelines.archives.names import COMMON_SUFFIXES
from pipelines.decoding import Undecodable
from pipelines.progress import Counted

_SIGNATURES: Final = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
    b"\xff\x4f\xff\x51": ".jp2",
    b"\0\0\0\x0cjP  ": ".jp2",
    **{f"P{kind}".encode(): ".ppm" for kind in range(1, 7)},
}


@dataclass(frozen=True, eq=False)
class Face:
    """A row of `FACES`.

    `id` counts the run's faces from 1 in input order, whichever of them are taken. `edges` are the box's left,
    top, right and bottom, `landmarks` (68, 2) float32; both 0-based pixels of the upright picture.
    """

    id: int
    index: int
    edges: tuple[float, float, float, float]
    landmarks: NDArray[np.float32]
    confidence: float


@dataclass(frozen=True, eq=False)
class Picture:
    """A row of `IMAGES` with the faces that are taken; `id` counts the run's inputs from 1, in their order."""

    id: int
    uri: str
    sha256: str
    width: int
    height: int
    faces: tuple[Face, ...]


class AnnotatedPictures:
    """The pictures of a run that have faces of some confidence; may be gone through several times.

    Afterwards `taken`, `faces` and `below` say how many pictures and faces were in it, and how many faces were
    left out for their confidence; `unreadable` counts by reason the pictures that `read` could not give: they are not
    in it either.
    """

    def __init__(
        self,
        annotations: Annotations,
        min_confidence: float = 0.0,
        progress: Counted = lambda done, total: None,
    ) -> None:
        self.annotations = annotations
        self.taken = self.faces = self.below = 0
        self.unreadable: Counter[str] = Counter()
        self._min_confidence = min_confidence
        self._progress = progress

    @cached_property
    def _keys(self) -> list[str]:
        """Units that are finished by now: a run that goes on must not change what is gone through twice."""
        return self.annotations.units()

    def __iter__(self) -> Iterator[Picture]:
        for _, pictures in self.units():
            yield from pictures

    def units(self) -> Iterator[tuple[str, Iterator[Picture]]]:
        """Each finished unit's key and its pictures, in input order; to be taken one after the other."""
        keys = self._keys
        self.taken = self.faces = self.below = 0
        image_id = face_id = 1
        for done, key in enumerate(keys):
            self._progress(done, len(keys))
            images, faces = self.annotations.images(key), self.annotations.faces(key)
            yield key, self._pictures(images, faces, image_id, face_id)
            image_id += len(images)
            face_id += len(faces)
        self._progress(len(keys), len(keys))

    def read(self, unit: str, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, bytes]]:
        """These pictures of a unit with their bytes, in input order; those that are gone or changed are counted
        instead.
        """
        waiting: dict[str, list[Picture]] = defaultdict(list)
        for picture in pictures:
            waiting[picture.uri].append(picture)
        reasons = dict.fromkeys(waiting, "unreadable")
        for uri, data in self.annotations.pictures(list(waiting), unit):
            if isinstance(data, Undecodable):
                reasons[uri] = data.reason
                continue
            reasons[uri] = "changed_picture"
            digest = hashlib.sha256(data).hexdigest()
            for picture in waiting[uri]:  # members of a tar may share a name
                if picture.sha256 == digest:
                    yield picture, data
            waiting[uri] = [picture for picture in waiting[uri] if picture.sha256 != digest]
        for uri, left in waiting.items():
            if left:
                self.unreadable[reasons[uri]] += len(left)
                self.taken -= len(left)
                self.faces -= sum(len(picture.faces) for picture in left)

    def name(self, picture: Picture) -> str:
        """What a file that names pictures calls this one: its uri, or where that is another one's, one with a digest.

        Members of an archive may share a name: a program that looks for it finds the last.
        """
        if self._named.get(picture.uri, picture.sha256) == picture.sha256:
            return picture.uri
        stem, suffix = splitext(picture.uri)
        return f"{stem}-{picture.sha256[:16]}{suffix}"

    def owners(self, path: Callable[[str], str] = str) -> dict[str, str]:
        """Paths that several inputs have, each with the digest of that which is called so, empty where it has none.

        It is one whose uri is that path, and of these the last: of members of one name the last counts.
        """
        hashes = np.fromiter((hash(path(uri)) for uri in self.annotations.names()), np.int64)  # memory of long runs
        found, counts = np.unique(hashes, return_counts=True)
        several = set(found[counts > 1].tolist())
        plain: dict[str, str] = {}
        others: dict[str, str] = {}
        for key in self._keys if several else ():
            for image in _rows(self.annotations.images(key).select(["uri", "sha256"])):
                place = path(image["uri"])
                if hash(place) in several:
                    (plain if image["uri"] == place else others)[place] = image["sha256"] or ""
        return others | plain

    @cached_property
    def _named(self) -> dict[str, str]:
        return self.owners()

    def _pictures(self, images: pa.Table, faces: pa.Table, image_id: int, face_id: int) -> Iterator[Picture]:
        shapes = faces["landmarks"].combine_chunks().flatten().to_numpy().reshape(-1, NUM_LANDMARKS, 2)
        rows = faces.select(["face_index", "box", "confidence"])
        start = 0
        for number, image in enumerate(_rows(images.select(["uri", "sha256", "width", "height", "faces"]))):
            count = image.pop("faces")
            found = tuple(
                Face(face_id + row, face["face_index"], tuple(face["box"]), shapes[row], face["confidence"])
                for row, face in enumerate(_rows(rows.slice(start, count)), start)
                if face["confidence"] >= self._min_confidence
            )
            start += count
            self.below += count - len(found)
            self.faces += len(found)
            if found:
                self.taken += 1
                yield Picture(image_id + number, **image, faces=found)


def picture_suffix(picture: Picture, data: bytes) -> str:
    """By which tools, and our own readers, know a picture's file: that of its name, else what its bytes say."""
    suffix = PurePosixPath(picture.uri).suffix.lower()
    if suffix in COMMON_SUFFIXES:
        return suffix
    if data[4:8] == b"ftyp":
        return ".avif" if data[8:11] == b"avi" else ".heic"
    return next((suffix for start, suffix in _SIGNATURES.items() if data.startswith(start)), ".jpg")


def numbers(values: NDArray[np.floating] | Sequence[float]) -> list[float]:
    """Numbers with as many digits as tell a float32 from the next: they come back exactly, and are short."""
    return [float(str(value)) for value in np.asarray(values, np.float32).ravel()]


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """A table's rows, of which few are Python objects at a time."""
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()
