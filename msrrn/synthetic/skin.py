"""The skin's colours, painted on the unrolled head: tone, folds, nose, ears, beard."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from msrrn.synthetic.anatomy import MEAN, Array, Expression, Rng
from msrrn.synthetic.paint import Picture, blend, blurred, ellipse, fill, noise, octaves, smooth, stroke
from msrrn.synthetic.surface import AZIMUTHS, uv_of

WIDTH: Final = 600
HEIGHT: Final = 560
TOP: Final = -2.0
TALL: Final = 4.9
UNIT: Final = HEIGHT / TALL
"""Pixels per pupil distance, down the texture."""


@dataclass(frozen=True)
class Looks:
    """The colours (3) in [0, 1] that several painters share."""

    skin: Array
    hair: Array
    lips: Array
    age: float
    male: bool


def draw_looks(rng: Rng) -> Looks:
    tone = rng.beta(1.1, 0.7)
    dark, light = np.array([0.36, 0.24, 0.18]), np.array([0.95, 0.78, 0.68])
    skin = (dark + (light - dark) * tone) * rng.uniform(0.9, 1.1) + rng.normal(0, 0.02, 3)
    hairs = np.array([[0.04, 0.03, 0.03], [0.14, 0.08, 0.05], [0.33, 0.2, 0.1], [0.68, 0.52, 0.3], [0.62, 0.6, 0.58]])
    hair = hairs[rng.choice(5, p=[0.36, 0.24, 0.17, 0.13, 0.10])] * rng.uniform(0.7, 1.3)
    male = bool(rng.random() < 0.55)
    red = np.array([rng.uniform(0.8, 1.0), rng.uniform(0.45, 0.75), rng.uniform(0.45, 0.75)])
    lips = skin * (1 - (1 - red) * rng.uniform(0.2, 1.0))
    if not male and rng.random() < 0.4:
        lips = np.array([rng.uniform(0.3, 0.8), rng.uniform(0.02, 0.3), rng.uniform(0.05, 0.35)])
    return Looks(np.clip(skin, 0.05, 0.97), np.clip(hair, 0.02, 0.9), np.clip(lips, 0.04, 0.95), rng.random(), male)


def texture_pixels(uv: Array) -> Array:
    """Azimuth and height (..., 2) → pixels of the texture (..., 2)."""
    span = AZIMUTHS[-1] - AZIMUTHS[0]
    x = (uv[..., 0] - AZIMUTHS[0]) / span * (WIDTH - 1)
    return np.stack([x, (uv[..., 1] - TOP) / TALL * (HEIGHT - 1)], axis=-1)


LANDMARKS: Final = texture_pixels(uv_of(MEAN[:68]))
_ACROSS: Final = (WIDTH - 1) / (AZIMUTHS[-1] - AZIMUTHS[0])


def paint_skin(rng: Rng, expression: Expression, looks: Looks) -> Picture:
    """(HEIGHT, WIDTH, 3): a bald head's skin with its folds, nose, ears and beard; no eyes, brows or mouth."""
    face = np.empty((HEIGHT, WIDTH, 3), np.float32)
    face[:] = looks.skin
    blotches = octaves(rng, (HEIGHT, WIDTH), 90, 3) * rng.uniform(0.01, 0.05)
    pores = noise(rng, (HEIGHT, WIDTH), rng.uniform(1.0, 3.5)) * rng.uniform(0.0, 0.035)
    face *= (1 + blotches + pores)[..., None]
    _throat(face, rng)
    _cheeks_and_folds(face, rng, expression, looks)
    _nose(face, rng, looks)
    _ears(face, rng, looks)
    if looks.male:
        _beard(face, rng, looks)
    return face


