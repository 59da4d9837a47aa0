"""Evaluated faces without photos and networks: two models that err as a test says."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.metrics import nrmse_ip
from msrrn.prediction import CONFIDENT
from pipelines.evaluation.results import Evaluation, FaceResult
from pipelines.promotion.comparison import Pair
from tests.msrrn.test_landmarks import FACE


def judged_face(
    error: float,
    number: int = 0,
    expected: float | None = None,
    subset: str = "afw",
    side: float = 100.0,
    roll: float = 0.0,
    sharpness: float = 150.0,
    photo: int | None = None,
) -> FaceResult:
    """A face on which a model errs by `error` (NRMSE IP), and expects to err by `expected` (as much).

    `side` is the length of the shape, in pixels.
    """
    cos, sin = np.cos(np.deg2rad(roll)), np.sin(np.deg2rad(roll))
    truth = FACE * side @ np.array([[cos, sin], [-sin, cos]])
    right = np.array([1.0, 0.0])
    wrong = truth + error / float(nrmse_ip(truth + right, truth)) * right
    return FaceResult(
        root="",
        uri=f"{number}.jpg",
        annotation_uri=f"{number}.pts",
        photo_sha256=f"{number if photo is None else photo:064x}",
        subset=subset,
        missed=False,
        box=Box(0, 0, 1, 1),
        truth=truth,
        stages=np.stack([wrong] * 5),
        confidence=1 / (1 + (error if expected is None else expected) / CONFIDENT),
        sharpness=sharpness,
    )


def judged(faces: Sequence[FaceResult]) -> Evaluation:
    return Evaluation("a model", "hog", {}, "val", tuple(faces), ())


def errors_of(count: int, mean: float, seed: int = 0) -> NDArray[np.float64]:
    """(count,): errors about `mean`, with a tail as real ones have."""
    drawn = np.random.default_rng(seed).lognormal(0, 0.35, count)
    return np.asarray(mean * drawn / drawn.mean())


def pair_of(new: NDArray[np.float64], old: NDArray[np.float64], **kinds: Sequence[Any]) -> Pair:
    """Two models with these errors on the same faces; `kinds` gives every face its own of an option above."""
    sides = []
    for errors in (new, old):
        faces = []
        for number, error in enumerate(errors):
            faces.append(
                judged_face(float(error), number, **{name: values[number] for name, values in kinds.items()})
            )
        sides.append(faces)
    return Pair(*sides)
