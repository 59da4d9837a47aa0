"""The network on a GPU; continuous integration has none."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from msrrn.config import ModelConfig
from msrrn.cuda import CudaPredictor
from msrrn.predictor import TorchPredictor
from tests.msrrn.test_network import SMALL, STRAIGHT, smooth_crops
from tests.msrrn.test_predictor import network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

TWICE = STRAIGHT.model_copy(update={"mirrored": True})


@pytest.mark.parametrize("config", [SMALL, STRAIGHT, TWICE])
def test_a_gpu_gives_the_shapes_of_the_cpu(config: ModelConfig) -> None:
    crops = smooth_crops(21).numpy()
    expected = TorchPredictor(network(config)).judge(crops)
    predictor = CudaPredictor(network(config), batch=8)
    # The network is nobody else's: what it leaves to others must not be its weights.
    others = [torch.full((2**size,), torch.nan, device="cuda") for size in range(6, 24)]
    found = predictor.judge(crops)
    assert all(other.isnan().all() for other in others)
    np.testing.assert_allclose(found.stages, expected.stages, atol=1e-3)
    for name, column in found.signs._asdict().items():
        np.testing.assert_allclose(column, getattr(expected.signs, name), atol=2e-2, err_msg=name)


def test_a_face_gets_the_same_shape_alone_and_among_any_others() -> None:
    crops = smooth_crops(21).numpy()
    model = network(TWICE)
    model.reduce()
    predictor = CudaPredictor(model, batch=8)
    together = predictor.predict(crops)
    for index in (0, 7, 8, 20):
        alone = predictor.predict(crops[index : index + 1])
        np.testing.assert_array_equal(alone.stages[0], together.stages[index])
        np.testing.assert_array_equal(alone.expected_nrmse[0], together.expected_nrmse[index])
    np.testing.assert_array_equal(predictor.predict(crops[::-1]).stages, together.stages[::-1])
    assert predictor.predict(crops[:0]).stages.shape == (0, 5, 68, 2)


def test_threads_that_ask_at_once_get_their_own_faces() -> None:
    crops = smooth_crops(21).numpy()
    predictor = CudaPredictor(network(TWICE), batch=8)
    together = predictor.predict(crops).stages
    with ThreadPoolExecutor(8) as threads:
        alone = list(threads.map(lambda index: predictor.predict(crops[index : index + 1]).stages[0], range(21)))
    np.testing.assert_array_equal(alone, together)
