import math

import pytest
import torch

from msrrn import metrics
from msrrn.network import Stages
from msrrn.objective import (
    BELL,
    BEND,
    heat_centres,
    misplaced,
    nrmse_ip,
    pupil_distance,
    squared,
    summed_log_nrmse_ip,
)
from msrrn.view import View
from tests.msrrn.test_view import MEAN, turn

SIDE = 12


def staged(shapes: torch.Tensor) -> Stages:
    """Without context, so without heat maps."""
    return Stages(
        shapes, torch.zeros(len(shapes)), shapes.new_zeros(len(shapes), 68, 0, 0), View.whole(shapes[:, -1])
    )


def heated(heat: torch.Tensor) -> Stages:
    """With heat maps (1, 68, H, H), in the square around a face that lies turned in its crop."""
    shape = (MEAN @ turn(0.5, 1.2))[None]
    return Stages(shape[:, None], torch.zeros(1), heat, View.around(MEAN, shape))


def bells(places: torch.Tensor) -> torch.Tensor:
    """Logits (1, 68, H, H) of bells around places (68, 2) in [0, 1] of the map."""
    cells = (torch.arange(SIDE) + 0.5) / SIDE
    x, y = (-0.5 * ((cells - places[:, None, axis]) * SIDE / BELL) ** 2 for axis in (0, 1))
    return (y[:, :, None] + x[:, None, :])[None]


def scattered(seed: int = 0) -> torch.Tensor:
    """Places (68, 2) whose bells lie inside of a map."""
    return 0.3 + 0.4 * torch.rand(68, 2, generator=torch.Generator().manual_seed(seed))


def test_equals_equation_5_from_residuals() -> None:
    random = torch.Generator().manual_seed(0)
    initial = torch.rand(3, 68, 2, generator=random, dtype=torch.float64)
    residuals = 0.1 * torch.randn(3, 3, 68, 2, generator=random, dtype=torch.float64)
    truth = torch.rand(3, 68, 2, generator=random, dtype=torch.float64)

    shape, shapes = initial, [initial]
    faces = ((initial - truth) ** 2).sum(dim=(1, 2))
    for stage in range(3):
        faces = faces + ((residuals[:, stage] - (truth - shape)) ** 2).sum(dim=(1, 2))
        shape = shape + residuals[:, stage]
        shapes.append(shape)
    expected = faces.mean()

    torch.testing.assert_close(squared(staged(torch.stack(shapes, dim=1)), truth), expected)


def test_a_value_by_hand() -> None:
    truth = torch.zeros(2, 68, 2)
    shapes = torch.zeros(2, 4, 68, 2)
    shapes[0, 0, 5, 0] = 3.0
    shapes[1, 3, 67, 1] = 1.0
    assert squared(staged(shapes), truth).item() == pytest.approx((9 + 1) / 2)


def test_every_stage_of_every_face_gets_its_own_gradient() -> None:
    truth = torch.rand(2, 68, 2)
    shapes = torch.rand(2, 4, 68, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(squared(staged(shapes), truth), shapes)
    torch.testing.assert_close(gradient, (shapes.detach() - truth[:, None]) * 2 / 2)


def test_the_error_of_training_is_the_metric_of_every_stage() -> None:
    truth, shapes = torch.rand(3, 68, 2), torch.rand(3, 4, 68, 2)
    expected = metrics.nrmse_ip(shapes.numpy(), truth.numpy()[:, None])
    torch.testing.assert_close(nrmse_ip(shapes, truth).numpy(), expected, rtol=1e-5, atol=0)


def test_small_errors_weigh_as_in_nrmse() -> None:
    truth = torch.rand(3, 68, 2, dtype=torch.float64)
    shapes = truth[:, None] + 1e-5 * torch.randn(3, 4, 68, 2, dtype=torch.float64)
    expected = nrmse_ip(shapes, truth).sum(dim=1).mean()
    torch.testing.assert_close(summed_log_nrmse_ip(staged(shapes), truth), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("error", [BEND, 1.0])
def test_an_error_that_grows_weighs_less_and_less_after_a_stage(error: float) -> None:
    truth = MEAN.double()[None]

    def weight(stage: int, error: float) -> float:
        shapes = truth[:, None].repeat(1, 4, 1, 1)
        shapes[0, stage, 30, 0] += error * pupil_distance(truth)[0]
        return 68 * float(summed_log_nrmse_ip(staged(shapes), truth))

    assert weight(0, error) - weight(0, 0) == pytest.approx(error, rel=1e-3)
    for stage in (1, 2, 3):
        bent = BEND * math.log(1 + error / BEND)
        assert weight(stage, error) - weight(stage, 0) == pytest.approx(bent, rel=1e-3)


def test_the_objective_has_a_gradient_where_a_shape_is_exact() -> None:
    truth = torch.rand(2, 68, 2)
    shapes = truth[:, None].repeat(1, 4, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(summed_log_nrmse_ip(staged(shapes), truth), shapes)
    assert gradient.isfinite().all()


def test_heat_maps_are_right_where_they_show_bells_around_the_truth() -> None:
    heat = bells(scattered()).requires_grad_()
    stages = heated(heat)
    truth = stages.view.outside(scattered()[None])
    least = misplaced(stages, truth)
    (gradient,) = torch.autograd.grad(least, heat)
    torch.testing.assert_close(gradient, torch.zeros_like(heat), atol=1e-6, rtol=0)
    for worse in (bells(scattered() + 1 / SIDE), 2 * heat, torch.zeros_like(heat)):
        assert misplaced(heated(worse), truth) > least + 0.05


def test_a_landmark_outside_of_the_maps_asks_for_a_finite_loss() -> None:
    stages = heated(bells(scattered()))
    assert misplaced(stages, stages.view.outside(scattered()[None] + 10)).isfinite()


def test_nothing_is_misplaced_without_heat_maps() -> None:
    assert misplaced(staged(torch.rand(2, 4, 68, 2)), torch.rand(2, 68, 2)).item() == 0


def test_a_sharp_heat_map_has_its_centre_at_its_peak() -> None:
    heat = torch.zeros(1, 68, SIDE, SIDE)
    heat[:, :, 3, 8] = 100.0
    stages = heated(heat)
    spread, centres = heat_centres(stages)
    peak = torch.tensor([8.5, 3.5]) / SIDE
    torch.testing.assert_close(centres, stages.view.outside(peak.expand(1, 68, 2)))
    assert spread.item() == pytest.approx(0, abs=1e-3)


def test_a_flat_heat_map_is_spread_over_the_square_around_its_middle() -> None:
    stages = heated(torch.full((1, 68, SIDE, SIDE), 3.0))
    spread, centres = heat_centres(stages)
    torch.testing.assert_close(centres, stages.view.centre.expand(1, 68, 2))
    # Two uniform distributions, each over SIDE cells.
    assert spread.item() == pytest.approx(math.sqrt((1 - SIDE**-2) / 6), rel=1e-4)


def test_a_bell_is_as_wide_as_it_was_drawn() -> None:
    spread, centres = heat_centres(heated(bells(scattered())))
    assert spread.item() == pytest.approx(math.sqrt(2) * BELL / SIDE, rel=0.01)
    torch.testing.assert_close(heated(bells(scattered())).view.inside(centres)[0], scattered(), atol=1e-3, rtol=0)
