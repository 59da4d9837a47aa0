import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from msrrn.sampling import block_offsets, frames_of, sample_patches, square_offsets, straightened


def noise_images(batch: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, side, side, generator=torch.Generator().manual_seed(side), dtype=dtype)


def random_shapes(batch: int, low: float, high: float, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(batch, 68, 2, generator=torch.Generator().manual_seed(seed))


def patches_of(images: Tensor, shapes: Tensor, size: int) -> Tensor:
    """(B, L, size, size), upright."""
    return sample_patches(images, shapes, square_offsets(size).to(images.dtype)).view(*shapes.shape[:2], size, size)


def interpolated(image: Tensor, x: float, y: float) -> float:
    """By hand: pixel (row, column) has its centre at (column + ½, row + ½) pixels; the edge repeats."""
    last = image.shape[0] - 1
    x, y = (min(max(place * image.shape[0] - 0.5, 0.0), float(last)) for place in (x, y))
    column, row = int(x), int(y)
    right, below = min(column + 1, last), min(row + 1, last)
    above = (1 - x + column) * image[row, column] + (x - column) * image[row, right]
    under = (1 - x + column) * image[below, column] + (x - column) * image[below, right]
    return float((1 - y + row) * above + (y - row) * under)


@pytest.mark.parametrize("side", [50, 200])
@pytest.mark.parametrize("size", [8, 15])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.8), (-0.05, 1.05)])
def test_is_bilinear_interpolation(side: int, size: int, low: float, high: float) -> None:
    images, shapes = noise_images(1, side, torch.float64), random_shapes(1, low, high).double()
    patches = patches_of(images, shapes, size)
    assert patches.shape == (1, 68, size, size)
    for mark, row, column in ((0, 0, 0), (31, 2, size - 1), (67, size - 1, 3)):
        x = float(shapes[0, mark, 0]) + (column - (size - 1) / 2) / side
        y = float(shapes[0, mark, 1]) + (row - (size - 1) / 2) / side
        expected = interpolated(images[0], x, y)
        assert float(patches[0, mark, row, column]) == pytest.approx(expected, abs=1e-9)
    single = patches_of(images.float(), shapes.float(), size).double()
    torch.testing.assert_close(single, patches, atol=1e-4, rtol=0)


def test_blocks_are_the_same_pixels_in_another_order() -> None:
    square, blocks = square_offsets(16), block_offsets(16)
    assert sorted(square.tolist()) == sorted(blocks.tolist())
    for block in blocks.view(-1, 16, 2):
        # 4 × 4 neighbours, row by row.
        torch.testing.assert_close(block - block[0], square_offsets(4) + 1.5)
    for larger in blocks.view(-1, 64, 2):
        torch.testing.assert_close(larger.amax(dim=0) - larger.amin(dim=0), torch.tensor([7.0, 7.0]))


@given(st.floats(-3, 3), st.floats(0.3, 3), st.floats(-1, 1), st.floats(-1, 1))
def test_the_frame_is_the_similarity_between_shapes(angle: float, scale: float, x: float, y: float) -> None:
    mean = random_shapes(1, 0.2, 0.8)[0].double()
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    shape = mean @ turn + torch.tensor([x, y], dtype=torch.float64)
    torch.testing.assert_close(frames_of(mean, shape[None])[0], turn, atol=1e-9, rtol=0)


def test_patches_turn_with_their_frame() -> None:
    images = noise_images(1, 64)
    shapes = torch.tensor([[[0.5, 0.5]]])
    offsets = square_offsets(9)
    # A quarter turn from x towards y: what is to the right in the frame is below in the picture.
    quarter = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])
    upright = sample_patches(images, shapes, offsets).view(9, 9)
    turned = sample_patches(images, shapes, offsets, quarter).view(9, 9)
    torch.testing.assert_close(turned, upright.T.flip(0), atol=1e-5, rtol=0)
    doubled = sample_patches(images, shapes, offsets, 2 * torch.eye(2)[None]).view(9, 9)
    torch.testing.assert_close(doubled[2:7, 2:7], upright[::2, ::2], atol=1e-5, rtol=0)


def test_whole_pixels_are_copied() -> None:
    images = noise_images(1, 64)
    # The centre of pixel (row 30, column 20); an odd patch is centred on it.
    shapes = torch.tensor([[[20.5 / 64, 30.5 / 64]]])
    torch.testing.assert_close(patches_of(images, shapes, 5)[0, 0], images[0, 28:33, 18:23], atol=0, rtol=0)
    # An even patch is centred between pixels, here between columns 19 and 20, rows 29 and 30.
    shapes = torch.tensor([[[20 / 64, 30 / 64]]])
    torch.testing.assert_close(patches_of(images, shapes, 4)[0, 0], images[0, 28:32, 18:22], atol=0, rtol=0)


