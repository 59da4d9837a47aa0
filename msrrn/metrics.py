"""NRMSE, CED, AUC and failure rate, as the 300-W literature uses the words.

NRMSE is the mean of the 68 point distances over a normaliser, not a root of mean squares.
IP divides by the distance of the pupils, IO by that of the outer eye corners. All are fractions.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.landmarks import inter_ocular, inter_pupil

Errors = NDArray[np.floating]

FAILURE: Final = 0.1
"""NRMSE (IP), a fraction, above which a face has failed."""


def point_error(predicted: Errors, truth: Errors) -> Errors:
    """Mean point distance `(...)` of shapes `(..., 68, 2)`, in their unit."""
    return np.asarray(np.linalg.norm(predicted - truth, axis=-1).mean(axis=-1))


def nrmse_ip(predicted: Errors, truth: Errors) -> Errors:
    """Point error over the truth's pupil distance, `(...)`."""
    return point_error(predicted, truth) / inter_pupil(truth)


def nrmse_io(predicted: Errors, truth: Errors) -> Errors:
    """Point error over the truth's outer eye corner distance, `(...)`."""
    return point_error(predicted, truth) / inter_ocular(truth)


def share_under(errors: Errors, threshold: float) -> float:
    """Share of faces with an error below the threshold: one point of the CED curve."""
    return float(np.mean(np.asarray(errors) < threshold))


def failed(errors: Errors, threshold: float = FAILURE) -> NDArray[np.bool_]:
    """Which faces have an error above the threshold; what is not a number has failed."""
    return ~(np.asarray(errors) <= threshold)


def failure_rate(errors: Errors, threshold: float = FAILURE) -> float:
    """Share of faces that `failed`."""
    return float(np.mean(failed(errors, threshold)))


def auc(errors: Errors, threshold: float) -> float:
    """Area under the CED up to the threshold, over the threshold; exact for the step function.

    Each face contributes the share of [0, threshold] over which it counts as solved; what is not a
    number has failed and contributes nothing.
    """
    solved = np.clip(1 - np.asarray(errors) / threshold, 0.0, 1.0)
    return float(np.mean(np.nan_to_num(solved, nan=0.0)))
