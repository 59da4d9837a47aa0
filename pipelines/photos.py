"""Annotated photographs as stations take them: grouped by their bytes, split, and each face with its box."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipelines.decoding import Photo
from pipelines.detection import Detection, expected_box, match
from pipelines.errors import UserError
from pipelines.shards import LeftOut
from pipelines.sources import AnnotatedPhoto, Rejected, open_annotated
from pipelines.sources.pts import outside
from pipelines.storage import Store

VAL_BITS: Final = 32


@dataclass(frozen=True, eq=False)
class PhotoGroup:
    """One photograph by its bytes, with all faces annotated in it, whatever files they came from."""

    sha256: str
    faces: tuple[AnnotatedPhoto, ...]

    @property
    def uri(self) -> str:
        return self.faces[0].uri

    @property
    def declared_split(self) -> str | None:
        """The split that the source declares.

        Raises:
            UserError: the same photo is declared in two splits.
        """
        declared = {face.declared_split: f"{face.root}/{face.uri}" for face in self.faces if face.declared_split}
        if len(declared) > 1:
            (first, first_uri), (second, second_uri) = sorted(declared.items())[:2]
            raise UserError(
                f"{first_uri} (split {first}) and {second_uri} (split {second}) are the same photo, byte for "
                "byte; a photo must be in one split only: remove one of them, or correct val.txt"
            )
        return next(iter(declared), None)


def face_order(face: AnnotatedPhoto) -> tuple[str, str, str, bytes]:
    """Sorts annotations; equal only where they say the same (two sources may use the same names)."""
    return face.uri, face.annotation_uri, face.subset, face.shape.tobytes()


def group_photos(
    sources: Sequence[str], step: Callable[[], None] = lambda: None
) -> tuple[list[PhotoGroup], list[LeftOut]]:
    """Scans the sources and groups annotations by the SHA-256 of their photo; sorted by that digest.

    The order of the sources changes nothing, and what comes out can be read in another working directory.
    """
    faces: dict[str, list[AnnotatedPhoto]] = {}
    left_out: list[LeftOut] = []
    for url in sources:
        for item in open_annotated(url).scan():
            if isinstance(item, Rejected):
                left_out.append(LeftOut(uri=item.uri, reason=item.reason, message=item.message))
            else:
                face = replace(item, root=Store(item.root).absolute().url)
                faces.setdefault(hashlib.sha256(face.read()).hexdigest(), []).append(face)
            step()
    groups = [PhotoGroup(digest, tuple(sorted(group, key=face_order))) for digest, group in sorted(faces.items())]
    return groups, left_out


def assign_splits(groups: Sequence[PhotoGroup], val_share: float) -> dict[str, str]:
    """SHA-256 of a photo → `train`, `val` or `test`: as declared, else by the digest itself.

    Where no photo is declared `val`, a share of those that are not `test` becomes it, at least one of two.
    """
    declared = {group.sha256: group.declared_split for group in groups}
    if "val" in declared.values():
        return {digest: said or "train" for digest, said in declared.items()}
    split_of = {digest: "test" if said == "test" else "train" for digest, said in declared.items()}
    candidates = sorted(digest for digest, split in split_of.items() if split == "train")
    held_out = [digest for digest in candidates if int(digest[: VAL_BITS // 4], 16) < val_share * 2**VAL_BITS]
    if val_share > 0 and not held_out and len(candidates) > 1:
        held_out = candidates[:1]
    return split_of | dict.fromkeys(held_out, "val")


def boxed_faces(
    group: PhotoGroup, photo: Photo, detections: Sequence[Detection], left_out: list[LeftOut]
) -> Iterator[tuple[AnnotatedPhoto, tuple[Detection, bool]]]:
    """The usable faces of a photo, largest box first, each with its box and whether the detector found it.

    Where it did not, the box is predicted from the annotation. Unusable faces go to `left_out`.
    """
    height, width = photo.rgb.shape[:2]
    boxed = []
    for face in group.faces:
        if outside(face.shape, width, height):
            message = f"landmarks lie outside the picture of {width} × {height} px"
            left_out.append(LeftOut(uri=face.annotation_uri, reason="pts_outside", message=message))
            continue
        found = match(detections, face.shape)
        box = found or Detection(expected_box(face.shape), float("nan"))
        boxed.append((face, (box, found is not None)))
    yield from sorted(boxed, key=lambda item: (-item[1][0].box.area, face_order(item[0])))
