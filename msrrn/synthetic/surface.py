"""The head's surface over (azimuth, height), anchored to the landmarks, and the visible jaw line.

The surface is a skull on a neck plus a thin-plate spline of the anchors' displacements (Bookstein, PAMI 1989),
linear in the anchors: a person is one matrix product. Azimuth is the angle around a vertical axis inside the
head, 0 in front, positive to the right of the picture.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.synthetic.anatomy import MEAN, Array

AXIS_Z: Final = -1.1
AZIMUTHS: Final = np.linspace(-2.6, 2.6, 107)
HEIGHTS: Final = np.concatenate(
    [np.linspace(-1.97, -1.5, 11)[:-1], np.linspace(-1.5, 1.95, 92)[:-1], np.linspace(1.95, 2.9, 14)]
)
MARCH_STEPS: Final = 28


def uv_of(points: Array) -> Array:
    """(..., 3) of the mean head → (..., 2) azimuth and height."""
    return np.stack([np.arctan2(points[..., 0], points[..., 2] - AXIS_Z), points[..., 1]], axis=-1)


def base_radius(uv: Array) -> Array:
    """Distance from the axis (...) of a bald skull on a neck."""
    azimuth, y = uv[..., 0], uv[..., 1]
    slice_scale = np.clip(1 - np.abs(np.minimum(y + 0.3, 0) / 1.68) ** 2.5, 0.0, 1.0) ** 0.4
    slice_scale = slice_scale * (1 - 0.08 * np.clip((y + 0.3) / 2, 0, 1) ** 2)
    front = 1.38 + 0.3 * (np.cos(azimuth) < 0) * np.cos(azimuth) ** 2
    skull = slice_scale / np.sqrt((np.sin(azimuth) / 1.19) ** 2 + (np.cos(azimuth) / front) ** 2)
    neck = 0.72
    start = 1.0 + 0.45 * np.clip(np.cos(azimuth) * 2, 0, 1)
    t = np.clip((y - start) / 0.6, 0, 1)
    t = t * t * (3 - 2 * t)
    return np.asarray(skull * (1 - t) + neck * t)


def at_radius(uv: Array, radius: Array) -> Array:
    """(..., 2) and (...) → points (..., 3)."""
    azimuth = uv[..., 0]
    return np.stack([radius * np.sin(azimuth), uv[..., 1], AXIS_Z + radius * np.cos(azimuth)], axis=-1)


def _kernel(a: Array, b: Array) -> Array:
    squared = (((a[:, None, :] - b[None, :, :]) * [1.1, 1.0]) ** 2).sum(axis=-1)
    return np.asarray(0.5 * squared * np.log(np.maximum(squared, 1e-12)))


@cache
def _controls() -> tuple[Array, Array]:
    """UV of the controls (the anchors, and a rim held in place), and the inverse of the spline's system."""
    rim = [(t, y) for t in (-2.9, -2.2, 2.2, 2.9) for y in (-1.5, -0.6, 0.4, 1.4, 2.6)]
    rim += [(t, y) for t in (-2.4, -1.2, 0.0, 1.2, 2.4) for y in (-1.97, 2.95)]
    uv = np.concatenate([uv_of(MEAN), np.array(rim)])
    n = len(uv)
    affine = np.column_stack([np.ones(n), uv])
    system = np.block([[_kernel(uv, uv), affine], [affine.T, np.zeros((3, 3))]])
    return uv, np.linalg.inv(system)[:, : len(MEAN)]


def spline_weights(uv: Array) -> Array:
    """(M, N): how much each anchor's displacement moves the surface at each of M places."""
    controls, inverse = _controls()
    basis = np.column_stack([_kernel(uv, controls), np.ones(len(uv)), uv])
    return np.asarray(basis @ inverse)


@cache
def _anchor_base() -> Array:
    uv = uv_of(MEAN)
    return at_radius(uv, base_radius(uv))


def anchored(base: Array, weights: Array, anchors: Array) -> Array:
    """(M, 3): places on the bare skull moved as `spline_weights` (M, N) says for one person's anchors (N, 3)."""
    return np.asarray(base + weights @ (anchors - _anchor_base()))


def _ears(uv: Array) -> Array:
    azimuth, y = np.abs(uv[..., 0]), uv[..., 1]
    lean = azimuth - 1.78 + 0.12 * (y - 0.25)
    return np.asarray(np.exp(-((lean / 0.13) ** 4) - np.abs((y - 0.22) / 0.46) ** 4))


@cache
def _grid() -> tuple[Array, Array, Array]:
    uv = np.stack(np.meshgrid(AZIMUTHS, HEIGHTS), axis=-1).reshape(-1, 2)
    return at_radius(uv, base_radius(uv)), spline_weights(uv), _ears(uv)


def head_grid(anchors: Array, ear_size: float) -> Array:
    """(HEIGHTS, AZIMUTHS, 3): the skin of a person; `ear_size` is how far the ears stand off."""
    base, weights, ears = _grid()
    points = anchored(base, weights, anchors)
    points[:, 0] += np.sign(points[:, 0]) * ears * ear_size
    return np.asarray(points.reshape(len(HEIGHTS), len(AZIMUTHS), 3))


@cache
def _march() -> tuple[Array, Array, Array]:
    """Lines on the surface from each jaw landmark inwards, and each one's outward direction in the picture."""
    start = uv_of(MEAN[:17])
    inner = np.stack([start[:, 0] * 0.25, start[:, 1] * 0.72 + 0.22], axis=-1)
    inner[:, 1] = np.where(np.abs(start[:, 0]) > 0.8, start[:, 1] * 0.97 + 0.02, inner[:, 1])
    steps = np.linspace(0, 1, MARCH_STEPS)[None, :, None] ** 1.3
    uv = (start[:, None] * (1 - steps) + inner[:, None] * steps).reshape(-1, 2)
    outward = MEAN[:17, :2] - [0.0, 0.75]
    outward[:, 1] = np.maximum(outward[:, 1], 0.0)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    return at_radius(uv, base_radius(uv)), spline_weights(uv), outward


def jaw_candidates(anchors: Array) -> tuple[Array, Array]:
    """(17, MARCH_STEPS, 3) places that may be the visible contour, and (17, 2) its outward directions.

    The annotators of 300-W follow the contour one sees: on a turned head, the far cheek's silhouette, not
    the hidden jaw bone.
    """
    base, weights, outward = _march()
    points = anchored(base, weights, anchors)
    return points.reshape(17, MARCH_STEPS, 3), outward


def normals(points: NDArray[np.floating]) -> Array:
    """Unit normals (H, W, 3) out of the head, of a grid (H, W, 3) in picture axes or the head's own."""
    down, right = np.empty_like(points), np.empty_like(points)
    down[1:-1] = points[2:] - points[:-2]
    down[0], down[-1] = points[1] - points[0], points[-1] - points[-2]
    right[:, 1:-1] = points[:, 2:] - points[:, :-2]
    right[:, 0], right[:, -1] = points[:, 1] - points[:, 0], points[:, -1] - points[:, -2]
    out = np.cross(right, down)
    return np.asarray(out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-9))
