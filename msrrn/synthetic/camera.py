"""Pose, perspective, and the rasteriser: a grid of points becomes a map from picture to texture."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.synthetic.anatomy import Array

Map = NDArray[np.float32]

_BOX_SIDES: Final = np.array([1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 24, 36, 64, 128, 1024])
"""Triangles are filled in batches of one box size: their boxes are rounded up to these."""


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """(3, 3) from degrees. Positive: the nose to the picture's right, upwards, the head turned clockwise."""
    a, b, c = np.radians([yaw, pitch, roll])
    ry = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    rx = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(rz @ rx @ ry)


@dataclass(frozen=True)
class Camera:
    """Where a head is and how it is seen. It turns about a point in it; below the chin the neck follows by half."""

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
    triangles = _triangles(pixels, keep)
    p, (e1, e2) = triangles.corner, triangles.edges
    area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    low = np.ceil(p + np.minimum(np.minimum(e1, e2), 0)).astype(np.int32)
    high = np.floor(p + np.maximum(np.maximum(e1, e2), 0)).astype(np.int32)
    low, high = np.maximum(low, 0), np.minimum(high, np.array(size, np.int32) - 1)
    facing = (area < -1e-6) if back else (area > 1e-6)
    shown = np.flatnonzero(facing & (high[:, 0] >= low[:, 0]) & (high[:, 1] >= low[:, 1]))
    if shown.size == 0:
        return None
    shown = shown[np.argsort(depth.ravel()[triangles.first[shown]], kind="stable")]
    hits = _hits(p[shown], e1[shown], e2[shown], area[shown], low[shown], high[shown])
    if hits is None:
        return None

    owner, x, y, w1, w2 = hits
    quad, upper = triangles.first[shown][owner], triangles.upper[shown][owner]
    columns = depth.shape[1]
    column = (quad % columns).astype(np.float32) + np.where(upper, w1 + w2, w1)
    row = (quad // columns).astype(np.float32) + np.where(upper, w2, w1 + w2)
    x0, y0 = int(x.min()), int(y.min())
    shape = int(y.max()) - y0 + 1, int(x.max()) - x0 + 1
    at = (y - y0).astype(np.int64) * shape[1] + (x - x0)
    maps = []
    for values in (column, row):
        out = np.full(shape, -1.0, np.float32)
        out.ravel()[at] = values
        maps.append(out)
    return Raster(x0, y0, maps[0], maps[1], maps[0] >= 0)


@dataclass(frozen=True)
class _Triangles:
    """Two for each quad: the upper one over (0,0) (1,0) (1,1), the lower one over (0,0) (1,1) (0,1)."""

    first: NDArray[np.int32]
    upper: NDArray[np.bool_]
    corner: Map
    edges: tuple[Map, Map]


def _triangles(pixels: Array, keep: NDArray[np.bool_] | None) -> _Triangles:
    rows, columns = pixels.shape[:2]
    quads = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)[:-1, :-1]
    quads = quads[keep] if keep is not None else quads.ravel()
    flat = pixels.reshape(-1, 2).astype(np.float32)
    corner = flat[quads]
    right, across, below = (flat[quads + step] - corner for step in (1, columns + 1, columns))
    return _Triangles(
        np.concatenate([quads, quads]),
        np.arange(2 * len(quads)) < len(quads),
        np.concatenate([corner, corner]),
        (np.concatenate([right, across]), np.concatenate([across, below])),
    )


def _hits(
    p: Map, e1: Map, e2: Map, area: Map, low: NDArray[np.int32], high: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], Map, Map] | None:
    """Each pixel in each triangle: whose, x, y, and the weights of the second and third corner.

    In the order of the triangles, so that plain assignment leaves the last one on top.
    """
    start = low - p
    per_x = np.stack([e2[:, 1], -e1[:, 1]]) / area
    per_y = np.stack([-e2[:, 0], e1[:, 0]]) / area
    at_start = per_x * start[:, 0] + per_y * start[:, 1]
    sizes = _BOX_SIDES[np.minimum(np.searchsorted(_BOX_SIDES, high - low + 1), len(_BOX_SIDES) - 1)]
    found = []
    boxes = sizes[:, 0] * _BOX_SIDES[-1] + sizes[:, 1]
    order = np.argsort(boxes, kind="stable")
    edges = np.flatnonzero(np.diff(boxes[order])) + 1
    for group in np.split(order, edges):
        w, h = sizes[group[0]]
        dx, dy = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
        w1, w2 = (
            a[group, None, None] + bx[group, None, None] * dx + by[group, None, None] * dy
            for a, bx, by in zip(at_start, per_x, per_y, strict=True)
        )
        nth, j, i = np.nonzero((w1 >= -1e-5) & (w2 >= -1e-5) & (w1 + w2 <= 1 + 1e-5))
        owner = group[nth].astype(np.int32)
        clear = (i <= high[owner, 0] - low[owner, 0]) & (j <= high[owner, 1] - low[owner, 1])
        owner, nth, i, j = owner[clear], nth[clear], i[clear], j[clear]
        found.append((owner, low[owner, 0] + i, low[owner, 1] + j, w1[nth, j, i], w2[nth, j, i]))
    owner, x, y, w1, w2 = (np.concatenate(values) for values in zip(*found, strict=True))
    if owner.size == 0:
        return None
    drawn = np.argsort(owner.astype(np.uint32), kind="stable")
    return owner[drawn], x[drawn].astype(np.int32), y[drawn].astype(np.int32), w1[drawn], w2[drawn]
