import pytest
import torch
from torch import Tensor
from torch.nn import functional

from msrrn.sampling import sample_patches


def noise_images(batch: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, side, side, generator=torch.Generator().manual_seed(side), dtype=dtype)


def random_shapes(batch: int, low: float, high: float, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(batch, 68, 2, generator=torch.Generator().manual_seed(seed))


def grid_sampled(images: Tensor, shapes: Tensor, size: int) -> Tensor:
    batch, side = images.shape[0], images.shape[-1]
    step = (torch.arange(size, dtype=shapes.dtype) - (size - 1) / 2) / side
    offsets = torch.stack(torch.meshgrid(step, step, indexing="xy"), dim=-1)
    grid = (shapes[:, :, None, None] + offsets) * 2 - 1
    sampled = functional.grid_sample(
        images[:, None], grid.reshape(batch, -1, size, 2), padding_mode="border", align_corners=False
    )
    return sampled.reshape(batch, -1, size, size)


@pytest.mark.parametrize("side", [50, 100, 200])
@pytest.mark.parametrize("size", [12, 15, 16])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.8), (0.0, 1.0), (-0.05, 1.05)])
def test_equals_grid_sample(side: int, size: int, low: float, high: float) -> None:
    images, shapes = noise_images(2, side, torch.float64), random_shapes(2, low, high)
    expected = grid_sampled(images, shapes.double(), size)
    assert expected.shape == (2, 68, size, size)
    torch.testing.assert_close(sample_patches(images, shapes.double(), size), expected, atol=1e-10, rtol=0)
    single = sample_patches(images.float(), shapes, size).double()
    torch.testing.assert_close(single, expected, atol=1e-4, rtol=0)


def test_whole_pixels_are_copied() -> None:
    images = noise_images(1, 64)
    # The centre of pixel (row 30, column 20); an odd patch is centred on it.
    shapes = torch.tensor([[[20.5 / 64, 30.5 / 64]]])
    torch.testing.assert_close(sample_patches(images, shapes, 5)[0, 0], images[0, 28:33, 18:23], atol=0, rtol=0)
    # An even patch is centred between pixels, here between columns 19 and 20, rows 29 and 30.
    shapes = torch.tensor([[[20 / 64, 30 / 64]]])
    torch.testing.assert_close(sample_patches(images, shapes, 4)[0, 0], images[0, 28:32, 18:22], atol=0, rtol=0)


def test_half_pixels_are_means_of_neighbours() -> None:
    images = noise_images(1, 64)
    between_columns = torch.tensor([[[21 / 64, 30.5 / 64]]])
    expected = (images[0, 28:33, 18:23] + images[0, 28:33, 19:24]) / 2
    torch.testing.assert_close(sample_patches(images, between_columns, 5)[0, 0], expected)
    between_both = torch.tensor([[[21 / 64, 31 / 64]]])
    expected = functional.avg_pool2d(images[:, 28:34, 18:24], 2, stride=1)[0]
    torch.testing.assert_close(sample_patches(images, between_both, 5)[0, 0], expected)


def test_gradient_with_respect_to_shapes() -> None:
    images = noise_images(2, 24, torch.float64)
    # Off the lattice, where bilinear interpolation has no derivative.
    whole = torch.tensor([[[8.0, 9.0], [12.0, 15.0]], [[11.0, 8.0], [14.0, 10.0]]], dtype=torch.float64)
    shapes = ((whole + 0.3) / 24).requires_grad_()
    assert torch.autograd.gradcheck(lambda moved: sample_patches(images, moved, 4), shapes)


@pytest.mark.parametrize("value", [-1e3, -2.0, 3.0, 1e6, float("inf"), float("-inf"), float("nan")])
def test_far_outside_gives_edge_pixels_and_does_not_crash(value: float) -> None:
    images = noise_images(1, 50)
    patches = sample_patches(images, torch.full((1, 68, 2), value), 16)
    assert patches.isfinite().all()
    if value == value:
        corner = images[0, 0, 0] if value < 0 else images[0, -1, -1]
        torch.testing.assert_close(patches, corner.expand_as(patches))


def test_far_outside_on_one_side_repeats_the_edge_row() -> None:
    images = noise_images(1, 50)
    patch = sample_patches(images, torch.tensor([[[25 / 50, 9.0]]]), 16)[0, 0]
    torch.testing.assert_close(patch, images[0, -1, 17:33].expand(16, 16))


def test_each_face_reads_its_own_image() -> None:
    images, shapes = noise_images(5, 100), random_shapes(5, -0.2, 1.2)
    together = sample_patches(images, shapes, 16)
    for index in range(5):
        alone = sample_patches(images[index : index + 1], shapes[index : index + 1], 16)
        torch.testing.assert_close(together[index : index + 1], alone, atol=0, rtol=0)
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(sample_patches(images[order], shapes[order], 16), together[order], atol=0, rtol=0)


def test_each_landmark_has_its_own_patch() -> None:
    images, shapes = noise_images(2, 100), random_shapes(2, 0.1, 0.9)
    moved = shapes.clone()
    moved[:, 7] += 0.05
    changed = (sample_patches(images, moved, 16) != sample_patches(images, shapes, 16)).flatten(2).any(dim=-1)
    assert changed[:, 7].all()
    assert changed.sum() == 2
