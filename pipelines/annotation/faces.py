"""What an annotation run saw, and what of it to look at: one pass over its tables, a unit at a time.

Counts go into bins that are fixed, and of each kind only the few most telling are kept, so memory does not
grow with the run. No picture is read.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.landmarks import NUM_LANDMARKS
from pipelines.annotation.tables import Annotations
from pipelines.dataset import faces as dataset_faces
from pipelines.dataset.faces import Measure, binned

MEASURES: Final = dataset_faces.MEASURES | {
    "relative_size": Measure("side of the face box over the picture's longer side", np.geomspace(0.005, 2, 53), True),
    "confidence": Measure("confidence", np.linspace(0, 1, 41)),
    "faces_per_picture": Measure("faces in a picture", np.arange(-0.5, 33), of="pictures"),
}
"""The first have the bins of training faces. Quarantined pictures are in none of them."""

SHOWN: Final = {"random": 24, "doubtful": 24, "several": 6, "none": 12}
"""How much to look at: of all faces, of those least certain, of pictures with several faces, and with none."""

FAILURES: Final = 12
"""Quarantined pictures of one reason that are kept."""

Rank = tuple[float, str]
"""The smaller, the more telling. The text is the same for all copies of a picture, of which one is shown; their
confidence may differ in its last bit."""


@dataclass(frozen=True)
class Face:
    """A box and a shape (68, 2), in pixels of the upright picture."""

    box: Box
    shape: NDArray[np.float64]
    confidence: float


@dataclass(frozen=True)
class Shown:
    """A picture to look at, and which of its faces."""

    rank: Rank
    uri: str
    sha256: str
    faces: tuple[Face, ...]


@dataclass(frozen=True)
class Failure:
    """A picture that was quarantined."""

    uri: str
    reason: str
    message: str


@dataclass
class Survey:
    """What the tables say.

    `counts`: measure → how many in each bin. `failures`: reason → the first of them. `chosen`: kind → what to look
    at, the most telling first.
    """

    counts: dict[str, NDArray[np.int64]]
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    chosen: dict[str, list[Shown]] = field(default_factory=lambda: {kind: [] for kind in SHOWN})


def survey(annotations: Annotations) -> Survey:
    """Looks at every row of a run once."""
    made = Survey({name: np.zeros(len(measure.edges) - 1, np.int64) for name, measure in MEASURES.items()})
    for unit in annotations.units():
        images, faces = annotations.images(unit), annotations.faces(unit)
        for name, counts in features(images, faces).items():
            made.counts[name] += counts
        _add_failures(made, images)
        for kind, candidates in _candidates(images, faces).items():
            before = made.chosen[kind]
            known = {it.rank[1] for it in before}
            telling: dict[str, tuple[Rank, int, int, int]] = {}
            for each in candidates:
                (_, drawn), *_ = each
                if drawn not in known and (len(before) < SHOWN[kind] or each[0] < before[-1].rank):
                    telling.setdefault(drawn, each)
            found = [_shown(images, faces, *each) for each in heapq.nsmallest(SHOWN[kind], telling.values())]
            made.chosen[kind] = heapq.nsmallest(SHOWN[kind], [*before, *found], key=lambda it: it.rank)
    return made


def features(images: pa.Table, faces: pa.Table) -> dict[str, NDArray[np.int64]]:
    """Measure → how many of a unit's faces, or pictures, are in each bin."""
    looked_at = np.asarray(images["status"]) != "quarantined"
    counts = images["faces"].to_numpy()
    longer = np.fmax(_numbers(images, "width"), _numbers(images, "height"))
    x0, y0, x1, y1 = faces["box"].combine_chunks().flatten().to_numpy().reshape(-1, 4).T
    side = np.sqrt(np.maximum(0, (x1 - x0) * (y1 - y0)))
    values = {
        "size": side,
        "relative_size": side / np.repeat(longer, counts),
        "roll": _numbers(faces, "face_roll"),
        "faces_per_picture": counts[looked_at],
    } | {name: _numbers(faces, name) for name in ("sharpness", "brightness", "confidence")}
    return {name: binned(values[name], measure) for name, measure in MEASURES.items()}


def outcomes(images: pa.Table) -> Counter[str]:
    """What became of a unit's pictures: the reason of the quarantined, the status of the others."""
    return Counter(reason or status for reason, status in zip(*_columns(images, "reason", "status"), strict=True))


def _columns(table: pa.Table, *names: str) -> list[list[str]]:
    return [table[name].to_pylist() for name in names]


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column as numbers; what is absent is NaN."""
    return np.asarray(table[name].to_numpy(), np.float64)


def _add_failures(made: Survey, images: pa.Table) -> None:
    for uri, reason, message in zip(*_columns(images, "uri", "reason", "message"), strict=True):
        if reason and len(made.failures.setdefault(reason, [])) < FAILURES:
            made.failures[reason].append(Failure(uri, reason, message or ""))


def _candidates(images: pa.Table, faces: pa.Table) -> dict[str, Iterator[tuple[Rank, int, int, int]]]:
    """Kind → rank, row of the picture, and from where to where its faces in question lie."""
    digests, statuses = _columns(images, "sha256", "status")
    counts = images["faces"].to_numpy()
    ends = np.cumsum(counts)
    spans = list(zip((ends - counts).tolist(), ends.tolist(), strict=True))
    confidence = faces["confidence"].to_pylist()
    of_face = [
        (_drawn(f"{digest}:{index}"), row, start + index)
        for row, (digest, (start, end)) in enumerate(zip(digests, spans, strict=True))
        for index in range(end - start)
    ]
    of_picture = [(_drawn(digest), row, *spans[row]) for row, digest in enumerate(digests) if digest]
    return {
        "random": (((0.0, drawn), row, face, face + 1) for drawn, row, face in of_face),
        "doubtful": (((confidence[face], drawn), row, face, face + 1) for drawn, row, face in of_face),
        "several": (((0.0, drawn), row, *span) for drawn, row, *span in of_picture if span[1] - span[0] > 1),
        "none": (((0.0, drawn), row, 0, 0) for drawn, row, *_ in of_picture if statuses[row] == "no_face"),
    }


def _drawn(name: str) -> str:
    """By chance, and always the same."""
    return hashlib.sha256(name.encode()).hexdigest()


def _shown(images: pa.Table, faces: pa.Table, rank: Rank, row: int, start: int, end: int) -> Shown:
    found = faces.select(["box", "landmarks", "confidence"]).slice(start, end - start).to_pylist()
    made = tuple(Face(Box(*face["box"]), _shape(face["landmarks"]), face["confidence"]) for face in found)
    return Shown(rank, images["uri"][row].as_py(), images["sha256"][row].as_py(), made)


def _shape(landmarks: list[float]) -> NDArray[np.float64]:
    return np.asarray(landmarks, np.float64).reshape(NUM_LANDMARKS, 2)
