"""Brushes: soft shapes, strokes and noise on pictures of float32 RGB in [0, 1]."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.synthetic.anatomy import Array, Rng

Picture = NDArray[np.float32]
Colour = Sequence[float] | Array | Picture

_SHIFT = 4


def fixed(points: NDArray[np.floating]) -> NDArray[np.int32]:
    """Points (..., 2) in pixels as OpenCV's fixed-point coordinates."""
    return np.asarray(np.round(np.clip(points, -4000, 4000) * (1 << _SHIFT)), np.int32)


def smooth(points: NDArray[np.floating], closed: bool, fineness: int = 6) -> Array:
    """Catmull-Rom curve through points (K, D)."""
    if closed:
        p = np.concatenate([points[-1:], points, points[:2]])
    else:
        p = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.arange(fineness)[None, :, None] / fineness
    a, b, c, d = (p[i : len(p) - 3 + i, None, :] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    out = curve.reshape(-1, points.shape[1])
    return np.asarray(out if closed else np.concatenate([out, points[-1:]]))


def blurred(picture: Picture, sigma: float) -> Picture:
    """The picture, out of focus."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32).reshape(picture.shape)


def swept(picture: Picture, reach: int, turn: float) -> Picture:
    """The picture, moved by some `reach` pixels in the direction `turn` while it was taken, half of that either way.

    Nothing is moved on the whole: landmarks stay where they are.
    """
    side = reach | 1  # an even filter has no middle
    middle = np.full(2, side // 2)
    arm = np.round(np.array([np.cos(turn), np.sin(turn)]) * (reach - 1) / 2).astype(int)
    line = np.zeros((side, side), np.float32)
    cv2.line(line, (middle - arm).tolist(), (middle + arm).tolist(), 1.0)
    line += line[::-1, ::-1].copy()  # steps of a slanted line are not the same from both ends
    return np.asarray(cv2.filter2D(picture, -1, line / line.sum()), np.float32)


def resized(picture: Picture, size: tuple[int, int], interpolation: int = cv2.INTER_LINEAR) -> Picture:
    """The picture at `size` (width, height)."""
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.float32)


def _window(picture: Picture, points: NDArray[np.floating], margin: float) -> tuple[slice, slice] | None:
    low = np.floor(points.min(axis=0) - margin).astype(int)
    high = np.ceil(points.max(axis=0) + margin).astype(int) + 1
    x0, y0 = np.maximum(low, 0)
    x1, y1 = np.minimum(high, [picture.shape[1], picture.shape[0]])
    return (slice(y0, y1), slice(x0, x1)) if x1 - x0 > 0 and y1 - y0 > 0 else None


def blend(picture: Picture, colour: Colour, alpha: Picture) -> None:
    """Lays `colour` (3) or (H, W, 3) over the picture in place, where alpha (H, W) says."""
    picture += (np.asarray(colour, np.float32) - picture) * alpha[..., None]


def _within(colour: Colour, window: tuple[slice, slice]) -> Picture:
    values = np.asarray(colour, np.float32)
    return values[window] if values.ndim == 3 else values


def fill(
    picture: Picture, points: NDArray[np.floating], colour: Colour, alpha: float = 1.0, blur: float = 0.0
) -> None:
    """A polygon (K, 2), with edges softened over `blur` pixels."""
    window = _window(picture, points, 3 * blur + 2)
    if window is None:
        return
    part = picture[window]
    mask = np.zeros(part.shape[:2], np.uint8)
    shifted = points - [window[1].start, window[0].start]
    cv2.fillPoly(mask, [fixed(shifted)], 255, cv2.LINE_AA, _SHIFT)
    soft = mask.astype(np.float32) * np.float32(alpha / 255)
    if blur > 0.3:
        soft = blurred(soft, blur)
    blend(part, _within(colour, window), soft)


def stroke(
    picture: Picture,
    curves: Sequence[NDArray[np.floating]],
    colour: Colour,
    width: float,
    alpha: float,
    blur: float = 0.0,
    closed: bool = False,
) -> None:
    """Polylines (K, 2) of one width. Widths below a pixel are drawn one pixel wide and fainter."""
    window = _window(picture, np.concatenate(list(curves)), 3 * blur + width + 2)
    if window is None:
        return
    part = picture[window]
    mask = np.zeros(part.shape[:2], np.uint8)
    corner = [window[1].start, window[0].start]
    lines = [fixed(curve - corner) for curve in curves]
    cv2.polylines(mask, lines, closed, 255, max(1, round(width)), cv2.LINE_AA, _SHIFT)
    soft = mask.astype(np.float32) * np.float32(alpha * min(1.0, width) / 255)
    if blur > 0.3:
        soft = blurred(soft, blur)
    blend(part, _within(colour, window), soft)


def ellipse(centre: Sequence[float] | Array, radii: Sequence[float] | Array, turn: float = 0.0, n: int = 28) -> Array:
    """Points (n, 2) of an ellipse, turned by radians."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    p = np.stack([np.cos(t) * radii[0], np.sin(t) * radii[1]], axis=1)
    c, s = np.cos(turn), np.sin(turn)
    return np.asarray(p @ np.array([[c, s], [-s, c]]) + np.asarray(centre))


def noise(rng: Rng, size: tuple[int, int], cell: float, stretch: float = 1.0) -> Picture:
    """Smooth noise (height, width) of unit variance before smoothing; `stretch` > 1 makes it tall."""
    h, w = size
    small = max(2, round(h / (cell * stretch))), max(2, round(w / cell))
    values = rng.standard_normal(small, dtype=np.float32)
    return resized(values, (w, h), cv2.INTER_CUBIC)


def octaves(rng: Rng, size: tuple[int, int], coarse: float, count: int, gain: float = 0.6) -> Picture:
    """Noise (height, width) of several scales, about unit variance."""
    total = np.zeros(size, np.float32)
    norm = 0.0
    for i in range(count):
        total += noise(rng, size, max(coarse / 2**i, 1.0)) * np.float32(gain**i)
        norm += gain ** (2 * i)
    return np.asarray(total / np.float32(np.sqrt(norm)))
