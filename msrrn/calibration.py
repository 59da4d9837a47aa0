"""From what a network says about its own error to an estimate that is right on faces that it has not seen.

A network learns on training faces, where it errs less than elsewhere: what it expects is too low and too narrow.
Other signs say something else about the error: how far its shapes of two looks at a face disagree; how wide its heat
maps are, and how far they lie from the shape; and how narrow the pupils stand in the shape, since faces turned aside
are harder, and their errors count for more. All are combined in logarithms, with coefficients fitted to validation
faces: errors spread by factors, and a least square of logarithms is not ruled by the few largest.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

LEAST_FACES: Final = 30
"""With fewer, the coefficients would follow chance."""
FLOOR: Final = 1e-5
LOG_ERRORS: Final = (-10.0, 10.0)
LARGEST: Final = 1e30
"""Of coefficients: no sum of what they are multiplied with overflows float32."""

Errors = NDArray[np.floating]

COEFFICIENTS: Final = ("own", "disagreement", "narrowness", "spread", "astray")
"""Of `Calibration`, in the order of `Signs`."""


class Signs(NamedTuple):
    """What tells the error of B faces, each (B,); arrays, or tensors."""

    log_error: Any
    """natural logarithm of the NRMSE (IP, a fraction) that the network expects"""
    disagreement: Any
    """mean distance of the shapes of two looks, over the pupils' distance; 0 where there was only one"""
    narrowness: Any
    """root of the summed squares of the shape about its centre, over the pupils' distance"""
    spread: Any
    """mean radius of the heat maps, in sides of the straightened face; 0 where there are none"""
    astray: Any
    """mean distance of the shape from the centres of the heat maps, over the pupils' distance; 0 without them"""

    def logs(self, log: Callable[[Any], Any]) -> "Signs":
        """All as logarithms."""
        return Signs(self.log_error, *map(log, self[1:]))


Coefficient = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]


class Calibration(BaseModel):
    """log NRMSE = constant + the sum of coefficient · sign, over `Signs.logs`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    constant: Coefficient = 0.0
    own: Coefficient = 1.0
    disagreement: Coefficient = 0.0
    narrowness: Coefficient = 0.0
    spread: Coefficient = 0.0
    astray: Coefficient = 0.0

    def log_error(self, logs: Signs) -> Any:
        """(B,), before it is held within bounds."""
        total: Any = self.constant
        for name, sign in zip(COEFFICIENTS, logs, strict=True):
            total = total + getattr(self, name) * sign
        return total

    def expected(self, signs: Signs) -> NDArray[np.float32]:
        """(B,): the NRMSE (IP, a fraction) to expect."""
        logs = np.clip(self.log_error(signs.logs(_log)), *LOG_ERRORS)
        expected: NDArray[np.float32] = np.exp(logs).astype(np.float32)
        return expected


def fit(signs: Signs, true: Errors) -> Calibration:
    """The coefficients that fit the true errors (B,) best; those that change nothing where faces are too few.

    None is negative: faces that tell nothing about a sign, as those of a toy network, must not turn it round.
    """
    if len(true) < LEAST_FACES:
        return Calibration()
    wanted = np.log(np.maximum(true, FLOOR))
    logs = signs.logs(_log)
    told = {name: sign for name, sign, raw in zip(COEFFICIENTS, logs, signs, strict=True) if raw.any()}
    while told:
        (constant, *found), *_ = np.linalg.lstsq(np.stack([np.ones_like(wanted), *told.values()], axis=1), wanted)
        least = int(np.argmin(found))
        if found[least] >= 0:
            coefficients = dict.fromkeys(COEFFICIENTS, 0.0) | dict(zip(told, map(float, found), strict=True))
            return Calibration(constant=float(constant), **coefficients)
        del told[list(told)[least]]
    return Calibration(constant=float((wanted - signs.log_error).mean()))


def _log(values: Errors) -> Errors:
    logs: Errors = np.log(np.maximum(values, FLOOR))
    return logs
