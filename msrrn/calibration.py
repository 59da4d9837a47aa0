"""From what a network says about its own error to an estimate that is right on faces that it has not seen.

A network learns on training faces, where it errs less than elsewhere: what it expects is too low and too narrow.
How far its shapes of a face and of the mirrored face disagree says something else about the error. Both are
combined in logarithms, with coefficients fitted to validation faces: errors spread by factors, and a least square
of logarithms is not ruled by the few largest.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

LEAST_FACES: Final = 30
"""With fewer, three coefficients would follow chance."""
FLOOR: Final = 1e-5
LOG_ERRORS: Final = (-10.0, 10.0)

Errors = NDArray[np.floating]


class Calibration(BaseModel):
    """log NRMSE = constant + own · log(what the network expects) + disagreement · log(disagreement)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    constant: float = Field(0.0, allow_inf_nan=False)
    own: float = Field(1.0, allow_inf_nan=False)
    disagreement: float = Field(0.0, allow_inf_nan=False)

    def expected(self, log_own: Errors, disagreement: Errors) -> NDArray[np.float32]:
        """(B,): the NRMSE (IP, a fraction) to expect.

        Args:
            log_own: (B,) natural logarithm of the error that the network expects.
            disagreement: (B,) mean distance of the shapes of a face and of its mirror image, over the pupils'
                distance; 0 where the face was looked at only once.
        """
        logs = self.constant + self.own * log_own + self.disagreement * np.log(np.maximum(disagreement, FLOOR))
        return np.exp(np.clip(logs, *LOG_ERRORS)).astype(np.float32)


def fit(log_own: Errors, disagreement: Errors, true: Errors) -> Calibration:
    """The coefficients that fit the true errors (B,) best; those that change nothing where faces are too few."""
    if len(true) < LEAST_FACES:
        return Calibration()
    columns = [np.ones_like(log_own), log_own]
    if disagreement.any():
        columns.append(np.log(np.maximum(disagreement, FLOOR)))
    wanted = np.log(np.maximum(true, FLOOR))
    (constant, own, *other), *_ = np.linalg.lstsq(np.stack(columns, axis=1), wanted)
    # Faces that tell nothing about one of the two, as those of a toy network, must not turn it round.
    if own < 0 or (other and other[0] < 0):
        return Calibration(constant=float((wanted - log_own).mean()))
    return Calibration(constant=float(constant), own=float(own), disagreement=float(other[0]) if other else 0.0)
