"""OpenVINO, which runs networks on a CPU with their layers fused for it. No network is known here, and no torch."""

import sys
from importlib.util import find_spec
from typing import Any, Final

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
