"""What is behind the people, and what a camera does to a picture."""

import cv2
import numpy as np

from msrrn.synthetic.anatomy import Rng
from msrrn.synthetic.paint import (
    Picture,
    blend,
    blurred,
    ellipse,
    fill,
    noise,
    octaves,
    resized,
    smooth,
    stroke,
    swept,
)


def draw_background(rng: Rng, size: tuple[int, int]) -> Picture:
    """(height, width, 3): a wall or sky, patterns, clutter, more or less out of focus."""
    half = size[0] // 2 + 1, size[1] // 2 + 1
    scene = _wall(rng, half)
    for _ in range(rng.integers(0, 3)):
        _pattern(scene, rng)
    for _ in range(rng.integers(0, rng.choice([3, 12, 40]))):
        _thing(scene, rng)
    if rng.random() < 0.4:
        scene = blurred(scene, rng.uniform(0.6, 9.0))
    scene = resized(scene, size[::-1])
    scene *= (1 + noise(rng, size, rng.uniform(1.5, 6)) * rng.exponential(0.025))[..., None]
    return np.clip(scene, 0, 1, out=scene)


def _tone(rng: Rng) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    grey = rng.uniform(0.02, 0.98)
    return np.clip(grey + rng.normal(0, rng.uniform(0, 0.25), 3), 0, 1)


def _wall(rng: Rng, size: tuple[int, int]) -> Picture:
    a, b = _tone(rng), _tone(rng)
    turn = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    along = columns / size[1] * np.cos(turn) + rows / size[0] * np.sin(turn)
    mix = along - along.min()
    mix = mix / mix.max() * rng.uniform(0, 1)
    if rng.random() < 0.6:
        mix = mix + octaves(
            rng, size, rng.uniform(10, 150), int(rng.integers(1, 5)), rng.uniform(0.4, 0.9)
        ) * rng.uniform(0.05, 0.5)
    mix = np.clip(mix, 0, 1)[..., None]
    return np.asarray(a * (1 - mix) + b * mix, np.float32)


def _pattern(scene: Picture, rng: Rng) -> None:
    size = scene.shape[:2]
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(3, 40)
    u = (columns * np.cos(turn) + rows * np.sin(turn)) / pitch
    v = (rows * np.cos(turn) - columns * np.sin(turn)) / pitch
    kind = rng.integers(0, 4)
    if kind == 0:
        mask = (u % 1) < rng.uniform(0.1, 0.6)
    elif kind == 1:
        mask = (((u + 0.5 * (np.floor(v * 2) % 2)) % 1) < 0.06) | (((v * 2) % 1) < 0.1)
    elif kind == 2:
        mask = ((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < rng.uniform(0.03, 0.2)
    else:
        mask = octaves(rng, size, pitch, 3, 0.8) > rng.uniform(-0.5, 1.0)
    x0, x1 = np.sort(rng.integers(0, size[1] + 1, 2))
    region = np.zeros(size, np.float32)
    region[:, x0:x1] = 1.0
    if rng.random() < 0.5:
        region[:] = 1.0
    blend(scene, _tone(rng), mask.astype(np.float32) * region * np.float32(rng.uniform(0.2, 1.0)))


def _thing(scene: Picture, rng: Rng) -> None:
    h, w = scene.shape[:2]
    at = rng.uniform(0, [w, h])
    size = rng.uniform(3, 0.35 * min(h, w), 2)
    colour = _tone(rng)
    kind = rng.integers(0, 6)
    if kind == 0:
        fill(scene, ellipse(at, size, rng.uniform(0, 3)), colour, rng.uniform(0.5, 1), rng.uniform(0, 3))
    elif kind == 1:
        c, s = np.cos(t := rng.choice([0.0, rng.uniform(0, 3)])), np.sin(t)
        box = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size @ np.array([[c, s], [-s, c]])
        fill(scene, box + at, colour, rng.uniform(0.5, 1), rng.uniform(0, 1))
        stroke(scene, [box + at], colour * 0.5, rng.uniform(1, 4), rng.uniform(0, 1), closed=True)
    elif kind == 2:
        curve = smooth(at + rng.normal(0, size.max(), (4, 2)), False)
        stroke(scene, [curve], colour, rng.uniform(0.7, 9), rng.uniform(0.4, 1), rng.uniform(0, 2))
    elif kind == 3:
        text = "".join(chr(c) for c in rng.integers(65, 91, rng.integers(2, 8)))
        patch = np.zeros((h, w), np.uint8)
        corner, font = (int(at[0] - size[0]), int(at[1])), int(rng.integers(0, 5))
        cv2.putText(patch, text, corner, font, rng.uniform(0.5, 2.5), 255, int(rng.integers(1, 5)), cv2.LINE_AA)
        blend(scene, colour, patch.astype(np.float32) / np.float32(255))
    elif kind == 4:
        fill(
            scene,
            smooth(at + rng.normal(0, size.mean(), (6, 2)), True),
            colour,
            rng.uniform(0.5, 1),
            rng.uniform(0, 4),
        )
    else:
        oval = ellipse(at, (size.mean(), size.mean() * 1.35))
        fill(scene, oval, [0.7, 0.52, 0.42] * rng.uniform(0.4, 1.2, 3), 1.0, rng.uniform(0.5, 4))
        for offset in rng.uniform(-0.6, 0.6, (4, 2)):
            fill(
                scene,
                ellipse(at + offset * size.mean(), size.mean() * rng.uniform(0.05, 0.25, 2)),
                colour * 0.4,
                0.8,
                1,
            )


def develop(picture: Picture, detail: float, rng: Rng) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Light to 8 bits (height, width, 3): tone, colour, focus, motion, grain. Geometry stays as it is.

    `detail` is the pupil distance in pixels of the smallest face: blur keeps in proportion.
    """
    size = picture.shape[1], picture.shape[0]
    out = np.clip(picture, 0, 1.2)
    if rng.random() < 0.35:
        shrink = rng.uniform(max(0.35, min(0.9, 26 / detail)), 1.0)
        small = resized(out, (round(size[0] * shrink), round(size[1] * shrink)), cv2.INTER_AREA)
        out = resized(small, size)
    if rng.random() < 0.45:
        out = blurred(out, min(0.3 + rng.exponential(0.6), 0.03 * detail))
    if rng.random() < 0.06:
        reach = int(rng.integers(3, max(4, int(detail * 0.12))))
        out = swept(out, reach, rng.uniform(0, np.pi))
    grey = (out[..., :1] + out[..., 1:2] + out[..., 2:]) / np.float32(3)
    saturation = 0.0 if rng.random() < 0.08 else rng.uniform(0.5, 1.4)
    out = np.asarray(grey + (out - grey) * np.float32(saturation), np.float32)
    out *= (rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.06, 3) * (saturation > 0))).astype(np.float32)
    np.clip(out, 0, 1, out=out)
    out = np.asarray(cv2.pow(out, rng.uniform(0.6, 1.15)), np.float32)
    contrast = rng.uniform(0.85, 1.4)
    out = (out - 0.3) * np.float32(contrast) + np.float32(0.3 + rng.normal(0, 0.03))
    grain = rng.exponential(0.012)
    noisy = rng.standard_normal((*picture.shape[:2], 1), dtype=np.float32)
    speckle = rng.standard_normal((size[1] // 2 + 1, size[0] // 2 + 1, 3), dtype=np.float32)
    noisy = noisy + resized(speckle, size, cv2.INTER_NEAREST) * np.float32(0.5)
    out += noisy * np.float32(min(grain, 0.04))
    return np.asarray(np.clip(out * 255 + 0.5, 0, 255), np.uint8)
