"""The pictures that the page of an annotation run shows, decoded and drawn by a process of its own: one may have been
replaced, since the run, by another that kills its decoder."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Final, NamedTuple

import cv2

from msrrn.geometry import Box, Points
from pipelines.annotation.faces import Shown
from pipelines.annotation.sandbox import BEGUN, Died, Sandbox
from pipelines.annotation.tables import Annotations
from pipelines.decoding import Undecodable, decode
from pipelines.drawing import PREDICTION, Picture, face_side, face_tile, photo_tile
from pipelines.errors import UserError

SECONDS: Final = 60.0
"""for one picture; it took less when it was annotated"""

Tiles = dict[tuple[str, int], Picture]
"""Kind and place in it → what is shown."""
Wanted = tuple[str, int, Shown]
"""Kind, place in it, and what to show there."""


def drawn_tiles(annotations: Annotations, chosen_by_kind: Mapping[str, Sequence[Shown]]) -> Tiles:
    """Each picture is read once, whatever is shown of it."""
    wanted: dict[str, list[Wanted]] = {}
    for kind, chosen in chosen_by_kind.items():
        for place, shown in enumerate(chosen):
            wanted.setdefault(shown.uri, []).append((kind, place, shown))
    made: Tiles = {}
    if wanted:
        sandbox: Sandbox[None, tuple[bytes, list[Wanted]], Tiles] = Sandbox(_drawings, None, SECONDS)
        with closing(sandbox):
            for uri, data in _read(annotations, wanted):
                (tiles,) = sandbox.run([(data, wanted[uri])])
                made |= {} if isinstance(tiles, Died) else tiles
    return made


def _read(annotations: Annotations, uris: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with suppress(UserError, OSError):  # the whole archive may be gone by now
        for uri, data in annotations.pictures(uris):
            if not isinstance(data, Undecodable):
                yield uri, data


def _drawings(_: None, items: Sequence[tuple[bytes, list[Wanted]]]) -> Iterator[Tiles | str]:
    """The work of a `Sandbox`."""
    cv2.setNumThreads(1)
    for data, wanted in items:
        yield BEGUN
        yield _drawn(data, wanted)


def _drawn(data: bytes, wanted: list[Wanted]) -> Tiles:
    digest = hashlib.sha256(data).hexdigest()
    own = [each for each in wanted if each[2].sha256 == digest]  # members of a tar may share a name
    if not own:
        return {}
    with suppress(Undecodable, MemoryError):
        photo = decode(data, enough=lambda longer: max(_KINDS[kind].enough(longer, shown) for kind, _, shown in own))
        to_reduced = photo.to_reduced(photo.reduction)
        made: Tiles = {}
        for kind, place, shown in own:
            faces = [(face.box.mapped(to_reduced), to_reduced(face.shape)) for face in shown.faces]
            made[kind, place] = _KINDS[kind].draw(photo.rgb, faces)
        return made
    return {}


class _Kind(NamedTuple):
    """How a picture is shown."""

    enough: Callable[[int, Shown], float]
    """The longer side that a picture needs, which has one of so many pixels and shows this."""
    draw: Callable[[Picture, Sequence[tuple[Box, Points]]], Picture]


def _face(size: int = 200) -> _Kind:
    def enough(longer: int, shown: Shown) -> float:
        (face,) = shown.faces
        return longer * size / face_side(face.box)

    def draw(rgb: Picture, faces: Sequence[tuple[Box, Points]]) -> Picture:
        ((box, shape),) = faces
        return face_tile(rgb, box, [(shape, PREDICTION)], size)

    return _Kind(enough, draw)


def _whole(size: int) -> _Kind:
    return _Kind(lambda longer, shown: size, lambda rgb, faces: photo_tile(rgb, faces, size))


_KINDS: Final = {"random": _face(), "doubtful": _face(), "several": _whole(400), "none": _whole(200)}
