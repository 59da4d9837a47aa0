"""How well a model knows its own error: what it expects beside what it makes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from msrrn.prediction import CONFIDENT
from pipelines.evaluation.results import FaceResult

Errors = NDArray[np.float64]


def expected_and_true(faces: Sequence[FaceResult]) -> tuple[Errors, Errors]:
    """(faces,) each: the NRMSE (IP) that the model expects, and the true one."""
    confidence = np.array([face.confidence for face in faces])
    return CONFIDENT * (1 / confidence - 1), np.array([float(face.nrmse_ip[-1]) for face in faces])


def rank_correlation(first: Errors, second: Errors) -> Errors:
    """Spearman's coefficient along the last axis; 0 where one of them is constant or there are fewer than 3."""
    ranks = [rankdata(values, axis=-1) for values in (first, second)]
    a, b = (values - values.mean(axis=-1, keepdims=True) for values in ranks)
    size = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    enough = (size > 0) & (first.shape[-1] > 2)
    return np.asarray(np.where(enough, (a * b).sum(axis=-1) / np.where(size > 0, size, 1), 0.0))
