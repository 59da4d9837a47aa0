"""OpenVINO, which runs networks on a CPU with their layers fused for it. It needs no torch."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msrrn.calibration import Calibration
from msrrn.geometry import LEVELS
from msrrn.prediction import OUTPUTS, Predictor

OPENVINO_BATCH: Final = 8
"""Faces that it is asked about at once: no slower a face than 32, and less is filled up."""

ON_ONE_CORE: Final = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # or every process of a machine would sit on its first core
}
"""How a graph is compiled. What is float32 in it stays so, and what is bfloat16, too."""


def has_openvino() -> bool:
    """Whether it is installed."""
    return find_spec("openvino") is not None


def openvino() -> Any:
    """The library; an import of its own tells its makers that it was imported, and this one does not.

    Raises:
        ImportError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVinoPredictor(Predictor):
    """Runs an ONNX file by OpenVINO on one core.

    Always a whole batch, the last one filled up: a graph whose number of faces may change is half as slow again.
    """

    def __init__(self, data: bytes, calibration: Calibration, batch: int = OPENVINO_BATCH) -> None:
        super().__init__(calibration, batch)
        core = openvino().Core()
        model = core.read_model(data)
        model.reshape([batch, LEVELS[-1], LEVELS[-1]])
        self._request = core.compile_model(model, "CPU", ON_ONE_CORE).create_infer_request()

    def _run(self, crops: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        self._request.infer({"crops": np.resize(crops, (self.batch, *crops.shape[1:]))})
        return [self._request.get_tensor(name).data[: len(crops)].copy() for name in OUTPUTS[2:]]
