from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from msrrn.artifact import Card, load, save
from msrrn.augmentation import mirror_shape
from msrrn.calibration import Calibration
from msrrn.config import PRESETS, ModelConfig
from msrrn.landmarks import inter_pupil
from msrrn.network import MSRRN
from msrrn.prediction import STAGES
from msrrn.predictor import SKIPPED, TorchPredictor
from msrrn.sampling import frames_of
from pipelines.pyramid import pyramid
from tests.msrrn.test_landmarks import FACE
from tests.msrrn.test_network import SMALL, STRAIGHT, smooth_crops
from tests.msrrn.test_view import turn

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


@pytest.mark.parametrize("config", [SMALL, STRAIGHT, *PRESETS.values()])
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


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_in_bfloat16_too_a_face_gets_the_same_shape_alone_and_in_any_batch(config: ModelConfig) -> None:
    model, crops = network(config), smooth_crops(7).numpy()
    model.reduce()
    together = TorchPredictor(model, batch=64).predict(crops).stages
    for batch in (1, 3):
        given = TorchPredictor(model, batch=batch).predict(crops).stages
        np.testing.assert_allclose(given, together, atol=1e-6, rtol=0)


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


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "told",
    [default_dtype(torch.float64), default_dtype(torch.bfloat16), torch.device("meta"), torch.autocast("cpu")],
    ids=["float64", "bfloat16", "device", "autocast"],
)
def test_what_others_told_torch_changes_nothing(told: AbstractContextManager[object], tmp_path: Path) -> None:
    config, crops = PRESETS["best"], smooth_crops(2).numpy()
    save(tmp_path, network(config), Card(version="1", crop_margin=1.5, detector="hog", config=config))
    expected = TorchPredictor(load(tmp_path)[0]).predict(crops)
    with told:
        given = TorchPredictor(load(tmp_path)[0]).predict(crops)
    assert given.stages.tobytes() == expected.stages.tobytes()
    assert given.confidence.tobytes() == expected.confidence.tobytes()


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


def mirrored_once(config: ModelConfig) -> tuple[TorchPredictor, TorchPredictor]:
    """The same network, looking once, and again in the mirror."""
    once, both = (network(config.model_copy(update={"mirrored": mirrored})) for mirrored in (False, True))
    return TorchPredictor(once), TorchPredictor(both)


@pytest.mark.parametrize("config", [SMALL, STRAIGHT])
def test_the_second_look_is_at_the_mirror_image_from_the_first_ones_start(config: ModelConfig) -> None:
    crops = smooth_crops(3).numpy()
    once, twice = mirrored_once(config)
    model = once.looks.model
    coarse, middle, fine = (torch.from_numpy(np.stack(level)) for level in zip(*map(levels_of, crops), strict=True))
    start = model.begun(coarse, middle, fine)
    with torch.inference_mode():
        mirror = model.refined(start.mirrored(model.mirror), skipped=SKIPPED)
    second = np.stack([mirror_shape(shapes) for shapes in mirror.shapes.numpy() * (-1, 1) + (1, 0)])
    first, both = once.judge(crops), twice.judge(crops)
    np.testing.assert_allclose(second[:, 0], first.stages[:, 1], atol=1e-5)
    alone = 2 + SKIPPED
    np.testing.assert_allclose(both.stages[:, :alone], first.stages[:, :alone], atol=1e-5)
    np.testing.assert_allclose(both.stages[:, alone:], (first.stages[:, alone:] + second[:, 1:]) / 2, atol=1e-5)
    expected = (first.signs.log_error + mirror.log_error.numpy()) / 2
    np.testing.assert_allclose(both.signs.log_error, expected, rtol=1e-3)
    apart = np.linalg.norm(first.stages[:, -1] - second[:, -1], axis=-1).mean(axis=1)
    np.testing.assert_allclose(both.signs.disagreement, apart / inter_pupil(both.stages[:, -1]), rtol=1e-3)
    assert (both.signs.disagreement > 1e-3).all()
    assert (first.signs.disagreement == 0).all()


def levels_of(crop: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Coarse to fine."""
    return list(pyramid(crop))[::-1]


def test_only_heat_maps_say_how_wide_and_how_far_astray_they_are() -> None:
    crops = smooth_crops(3).numpy()
    without, signs = (TorchPredictor(network(config)).judge(crops).signs for config in (SMALL, STRAIGHT))
    assert not without.spread.any()
    assert not without.astray.any()
    # Those of a fresh network are nearly flat, and all centred in the middle of the face.
    np.testing.assert_allclose(signs.spread, 6**-0.5, rtol=0.05)
    assert (signs.astray > 0.1).all()


def test_narrowness_is_the_size_of_the_shape_over_the_distance_of_its_pupils() -> None:
    stages, signs = TorchPredictor(network()).judge(smooth_crops(3).numpy())
    shapes = stages[:, -1]
    size = np.linalg.norm(shapes - shapes.mean(axis=1, keepdims=True), axis=(1, 2))
    np.testing.assert_allclose(signs.narrowness, size / inter_pupil(shapes), rtol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_what_annotations_lean_to_is_added_to_every_stage_in_the_frame_of_the_face(mirrored: bool) -> None:
    model = network(STRAIGHT.model_copy(update={"mirrored": mirrored}))
    head = model.initial.head[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        # Larger, and turned where no second look evens that out.
        centred = model.mean_shape - model.mean_shape.mean(dim=0)
        head.bias.copy_((centred @ turn(0.0 if mirrored else 0.7, 1.4) - centred).flatten())
    crops = smooth_crops(2).numpy()
    plain = TorchPredictor(model).judge(crops)
    model.lean.copy_(0.01 * torch.randn(68, 2))
    leaning = TorchPredictor(model).judge(crops)
    expected = model.lean @ frames_of(model.mean_shape, torch.from_numpy(plain.stages[:, -1]))
    for stage in range(1, len(STAGES)):
        added = leaning.stages[:, stage] - plain.stages[:, stage]
        np.testing.assert_allclose(added, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(leaning.stages[:, 0], plain.stages[:, 0])
    for sign, same in zip(leaning.signs, plain.signs, strict=True):
        np.testing.assert_array_equal(sign, same)


def test_the_calibration_of_the_model_is_applied() -> None:
    crops = smooth_crops(3).numpy()
    plain = TorchPredictor(network()).predict(crops)
    doubled = TorchPredictor(network(), Calibration(constant=float(np.log(2)))).predict(crops)
    np.testing.assert_allclose(doubled.expected_nrmse, 2 * plain.expected_nrmse, rtol=1e-5)
