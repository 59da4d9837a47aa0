"""OpenVINO, which runs networks on a CPU with their layers fused for it. It needs no torch."""

import io
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msrrn.calibration import Calibration
from msrrn.geometry import LEVELS
from msrrn.prediction import OUTPUTS, Predictor
from msrrn.spares import Spares

OPENVINO_BATCH: Final = 8
"""Faces that it is asked about at once: no slower a face than 32, and less is filled up."""

ON_ONE_CORE: Final = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # or every process of a machine would sit on its first core
}
"""How a graph is compiled."""
_CAPABILITIES: Final = "OPTIMIZATION_CAPABILITIES"


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


def compiled(graph: Any, precision: str = "float32") -> bytes:
    """An `openvino.Model`, compiled for this machine's CPU: what `loaded` takes up in a fraction of that time.

    In `bfloat16` also what is float32 in it is computed so, where the CPU has that.
    """
    file = io.BytesIO()
    openvino().Core().compile_model(graph, "CPU", _settings(precision)).export_model(file)
    return file.getvalue()


def compiled_for(precision: str = "float32") -> str:
    """What the bytes of `compiled` are good for: this release of OpenVINO, on a CPU of this kind, set so."""
    return f"{openvino().__version__} {_said('FULL_DEVICE_NAME')} {_said(_CAPABILITIES)} {_settings(precision)}"


def loaded(data: bytes, precision: str = "float32") -> Any:
    """The `openvino.CompiledModel` whose bytes `compiled` gave in this precision."""
    return openvino().Core().import_model(io.BytesIO(data), "CPU", _settings(precision))


def _settings(precision: str) -> dict[str, Any]:
    reduced = precision == "bfloat16" and "BF16" in _said(_CAPABILITIES)
    return {"INFERENCE_PRECISION_HINT": "bf16" if reduced else "f32", **ON_ONE_CORE}


def _said(name: str) -> Any:
    """A property of this machine's CPU."""
    return openvino().Core().get_property("CPU", name)


def compiled_prediction(onnx: bytes, batch: int = OPENVINO_BATCH) -> bytes:
    """A network's ONNX file (`msrrn.onnx`), `compiled` for batches of so many faces.

    A graph whose number of faces may change is half as slow again.
    """
    graph = openvino().Core().read_model(onnx)
    graph.reshape([batch, LEVELS[-1], LEVELS[-1]])
    return compiled(graph)


class OpenVinoPredictor(Predictor):
    """Runs what `compiled_prediction` gave on one core; always a whole batch, the last one filled up."""

    def __init__(self, data: bytes, calibration: Calibration) -> None:
        network = loaded(data)
        super().__init__(calibration, batch=network.input("crops").shape[0])
        self._requests = Spares(network.create_infer_request)

    def _run(self, crops: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        with self._requests.one() as request:
            request.infer({"crops": np.resize(crops, (self.batch, *crops.shape[1:]))})
            return [request.get_tensor(name).data[: len(crops)].copy() for name in OUTPUTS[2:]]
