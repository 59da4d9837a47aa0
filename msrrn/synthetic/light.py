"""Light on the head: directions, shading, cast shadows, exposure."""

from dataclasses import dataclass

import cv2
import numpy as np

from msrrn.synthetic.anatomy import Array, Rng
from msrrn.synthetic.paint import Picture


@dataclass(frozen=True)
class Light:
    """Ambient and lamps. Directions (L, 3) point to the lamps in picture axes, colours are (L, 3)."""

    ambient: Array
    directions: Array
    colours: Array
    gloss: float
    sharpness: float


def draw_light(rng: Rng) -> Light:
    lamps = int(rng.integers(1, 4))
    directions = rng.normal([0.0, -0.45, 1.0], [0.75, 0.5, 0.4], (lamps, 3))
    if rng.random() < 0.12:
        directions[0] = rng.normal([0.0, 0.0, 1.0], 0.15)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strength = rng.uniform(0.2, 1.0, (lamps, 1)) * np.array([1.0, 0.5, 0.35])[:lamps, None]
    tint = 1 + rng.normal(0, 0.10, (lamps, 3))
    ambient = rng.uniform(0.22, 0.8) * (1 + rng.normal(0, 0.06, 3))
    frontal = ambient.mean() + (np.clip(directions[:, 2:], 0.2, 1) * strength).sum()
    exposure = rng.uniform(0.7, 1.35) / frontal
    return Light(
        ambient * exposure,
        directions,
        strength * tint * exposure,
        float(rng.exponential(0.08)),
        float(rng.uniform(6, 40)),
    )


def shade(points: Array, normals: Array, light: Light) -> tuple[Picture, Picture]:
    """Diffuse and glossy light (H, W, 3) on a grid of points and normals (H, W, 3) in picture axes."""
    occluded = np.clip(0.75 + 0.25 * normals[..., 2:3] - 0.12 * normals[..., 1:2], 0.4, 1.0)
    diffuse = light.ambient * occluded
    glossy = np.zeros_like(diffuse)
    for direction, colour in zip(light.directions, light.colours, strict=True):
        lit = np.clip(normals @ direction, 0, 1) * _unshadowed(points, direction)
        half = direction + [0.0, 0.0, 1.0]
        half /= np.linalg.norm(half) + 1e-9
        diffuse = diffuse + lit[..., None] * colour
        mirror = np.clip(normals @ half, 0, 1) ** light.sharpness * (lit > 0)
        glossy = glossy + (mirror * light.gloss)[..., None] * colour
    return diffuse.astype(np.float32), glossy.astype(np.float32)


def _unshadowed(points: Array, direction: Array) -> Array:
    """(H, W) in [0, 1]: a shadow map, softened."""
    side = np.cross(direction, [0.0, 1.0, 0.1])
    side /= np.linalg.norm(side) + 1e-9
    up = np.cross(side, direction)
    cells = 72
    x, y, depth = points @ side, points @ up, points @ direction
    ix = np.clip((x + 2.2) / 4.4 * cells, 0, cells - 1).astype(np.int64)
    iy = np.clip((y - y.min()) / max(float(np.ptp(y)), 1e-6) * cells, 0, cells - 1).astype(np.int64)
    nearest = np.full(cells * cells, -1e9)
    np.maximum.at(nearest, (iy * cells + ix).ravel(), depth.ravel())
    hidden = nearest[iy * cells + ix] - depth > 0.16
    soft = cv2.GaussianBlur(1.0 - hidden.astype(np.float32), (0, 0), 1.6)
    return np.asarray(soft.reshape(hidden.shape), np.float64)
