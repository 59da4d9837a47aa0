"""The ONNX file against torch."""

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from msrrn.artifact import ArtifactError, Card, load
from msrrn.calibration import Calibration
from msrrn.config import PRESETS, ModelConfig
from msrrn.geometry import LEVELS
from msrrn.network import MSRRN
from msrrn.onnx import CARD_KEY, OnnxPredictor, read_onnx_card, to_onnx
from msrrn.prediction import OUTPUTS, Prediction
from msrrn.predictor import TorchPredictor
from tests.msrrn.test_network import smooth_crops
from tests.msrrn.test_predictor import network

CALIBRATION = Calibration(constant=0.3, own=0.8, disagreement=0.2, narrowness=0.1, spread=0.3, astray=0.2)
BOX = Path(__file__).parents[2] / "pipelines" / "box"
PIXEL = 1 / LEVELS[-1]


def asked(config: ModelConfig) -> tuple[MSRRN, Card]:
    """Of `best` the model in the box, as users export it; of the other one that learned nothing."""
    if config == PRESETS["best"]:
        return load(BOX)
    model = network(config, spread=0.002)
    model.lean.fill_(0.01)
    return model, Card(version="1", crop_margin=1.5, detector="hog", config=config, calibration=CALIBRATION)


@cache
def exported_once(config: ModelConfig) -> bytes:
    return to_onnx(*asked(config))


def predicted(config: ModelConfig, crops: NDArray[np.uint8]) -> Prediction:
    """By torch."""
    model, card = asked(config)
    return TorchPredictor(model, card.calibration).predict(crops)


@pytest.fixture
def exported() -> bytes:
    return exported_once(PRESETS["best"])


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_both_back_ends_give_the_same_at_any_batch_size(config: ModelConfig) -> None:
    crops = smooth_crops(9).numpy()
    data = exported_once(config)
    expected = predicted(config, crops)
    for batch in (1, 4, 64):
        given = OnnxPredictor(data, asked(config)[1].calibration, 1, batch).predict(crops)
        np.testing.assert_allclose(given.stages, expected.stages, atol=1e-3 * PIXEL, rtol=0)
        np.testing.assert_allclose(given.expected_nrmse, expected.expected_nrmse, rtol=1e-3)
        assert given.stages.dtype == expected.stages.dtype == np.float32


def test_the_file_works_from_plain_onnxruntime(exported: bytes) -> None:
    session = onnxruntime.InferenceSession(exported)
    assert [entry.name for entry in session.get_outputs()] == list(OUTPUTS)
    crops = smooth_crops(3).numpy()
    landmarks, expected_nrmse = session.run(["landmarks", "expected_nrmse"], {"crops": crops})
    torch_says = predicted(PRESETS["best"], crops)
    np.testing.assert_allclose(landmarks, torch_says.shapes, atol=1e-3 * PIXEL, rtol=0)
    np.testing.assert_allclose(expected_nrmse, torch_says.expected_nrmse, rtol=1e-3)


def test_it_is_a_valid_file_that_holds_everything(exported: bytes, tmp_path: Path) -> None:
    onnx.checker.check_model(exported, full_check=True)
    model = onnx.load(io.BytesIO(exported))
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert read_onnx_card(exported, "face.onnx") == asked(PRESETS["best"])[1]


def test_what_is_no_export_is_explained(exported: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"^face\.onnx: not an ONNX model that can be run"):
        read_onnx_card(exported[: len(exported) // 2], "face.onnx")
    with pytest.raises(ArtifactError, match=r"^face\.onnx: not an ONNX model"):
        read_onnx_card(b"", "face.onnx")
    model = onnx.load(io.BytesIO(exported))
    (entry,) = (entry for entry in model.metadata_props if entry.key == CARD_KEY)
    entry.value = entry.value.replace("ibug-68", "wflw-98")
    with pytest.raises(ArtifactError, match=r"^face\.onnx, its model card: field `scheme`: .* by another version"):
        read_onnx_card(model.SerializeToString(), "face.onnx")
    model.metadata_props.remove(entry)
    with pytest.raises(ArtifactError, match="holds no model card"):
        read_onnx_card(model.SerializeToString(), "face.onnx")


def altered(exported: bytes, change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load(io.BytesIO(exported))
    change(model)
    data: bytes = model.SerializeToString()
    return data


def without(name: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        ends = model.graph.output
        ends.remove(next(each for each in ends if each.name == name))

    return change


def another_graph(model: onnx.ModelProto) -> None:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["faces"]) for name in ("a", "b")]
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    model.graph.CopyFrom(onnx.helper.make_graph([node], "other", ends[:1], ends[1:]))


def so_many_faces(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7


@pytest.mark.parametrize(
    ("change", "explained"),
    [
        (without("spread"), "the graph has no `spread`"),
        (another_graph, "the graph has no `crops`"),
        (so_many_faces, r"`crops` is \[7, 200, 200\], and should be \['faces', 200, 200\]"),
    ],
)
def test_a_graph_that_could_not_be_asked_is_refused(
    exported: bytes, change: Callable[[onnx.ModelProto], object], explained: str
) -> None:
    with pytest.raises(ArtifactError, match=rf"^face\.onnx: {explained}: export the model anew"):
        read_onnx_card(altered(exported, change), "face.onnx")


def test_no_file_of_the_readers_folder_is_taken_for_weights(
    exported: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def change(model: onnx.ModelProto) -> None:
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        Path("private").write_bytes(weights.raw_data)
        onnx.external_data_helper.set_external_data(weights, "private")
        weights.ClearField("raw_data")

    with pytest.raises(ArtifactError, match=r"^face\.onnx: not an ONNX model that can be run .*External data"):
        read_onnx_card(altered(exported, change), "face.onnx")


@pytest.mark.parametrize("written", ["[" * 100_000, "1" * 5000], ids=["deep", "long"])
def test_a_card_that_cannot_be_read_is_explained(exported: bytes, written: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        (entry,) = (entry for entry in model.metadata_props if entry.key == CARD_KEY)
        entry.value = entry.value.replace('"format":1', f'"format":{written}')

    with pytest.raises(ArtifactError, match=r"^face\.onnx, its model card: not JSON .*; copy the model again"):
        read_onnx_card(altered(exported, change), "face.onnx")


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_no_faces_give_no_shapes(config: ModelConfig) -> None:
    empty: NDArray[np.uint8] = np.zeros((0, 200, 200), np.uint8)
    data = exported_once(config)
    assert OnnxPredictor(data, CALIBRATION, 1).predict(empty).stages.shape == (0, 5, 68, 2)
    by_itself = onnxruntime.InferenceSession(data).run(list(OUTPUTS), {"crops": empty})
    assert [column.shape for column in by_itself[:3]] == [(0, 68, 2), (0,), (0, 5, 68, 2)]
