"""Kinds of faces that nobody may sacrifice for the mean: small ones, turned ones, blurred ones, those of a source.

What a face is follows from its annotation and its pixels, never from a model's boxes, so that two models are judged
on the same slices. Edges are fixed: a slice means the same at every decision. A face belongs to one slice of each
kind.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.landmarks import face_roll
from pipelines.detection import expected_box
from pipelines.evaluation.results import FaceResult

EDGES: Final[dict[str, tuple[str, tuple[float, ...], Callable[[FaceResult], float]]]] = {
    "size": (" px", (80, 160, 320), lambda face: expected_box(face.truth).side),
    "roll": ("°", (10, 30), lambda face: abs(float(face_roll(face.truth)))),
    "sharpness": ("", (30, 100, 300), lambda face: face.sharpness),
}
"""Kind → unit, inner edges, and the measure of a face: the side of the box predicted from the annotation, the turn
of the pupils either way, the variance of the crop's Laplacian."""


def slices(faces: Sequence[FaceResult]) -> dict[str, NDArray[np.intp]]:
    """Name → indices of its faces, for the slices that have any; a kind with a single slice has none."""
    found: dict[str, NDArray[np.intp]] = {}
    for kind, (unit, edges, measure) in EDGES.items():
        place = np.searchsorted(edges, [measure(face) for face in faces], side="right")
        names = [_name(kind, unit, edges, index) for index in range(len(edges) + 1)]
        found |= _parts(names, place)
    subsets = sorted({face.subset for face in faces})
    return found | _parts(
        [f"subset {name}" for name in subsets], np.array([subsets.index(face.subset) for face in faces])
    )


def _parts(names: Sequence[str], place: NDArray[np.intp]) -> dict[str, NDArray[np.intp]]:
    parts = {name: np.flatnonzero(place == index) for index, name in enumerate(names)}
    inhabited = {name: members for name, members in parts.items() if len(members)}
    return inhabited if len(inhabited) > 1 else {}


def _name(kind: str, unit: str, edges: Sequence[float], index: int) -> str:
    if index == 0:
        return f"{kind} under {edges[0]:g}{unit}"
    if index == len(edges):
        return f"{kind} from {edges[-1]:g}{unit}"
    return f"{kind} {edges[index - 1]:g} to {edges[index]:g}{unit}"
