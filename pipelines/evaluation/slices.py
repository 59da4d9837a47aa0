"""Kinds of faces that nobody may sacrifice for the mean: small ones, turned ones, blurred ones, those of a source.

What a face is follows from its annotation and its pixels, never from a model's boxes, so that two models are judged
on the same slices. Edges are fixed: a slice means the same at every decision. A face belongs to one slice of each
kind.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msrrn.landmarks import face_roll
from pipelines.detection import expected_box
from pipelines.evaluation.results import FaceResult


class Kind(NamedTuple):
    """By what faces are sliced, and where."""

    unit: str
    edges: tuple[float, ...]
    """between the slices"""
    measure: Callable[[FaceResult], float]


KINDS: Final = {
    # the side of the box predicted from the annotation
    "size": Kind(" px", (80, 160, 320), lambda face: expected_box(face.truth).side),
    # the turn of the pupils, either way
    "roll": Kind("°", (10, 30), lambda face: abs(float(face_roll(face.truth)))),
    # the variance of the crop's Laplacian
    "sharpness": Kind("", (30, 100, 300), lambda face: face.sharpness),
}


def slices(faces: Sequence[FaceResult]) -> dict[str, NDArray[np.intp]]:
    """Name → indices of its faces, for the slices that have any; a kind with a single slice has none."""
    found: dict[str, NDArray[np.intp]] = {}
    for name, kind in KINDS.items():
        place = np.searchsorted(kind.edges, [kind.measure(face) for face in faces], side="right")
        found |= _parts(_names(name, kind), place)
    subsets = sorted({face.subset for face in faces})
    return found | _parts(
        [f"subset {name}" for name in subsets], np.array([subsets.index(face.subset) for face in faces])
    )


def _parts(names: Sequence[str], place: NDArray[np.intp]) -> dict[str, NDArray[np.intp]]:
    parts = {name: np.flatnonzero(place == index) for index, name in enumerate(names)}
    inhabited = {name: members for name, members in parts.items() if len(members)}
    return inhabited if len(inhabited) > 1 else {}


def _names(name: str, kind: Kind) -> list[str]:
    edges = [f"{edge:g}" for edge in kind.edges]
    spans = [f"under {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges)), f"from {edges[-1]}"]
    return [f"{name} {span}{kind.unit}" for span in spans]
