"""How much a model's error grows where boxes and pictures are worse than a benchmark's.

Every evaluated face is cropped again from its photo, perturbed, and asked about anew; no detector runs. Draws
follow from the face's photo and box alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import LEVELS, CropFrame, within
from msrrn.metrics import failure_rate, nrmse_ip
from pipelines.engine import run_units
from pipelines.errors import UserError
from pipelines.evaluation.ert import Ert
from pipelines.evaluation.results import FaceResult, photo_of
from pipelines.models import Model
from pipelines.pyramid import crop, frame_around
from pipelines.showable import counted

SIDE: Final = LEVELS[-1]
SMALL_FACE: Final = 60
"""pixels a side of the box"""

Crop = NDArray[np.uint8]


class Perturbation(NamedTuple):
    """What is done to a face: to its box, then to its crop."""

    name: str
    shift: float = 0.0
    """sides of the box, in a random direction"""
    scale: float = 1.0
    """of the box, or its inverse, by chance"""
    roll: float = 0.0
    """degrees, to either side by chance"""
    pixels: Callable[[Crop, float, np.random.Generator], Crop] = lambda image, margin, rng: image
    """crop, its margin, chance → crop"""


def _small(image: Crop, margin: float, rng: np.random.Generator) -> Crop:
    side = round(SMALL_FACE * margin)
    return cv2.resize(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), (SIDE, SIDE))  # type: ignore[return-value]


def _blurred(image: Crop, margin: float, rng: np.random.Generator) -> Crop:
    return cv2.GaussianBlur(image, (0, 0), 0.03 * SIDE / margin)  # type: ignore[return-value]


def _dark(image: Crop, margin: float, rng: np.random.Generator) -> Crop:
    return np.clip(np.rint(image * 0.25 + rng.normal(0, 6, image.shape)), 0, 255).astype(np.uint8)


def _half_hidden(image: Crop, margin: float, rng: np.random.Generator) -> Crop:
    hidden, half = image.copy(), SIDE // 2
    window = (slice(None, half), slice(half, None))[int(rng.integers(2))]
    hidden[:, window] = 128
    return hidden


PERTURBATIONS: Final = (
    Perturbation("none"),
    Perturbation("box shifted by 10 %", shift=0.1),
    Perturbation("box 20 % larger or smaller", scale=1.2),
    Perturbation("roll of 20°", roll=20),
    Perturbation("roll of 40°", roll=40),
    Perturbation(f"face of {SMALL_FACE} px", pixels=_small),
    Perturbation("blur, sd 3 % of the box", pixels=_blurred),
    Perturbation("dark and noisy", pixels=_dark),
    Perturbation("left or right half hidden", pixels=_half_hidden),
)


class RobustnessRow(NamedTuple):
    """Mean NRMSE (IP) and share of failures (above 0.1) under one perturbation, fractions; NaN without ERT."""

    name: str
    nrmse_ip: float
    failures: float
    ert_nrmse_ip: float
    ert_failures: float


def robustness(model: Model, ert: Ert | None, faces: Sequence[FaceResult], workers: int) -> list[RobustnessRow]:
    """A row for each of `PERTURBATIONS`, over all faces.

    Raises:
        UserError: the photo of one is gone.
    """
    per_unit = 16
    units = [tuple(faces[start : start + per_unit]) for start in range(0, len(faces), per_unit)]
    # Units end in any order, on which the last bits of a sum hang.
    errors = np.sort(np.concatenate(list(run_units(_errors, (model, ert), units, workers))), axis=0)
    lost = len(faces) - len(errors)
    if lost > 0:
        raise UserError(f"the photos of {counted(lost, 'face')} are gone since they were evaluated: run again")
    return [
        RobustnessRow(
            perturbation.name,
            float(errors[:, index, 0].mean()),
            failure_rate(errors[:, index, 0]),
            float(errors[:, index, 1].mean()),
            failure_rate(errors[:, index, 1]) if ert else float("nan"),
        )
        for index, perturbation in enumerate(PERTURBATIONS)
    ]


def _errors(shared: tuple[Model, Ert | None], unit: Sequence[FaceResult]) -> NDArray[np.float64]:
    """(faces, perturbations, 2): errors of the model and of ERT."""
    model, ert = shared
    errors = []
    for face in unit:
        photo = photo_of(face)
        if photo is None:
            continue
        ours, own = _perturbed(photo.rgb, face, model.card.crop_margin)
        shapes = _upright(own, model.predictor.predict(ours).shapes, photo.size)
        row = np.full((len(PERTURBATIONS), 2), np.nan)
        row[:, 0] = nrmse_ip(shapes, face.truth)
        if ert:
            theirs, frames = _perturbed(photo.rgb, face, ert.crop_margin)
            row[:, 1] = nrmse_ip(_upright(frames, ert.predict(theirs), photo.size), face.truth)
        errors.append(row)
    return np.reshape(errors, (-1, len(PERTURBATIONS), 2))


def _upright(frames: Sequence[CropFrame], shapes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.floating]:
    placed = [frame.shape_to_upright(shape) for frame, shape in zip(frames, shapes, strict=True)]
    return within(np.stack(placed), size)


def _perturbed(rgb: Crop, face: FaceResult, margin: float) -> tuple[Crop, list[CropFrame]]:
    crops, frames = [], []
    for index, perturbation in enumerate(PERTURBATIONS):
        key = f"{face.photo_sha256} {face.box.edges} {index}".encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
        angle, sign = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
        shift = (perturbation.shift * np.cos(angle), perturbation.shift * np.sin(angle))
        scale = perturbation.scale**sign
        frame = frame_around(face.box, margin, shift, scale, sign * np.deg2rad(perturbation.roll))
        frames.append(frame)
        crops.append(perturbation.pixels(crop(rgb, frame), margin, rng))
    return np.stack(crops), frames
