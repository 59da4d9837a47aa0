import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from msrrn.predictor import area_halve
from msrrn.sampling import square_offsets
from msrrn.view import FILLED, SIDE, View
from tests.msrrn.test_landmarks import FACE

MEAN = torch.from_numpy(FACE * 0.14 + 0.5).float()
"""So small that its square stays inside of the crop, however it is turned."""

few = settings(max_examples=25)
angles, scales, shifts = st.floats(-3, 3), st.floats(0.7, 1.3), st.floats(-0.05, 0.05)


def turn(angle: float, scale: float) -> Tensor:
    """(2, 2), for row vectors: from x towards y."""
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[cos, sin], [-sin, cos]])


def points(seed: int = 0) -> Tensor:
    return torch.rand(1, 68, 2, generator=torch.Generator().manual_seed(seed))


@few
@given(angles, scales, shifts, shifts)
def test_a_face_that_was_turned_scaled_and_moved_lies_where_it_always_does(
    angle: float, scale: float, x: float, y: float
) -> None:
    shape = MEAN @ turn(angle, scale) + torch.tensor([x, y])
    there = View.around(MEAN, MEAN[None]).inside(MEAN[None])
    torch.testing.assert_close(View.around(MEAN, shape[None]).inside(shape[None]), there, atol=1e-5, rtol=0)


def test_the_mean_shape_fills_its_share_of_the_square_around_the_middle() -> None:
    there = View.around(MEAN, MEAN[None]).inside(MEAN[None])[0]
    low, high = there.amin(dim=0), there.amax(dim=0)
    torch.testing.assert_close((low + high) / 2, torch.full((2,), 0.5))
    assert (high - low).max().item() == pytest.approx(FILLED)
    upright = there - MEAN * (high - low) / (MEAN.amax(dim=0) - MEAN.amin(dim=0))
    torch.testing.assert_close(upright, upright[:1].expand(68, 2), atol=1e-5, rtol=0)


@few
@given(angles, scales, shifts, shifts)
def test_what_goes_inside_comes_outside_again(angle: float, scale: float, x: float, y: float) -> None:
    view = View.around(MEAN, (MEAN @ turn(angle, scale) + torch.tensor([x, y]))[None])
    torch.testing.assert_close(view.outside(view.inside(points())), points(), atol=1e-5, rtol=0)
    torch.testing.assert_close(view.inside(view.outside(points())), points(), atol=1e-5, rtol=0)


def test_the_whole_crop_changes_nothing() -> None:
    view = View.whole(points())
    for same in (view.inside(points()), view.outside(points()), view.turned(points())):
        torch.testing.assert_close(same, points())


def test_steps_are_turned_and_scaled_as_the_face_is() -> None:
    quarter = turn(math.pi / 2, 2.0)
    view = View.around(MEAN, (MEAN @ quarter + 0.1)[None])
    torch.testing.assert_close(view.turned(points()), points() @ quarter, atol=1e-5, rtol=0)


def test_levels_are_what_torch_samples_on_an_affine_grid() -> None:
    crops = torch.randint(0, 256, (2, 200, 200), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    level_100 = area_halve(crops)
    shapes = torch.stack([MEAN, MEAN @ turn(0.4, 3.0) - 0.9])  # the second reaches beyond the crop
    view = View.around(MEAN, shapes)
    affine = torch.cat([view.axes.mT, 2 * view.centre.mT - 1], dim=2)
    grid = functional.affine_grid(affine, [2, 1, SIDE // 2, SIDE // 2], align_corners=False)
    pixels = functional.grid_sample(level_100[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    spread, mean = torch.std_mean(pixels, dim=(1, 2), keepdim=True)
    coarse, middle, grey = view.levels(level_100)
    # Where a sample lies between noisy pixels, a rounded coordinate shows in its value.
    torch.testing.assert_close(middle, (pixels - mean) / spread, atol=1e-2, rtol=0)
    torch.testing.assert_close(coarse, functional.avg_pool2d(middle, 2))
    torch.testing.assert_close(grey(crops), (crops - mean) / spread, atol=1e-2, rtol=0)


@few
@given(angles, scales, shifts, shifts)
def test_pixels_beside_a_landmark_are_those_beside_it_in_the_square(
    angle: float, scale: float, x: float, y: float
) -> None:
    """The finest level is read in the crop: where, is what `steps` says."""
    view = View.around(MEAN, (MEAN @ turn(angle, scale) + torch.tensor([x, y]))[None])
    offsets = square_offsets(8)
    beside = view.inside(points())[:, :, None] + offsets / SIDE
    expected = view.outside(beside.flatten(1, 2)).view_as(beside)
    torch.testing.assert_close(points()[:, :, None] + view.steps(offsets), expected, atol=1e-5, rtol=0)


def test_a_constant_crop_gives_finite_levels() -> None:
    for level in View.around(MEAN, MEAN[None]).levels(torch.full((1, 100, 100), 255.0))[:2]:
        torch.testing.assert_close(level, torch.zeros_like(level), atol=1e-3, rtol=0)


def picture(places: Tensor) -> Tensor:
    """Grey values at places (..., 2) of a smooth picture that is nowhere like itself."""
    x, y = places.unbind(dim=-1)
    return 128 + 60 * torch.sin(7 * x + 2 * y) + 40 * torch.cos(5 * y - 3 * x * y)


def cropped(frame: Tensor, shift: Tensor) -> Tensor:
    """(1, 100, 100): the crop in which what is at p of the picture lies at p @ frame + shift."""
    steps = (torch.arange(100) + 0.5) / 100
    places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    return picture((places - shift) @ torch.linalg.inv(frame))[None]


@few
@given(angles, scales, shifts, shifts)
def test_however_a_picture_is_cropped_the_straightened_face_is_the_same(
    angle: float, scale: float, x: float, y: float
) -> None:
    expected = View.around(MEAN, MEAN[None]).levels(cropped(torch.eye(2), torch.zeros(2)))[:2]
    frame = turn(angle, scale)
    middle = torch.tensor([0.5, 0.5])
    shift = middle + torch.tensor([x, y]) - middle @ frame
    levels = View.around(MEAN, (MEAN @ frame + shift)[None]).levels(cropped(frame, shift))[:2]
    for level, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, wanted, atol=0.02, rtol=0)


@few
@given(angles, scales, shifts, shifts)
def test_a_view_in_the_mirror_shows_the_mirror_image(angle: float, scale: float, x: float, y: float) -> None:
    view = View.around(MEAN, (MEAN @ turn(angle, scale) + torch.tensor([x, y]))[None])
    flip, one = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0])
    inside = points()
    torch.testing.assert_close(view.mirrored().outside(inside * flip + one), view.outside(inside) * flip + one)
    steps = points(1) - 0.5
    torch.testing.assert_close(view.mirrored().turned(steps * flip), view.turned(steps) * flip)
    crops = torch.rand(1, 100, 100, generator=torch.Generator().manual_seed(2))
    for level, other in zip(view.levels(crops)[:2], view.mirrored().levels(crops.flip(2))[:2], strict=True):
        torch.testing.assert_close(other, level.flip(2), atol=1e-3, rtol=0)
