import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from msrrn.sampling import block_offsets, frames_of, halved, sample_map, sample_patches, square_offsets


def noise_images(batch: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, side, side, generator=torch.Generator().manual_seed(side), dtype=dtype)


def random_shapes(batch: int, low: float, high: float, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(batch, 68, 2, generator=torch.Generator().manual_seed(seed))


def patches_of(images: Tensor, shapes: Tensor, size: int) -> Tensor:
    """(B, L, size, size), upright."""
    offsets = square_offsets(size).to(images.dtype) / images.shape[-1]
    return sample_patches(images, shapes, offsets).view(*shapes.shape[:2], size, size)


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


def grid_sampled(features: Tensor, places: Tensor) -> Tensor:
    """What torch reads of a map (B, C, H, H) at places (B, L, 2): (B, L, C)."""
    grid = (2 * places - 1)[:, None]
    return functional.grid_sample(features, grid, padding_mode="border", align_corners=False)[:, :, 0].mT


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (-0.4, 1.4)])
def test_a_map_is_sampled_as_torch_samples_grids(low: float, high: float) -> None:
    features = torch.randn(3, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    places = random_shapes(3, low, high)
    expected = grid_sampled(features, places)
    for memory in (torch.contiguous_format, torch.channels_last):
        found = sample_map(features.contiguous(memory_format=memory), places)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_map_is_read_at_its_cells() -> None:
    features = torch.randn(1, 5, 6, 6)
    corners = torch.tensor([[[0.5, 0.5], [5.5, 0.5], [0.5, 5.5], [5.5, 5.5], [2.5, 4.5]]]) / 6
    expected = torch.stack([features[0, :, row, column] for column, row in ((0, 0), (5, 0), (0, 5), (5, 5), (2, 4))])
    torch.testing.assert_close(sample_map(features, corners)[0], expected)


@pytest.mark.parametrize("value", [-1e6, 1e6, float("inf"), float("-inf"), float("nan")])
def test_far_outside_a_map_its_edge_cells_repeat(value: float) -> None:
    features = torch.randn(1, 5, 6, 6)
    found = sample_map(features, torch.full((1, 68, 2), value))
    if math.isnan(value):
        assert found.isnan().all()
    else:
        corner = features[0, :, 0, 0] if value < 0 else features[0, :, -1, -1]
        torch.testing.assert_close(found, corner.expand(1, 68, 5))


def test_a_map_is_halved_by_means_of_four() -> None:
    features = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(halved(features), functional.avg_pool2d(features, 2))


def test_gradients_reach_the_cells_around_a_place() -> None:
    features = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    sample_map(features, torch.tensor([[[1.75, 2.5]]], dtype=torch.float64) / 4).sum().backward()  # type: ignore[no-untyped-call]
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[2, 1:3] = torch.tensor([0.75, 0.25])
    assert features.grad is not None
    torch.testing.assert_close(features.grad[0, 0], expected)