def _throat(face: Picture, rng: Rng) -> None:
    """The jaw keeps light from the throat: darker below it, with an edge along it."""
    top = int(LANDMARKS[3, 1])
    rows = np.arange(top, HEIGHT, dtype=np.float32)[:, None]
    edge = np.interp(np.arange(WIDTH), LANDMARKS[:17, 0], LANDMARKS[:17, 1]).astype(np.float32) + 5
    below = np.clip((rows - edge) / np.float32(rng.uniform(4, 14)), 0, 1)
    fade = 1 - 0.6 * np.clip(rows / HEIGHT * 2 - 1, 0, 1)
    dark = np.float32(rng.uniform(0.15, 0.65)) * below * fade * np.clip((rows - top) / 60, 0, 1)
    face[top:] *= (1 - dark)[..., None]


def _cheeks_and_folds(face: Picture, rng: Rng, e: Expression, looks: Looks) -> None:
    skin = looks.skin
    flush = skin * [1.0, 0.8, 0.78]
    for side in (-1, 1):
        cheek = texture_pixels(uv_of(np.array([side * 0.62, 0.5, 0.0])))
        fill(face, ellipse(cheek, (35, 30)), flush, rng.uniform(0, 0.5), 12)
        wing, corner = LANDMARKS[35 if side > 0 else 31], LANDMARKS[54 if side > 0 else 48]
        fold = smooth(
            np.array(
                [
                    wing + [side * 7, -12],
                    wing + [side * 16, 8],
                    corner + [side * 12, -8],
                    corner + [side * 13, 14],
                ]
            ),
            False,
        )
        depth = 0.10 + 0.35 * looks.age * rng.random() + 0.35 * max(e.smile, 0.0)
        stroke(face, [fold], skin * 0.5, 3, min(depth, 0.7), rng.uniform(1.5, 4))
        stroke(face, [fold + [side * 6, -3]], np.minimum(skin * 1.2, 1), 6, min(depth, 0.5) * 0.5, 4)
        under = LANDMARKS[[41, 40] if side < 0 else [46, 47]].mean(axis=0)
        bag = ellipse(under + [0, 9], (21, 8))[1:13]
        stroke(face, [bag], skin * 0.55, 3, rng.uniform(0.05, 0.4), 2.0)
        socket = LANDMARKS[36:42] if side < 0 else LANDMARKS[42:48]
        fill(
            face,
            ellipse(socket.mean(axis=0) + [side * -4, -6], (28, 17)),
            skin * 0.5,
            rng.uniform(0.1, 0.5),
            7,
        )
    if looks.age > 0.6:
        for _ in range(rng.integers(2, 6)):
            y = rng.uniform(60, 140)
            x = np.linspace(-70, 70, 8) + WIDTH / 2
            line = np.stack([x, y + 4 * np.sin(x / 30 + rng.uniform(0, 6))], 1)
            stroke(face, [line], skin * 0.55, 1.5, rng.uniform(0.1, 0.45), 1.2)
        for side in (-1, 1):
            outer = LANDMARKS[45 if side > 0 else 36]
            lines = [np.array([outer + [side * 6, dy * 0.4], outer + [side * 22, dy]]) for dy in (-8, -1, 7)]
            stroke(face, lines, skin * 0.55, 1.2, rng.uniform(0.1, 0.5), 0.8)
    if rng.random() < 0.15:
        for x, y in rng.normal([WIDTH / 2, 290], [70, 60], (rng.integers(5, 60), 2)):
            fill(
                face,
                ellipse((x, y), (rng.uniform(0.6, 2.2),) * 2, n=8),
                skin * 0.6,
                rng.uniform(0.2, 0.8),
                0.5,
            )


