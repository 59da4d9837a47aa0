"""Annotated photographs as stations take them: read once, grouped by their bytes, split, each face with its box."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pipelines.archives.ahead import begun
from pipelines.checks import CHECKS, check_detection, check_in_picture
from pipelines.dataset.manifest import LeftOut
from pipelines.dataset.prints import near_duplicates, photo_print
from pipelines.decoding import Photo, Undecodable
from pipelines.detection import Detection, Detector, expected_box, match, open_detector
from pipelines.detection.annotated import AnnotatedBoxes
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.progress import Progress
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.storage import Store

HELD: Final = frozenset({"val", "test"})
SHADOWED: Final = "shadowed"
"""No split: the photo shows what one of another split shows, and would leak it."""
PHOTOS_PER_READ: Final = 128

Finder = Detector | AnnotatedBoxes


@dataclass(frozen=True)
class Seen:
    """What splits are assigned by: a photo, its place, the split that its source declares, and its print.

    `print` is empty where the picture shows nothing. `settled` is the split of a photo that is in a
    dataset already.
    """

    sha256: str
    uri: str
    declared: str | None
    print: str
    settled: str | None = None


@dataclass(frozen=True, eq=False)
class PhotoGroup:
    """One photograph by its bytes, with all faces annotated in it, whatever files they came from."""

    seen: Seen
    faces: tuple[AnnotatedPhoto, ...]

    @property
    def sha256(self) -> str:
        return self.seen.sha256

    @property
    def uri(self) -> str:
        return self.seen.uri

    def left_out(self, reason: str, message: str) -> list[LeftOut]:
        """All of its faces, as what is not in a dataset for this reason."""
        return [LeftOut(uri=face.annotation_uri, reason=reason, message=message) for face in self.faces]


def face_order(face: AnnotatedPhoto) -> tuple[str, str, str, bytes, tuple[float, ...], str, str]:
    """Sorts annotations; equal only where they say the same (two sources may use the same names)."""
    edges = face.box.edges if face.box else ()
    return face.uri, face.annotation_uri, face.subset, face.shape.tobytes(), edges, face.sha256, face.root


def read_photos(
    sources: Sequence[str],
    workers: int,
    progress: Progress = lambda done, total, text: None,
    source_format: str = "auto",
) -> tuple[list[PhotoGroup], list[LeftOut]]:
    """Scans the sources, reads every photo once, and groups annotations by its SHA-256; sorted by that digest.

    The order of the sources and the number of workers change nothing, and what comes out can be read in
    another working directory.
    """
    pictures: dict[tuple[str, str], list[AnnotatedPhoto]] = {}
    left_out: list[LeftOut] = []
    inputs = 0
    for url in sources:
        for item in open_annotated(url, source_format).scan():
            inputs += 1
            if isinstance(item, Rejected):
                left_out.append(_left_out(item.uri, item.reason, item.message))
            else:
                face = replace(item, root=Store(item.root).absolute().url)
                pictures.setdefault((face.root, face.uri), []).append(face)
            progress(inputs, 0, "reading annotations")
    listed = list(pictures.values())
    units = [listed[start : start + PHOTOS_PER_READ] for start in range(0, len(listed), PHOTOS_PER_READ)]
    groups: dict[str, list[AnnotatedPhoto]] = {}
    prints: dict[str, str] = {}
    done = 0
    for seen in run_units(_read_unit, None, units, workers):
        for read in seen:
            left_out += [_left_out(face.annotation_uri, "changed_picture") for face in read.stale]
            if read.reason:
                left_out += [_left_out(face.annotation_uri, read.reason, read.message) for face in read.faces]
            elif read.faces:
                groups.setdefault(read.sha256, []).extend(read.faces)
                prints[read.sha256] = read.print
        done += len(seen)
        progress(done, len(listed), "reading photos")
    return [_group(digest, faces, prints[digest]) for digest, faces in sorted(groups.items())], left_out


def _left_out(uri: str, reason: str, message: str = "") -> LeftOut:
    """A row whose reason is in the catalogue: a table may say anything of its pictures."""
    known = reason if reason in CHECKS else "quarantined"
    return LeftOut(uri=uri, reason=known, message=message or CHECKS[known].title)


def _group(sha256: str, faces: list[AnnotatedPhoto], print_: str) -> PhotoGroup:
    faces.sort(key=face_order)
    declared = {face.declared_split: face for face in faces if face.declared_split}
    if len(declared) > 1:
        (first, one), (second, other) = sorted(declared.items())[:2]
        raise UserError(
            f"{one.root}/{one.uri} (split {first}) and {other.root}/{other.uri} (split {second}) are the same photo, "
            "byte for byte; a photo must be in one split only: remove one of them, or correct val.txt"
        )
    return PhotoGroup(Seen(sha256, faces[0].uri, next(iter(declared), None), print_), tuple(faces))


class _Read(NamedTuple):
    """One picture with its annotations, and `stale` ones, of other bytes; `reason` says why it could not be read."""

    faces: Sequence[AnnotatedPhoto]
    stale: Sequence[AnnotatedPhoto] = ()
    sha256: str = ""
    print: str = ""
    reason: str = ""
    message: str = ""


def _read_unit(_: None, unit: Sequence[Sequence[AnnotatedPhoto]]) -> list[_Read]:
    with closing(begun((faces[0].root, faces[0].read) for faces in unit)) as reads:
        return [_read(faces, read) for faces, read in zip(unit, reads, strict=True)]


def _read(faces: Sequence[AnnotatedPhoto], read: Callable[[], bytes]) -> _Read:
    try:
        data = read()
    except OutageError:
        raise
    except UserError:
        return _Read(faces, reason="unreadable")
    digest = hashlib.sha256(data).hexdigest()
    # Sources that name one picture may tell of different bytes: each face is asked, not the first for all.
    stale = [face for face in faces if not face.is_of(digest)]
    faces = [face for face in faces if face.is_of(digest)]
    try:
        return _Read(faces, stale, digest, photo_print(data))
    except Undecodable as error:  # what is no picture may be the same as another: empty, or a page that says "404"
        return _Read(faces, stale, reason=error.reason, message=error.message)


def clusters(photos: Sequence[Seen]) -> list[list[Seen]]:
    """Photos that show the same, though their bytes differ, together; every photo is in one cluster.

    Sorted by digest, within each and by the first of each.
    """
    printed = [photo for photo in photos if photo.print]
    together = [
        [printed[index] for index in cluster] for cluster in near_duplicates([photo.print for photo in printed])
    ]
    inside = {photo.sha256 for cluster in together for photo in cluster}
    together += [[photo] for photo in photos if photo.sha256 not in inside]
    by_digest = [sorted(cluster, key=lambda photo: photo.sha256) for cluster in together]
    return sorted(by_digest, key=lambda cluster: cluster[0].sha256)


def assign_splits(alike: Sequence[Sequence[Seen]], val_share: float) -> dict[str, str]:
    """SHA-256 of a photo → `train`, `val`, `test` or `SHADOWED`. Takes `clusters`.

    A photo's split is as declared, else by the digest itself: where no photo is declared `val`, a share of
    those that are not `test` becomes it, at least one of two. Photos that show the same go together, by the
    digest of the first; where some are declared `val` or `test`, the others are shadowed. A settled split
    stays: what would leak from it, or into it, is shadowed instead.
    """
    chosen: dict[str, str] = {}
    free: dict[str, Sequence[Seen]] = {}
    for cluster in alike:
        held = any(photo.declared in HELD for photo in cluster)
        settled = {photo.settled for photo in cluster if photo.settled}
        for photo in cluster:
            if photo.settled:
                split: str | None = photo.settled
            elif photo.declared in HELD:
                # What is trained on already cannot be shadowed.
                split = SHADOWED if photo.declared == "val" and "train" in settled else photo.declared
            else:
                split = SHADOWED if held or len(settled) > 1 else next(iter(settled), None)
            if split:
                chosen[photo.sha256] = split
            else:
                free[cluster[0].sha256] = cluster
    held_out: set[str] = set()
    if not any(photo.declared == "val" for cluster in alike for photo in cluster):
        # Digits that say nothing of the order: the first of a large cluster nearly always starts with zeros.
        held_out = {digest for digest in free if int(digest[32:40], 16) < val_share * 16**8}
        if val_share > 0 and not held_out and "val" not in chosen.values() and len(free) > 1:
            held_out = {min(free)}
    for digest, cluster in free.items():
        chosen |= dict.fromkeys((photo.sha256 for photo in cluster), "val" if digest in held_out else "train")
    return chosen


def face_finder(name: str, groups: Sequence[PhotoGroup]) -> Finder:
    """What gives faces their boxes: the detector of that name, or `annotated`, fitted to these photos.

    Raises:
        UserError: there is no such detector, or its model file is missing.
    """
    if name == AnnotatedBoxes.name:
        return AnnotatedBoxes.fit(face for group in groups for face in group.faces)
    return open_detector(name)


def boxed_faces(
    group: PhotoGroup, photo: Photo, find: Finder, left_out: list[LeftOut], displaced: bool
) -> Iterator[tuple[AnnotatedPhoto, tuple[Detection, bool]]]:
    """The faces of a photo, largest box first, each with its box and whether it was found by `find`.

    Where it was not, the box is predicted from the annotation. Annotations that lie outside the picture go to
    `left_out`, and, where `displaced` ones are not wanted, those beside the face that the detector finds.
    """
    height, width = photo.rgb.shape[:2]
    detections = [] if isinstance(find, AnnotatedBoxes) else find(photo.rgb)
    boxed = []
    for face in group.faces:
        problem = check_in_picture(face.shape, width, height)
        if not (problem or displaced):
            problem = check_detection(face.shape, detections)
        if problem:
            left_out.append(LeftOut(uri=face.annotation_uri, reason=problem.code, message=problem.message))
            continue
        found = find(face) if isinstance(find, AnnotatedBoxes) else match(detections, face.shape)
        box = found or Detection(expected_box(face.shape), float("nan"))
        boxed.append((face, (box, found is not None)))
    yield from sorted(boxed, key=lambda item: (-item[1][0].box.area, face_order(item[0])))
