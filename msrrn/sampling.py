"""Shape-indexed sampling φ = I ∘ S: a small patch of the image around each landmark, by bilinear interpolation."""

import torch
from torch import Tensor
from torch.nn import functional


def square_offsets(size: int) -> Tensor:
    """(size², 2), x before y: the pixels of a square patch around its centre, row by row."""
    steps = torch.arange(size) - (size - 1) / 2
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2)


def block_offsets(size: int) -> Tensor:
    """(size², 2): those of `square_offsets` in another order: by blocks of 8 × 8, in them of 4 × 4, then by rows.

    `size` must be a multiple of 8.
    """
    blocks = square_offsets(size).view(size // 8, 2, 4, size // 8, 2, 4, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5, 6).reshape(-1, 2)


def frames_of(mean_shape: Tensor, shapes: Tensor) -> Tensor:
    """(B, 2, 2): the turn and scale that bring `mean_shape` (L, 2) nearest to each of `shapes` (B, L, 2).

    For row vectors: offset @ frame. Least squares over all similarities (Umeyama 1991, without reflection).
    """
    mean = mean_shape - mean_shape.mean(dim=0)
    centred = shapes - shapes.mean(dim=1, keepdim=True)
    size = mean.square().sum().clamp_min(1e-12)
    along = (centred * mean).sum(dim=(1, 2)) / size
    across = (mean[:, 0] * centred[:, :, 1] - mean[:, 1] * centred[:, :, 0]).sum(dim=1) / size
    return torch.stack([along, across, -across, along], dim=1).view(-1, 2, 2)


def straightened(images: Tensor, mean_shape: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrored crops of the same size, cut so that a face of the given shape lies as the mean shape does.

    Args:
        images: float `(B, H, W)` with H = W; outside, their edge pixels repeat.
        shapes: float `(B, L, 2)` in [0, 1] of the crop.

    Returns:
        `(B, H, W)`, and the `frames_of` these shapes: a point p of a crop, mirrored back, is that of the image at
        (p - mean of the mean shape) @ frame + mean of the shape.
    """
    frames = frames_of(mean_shape, shapes)
    # In the coordinates of grids, -1 to 1, which the mirror only gives another sign in x.
    centre = 2 * shapes.mean(dim=1, keepdim=True) - 1 - (2 * mean_shape.mean(dim=0, keepdim=True) - 1) @ frames
    mirror = frames.new_tensor([-1.0, 1.0])
    matrices = torch.cat([frames.mT * mirror, centre.mT], dim=2)
    grid = functional.affine_grid(matrices, [images.shape[0], 1, *images.shape[1:]], align_corners=False)
    cut = functional.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)
    return cut[:, 0], frames


def sample_patches(images: Tensor, shapes: Tensor, offsets: Tensor, frames: Tensor | None = None) -> Tensor:
    """Bilinear samples around landmarks.

    Args:
        images: float `(B, H, W)` with H = W, one level of the pyramid.
        shapes: float `(B, L, 2)` in [0, 1] of the crop, x before y; the centre of a patch.
        offsets: float `(K, 2)`, pixels of this level from the centre.
        frames: float `(B, 2, 2)` that turns and scales each face's offsets (row vectors), or as they are.

    Returns:
        float `(B, L, K)`. Outside the image its edge pixels repeat; what is not a number is read at the edge.
    """
    step = offsets * (2 / images.shape[-1])
    turned = step[None] if frames is None else step @ frames
    grid = (2 * shapes - 1)[:, :, None] + turned[:, None]
    return functional.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