def _nose(face: Picture, rng: Rng, looks: Looks) -> None:
    skin = looks.skin
    dark = rng.uniform(0.4, 0.95)
    fill(
        face,
        np.concatenate([LANDMARKS[31:36], LANDMARKS[[35, 31]] + [0, 7]]),
        skin * 0.45,
        rng.uniform(0.1, 0.6),
        3,
    )
    for side in (-1, 1):
        base = LANDMARKS[34 if side > 0 else 32]
        hole = ellipse(base + [side * 3.0, -4.5], (rng.uniform(6, 9), rng.uniform(2.2, 4.5)), side * -0.25)
        fill(face, hole, skin * 0.18, dark, rng.uniform(0.8, 1.8))
        wing = LANDMARKS[35 if side > 0 else 31]
        crease = smooth(wing + np.array([[side * 4, -22], [side * 9, -12], [side * 7, -1], [side * -2, 3]]), False)
        stroke(face, [crease], skin * 0.45, 2, rng.uniform(0.15, 0.6), 1.3)
        inner_eye = LANDMARKS[39 if side < 0 else 42]
        flank = [inner_eye + [side * -4, -16], LANDMARKS[28] + [side * 15, 0], LANDMARKS[30] + [side * 22, -10]]
        bridge = smooth(np.array(flank), False)
        stroke(face, [bridge], skin * 0.6, 6, rng.uniform(0, 0.35), 5)
    stroke(face, [LANDMARKS[27:31]], np.minimum(skin * 1.35, 1), 6, rng.uniform(0, 0.4), 3.5)
    fill(face, ellipse(LANDMARKS[30] + [0, 2], (8, 7)), np.minimum(skin * 1.4, 1), rng.uniform(0, 0.5), 3.5)
    philtrum = np.array([LANDMARKS[33] + [0, 4], LANDMARKS[51]])
    stroke(face, [philtrum], skin * 0.65, 4, rng.uniform(0, 0.35), 2.0)


def _ears(face: Picture, rng: Rng, looks: Looks) -> None:
    for side in (-1, 1):
        x = WIDTH / 2 + side * 1.76 * _ACROSS
        y = (0.15 - TOP) * UNIT
        fill(face, ellipse((x, y), (9, 36)), looks.skin * [0.7, 0.55, 0.5], rng.uniform(0.3, 0.8), 3)
        curl = smooth(np.array([[x + 6, y - 30], [x - 5, y - 20], [x + 3, y], [x - 4, y + 20]]), False)
        stroke(face, [curl], looks.skin * 0.4, 3, rng.uniform(0.3, 0.8), 1.5)
        stroke(
            face,
            [np.array([[x - side * 14.0, y - 35], [x - side * 15.0, y + 45]])],
            looks.skin * 0.5,
            4,
            0.5,
            2,
        )


def _beard(face: Picture, rng: Rng, looks: Looks) -> None:
    kind = rng.choice(5, p=[0.4, 0.25, 0.15, 0.12, 0.08])
    if kind == 0:
        return
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    across = np.abs(columns - WIDTH / 2)
    jaw_x, jaw_y = np.abs(LANDMARKS[8:17, 0] - WIDTH / 2), LANDMARKS[8:17, 1]
    full = np.interp(across, [0, 40, 75, 120, 150, 175], [295, 300, 312, 300, 265, 200]).astype(np.float32)
    bottom = np.interp(across, jaw_x, jaw_y).astype(np.float32) + np.float32(rng.uniform(5, 40))
    ragged = noise(rng, (HEIGHT, WIDTH), 8) * 5
    cheek = np.float32(rng.uniform(0, 25)) * (across < 140)
    chin = (rows > full + cheek + ragged) & (rows < bottom + ragged) & (across < 178)
    lip = (across < 62) & (np.abs(rows - np.interp(across, [0, 62], [325, 338])) < rng.uniform(7, 12) + ragged * 0.3)
    bare_chin = (across > rng.uniform(25, 60)) | (rows < LANDMARKS[57, 1] + 6)
    area = chin | lip if kind <= 2 else (lip if kind == 3 else lip | (chin & ~bare_chin))
    strength = rng.uniform(0.12, 0.5) if kind == 1 else rng.uniform(0.5, 0.95)
    grain = np.clip(0.7 + 0.6 * noise(rng, (HEIGHT, WIDTH), rng.uniform(1.0, 2.5), rng.uniform(1, 4)), 0, 1.3)
    soft = np.asarray(blurred(area.astype(np.float32), rng.uniform(2, 6)) * grain * np.float32(strength))
    grey = 0.15 + 0.5 * rng.random() if rng.random() < 0.2 else 0.0
    blend(face, looks.hair * (1 - grey) + 0.75 * grey, np.clip(soft, 0, 1))
