import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msrrn.perturbation import Draws, draw, perturb

SIDE = 200


def draws(
    angle: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    light: tuple[float, float] = (0.0, 0.0),
    blur: float = 0.0,
    hidden: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
) -> Draws:
    """Those of one sample; without arguments they change nothing."""
    columns = (angle, scale, shift, light, blur, hidden, 7.0)
    return Draws(*(torch.tensor([value], dtype=torch.float32) for value in columns))


def spot(point: Tensor) -> Tensor:
    """(1, 200, 200): a bright Gaussian of 3 px around a point in [0, 1]."""
    centres = (torch.arange(SIDE) + 0.5) / SIDE
    x = torch.exp(-(((centres - point[0]) * SIDE / 3) ** 2) / 2)
    y = torch.exp(-(((centres - point[1]) * SIDE / 3) ** 2) / 2)
    return 200 * (y[:, None] * x[None])[None]


def centre_of_light(image: Tensor) -> Tensor:
    centres = (torch.arange(SIDE) + 0.5) / SIDE
    weights = image[0] / image.sum()
    return torch.stack([(weights.sum(0) * centres).sum(), (weights.sum(1) * centres).sum()])


def test_draws_that_change_nothing_change_nothing() -> None:
    image = torch.randint(0, 256, (1, SIDE, SIDE), dtype=torch.uint8)
    shape = torch.rand(1, 68, 2)
    same, points = perturb(image, shape, draws())
    torch.testing.assert_close(same, image.float(), atol=0.02, rtol=0)
    torch.testing.assert_close(points, shape)


@settings(max_examples=25, deadline=None)
@given(
    angle=st.floats(-0.5, 0.5),
    scale=st.floats(0.8, 1.25),
    x=st.floats(-0.08, 0.08),
    y=st.floats(-0.08, 0.08),
    blur=st.floats(0, 1),
)
def test_what_is_at_a_landmark_stays_at_it(angle: float, scale: float, x: float, y: float, blur: float) -> None:
    point = torch.tensor([0.6, 0.42])
    image, shape = perturb(spot(point), point[None, None], draws(angle, scale, (x, y), blur=blur))
    torch.testing.assert_close(centre_of_light(image), shape[0, 0], atol=0.1 / SIDE, rtol=0)


def test_a_turn_goes_from_x_towards_y() -> None:
    _, shape = perturb(torch.zeros(1, SIDE, SIDE), torch.tensor([[[0.9, 0.5]]]), draws(angle=np.pi / 2))
    torch.testing.assert_close(shape, torch.tensor([[[0.5, 0.9]]]))


def test_light_blur_and_a_rectangle() -> None:
    grey = torch.full((1, SIDE, SIDE), 100.0)
    lit, _ = perturb(grey, torch.zeros(1, 1, 2), draws(light=(0.5, 0.0)))
    assert lit[0, 0, 0] == pytest.approx(50, abs=1)
    assert lit[0, 0, -1] == pytest.approx(150, abs=1)
    hidden, _ = perturb(grey, torch.zeros(1, 1, 2), draws(hidden=(0.25, 0.5, 0.75, 0.6)))
    expected = grey.clone()
    expected[0, 100:120, 50:150] = 7.0
    torch.testing.assert_close(hidden, expected)
    noise = torch.rand(1, SIDE, SIDE) * 255
    blurred, _ = perturb(noise, torch.zeros(1, 1, 2), draws(blur=1.0))
    assert blurred.std() < 0.4 * noise.std()


def test_draws_follow_from_the_generator_and_stay_in_bounds() -> None:
    first, second = (draw(512, torch.Generator().manual_seed(3)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    for whole, part in zip(first, first.rows(8, 16), strict=True):
        assert torch.equal(whole[8:16], part)
    assert first.angle.abs().max() <= np.deg2rad(15)
    assert 0.25 < (first.hidden[:, 2] > first.hidden[:, 0]).float().mean() < 0.55
    images, _ = perturb(torch.rand(512, 20, 20) * 255, torch.rand(512, 68, 2), first)
    assert images.min() >= 0
    assert images.max() <= 255
