"""What lies over the skull: hair of all lengths, caps, beanies, scarves. One shell, many outlines."""

from dataclasses import dataclass
from functools import cache
from typing import Final

import cv2
import numpy as np

from msrrn.synthetic.anatomy import MEAN, Array, Rng
from msrrn.synthetic.camera import rasterise
from msrrn.synthetic.head import Person, composite
from msrrn.synthetic.light import shade
from msrrn.synthetic.paint import Picture, fill, noise, octaves
from msrrn.synthetic.surface import anchored, at_radius, base_radius, normals, spline_weights, uv_of

_AZIMUTHS: Final = np.linspace(-np.pi, np.pi, 81)
_HEIGHTS: Final = np.concatenate([np.linspace(-1.975, -1.5, 9)[:-1], np.linspace(-1.5, 3.6, 60)])
_CENTRE: Final = np.array([0.0, -0.2, -1.15])


@dataclass(frozen=True)
class Cover:
    """The outline and substance of a shell; lengths in pupil distances, azimuths in radians."""

    front: float
    """How far down the forehead it comes (a height; the brows are near -0.3)."""
    slant: float
    arch: float
    part: float
    """The azimuth of the parting, from which the outline falls to both sides by `arch`."""
    lowest: float
    """Above the eyes it never comes lower than this height."""
    sides: tuple[float, float]
    """The azimuths from which it covers the right and left side of the face."""
    length: float
    thickness: float
    hang: float
    ragged: float
    softness: float
    spares_ears: bool
    brim: float
    cloth: bool


def draw_covers(rng: Rng, male: bool, age: float) -> list[Cover]:
    """What a person wears on the head, the inner cover first; nothing for the bald."""
    covers = []
    if rng.random() >= (0.14 if male else 0.01):
        covers.append(_draw_hair(rng, long=rng.random() < (0.10 if male else 0.72), male=male, age=age))
    kind = rng.random()
    if kind < 0.09:
        covers.append(_draw_hat(rng) if kind < 0.055 else _draw_scarf(rng))
    return covers


def _draw_hat(rng: Rng) -> Cover:
    low = rng.uniform(-0.85, -0.55)
    return Cover(
        front=low,
        slant=rng.normal(0, 0.05),
        arch=rng.uniform(0, 0.15),
        part=0.0,
        lowest=-0.4,
        sides=(1.7, 1.7),
        length=low + 0.3,
        thickness=rng.uniform(0.12, 0.3),
        hang=0.0,
        ragged=0.01,
        softness=0.03,
        spares_ears=False,
        brim=rng.uniform(0.5, 0.9) if rng.random() < 0.6 else 0.0,
        cloth=True,
    )


def _draw_scarf(rng: Rng) -> Cover:
    side = rng.uniform(1.0, 1.35)
    return Cover(
        front=rng.uniform(-0.9, -0.5),
        slant=0.0,
        arch=rng.uniform(-0.1, 0.2),
        part=0.0,
        lowest=-0.35,
        sides=(side, side),
        length=3.4,
        thickness=rng.uniform(0.08, 0.25),
        hang=rng.uniform(0.9, 1.2),
        ragged=0.02,
        softness=0.03,
        spares_ears=False,
        brim=0.0,
        cloth=True,
    )


