"""How well a model knows its own error: what it expects beside what it makes."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.prediction import CONFIDENT
from pipelines.evaluation.results import FaceResult

Errors = NDArray[np.float64]

MIN_RANKED: Final = 3
"""Faces: of fewer, ranks tell nothing."""


def expected_and_true(faces: Sequence[FaceResult]) -> tuple[Errors, Errors]:
    """(faces,) each: the NRMSE (IP) that the model expects, and the true one."""
    confidence = np.array([face.confidence for face in faces])
    return CONFIDENT * (1 / confidence - 1), np.array([float(face.nrmse_ip[-1]) for face in faces])


def rank_correlation(first: Errors, second: Errors) -> float:
    """Spearman's coefficient of (faces,) each; 0 where one is constant or no number, or there are too few faces."""
    if len(first) < MIN_RANKED or not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return 0.0
    from scipy.stats import rankdata  # a second to import, which who judges nothing does without

    return float(np.corrcoef(rankdata([first, second], axis=-1))[0, 1])
