"""Perturbations drawn anew whenever a sample is seen, while it is on its way to the trainer.

They stand beside the copies that shards hold (`msrrn.augmentation`): those are the paper's and are the same in
every epoch. Mirror, a similarity of the crop, uneven light, blur, something that covers a part of the face, and a
grey rectangle. What covers is cut out of the same crop, elsewhere and turned: skin, hair, clothes, as hands and what
they hold. Taken from another crop, it would depend on how many workers share a batch.
"""

from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.augmentation import mirror_shape
from msrrn.landmarks import NUM_LANDMARKS

ROTATION: Final = 20.0
"""degrees, uniform in ±"""
LOG_SCALE: Final = 0.08
"""sd of the logarithm of the scale"""
SHIFT: Final = 0.03
"""sd in sides of the crop, of x and of y"""
LIGHT: Final = 0.5
"""strongest change of the light from the crop's centre to its edge, as a share, uniform in ±, in x and in y"""
BLUR: Final = 0.012
"""strongest sd of the blur, in sides of the crop"""
BLURRED: Final = 0.3
COVERED: Final = 0.45
HIDDEN: Final = 0.1
"""shares of samples"""
COVER_LENGTH: Final = (0.06, 0.3)
COVER_WIDTH: Final = (0.06, 0.2)
"""half axes of what covers, in sides of the crop"""
COVER_BESIDE: Final = 0.04
"""sd of its centre about one of the landmarks, in sides of the crop, of x and of y"""
COVER_CONTRAST: Final = (0.5, 1.2)
"""factor of its grey values"""
COVER_GREY: Final = (30.0, 220.0)
"""their mean"""
COVER_EDGE: Final = 0.006
"""sd of its edge, in sides of the crop"""
HIDDEN_SIDE: Final = (0.1, 0.6)
"""sides of the rectangle, in sides of the crop"""

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


class Cover(NamedTuple):
    """What covers a part of the face, for B samples."""

    axes: Floats
    """(B, 2) half axes in sides of the crop; 0 where nothing is covered"""
    angle: Floats
    """(B,) degrees, from x towards y"""
    oval: NDArray[np.bool_]
    """(B,) an ellipse, else a rectangle"""
    mark: NDArray[np.int64]
    """(B,) landmark at which its centre is"""
    beside: Floats
    """(B, 2) or where from there, in sides of the crop"""
    turns: NDArray[np.int64]
    """(B,) quarter turns of the crop that it is cut out of"""
    moved: Floats
    """(B, 2) how far that is moved, in sides of the crop, y before x"""
    contrast: Floats
    """(B,)"""
    grey: Floats
    """(B,) mean grey value, 0 to 255"""

    def rows(self, some: slice) -> "Cover":
        """That of some samples."""
        return Cover._make(column[some] for column in self)


class Draws(NamedTuple):
    """Parameters for B samples."""

    mirrored: NDArray[np.bool_]
    """(B,) left becomes right, before all else"""
    angle: Floats
    """(B,) radians, from x towards y"""
    scale: Floats
    """(B,)"""
    shift: Floats
    """(B, 2) in sides of the crop"""
    light: Floats
    """(B, 2) change of the light from the crop's centre to its edge, in x and y, as a share"""
    blur: Floats
    """(B,) sd in sides of the crop; 0 leaves the pixels as they are"""
    cover: Cover
    hidden: Floats
    """(B, 4) left, top, right, bottom of the rectangle in [0, 1] of the crop; empty where nothing is hidden"""
    grey: Floats
    """(B,) grey value of the rectangle, 0 to 255"""

    def rows(self, some: slice) -> "Draws":
        """Those of some samples."""
        return Draws._make(part.rows(some) if isinstance(part, Cover) else part[some] for part in self)