def _draw_hair(rng: Rng, long: bool, male: bool, age: float) -> Cover:
    fringe = rng.random() < 0.3
    front = rng.uniform(-0.8, -0.36) if fringe else rng.uniform(-1.15, -0.75) - 0.3 * age * male * rng.random()
    if long:
        near = rng.uniform(0.85, 1.6)
        sides = (near, float(np.clip(near + rng.normal(0, 0.2), 0.8, 1.8)))
        length = rng.uniform(0.8, 3.4)
    else:
        both = rng.uniform(1.28, 1.55)
        sides = (both, both + rng.normal(0, 0.04))
        length = rng.uniform(-0.1, 0.7)
    return Cover(
        front=front,
        slant=rng.normal(0, 0.14),
        arch=rng.uniform(-0.05, 0.2) if fringe else abs(rng.normal(0, 0.7 if long else 0.25)),
        part=rng.normal(0, 0.35),
        lowest=rng.uniform(-0.5, -0.25) if rng.random() < 0.96 else 0.3,
        sides=sides,
        length=length,
        thickness=rng.uniform(0.08, 0.45) if long else rng.exponential(0.12) + 0.04,
        hang=rng.uniform(0.95, 1.45),
        ragged=rng.uniform(0.025, 0.14) if fringe else rng.uniform(0.025, 0.06),
        softness=rng.uniform(0.03, 0.15) if fringe else rng.uniform(0.05, 0.3),
        spares_ears=not long or rng.random() < 0.15,
        brim=0.0,
        cloth=False,
    )


@cache
def _grid() -> tuple[Array, Array, Array]:
    uv = np.stack(np.meshgrid(_AZIMUTHS, _HEIGHTS), axis=-1)
    flat = uv.reshape(-1, 2)
    held = flat.copy()
    held[:, 0] = np.clip(held[:, 0], -2.5, 2.5)
    fade = np.clip((np.pi - np.abs(flat[:, :1])) / (np.pi - 2.5), 0, 1)
    return uv, at_radius(flat, base_radius(flat)), spline_weights(held) * fade


def _inside(cover: Cover, uv: Array) -> Array:
    """How deep a place lies in the cover's outline, in pupil distances; negative outside."""
    azimuth, y = uv[..., 0], uv[..., 1]
    front = cover.front + cover.slant * azimuth + cover.arch * (azimuth - cover.part) ** 2
    front = np.minimum(front, cover.lowest + 2.5 * np.maximum(np.abs(azimuth) - 0.75, 0)) - y
    edge = np.where(azimuth > 0, cover.sides[1], cover.sides[0])
    side = np.minimum((np.abs(azimuth) - edge - 0.12 * np.clip(-y, 0, 1)) * 1.1, cover.length - y)
    inside = np.maximum(front, side)
    if cover.spares_ears:
        ear = np.hypot((np.abs(azimuth) - 1.72) / 0.26, (y - 0.2) / 0.55)
        inside = np.minimum(inside, (ear - 1.0) * 0.4)
    return np.asarray(np.minimum(inside, cover.length - y + 6.0 * (y < cover.front)))


class Shell:
    """A cover on a person, ready to be drawn: `behind` before the head, `before` after it."""

    def __init__(self, cover: Cover, person: Person, rng: Rng) -> None:
        self._hangs = cover.length > 0.75
        uv, base, weights = _grid()
        rows, columns = uv.shape[:2]
        skull = anchored(base, weights, person.anchors).reshape(rows, columns, 3)
        inside = _inside(cover, uv)
        lumps = 1 + rng.uniform(0.05, 0.35) * octaves(rng, (rows, columns), 12, 2) * (not cover.cloth)
        lift = cover.thickness * np.clip(inside / 0.4, 0.12, 1) * lumps
        points = _CENTRE + (skull - _CENTRE) * (1 + lift / 1.3)[..., None]
        below = np.clip((uv[..., 1] - 0.1) / 0.5, 0, 1)
        radius = np.hypot(points[..., 0], points[..., 2] - _CENTRE[2])
        wanted = np.maximum(radius, cover.hang * below)
        flat = np.stack([np.sin(uv[..., 0]) * wanted, skull[..., 1], _CENTRE[2] + np.cos(uv[..., 0]) * wanted], -1)
        points = points + (flat - points) * (below * self._hangs)[..., None]
        self._turned = person.camera.turn(points)
        self._pixels = person.camera.project(self._turned)
        self._light = person.light
        self._detail = (rows * 5, columns * 5)
        self._alpha = _edges(inside, cover, self._detail, rng)
        self._albedo = _fabric(self._detail, rng) if cover.cloth else _strands(self._detail, person.looks.hair, rng)
        seen = cv2.dilate(
            (cv2.resize(self._alpha, (columns, rows)) > 0.02).astype(np.uint8), np.ones((3, 3), np.uint8)
        )
        self._keep = seen[:-1, :-1].astype(bool)

    def behind(self, picture: Picture) -> None:
        if self._hangs:
            self._draw(picture, back=True)

    def before(self, picture: Picture) -> None:
        self._draw(picture, back=False)

    def _draw(self, picture: Picture, back: bool) -> None:
        size = picture.shape[1], picture.shape[0]
        raster = rasterise(self._pixels, self._turned[..., 2], size, self._keep, back)
        if raster is None:
            return
        outward = normals(self._turned) * (-1.0 if back else 1.0)
        diffuse, glossy = shade(self._turned, outward, self._light)
        factor = self._detail[0] / self._turned.shape[0]
        map_x, map_y = raster.column * factor, raster.row * factor
        colour = cv2.remap(self._albedo, map_x, map_y, cv2.INTER_LINEAR)
        colour = colour * cv2.remap(diffuse, raster.column, raster.row, cv2.INTER_LINEAR)
        colour = colour + 0.3 * cv2.remap(glossy, raster.column, raster.row, cv2.INTER_LINEAR)
        alpha = cv2.remap(self._alpha, map_x, map_y, cv2.INTER_LINEAR).reshape(map_x.shape)
        dim = 0.55 if back else 1.0
        composite(picture, raster, (colour * dim).astype(np.float32), alpha * raster.covered)


