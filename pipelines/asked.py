"""What a worker is given of a model: something to ask. Where OpenVINO runs it, no torch is loaded for it."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from msrrn.calibration import Calibration
from msrrn.openvino import OpenVinoPredictor, compiled_prediction, has_openvino
from msrrn.prediction import Prediction, Predictor
from pipelines.cache import compiled_once
from pipelines.errors import UserError
from pipelines.memory import keep_memory

Crops = np.ndarray[Any, np.dtype[np.uint8]]
"""(B, 200, 200)"""


class Asked(Protocol):
    """A model, as annotations quote it and ask it."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def label(self) -> str:
        """Both."""
        ...

    def on_one_core(self, crops: Crops) -> Prediction:
        """Several threads add up in another order: the last bits must not depend on how many cores a worker sees."""
        ...


@dataclass(frozen=True)
class Graph:
    """A model as the graph that OpenVINO runs. Picklable; a few megabytes."""

    data: bytes
    calibration: Calibration
    name: str
    version: str

    @property
    def label(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def predictor(self) -> Predictor:
        """Made once a process.

        Raises:
            UserError: OpenVINO is not installed.
        """
        return _compiled(self)

    def on_one_core(self, crops: Crops) -> Prediction:
        keep_memory()
        return self.predictor.predict(crops)


@cache
def _compiled(graph: Graph) -> Predictor:
    if not has_openvino():
        raise UserError(
            "a worker's machine has no OpenVINO: pip install 'msrrn[fast]' there, or begin anew, into another "
            "place, with --engine native"
        )
    return compiled_once(graph.data, compiled_prediction, lambda data: OpenVinoPredictor(data, graph.calibration))
