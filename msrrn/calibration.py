"""From what a network says about its own error to an estimate that is right on faces that it has not seen.

A network learns on training faces, where it errs less than elsewhere: what it expects is too low and too narrow.
How far its shapes of two looks at a face disagree says something else about the error, and so does how narrow the
pupils stand in the shape: faces turned aside are harder, and their errors count for more. All are combined in
logarithms, with coefficients fitted to validation faces: errors spread by factors, and a least square of logarithms
is not ruled by the few largest.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

LEAST_FACES: Final = 30
"""With fewer, four coefficients would follow chance."""
FLOOR: Final = 1e-5
LOG_ERRORS: Final = (-10.0, 10.0)

Errors = NDArray[np.floating]


class Calibration(BaseModel):
    """log NRMSE = constant + own · log(what the network expects) + disagreement · log(disagreement)
    + narrowness · log(narrowness)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    constant: float = Field(0.0, allow_inf_nan=False)
    own: float = Field(1.0, allow_inf_nan=False)
    disagreement: float = Field(0.0, allow_inf_nan=False)
    narrowness: float = Field(0.0, allow_inf_nan=False)

    def expected(self, log_own: Errors, disagreement: Errors, narrowness: Errors) -> NDArray[np.float32]:
        """(B,): the NRMSE (IP, a fraction) to expect.

        Args:
            log_own: (B,) natural logarithm of the error that the network expects.
            disagreement: (B,) mean distance of the shapes of two looks at a face, over the pupils' distance; 0 where
                the face was looked at only once.
            narrowness: (B,) size of the shape over the pupils' distance.
        """
        logs = self.constant + self.own * log_own + self.disagreement * np.log(np.maximum(disagreement, FLOOR))
        logs = logs + self.narrowness * np.log(np.maximum(narrowness, FLOOR))
        return np.exp(np.clip(logs, *LOG_ERRORS)).astype(np.float32)


def fit(log_own: Errors, disagreement: Errors, narrowness: Errors, true: Errors) -> Calibration:
    """The coefficients that fit the true errors (B,) best; those that change nothing where faces are too few."""
    if len(true) < LEAST_FACES:
        return Calibration()
    told = {"own": log_own, "narrowness": np.log(np.maximum(narrowness, FLOOR))}
    if disagreement.any():
        told["disagreement"] = np.log(np.maximum(disagreement, FLOOR))
    wanted = np.log(np.maximum(true, FLOOR))
    (constant, *found), *_ = np.linalg.lstsq(np.stack([np.ones_like(wanted), *told.values()], axis=1), wanted)
    # Faces that tell nothing about one of them, as those of a toy network, must not turn it round.
    if min(found) < 0:
        return Calibration(constant=float((wanted - log_own).mean()))
    return Calibration(constant=float(constant), **dict(zip(told, map(float, found), strict=True)))
