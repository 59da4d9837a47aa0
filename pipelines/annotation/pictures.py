"""Pictures of an archive → their rows of both tables: they are looked at in a sandbox, their faces get landmarks.

A detector also finds some faces that lie on their side or stand on their head, takes them for upright ones, and their
landmarks are wrong. The network expects large errors of those: where a picture may lie in any way, it is asked which.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import within
from msrrn.landmarks import NUM_LANDMARKS, face_roll
from pipelines.annotation.looking import TURNS, SeenFace
from pipelines.annotation.sandbox import Died, Sandbox
from pipelines.annotation.sightings import Sighting, Task, Wanted, died, sightings
from pipelines.archives import Input
from pipelines.asked import Asked
from pipelines.errors import UserError
from pipelines.pyramid import sharpness

FACES_AT_ONCE: Final = 256
"""Crops that wait for the network: 10 MB."""

UPRIGHT: Final = 0.45
"""Confidence of a face that stands upright beyond doubt, for `any_rotation`. Of 592 photographs and frames of video
in which BlazeFace finds a face, 85 have none of that confidence; at 0.5 it is 198."""

SURER: Final = 0.05
"""By how much the confidence in another turn must be larger: most pictures are upright.

Of those 592 none is turned then, of 1,776 that lie 1,765 are put right; at 220 px, blurred, none of 590, and 1,742 of
1,770. Without it 1 and 1,769, 6 and 1,751. (By a script, in float32; see `tests.benchmarks.turned`.)
"""


@dataclass(frozen=True)
class Rows:
    """Of one input: its row of `IMAGES`, and those of `FACES`, largest box first."""

    image: dict[str, Any]
    faces: list[dict[str, Any]]

    @property
    def confidence(self) -> float:
        """That of the surest face; 0 where there is none."""
        return max((float(face["confidence"]) for face in self.faces), default=0.0)


_sandbox: tuple[Task, Sandbox[Task, Wanted, Sighting]] | None = None


def end_sandbox() -> None:
    """Ends the process in which pictures are looked at; the next ones start another."""
    global _sandbox
    if _sandbox is not None:
        _sandbox[1].close()
    _sandbox = None


def _sandbox_of(task: Task) -> Sandbox[Task, Wanted, Sighting]:
    """This process's sandbox, kept from unit to unit."""
    global _sandbox
    if _sandbox is None or _sandbox[0] != task:
        end_sandbox()
        _sandbox = task, Sandbox(sightings, task, task.settings.timeout)
    return _sandbox[1]


def annotated(task: Task, model: Asked, inputs: Sequence[Input]) -> Iterator[Rows]:
    """The rows of each input, in order."""
    if not task.settings.any_rotation:
        return _annotated(task, model, [Wanted(item, TURNS[:1]) for item in inputs])
    rows = list(_annotated(task, model, [Wanted(item, TURNS) for item in inputs]))
    doubtful = [
        index
        for index, found in enumerate(rows)
        if found.faces and not found.image["turned"] and found.confidence < UPRIGHT
    ]
    others = _annotated(task, model, [Wanted(inputs[index], TURNS[1:]) for index in doubtful])
    for index, turned in zip(doubtful, others, strict=True):
        # What cannot be read again, or was replaced meanwhile, keeps what was seen first.
        if (
            turned.confidence > rows[index].confidence + SURER
            and turned.image["sha256"] == rows[index].image["sha256"]
        ):
            rows[index] = turned
    return iter(rows)


def _annotated(task: Task, model: Asked, wanted: Sequence[Wanted]) -> Iterator[Rows]:
    waiting: list[Sighting] = []
    faces = 0
    for item, result in zip(wanted, _sandbox_of(task).run(wanted), strict=True):
        waiting.append(died(item.input, result) if isinstance(result, Died) else result)
        faces += sum(len(view.faces) for view in waiting[-1].views)
        if faces >= FACES_AT_ONCE:
            yield from _with_landmarks(task, model, waiting)
            waiting, faces = [], 0
    yield from _with_landmarks(task, model, waiting)


def _with_landmarks(task: Task, model: Asked, waiting: Sequence[Sighting]) -> Iterator[Rows]:
    """Of a picture that shows faces in several views, those in which the surest is.

    Raises:
        UserError: the model gives what is no number, which would pass for landmarks in tables and exports.
    """
    crops = [face.crop for sighting in waiting for view in sighting.views for face in view.faces]
    predicted: Iterator[tuple[NDArray[np.float32], float]] = iter(())
    if crops:
        prediction = model.on_one_core(np.stack(crops))
        if not all(np.isfinite(found).all() for found in (prediction.shapes, prediction.confidence)):
            raise UserError(
                f"{model.name} {model.version} gives landmarks that are not finite numbers: give another --model, "
                "and another --out"
            )
        predicted = zip(prediction.shapes, prediction.confidence.tolist(), strict=True)
    made_by = {"detector": task.detector.name, "model": model.name, "model_version": model.version}
    for sighting in waiting:
        seen = []
        for view in sighting.views:
            faces = [
                _face_row(sighting.row, index, face, *next(predicted)) | made_by
                for index, face in enumerate(view.faces)
            ]
            known = {"status": "annotated", "faces": len(faces), "turned": view.turned}
            seen.append(Rows(sighting.row | known, faces))
        yield max(seen, key=lambda rows: rows.confidence, default=Rows(sighting.row, []))


def _face_row(
    image: dict[str, Any], index: int, face: SeenFace, in_crop: NDArray[np.float32], confidence: float
) -> dict[str, Any]:
    shape = face.frame.shape_to_upright(in_crop.astype(np.float64)).reshape(NUM_LANDMARKS, 2)
    return {
        "uri": image["uri"],
        "sha256": image["sha256"],
        "face_index": index,
        "box": face.detection.box.edges,
        "detector_score": face.detection.score,
        "landmarks": within(shape, (image["width"], image["height"])).astype(np.float32).ravel(),
        "confidence": confidence,
        "face_roll": float(face_roll(shape)),
        "brightness": float(face.crop.mean()),
        "sharpness": sharpness(face.crop),
    }