def _edges(inside: Array, cover: Cover, size: tuple[int, int], rng: Rng) -> Picture:
    fine = cv2.resize(inside.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    fine = fine + np.float32(cover.ragged) * noise(rng, size, rng.uniform(2, 7), rng.uniform(2, 12))
    return np.asarray(np.clip(fine / np.float32(cover.softness) + 0.5, 0, 1), np.float32)


def _strands(size: tuple[int, int], hair: Array, rng: Rng) -> Picture:
    curl = rng.uniform(1, 14) if rng.random() < 0.75 else 1.0
    strands = noise(rng, size, rng.uniform(1.5, 4), curl * 2) * 0.6 + noise(rng, size, rng.uniform(5, 14), curl) * 0.5
    relief = 1 + rng.uniform(0.15, 0.55) * strands
    return np.asarray(np.clip(hair * relief[..., None], 0.005, 1), np.float32)


def _fabric(size: tuple[int, int], rng: Rng) -> Picture:
    colours = rng.uniform(0.03, 0.95, (2, 3))
    if rng.random() < 0.5:
        colours[1] = colours[0] * rng.uniform(0.6, 1.2)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    waves = np.sin(rows * rng.uniform(0.1, 1.2) + columns * rng.uniform(-0.8, 0.8)) + 0.7 * noise(rng, size, 6)
    mix = np.clip(waves + 0.5, 0, 1)[..., None]
    return np.asarray(np.clip(colours[0] * (1 - mix) + colours[1] * mix, 0, 1), np.float32)


def draw_brim(picture: Picture, cover: Cover, person: Person, rng: Rng) -> None:
    """A cap's peak: a curved board in front of the forehead."""
    azimuth = np.linspace(-0.95, 0.95, 15)
    uv = np.stack([azimuth, np.full(15, cover.front)], -1)
    radius = base_radius(uv) * (1 + cover.thickness / 1.3) + 0.02
    ahead = radius + cover.brim * np.cos(azimuth / 0.95 * np.pi / 2) ** 0.7
    edge = uv + np.stack([np.zeros(15), cover.brim * (0.15 + 0.2 * np.cos(azimuth))], -1)
    outline = np.concatenate([at_radius(uv, radius), at_radius(edge, ahead)[::-1]])
    shift = (person.anchors - MEAN)[uv_of(MEAN)[:, 1] < -0.5].mean(axis=0)
    fill(
        picture,
        person.camera.see(outline + shift),
        rng.uniform(0.02, 0.8, 3) * rng.uniform(0.3, 1.0),
        1.0,
        0.7,
    )
