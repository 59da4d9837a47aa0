import numpy as np
import pytest
import torch

from msrrn.config import ModelConfig
from msrrn.disturbance import BENT, MISSING, MORE, MOVED, NARROWER, Disturbance, draw_disturbance
from msrrn.network import MSRRN
from tests.msrrn.test_network import SMALL, STRAIGHT, levels, lively, smooth_crops

MEAN = np.random.default_rng(0).uniform(0.2, 0.8, (68, 2)).astype(np.float32)
FACES = 4000


@pytest.fixture(scope="module")
def drawn() -> Disturbance:
    return draw_disturbance(FACES, 50, MEAN, np.random.default_rng(1))


def test_shapes_move_less_before_finer_stages(drawn: Disturbance) -> None:
    stages = drawn.moves.shape[1]
    assert drawn.moves.shape == (FACES, stages, 68, 2)
    assert drawn.moves.dtype == torch.float32
    shift = drawn.moves.mean(dim=2)
    expected = MOVED * NARROWER ** torch.arange(stages)
    torch.testing.assert_close(shift.std(dim=(0, 2)), expected, rtol=0.05, atol=0)
    assert shift.mean().abs() < 0.001


def test_a_move_is_a_turn_a_scale_a_shift_and_some_bending(drawn: Disturbance) -> None:
    arms = torch.from_numpy(MEAN - MEAN.mean(axis=0))
    across = torch.stack([-arms[:, 1], arms[:, 0]], dim=-1)
    move = drawn.moves[:, 0] - drawn.moves[:, 0].mean(dim=1, keepdim=True)
    size = arms.square().sum()
    parts = torch.stack([(move * arms).sum(dim=(1, 2)), (move * across).sum(dim=(1, 2))]) / size
    torch.testing.assert_close(parts.std(dim=1), torch.full((2,), 2 * MOVED), rtol=0.05, atol=0)
    bent = move - parts[0, :, None, None] * arms - parts[1, :, None, None] * across
    assert bent.std().item() == pytest.approx(BENT * MOVED, rel=0.05)


def test_features_are_missing_at_every_stage_anew_and_keep_their_mean(drawn: Disturbance) -> None:
    assert drawn.kept.shape == (FACES, drawn.moves.shape[1], 50)
    assert sorted({*drawn.kept.flatten().tolist()}) == pytest.approx([0, 1 / (1 - MISSING)])
    assert drawn.kept.mean().item() == pytest.approx(1, abs=0.01)
    assert not torch.equal(drawn.kept[:, 0], drawn.kept[:, 1])


def test_some_batches_are_looked_at_more_often() -> None:
    rng = np.random.default_rng(3)
    counts = [draw_disturbance(2, 5, MEAN, rng).kept.shape[1] for _ in range(400)]
    assert [counts.count(stages) / 400 for stages in (3, 4, 5)] == pytest.approx(MORE, abs=0.07)


def test_the_same_generator_gives_the_same_draws(drawn: Disturbance) -> None:
    again = draw_disturbance(FACES, 50, MEAN, np.random.default_rng(1))
    assert all(torch.equal(one, other) for one, other in zip(again, drawn, strict=True))


@pytest.mark.parametrize("config", [SMALL, STRAIGHT])
def test_a_stage_starts_from_the_moved_shape(config: ModelConfig) -> None:
    model = lively(config)
    features = model.regressor.features.size
    nothing = Disturbance(torch.zeros(2, 3, 68, 2), torch.ones(2, 3, features))
    crops = levels(smooth_crops(2))
    undisturbed = model(*crops).shapes
    torch.testing.assert_close(model(*crops, nothing).shapes, undisturbed, atol=0, rtol=0)
    moves = torch.zeros(2, 3, 68, 2)
    moves[:, 1] = 0.1
    moved = model(*crops, nothing._replace(moves=moves)).shapes
    torch.testing.assert_close(moved[:, :2], undisturbed[:, :2], atol=0, rtol=0)
    # The second residual is read 0.1 further, and lies on top of that.
    assert ((moved - undisturbed)[:, 2].mean(dim=1) - 0.1).abs().max() < 0.05
    assert ((moved - undisturbed)[:, 2] - 0.1).abs().max() > 1e-4


@pytest.mark.parametrize("config", [SMALL, STRAIGHT])
def test_a_stage_without_features_gives_the_same_residual_for_every_face(config: ModelConfig) -> None:
    model = MSRRN(config, torch.from_numpy(MEAN)).eval()
    nothing = Disturbance(torch.zeros(2, 3, 68, 2), torch.zeros(2, 3, model.regressor.features.size))
    stages = model(*levels(smooth_crops(2)), nothing)
    residuals = stages.shapes.diff(dim=1) @ torch.linalg.inv(stages.view.frame)[:, None]
    torch.testing.assert_close(residuals[0], residuals[1], atol=1e-6, rtol=0)


def test_a_face_is_straightened_by_the_moved_initial_shape() -> None:
    """A stage that starts where its crop was moved to sees what it saw before."""
    model = lively(STRAIGHT)
    moves = torch.zeros(2, 3, 68, 2)
    moves[:, 0] = 0.1
    moved = Disturbance(moves, torch.ones(2, 3, model.regressor.features.size))
    coarse, middle, fine = levels(smooth_crops(2))
    with torch.no_grad():
        first, second = model(coarse, middle, fine), model(coarse, middle, fine.roll((20, 20), dims=(1, 2)), moved)
    torch.testing.assert_close(second.view.centre, first.view.centre + 0.1)
    torch.testing.assert_close(second.view.axes, first.view.axes)
