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


def mirrored_points(points: Tensor) -> Tensor:
    """Points (..., 2) in [0, 1] of a picture → where they lie in its mirror image."""
    return torch.stack([1 - points[..., 0], points[..., 1]], dim=-1)


def halved(images: Tensor) -> Tensor:
    """`(B, H, W)` → `(B, H/2, W/2)`, of even sides: means of 2 × 2 pixels. Sums of slices are twice as fast as
    torch's own pooling, but what runs exported graphs is slow at slices with gaps."""
    if torch.compiler.is_exporting():
        # As channels, no faces would be refused by ONNX Runtime.
        return functional.avg_pool2d(images[:, None], 2).squeeze(1)
    rows = images[..., ::2, :] + images[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) * 0.25


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


def sample_patches(images: Tensor, shapes: Tensor, offsets: Tensor) -> Tensor:
    """Bilinear samples around landmarks.

    Args:
        images: float `(B, H, W)` with H = W, one level of the pyramid.
        shapes: float `(B, L, 2)` in [0, 1] of the crop, x before y; the centre of a patch.
        offsets: float `(K, 2)`, or for each face `(B, K, 2)`, from the centre, in sides of the image.

    Returns:
        float `(B, L, K)`. Outside the image its edge pixels repeat; what is not a number is read at the edge.
    """
    # Both coordinates of a pixel far apart in memory: sums over whole rows, which is several times faster.
    grid = (2 * shapes - 1).mT[..., None] + 2 * offsets.mT[..., None, :]
    grid = grid.permute(0, 2, 3, 1)
    return functional.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def sample_map(features: Tensor, places: Tensor) -> Tensor:
    """Bilinear samples of a map, as rows of what lies in memory.

    Args:
        features: `(B, C, H, H)`, channels last in memory.
        places: float `(B, L, 2)` in [0, 1] of the map, x before y.

    Returns:
        `(B, L, C)`. Outside the map its edge cells repeat; what is not a number gives none.
    """
    batch, channels, side, _ = features.shape
    cells = features.permute(0, 2, 3, 1).reshape(batch * side * side, channels)
    place = (places * side - 0.5).clamp(0, side - 1)
    first = place.floor().clamp(max=side - 2)
    right, below = (place - first).to(features.dtype)[..., None, :].unbind(dim=-1)
    first = first.long().clamp_min(0)  # what is not a number would lie far outside of the memory
    corner = first[..., 0] + side * first[..., 1] + side * side * torch.arange(batch, device=places.device)[:, None]
    upper, lower = (
        torch.lerp(
            functional.embedding(corner + row, cells),
            functional.embedding(corner + row + 1, cells),
            right,
        )
        for row in (0, side)
    )
    return torch.lerp(upper, lower, below)
