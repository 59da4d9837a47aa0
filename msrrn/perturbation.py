"""Perturbations drawn anew whenever a sample is seen, while it is on its way to the trainer.

They stand beside the copies that shards hold (`msrrn.augmentation`): those are the paper's and are the same in
every epoch. A turn of the head, mirror, a similarity of the crop, uneven light, blur, and a rectangle that hides a
part of the face.
"""

from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.augmentation import mirror_shape
from msrrn.turning import turned

TURNED: Final = 0.6
"""share of samples"""
TURN: Final = (14.0, 8.0)
"""sd of the turn in yaw and pitch, degrees, cut at `MOST_TURNED`"""
MOST_TURNED: Final = 25.0
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
HIDDEN: Final = 0.3
"""shares of samples"""
HIDDEN_SIDE: Final = (0.1, 0.6)
"""sides of the rectangle, in sides of the crop"""

Floats = NDArray[np.float64]


class Draws(NamedTuple):
    """Parameters for B samples."""

    turn: Floats
    """(B, 2) of the head in yaw and pitch, radians, before all else; 0 leaves it as it is"""
    mirrored: NDArray[np.bool_]
    """(B,) left becomes right, before what follows"""
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
    hidden: Floats
    """(B, 4) left, top, right, bottom of the rectangle in [0, 1] of the crop; empty where nothing is hidden"""
    grey: Floats
    """(B,) grey value of the rectangle, 0 to 255"""

    def rows(self, some: slice) -> "Draws":
        """Those of some samples."""
        return Draws._make(column[some] for column in self)


def draw(batch: int, rng: np.random.Generator, strength: float = 1.0) -> Draws:
    """Draws for `batch` samples; what is normal is cut at 2.5 standard deviations, but turns at `MOST_TURNED`.

    `strength`, from 0 to 1, multiplies turns, shifts, changes of scale and of light, and the shares of samples whose
    heads are turned, or that are blurred or hidden.
    """

    def normal(*size: int) -> Floats:
        return np.clip(rng.standard_normal(size), -2.5, 2.5)

    sides = rng.uniform(*HIDDEN_SIDE, (batch, 2)) * (rng.random((batch, 1)) < strength * HIDDEN)
    centres = rng.random((batch, 2))
    turn = np.clip(rng.standard_normal((batch, 2)) * TURN, -MOST_TURNED, MOST_TURNED)
    return Draws(
        turn=strength * np.deg2rad(turn) * (rng.random((batch, 1)) < strength * TURNED),
        mirrored=rng.random(batch) < 0.5,
        angle=strength * np.deg2rad(rng.uniform(-ROTATION, ROTATION, batch)),
        scale=np.exp(strength * LOG_SCALE * normal(batch)),
        shift=strength * SHIFT * normal(batch, 2),
        light=strength * rng.uniform(-LIGHT, LIGHT, (batch, 2)),
        blur=rng.uniform(0, BLUR, batch) * (rng.random(batch) < strength * BLURRED),
        hidden=np.concatenate([centres - sides / 2, centres + sides / 2], axis=1),
        grey=rng.uniform(0, 255, batch),
    )


def perturb(
    images: NDArray[np.uint8], shapes: NDArray[np.float32], draws: Draws
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Perturbed crops and their landmarks.

    Args:
        images: (B, H, H) grey values.
        shapes: (B, 68, 2) in [0, 1] of the crop.

    Returns:
        (B, H, H), edge pixels repeated outside, and (B, 68, 2), exact.
    """
    images, shapes = images.copy(), shapes.copy()
    for index, (yaw, pitch) in enumerate(draws.turn):
        if yaw or pitch:
            images[index], shapes[index] = turned(images[index], shapes[index], yaw, pitch)
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
        left, top, right, bottom = np.clip(np.rint(draws.hidden[index] * side), 0, side).astype(int)
        result[index, top:bottom, left:right] = round(draws.grey[index])
    return result, after.astype(np.float32)
