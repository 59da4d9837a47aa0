import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from msrrn.augmentation import mirror_shape
from msrrn.calibration import Calibration
from msrrn.network import MSRRN, PRESETS, ModelConfig
from msrrn.predictor import STAGES, TorchPredictor
from pipelines.pyramid import pyramid
from tests.msrrn.test_landmarks import FACE
from tests.msrrn.test_network import smooth_crops

SMALL = ModelConfig(preset="small", patch=12, patch_channels=(4, 4), initial_channels=(4, 4, 4), hidden=16)
MEAN = torch.from_numpy(FACE * 0.4 + 0.4)


def network(config: ModelConfig = SMALL, spread: float = 0.005) -> MSRRN:
    torch.manual_seed(0)
    model = MSRRN(config, MEAN)
    for linear in (model.initial.head[-1], model.regressor.output):
        assert isinstance(linear, nn.Linear)
        nn.init.normal_(linear.weight, std=spread)
    return model


def random_crops(batch: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (batch, 200, 200), dtype=np.uint8)


@pytest.mark.parametrize("config", [SMALL, *PRESETS.values()])
def test_a_face_gets_the_same_shape_alone_and_in_any_batch(config: ModelConfig) -> None:
    model, crops = network(config), smooth_crops(7).numpy()
    together = TorchPredictor(model, batch=64).predict(crops)
    alone = np.concatenate(
        [TorchPredictor(model, batch=64).predict(crops[index : index + 1]).stages for index in range(7)]
    )
    # Within 0.002 px of the 200 px crop: sums are made in another order, and each stage amplifies that.
    np.testing.assert_allclose(alone, together.stages, atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        TorchPredictor(model, batch=3).predict(crops).stages, together.stages, atol=1e-5, rtol=0
    )
    backwards = TorchPredictor(model, batch=2).predict(crops[::-1])
    np.testing.assert_allclose(backwards.stages[::-1], together.stages, atol=1e-5, rtol=0)
    np.testing.assert_allclose(backwards.confidence[::-1], together.confidence, atol=1e-3)
    assert np.abs(together.stages[0, -1] - together.stages[1, -1]).max() > 1e-3


def test_the_same_call_gives_the_same_bytes() -> None:
    crops = random_crops(3)
    first, second = (TorchPredictor(network()).predict(crops) for _ in range(2))
    assert first.stages.tobytes() == second.stages.tobytes()
    assert first.confidence.tobytes() == second.confidence.tobytes()


def test_stages_stand_in_their_order() -> None:
    model, crops = network(), random_crops(2)
    prediction = TorchPredictor(model).predict(crops)
    assert len(STAGES) == prediction.stages.shape[1] == 5
    assert prediction.stages.shape == (2, 5, 68, 2)
    np.testing.assert_array_equal(prediction.stages[:, STAGES.index("mean_shape")], [MEAN.float().numpy()] * 2)
    levels = [np.stack(level) for level in zip(*(pyramid(image) for image in crops), strict=True)]
    with torch.no_grad():
        stages = model(*(torch.from_numpy(level) for level in reversed(levels))).shapes
    np.testing.assert_allclose(prediction.stages[:, 1:], stages.numpy(), atol=1e-5)
    np.testing.assert_array_equal(prediction.shapes, prediction.stages[:, STAGES.index("stage_3")])


def test_no_faces_give_no_shapes() -> None:
    prediction = TorchPredictor(network()).predict(np.zeros((0, 200, 200), np.uint8))
    assert prediction.stages.shape == (0, 5, 68, 2)
    assert prediction.shapes.shape == (0, 68, 2)
    assert prediction.confidence.shape == (0,)
    assert prediction.stages.dtype == prediction.confidence.dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((200, 200), np.uint8),
        ((2, 100, 100), np.uint8),
        ((2, 200, 100), np.uint8),
        ((2, 200, 200, 3), np.uint8),
        ((2, 200, 200), np.float32),
        ((2, 200, 200), np.int16),
    ],
)
def test_other_inputs_are_refused(shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    with pytest.raises(ValueError, match=r"crops must be uint8 \(B, 200, 200\)"):
        TorchPredictor(network()).predict(np.zeros(shape, dtype))


def test_views_of_larger_arrays_are_read_as_they_look() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (4, 200, 400), dtype=np.uint8)[::-2, :, ::-2]
    crops.flags.writeable = False
    predictor = TorchPredictor(network(), batch=1)
    np.testing.assert_array_equal(predictor.predict(crops).stages, predictor.predict(crops.copy()).stages)


