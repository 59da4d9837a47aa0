"""Pose, perspective, and the rasteriser: a grid of points becomes a map from picture to texture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msrrn.synthetic.anatomy import Array

Map = NDArray[np.float32]


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """(3, 3) from degrees. Positive: the nose to the picture's right, upwards, the head turned clockwise."""
    a, b, c = np.radians([yaw, pitch, roll])
    ry = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    rx = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(rz @ rx @ ry)


@dataclass(frozen=True)
class Camera:
    """Where a head is and how it is seen. Turns about `PIVOT`; below the chin the neck follows by half."""

    yaw: float
    pitch: float
    roll: float
    distance: float
    scale: float
    centre: tuple[float, float]

    def turn(self, points: Array) -> Array:
        """Head (..., 3) → picture axes (..., 3), still in pupil distances."""
        pivot = np.array([0.0, 0.9, -0.6])
        local = points - pivot
        full = local @ rotation(self.yaw, self.pitch, self.roll).T
        half = local @ rotation(0.7 * self.yaw, 0.3 * self.pitch, 0.6 * self.roll).T
        t = np.clip((points[..., 1:2] - 1.9) / 0.9, 0, 1)
        return np.asarray(full * (1 - t) + half * t)

    def project(self, turned: Array) -> Array:
        """Picture axes (..., 3) → pixels (..., 2)."""
        nearness = self.distance / (self.distance - turned[..., 2:3])
        return np.asarray(turned[..., :2] * nearness * self.scale + np.asarray(self.centre))

    def see(self, points: Array) -> Array:
        """Head (..., 3) → pixels (..., 2)."""
        return self.project(self.turn(points))

    def directions(self, offsets: NDArray[np.floating]) -> Array:
        """Offsets of the unrolled picture (..., 2) → of the picture."""
        c, s = np.cos(np.radians(self.roll)), np.sin(np.radians(self.roll))
        return np.asarray(offsets @ np.array([[c, s], [-s, c]]))


@dataclass(frozen=True)
class Raster:
    """A window of the picture: where it lies, and for each of its pixels the grid coordinates seen there."""

    x0: int
    y0: int
    column: Map
    row: Map
    covered: NDArray[np.bool_]


def rasterise(
    pixels: Array,
    depth: Array,
    size: tuple[int, int],
    keep: NDArray[np.bool_] | None = None,
    back: bool = False,
) -> Raster | None:
    """Draws a grid's quads in order of depth; None where nothing shows.

    `pixels` (H, W, 2), `depth` (H, W) larger nearer, `size` (width, height) of the picture; `keep` (H-1, W-1)
    leaves quads out; `back` draws those that face away instead of those that face the viewer.
    """
    rows, columns = depth.shape
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (i.ravel() for i in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    if keep is not None:
        triangles = triangles[np.tile(keep.ravel(), 2)]
    flat = pixels.reshape(-1, 2)
    p = flat[triangles]
    e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    low = np.ceil(np.minimum(np.minimum(p[:, 0], p[:, 1]), p[:, 2])).astype(np.int64)
    high = np.floor(np.maximum(np.maximum(p[:, 0], p[:, 1]), p[:, 2])).astype(np.int64)
    low, high = np.maximum(low, 0), np.minimum(high, np.array(size) - 1)
    facing = (area < -1e-6) if back else (area > 1e-6)
    shown = np.flatnonzero(facing & (high[:, 0] >= low[:, 0]) & (high[:, 1] >= low[:, 1]))
    if shown.size == 0:
        return None
    shown = shown[np.argsort(depth.ravel()[triangles[shown, 0]], kind="stable")]
    p, area, low, high, triangles = p[shown], area[shown], low[shown], high[shown], triangles[shown]
    width, height = (high - low + 1).T
    owner = np.repeat(np.arange(len(shown)), width * height)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(width * height) - width * height, width * height)
    x = (low[:, 0][owner] + nth % width[owner]).astype(np.int32)
    y = (low[:, 1][owner] + nth // width[owner]).astype(np.int32)

    q, e1, e2 = p[:, 0], (p[:, 1] - p[:, 0]) / area[:, None], (p[:, 2] - p[:, 0]) / area[:, None]
    dx, dy = x - q[owner, 0], y - q[owner, 1]
    w1 = dx * e2[owner, 1] - dy * e2[owner, 0]
    w2 = dy * e1[owner, 0] - dx * e1[owner, 1]
    inside = (w1 >= -1e-6) & (w2 >= -1e-6) & (w1 + w2 <= 1 + 1e-6)
    owner, x, y, w1, w2 = owner[inside], x[inside], y[inside], w1[inside], w2[inside]
    if owner.size == 0:
        return None

    first, second, third = triangles[owner].T
    x0, y0 = int(x.min()), int(y.min())
    shape = int(y.max()) - y0 + 1, int(x.max()) - x0 + 1
    at = (y - y0).astype(np.int64) * shape[1] + (x - x0)
    maps = []
    for values in (np.arange(rows * columns) % columns, np.arange(rows * columns) // columns):
        out = np.full(shape, -1.0, np.float32)
        v0 = values[first].astype(np.float32)
        out.ravel()[at] = v0 + (values[second] - v0) * w1 + (values[third] - v0) * w2
        maps.append(out)
    return Raster(x0, y0, maps[0], maps[1], maps[0] >= 0)