def test_half_pixels_are_means_of_neighbours() -> None:
    images = noise_images(1, 64)
    between_columns = torch.tensor([[[21 / 64, 30.5 / 64]]])
    expected = (images[0, 28:33, 18:23] + images[0, 28:33, 19:24]) / 2
    torch.testing.assert_close(patches_of(images, between_columns, 5)[0, 0], expected)
    between_both = torch.tensor([[[21 / 64, 31 / 64]]])
    expected = functional.avg_pool2d(images[:, 28:34, 18:24], 2, stride=1)[0]
    torch.testing.assert_close(patches_of(images, between_both, 5)[0, 0], expected)


def test_gradient_with_respect_to_shapes() -> None:
    images = noise_images(2, 24, torch.float64)
    # Off the lattice, where bilinear interpolation has no derivative.
    whole = torch.tensor([[[8.0, 9.0], [12.0, 15.0]], [[11.0, 8.0], [14.0, 10.0]]], dtype=torch.float64)
    shapes = ((whole + 0.3) / 24).requires_grad_()
    assert torch.autograd.gradcheck(lambda moved: patches_of(images, moved, 4), shapes)


@pytest.mark.parametrize("value", [-1e3, -2.0, 3.0, 1e6, float("inf"), float("-inf"), float("nan")])
def test_far_outside_gives_edge_pixels_and_does_not_crash(value: float) -> None:
    images = noise_images(1, 50)
    patches = patches_of(images, torch.full((1, 68, 2), value), 16)
    assert patches.isfinite().all()
    if value == value:
        corner = images[0, 0, 0] if value < 0 else images[0, -1, -1]
        torch.testing.assert_close(patches, corner.expand_as(patches))


def test_far_outside_on_one_side_repeats_the_edge_row() -> None:
    images = noise_images(1, 50)
    patch = patches_of(images, torch.tensor([[[25 / 50, 9.0]]]), 16)[0, 0]
    torch.testing.assert_close(patch, images[0, -1, 17:33].expand(16, 16))


def test_each_face_reads_its_own_image() -> None:
    images, shapes = noise_images(5, 100), random_shapes(5, -0.2, 1.2)
    together = patches_of(images, shapes, 16)
    for index in range(5):
        alone = patches_of(images[index : index + 1], shapes[index : index + 1], 16)
        torch.testing.assert_close(together[index : index + 1], alone, atol=0, rtol=0)
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(patches_of(images[order], shapes[order], 16), together[order], atol=0, rtol=0)


def test_each_landmark_has_its_own_patch() -> None:
    images, shapes = noise_images(2, 100), random_shapes(2, 0.1, 0.9)
    moved = shapes.clone()
    moved[:, 7] += 0.05
    changed = (patches_of(images, moved, 16) != patches_of(images, shapes, 16)).flatten(2).any(dim=-1)
    assert changed[:, 7].all()
    assert changed.sum() == 2


@given(st.floats(-3, 3), st.floats(0.5, 1.5), st.floats(-0.2, 0.2), st.floats(-0.2, 0.2))
def test_a_straightened_face_lies_as_the_mean_shape_does_in_the_mirror(
    angle: float, scale: float, x: float, y: float
) -> None:
    mean = random_shapes(1, 0.2, 0.8)[0]
    turn = scale * torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shapes = ((mean - mean.mean(dim=0)) @ turn + torch.tensor([0.5 + x, 0.5 + y]))[None]
    # A slope: bilinear samples of it are exact, except beyond the edge.
    steps = (torch.arange(100) + 0.5) / 100
    image = 3 * steps[None, :] - 2 * steps[:, None]
    cut, frames = straightened(image[None], mean, shapes)
    torch.testing.assert_close(frames[0], turn, atol=1e-5, rtol=0)
    rows, columns = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    mirrored = torch.stack([1 - (columns + 0.5) / 100, (rows + 0.5) / 100], dim=-1)
    places = (mirrored - mean.mean(dim=0)) @ turn + shapes[0].mean(dim=0)
    inside = ((places > 0.006) & (places < 0.994)).all(dim=-1)
    expected = 3 * places[..., 0] - 2 * places[..., 1]
    torch.testing.assert_close(cut[0][inside], expected[inside], atol=1e-4, rtol=0)