def test_confidence_falls_with_the_error_that_is_expected() -> None:
    model = network()
    with torch.no_grad():
        model.doubt[-1].weight.normal_(std=1.0)  # type: ignore[operator]
    prediction = TorchPredictor(model).predict(smooth_crops(6).numpy())
    order = np.argsort(prediction.expected_nrmse)
    assert (np.diff(prediction.confidence[order]) < 0).all()
    assert len(set(prediction.confidence.tolist())) == 6
    np.testing.assert_allclose(prediction.confidence, 0.05 / (0.05 + prediction.expected_nrmse), rtol=1e-5)


@pytest.mark.parametrize("log_error", [-1e4, -3.0, 0.0, 1e4])
def test_confidence_is_above_0_and_at_most_1(log_error: float) -> None:
    model = network()
    with torch.no_grad():
        model.doubt[-1].bias.fill_(log_error)  # type: ignore[operator]
    prediction = TorchPredictor(model).predict(random_crops(4))
    assert np.isfinite(prediction.expected_nrmse).all()
    assert (prediction.confidence > 0).all()
    assert (prediction.confidence <= 1).all()


def test_predicting_leaves_no_gradients() -> None:
    model = network()
    TorchPredictor(model).predict(random_crops(1))
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_the_second_look_is_at_the_straightened_face_in_the_mirror() -> None:
    crops = smooth_crops(3).numpy()
    once = TorchPredictor(network(PRESETS["best"].model_copy(update={"mirrored": False}), spread=0.002))
    first = once.judge(crops)
    both = TorchPredictor(network(PRESETS["best"], spread=0.002)).judge(crops)
    mean = MEAN.numpy().astype(np.float64)
    for index, shape in enumerate(first.stages[:, -1]):
        turn, shift = similarity(200 * mean - 0.5, 200 * shape - 0.5)
        straight = cv2.warpAffine(
            crops[index],
            np.column_stack([turn, shift]),
            (200, 200),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        mirrored = once.judge(straight[None, :, ::-1].astype(np.uint8)).stages[0, 1:].astype(np.float64)
        upright = mirror_shape(mirrored * (-1, 1) + (1, 0))
        second = ((200 * upright - 0.5) @ turn.T + shift + 0.5) / 200
        # Within half a pixel: OpenCV places pixels on a grid of 1/32.
        np.testing.assert_allclose(both.stages[index, 1:], (first.stages[index, 1:] + second) / 2, atol=0.0025)
    assert (both.disagreement > 1e-3).all()
    assert (first.disagreement == 0).all()
    assert np.abs(first.stages - both.stages).max() > 0.003


Floats = NDArray[np.floating]


def similarity(source: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Turn and scale (2, 2), and shift, that bring source (L, 2) nearest to target (L, 2)."""
    (x, y), (u, v) = (source - source.mean(axis=0)).T, (target - target.mean(axis=0)).T
    along, across = (x @ u + y @ v) / (x @ x + y @ y), (x @ v - y @ u) / (x @ x + y @ y)
    turn = np.array([[along, -across], [across, along]], np.float64)
    return turn, target.mean(axis=0) - turn @ source.mean(axis=0)


def test_the_calibration_of_the_model_is_applied() -> None:
    crops = smooth_crops(3).numpy()
    plain = TorchPredictor(network()).predict(crops)
    doubled = TorchPredictor(network(), Calibration(constant=float(np.log(2)))).predict(crops)
    np.testing.assert_allclose(doubled.expected_nrmse, 2 * plain.expected_nrmse, rtol=1e-5)