def draw(batch: int, rng: np.random.Generator, strength: float = 1.0) -> Draws:
    """Draws for `batch` samples; what is normal is cut at 2.5 standard deviations.

    `strength`, from 0 to 1, multiplies turns, shifts, changes of scale and of light, and the shares of samples that
    are blurred, covered or hidden.
    """

    def normal(*size: int) -> Floats:
        return np.clip(rng.standard_normal(size), -2.5, 2.5)

    axes = np.stack([rng.uniform(*COVER_LENGTH, batch), rng.uniform(*COVER_WIDTH, batch)], axis=1)
    cover = Cover(
        axes=axes * (rng.random((batch, 1)) < strength * COVERED),
        angle=rng.uniform(0, 180, batch),
        oval=rng.random(batch) < 0.5,
        mark=rng.integers(NUM_LANDMARKS, size=batch),
        beside=COVER_BESIDE * normal(batch, 2),
        turns=rng.integers(1, 4, batch),
        moved=rng.uniform(-0.4, 0.4, (batch, 2)),
        contrast=rng.uniform(*COVER_CONTRAST, batch),
        grey=rng.uniform(*COVER_GREY, batch),
    )
    sides = rng.uniform(*HIDDEN_SIDE, (batch, 2)) * (rng.random((batch, 1)) < strength * HIDDEN)
    centres = rng.random((batch, 2))
    return Draws(
        mirrored=rng.random(batch) < 0.5,
        angle=strength * np.deg2rad(rng.uniform(-ROTATION, ROTATION, batch)),
        scale=np.exp(strength * LOG_SCALE * normal(batch)),
        shift=strength * SHIFT * normal(batch, 2),
        light=strength * rng.uniform(-LIGHT, LIGHT, (batch, 2)),
        blur=rng.uniform(0, BLUR, batch) * (rng.random(batch) < strength * BLURRED),
        cover=cover,
        hidden=np.concatenate([centres - sides / 2, centres + sides / 2], axis=1),
        grey=rng.uniform(0, 255, batch),
    )


def perturb(images: Bytes, shapes: NDArray[np.float32], draws: Draws) -> tuple[Bytes, NDArray[np.float32]]:
    """Perturbed crops and their landmarks.

    Args:
        images: (B, H, H) grey values.
        shapes: (B, 68, 2) in [0, 1] of the crop.

    Returns:
        (B, H, H), edge pixels repeated outside, and (B, 68, 2), exact.
    """
    side = images.shape[-1]
    x, y = shapes[..., 0].astype(np.float64), shapes[..., 1].astype(np.float64)
    mirrored = mirror_shape(np.stack([1 - x, y], axis=-1))
    before = np.where(draws.mirrored[:, None, None], mirrored, np.stack([x, y], axis=-1))
    cos, sin = draws.scale * np.cos(draws.angle), draws.scale * np.sin(draws.angle)
    matrices = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    after = (before - 0.5) @ matrices.swapaxes(1, 2) + 0.5 + draws.shift[:, None]
    flips = np.where(draws.mirrored, -1.0, 1.0)
    matrices[..., 0] *= flips[:, None]
    # In pixel centres, where the middle of the crop is (side - 1) / 2.
    middle = (side - 1) / 2
    offsets = middle + side * draws.shift - matrices.sum(axis=-1) * middle
    slope = (2 * np.arange(side) + 1) / side - 1
    result = np.empty_like(images)
    for index, image in enumerate(images):
        affine = np.column_stack([matrices[index], offsets[index]])
        warped = cv2.warpAffine(image, affine, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if draws.blur[index]:
            warped = cv2.GaussianBlur(warped, (0, 0), side * draws.blur[index], borderType=cv2.BORDER_REPLICATE)
        light = np.add.outer(draws.light[index, 1] * slope, 1 + draws.light[index, 0] * slope)
        cv2.multiply(warped, light.astype(np.float32), dst=result[index], dtype=cv2.CV_8U)
        if draws.cover.axes[index].all():
            _cover(result[index], after[index], draws.cover, index)
        left, top, right, bottom = np.clip(np.rint(draws.hidden[index] * side), 0, side).astype(int)
        result[index, top:bottom, left:right] = round(draws.grey[index])
    return result, after.astype(np.float32)


def _cover(image: Bytes, shape: Floats, cover: Cover, index: int) -> None:
    """Covers a part of a crop, in place."""
    side = len(image)
    rows, columns = np.rint(cover.moved[index] * side).astype(int)
    cut = np.roll(np.rot90(image, cover.turns[index]), (rows, columns), axis=(0, 1)).astype(np.float32)
    cut = np.clip((cut - cut.mean()) * cover.contrast[index] + cover.grey[index], 0, 255)
    x, y = ((shape[cover.mark[index]] + cover.beside[index]) * side - 0.5).tolist()
    length, width = (2 * side * cover.axes[index]).tolist()
    outline = (x, y), (length, width), float(cover.angle[index])
    mask: NDArray[Any] = np.zeros((side, side), np.float32)
    if cover.oval[index]:
        cv2.ellipse(mask, outline, 1.0, -1)
    else:
        cv2.fillConvexPoly(mask, np.rint(cv2.boxPoints(outline)).astype(np.int32), 1.0)
    mask = cv2.GaussianBlur(mask, (0, 0), side * COVER_EDGE)
    image[:] = np.rint(image + mask * (cut - image))
