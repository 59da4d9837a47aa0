"""OpenVINO against torch."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from msrrn.config import PRESETS, ModelConfig
from msrrn.onnx import to_onnx
from msrrn.openvino import OpenVinoPredictor, compiled_for, compiled_prediction, openvino
from msrrn.predictor import TorchPredictor
from tests.msrrn.test_network import smooth_crops
from tests.msrrn.test_onnx import PIXEL, asked, exported_once, predicted

BEST = PRESETS["best"]


def predictor(graph: bytes, config: ModelConfig, faces: int) -> OpenVinoPredictor:
    return OpenVinoPredictor(compiled_prediction(graph, faces), asked(config)[1].calibration)


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_it_gives_what_torch_gives(config: ModelConfig) -> None:
    crops = smooth_crops(9).numpy()
    expected = predicted(config, crops)
    given = predictor(exported_once(config), config, 4).predict(crops)
    np.testing.assert_allclose(given.stages, expected.stages, atol=1e-3 * PIXEL, rtol=0)
    np.testing.assert_allclose(given.expected_nrmse, expected.expected_nrmse, rtol=1e-3)
    assert given.stages.dtype == expected.stages.dtype == np.float32


def test_coordinates_stay_in_single_precision_where_the_network_is_reduced() -> None:
    crops = smooth_crops(9).numpy()
    model, card = asked(BEST)
    model.reduce()
    given = predictor(to_onnx(model, card, 9), BEST, 9).predict(crops)
    torch_says, exactly = TorchPredictor(model, card.calibration).predict(crops), predicted(BEST, crops)
    rounded = np.abs(torch_says.stages - exactly.stages).max()
    assert 0 < np.abs(given.stages - exactly.stages).max() < 3 * rounded
    np.testing.assert_allclose(given.expected_nrmse, exactly.expected_nrmse, rtol=0.1)


def test_a_face_alone_gets_what_it_gets_among_others() -> None:
    crops = smooth_crops(5).numpy()
    asking = predictor(exported_once(BEST), BEST, 4)
    together = asking.predict(crops)
    for index in range(len(crops)):
        alone = asking.predict(crops[index : index + 1])
        np.testing.assert_array_equal(alone.stages, together.stages[index : index + 1])
    empty: NDArray[np.uint8] = np.zeros((0, 200, 200), np.uint8)
    assert asking.predict(empty).stages.shape == (0, 5, 68, 2)


def test_threads_that_ask_at_once_get_their_own_faces() -> None:
    crops = smooth_crops(24).numpy()
    asking = predictor(exported_once(BEST), BEST, 4)
    together = asking.predict(crops).stages
    with ThreadPoolExecutor(8) as threads:
        alone = list(threads.map(lambda index: asking.predict(crops[index : index + 1]).stages[0], range(24)))
    np.testing.assert_array_equal(alone, together)


def test_what_is_compiled_is_good_for_one_release_on_one_kind_of_processor() -> None:
    release, kind = compiled_for().split(" ", 1)
    assert release == openvino().__version__
    assert "FP32" in kind


def test_a_cpu_that_has_no_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, hint in (("BF16", "bf16"), ("INT8", "f32")):
        monkeypatch.setattr("msrrn.openvino._said", lambda name, has=has: ["FP32", has])
        assert f"'INFERENCE_PRECISION_HINT': '{hint}'" in compiled_for("bfloat16")
        assert "'INFERENCE_PRECISION_HINT': 'f32'" in compiled_for("float32")


def test_nobody_is_told_that_it_is_used() -> None:
    said = (
        "import sys; from msrrn.openvino import openvino; openvino(); "
        "assert sys.modules['openvino_telemetry'] is None; import openvino.tools.ovc as tool; "
        "assert type(tool.telemetry).__module__ == 'openvino.tools.ovc.telemetry_stub'"
    )
    subprocess.run([sys.executable, "-c", said], check=True)
