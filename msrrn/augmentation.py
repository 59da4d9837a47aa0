"""Augmentation as in the paper (pixel noise, mirror, rotation), plus jitter of the face box.

Every draw comes from a generator seeded by (seed, face id, copy): order, workers and restarts change
nothing. Geometry is drawn as parameters and applied when the crop is sampled, so that pixels are
resampled only once.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from msrrn.landmarks import MIRROR


class AugmentationSettings(BaseModel):
    """How copies of a training face differ from it. Part of a dataset's name.

    The jitter of the box is as wide as the spread of the detectors' boxes against the annotations of 300-W, in
    sides of the box: sd 0.035 and 0.047 of the centre and 0.083 of the side's logarithm for dlib's HOG, 0.035,
    0.034 and 0.065 for BlazeFace, 0.066, 0.045 and 0.100 for dlib's CNN (57 faces).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    copies: int = Field(8, ge=0, le=1000, description="augmented copies of each training face, beside itself")
    noise_sigma: float = Field(
        0.5,
        ge=0,
        le=2,
        description="strongest Gaussian pixel noise, in standard deviations of the crop's own grey values",
    )
    max_rotation: float = Field(15.0, ge=0, le=180, description="degrees, uniform in ±")
    mirror_probability: float = Field(0.5, ge=0, le=1)
    box_shift: float = Field(0.06, ge=0, le=0.5, description="sd of the box centre, in sides of the box")
    box_scale: float = Field(0.1, ge=0, le=0.5, description="sd of the logarithm of the box side")


@dataclass(frozen=True)
class Draw:
    """One copy's parameters. `roll` in degrees, `shift` in sides of the box, `noise_sigma` in sds of the crop."""

    copy: int
    roll: float
    mirrored: bool
    shift: tuple[float, float]
    scale: float
    noise_sigma: float


IDENTITY: Final = Draw(copy=0, roll=0.0, mirrored=False, shift=(0.0, 0.0), scale=1.0, noise_sigma=0.0)


def generator(seed: int, face_id: str, copy: int) -> np.random.Generator:
    """The generator of one copy of one face."""
    digest = hashlib.sha256(f"{seed}\x1f{face_id}\x1f{copy}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def draw(settings: AugmentationSettings, rng: np.random.Generator, copy: int) -> Draw:
    """Draws a copy's parameters; copy 0 is the face itself. Jitter is cut at 2.5 standard deviations."""
    if copy == 0:
        return IDENTITY
    roll = rng.uniform(-settings.max_rotation, settings.max_rotation)
    mirrored = bool(rng.random() < settings.mirror_probability)
    jitter = np.clip(rng.standard_normal(3), -2.5, 2.5)
    shift = (float(jitter[0] * settings.box_shift), float(jitter[1] * settings.box_shift))
    scale = float(np.exp(jitter[2] * settings.box_scale))
    sigma = float(rng.uniform(0.0, settings.noise_sigma))
    return Draw(copy, float(roll), mirrored, shift, scale, sigma)


def add_noise(crop: NDArray[np.uint8], sigma: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Per-pixel Gaussian noise on a grey crop (H, W), rounded and clipped to uint8.

    The paper says σ = 0.5 without a scale. On grey values of 0 to 255 that would round away, on values
    of 0 to 1 it would drown the face (half the range, a signal-to-noise ratio far below 1). The scale on
    which it is a strong but sensible augmentation is that of the standardised crop, zero mean and unit
    variance, which is also what the network reads: σ is in standard deviations of the crop's own pixels.
    0.5 is the strongest: each copy draws its own σ up to it. With 0.5 on every copy the last stage, which
    alone sees pixels that no average has cleaned, learned to ignore detail: on 300-W's validation faces it
    was no better than the stage before.
    """
    if sigma == 0:
        return crop
    height, width = crop.shape
    bank = _noise()
    y, x = rng.integers(0, np.array(bank.shape) - crop.shape)
    window = bank[y : y + height, x : x + width]
    # Whole numbers: every machine's sums are the same.
    values = crop.astype(np.int64).ravel()
    variance = np.dot(values, values) / values.size - (values.sum() / values.size) ** 2
    noisy = window * np.float32(sigma * np.sqrt(max(variance, 0.0)))
    noisy += crop
    noisy += np.float32(0.5)
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)  # cut off after a half was added: rounded


@cache
def _noise() -> NDArray[np.float32]:
    """Standard normal numbers, of which each draw takes a window: drawing them anew costs more than all else."""
    return np.random.Generator(np.random.PCG64(0)).standard_normal((2048, 2048), dtype=np.float32)


def mirror_shape(shape: NDArray[np.floating]) -> NDArray[np.floating]:
    """Renames the landmarks `(..., 68, 2)` of a picture that was mirrored: left becomes right."""
    return shape[..., MIRROR, :]
