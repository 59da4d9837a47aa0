"""The face's colours, painted on the unrolled head: skin, eyes, brows, lips, teeth, beard, wrinkles."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from msrrn.synthetic.anatomy import MEAN, Array, Expression, Rng
from msrrn.synthetic.paint import Picture, blend, ellipse, fill, noise, octaves, smooth, stroke
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


def paint_face(rng: Rng, anchors: Array, expression: Expression, looks: Looks) -> Picture:
    """(HEIGHT, WIDTH, 3) albedo of a bald head."""
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
    _mouth(face, rng, anchors, expression, looks)
    for side in (-1, 1):
        _brow(face, rng, side, looks)
    style = rng.random(6)
    gaze = np.array(expression.gaze)
    for side, opened in zip((-1, 1), expression.eyes_open, strict=True):
        _eye(face, rng, side, opened, anchors, looks, gaze, style)
    np.clip(face, 0.0, 1.0, out=face)
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
            skin * 0.55,
            rng.uniform(0, 0.45),
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
        bridge = smooth(np.array([LANDMARKS[39 if side < 0 else 42] + [side * -4, -16], LANDMARKS[28] + [side * 15, 0],
                                  LANDMARKS[30] + [side * 22, -10]]), False)  # fmt: skip
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
    soft = np.asarray(_blurred(area.astype(np.float32), rng.uniform(2, 6)) * grain * np.float32(strength))
    grey = 0.15 + 0.5 * rng.random() if rng.random() < 0.2 else 0.0
    blend(face, looks.hair * (1 - grey) + 0.75 * grey, np.clip(soft, 0, 1))


def _blurred(picture: Picture, sigma: float) -> Picture:
    return cv2.GaussianBlur(picture, (0, 0), sigma).reshape(picture.shape)


def _mouth(face: Picture, rng: Rng, anchors: Array, e: Expression, looks: Looks) -> None:
    outer, inner = smooth(LANDMARKS[48:60], True), smooth(LANDMARKS[60:68], True)
    fill(face, outer + [0, 7], looks.skin * 0.5, rng.uniform(0.0, 0.5), 4)
    grain = (1 + noise(rng, (HEIGHT, WIDTH), 2.5, 3.0) * rng.uniform(0, 0.1))[..., None]
    window = np.s_[
        int(outer[:, 1].min()) - 8 : int(outer[:, 1].max()) + 9,
        int(outer[:, 0].min()) - 8 : int(outer[:, 0].max()) + 9,
    ]
    part, shift = face[window], np.array([window[1].start, window[0].start])
    strength, soft = rng.uniform(0.45, 1.0), rng.uniform(0.6, 1.8)
    fill(part, outer - shift, looks.lips * grain[window], strength, soft)
    upper = np.concatenate([LANDMARKS[48:55], LANDMARKS[[64, 63, 62, 61, 60]]])
    fill(part, smooth(upper, True) - shift, looks.lips * 0.6, rng.uniform(0.2, 0.6), soft)
    shine = (LANDMARKS[[59, 58, 57, 56, 55]] + LANDMARKS[[60, 67, 66, 65, 64]]) / 2
    stroke(
        part,
        [smooth(shine[1:4], False) - shift],
        np.minimum(looks.lips * 1.6 + 0.1, 1),
        3,
        rng.uniform(0, 0.6),
        1.5,
    )

    gap = float(anchors[66, 1] - anchors[62, 1])
    inside = part.copy()
    inside[:] = looks.lips * rng.uniform(0.05, 0.35)
    high, low = LANDMARKS[62, 1] - shift[1], LANDMARKS[66, 1] - shift[1]
    per_unit = (low - high) / max(gap, 0.02)
    middle = LANDMARKS[62, 0] - shift[0]
    half = LANDMARKS[64, 0] - LANDMARKS[62, 0]
    if gap > 0.25 and rng.random() < 0.7:
        fill(inside, ellipse((middle, low + 1), (half * 0.6, 0.2 * per_unit)), [0.6, 0.25, 0.25], 0.8, 1.5)
    white = np.array([0.95, 0.92, 0.85]) * rng.uniform(0.7, 1.0)
    if rng.random() < 0.92:
        _teeth(
            inside,
            rng,
            middle,
            half * rng.uniform(0.75, 1.0),
            high - 2,
            min(rng.uniform(0.10, 0.19) * per_unit, 40),
            white,
        )
    if rng.random() < 0.35 and gap > 0.1:
        _teeth(
            inside,
            rng,
            middle,
            half * 0.7,
            low + 2,
            -min(rng.uniform(0.03, 0.1) * per_unit, 30),
            white * 0.85,
        )
    fill(part, inner - shift, inside, 1.0, 0.5)
    seam = LANDMARKS[[60, 61, 62, 63, 64]]
    stroke(part, [smooth(seam, False) - shift], looks.lips * 0.2, 2, rng.uniform(0.3, 0.9), 0.7)
    stroke(
        part,
        [smooth(LANDMARKS[[60, 67, 66, 65, 64]], False) - shift],
        looks.lips * 0.25,
        2,
        rng.uniform(0.1, 0.7),
        0.7,
    )
    for corner in LANDMARKS[[48, 54]] - shift:
        fill(part, ellipse(corner, (4, 3)), looks.skin * 0.3, rng.uniform(0.2, 0.7), 1.5)


def _teeth(inside: Picture, rng: Rng, x: float, half: float, y: float, tall: float, white: Array) -> None:
    row = ellipse((x, y), (half, abs(tall)))
    fill(inside, row, white, 1.0, 0.7)
    edges = x + np.linspace(-1, 1, 11) * half
    lines = [np.array([[edge, y], [edge, y + tall * 0.9]]) for edge in edges]
    stroke(inside, lines, white * 0.5, 1, rng.uniform(0.0, 0.5))


def _brow(face: Picture, rng: Rng, side: int, looks: Looks) -> None:
    curve = smooth(LANDMARKS[22:27] if side > 0 else LANDMARKS[21:16:-1], False)
    n = len(curve)
    thick = rng.uniform(5, 15) * (1.1 if looks.male else 0.8)
    profile = np.interp(np.linspace(0, 1, n), [0, 0.15, 0.55, 1], [0.6, 1.0, 0.85, 0.15]) * thick
    below = curve + np.stack([np.zeros(n), profile], 1)
    above = curve - np.stack([np.zeros(n), profile * 0.3], 1)
    colour = np.minimum(looks.hair * rng.uniform(0.5, 1.0), looks.skin * 0.7)
    density = rng.uniform(0.3, 0.95)
    fill(
        face,
        np.concatenate([above, below[::-1]]),
        colour,
        density * rng.uniform(0.4, 0.9),
        rng.uniform(0.8, 2.5),
    )
    at = rng.random(70)
    root = curve[(at * (n - 1)).astype(int)] + np.stack(
        [rng.normal(0, 1, 70), rng.uniform(0, 1, 70) * thick * 0.9], 1
    )
    lean = np.stack([side * rng.uniform(2, 9, 70), -rng.uniform(0, 7, 70) * (1 - at)], 1)
    stroke(face, list(np.stack([root, root + lean], 1)), colour * 0.8, 1, density)


def _eye(
    face: Picture, rng: Rng, side: int, opened: float, anchors: Array, looks: Looks, gaze: Array, style: Array
) -> None:
    rows = list(range(42, 48)) if side > 0 else list(range(36, 42))
    lids = LANDMARKS[rows]
    outline = smooth(lids, True, 8)
    upper = smooth(lids[:4], False, 8)
    lower = smooth(lids[[3, 4, 5, 0]], False, 8)
    outer = lids[3] if side > 0 else lids[0]
    person = anchors[rows]
    tall = float((person[4:, 1] - person[1:3, 1][::-1]).mean())
    wide = float(np.linalg.norm(person[3] - person[0]))
    down = float((lids[4:, 1] - lids[1:3, 1][::-1]).mean()) / max(tall, 0.02)
    across = float(np.linalg.norm(lids[3] - lids[0])) / wide
    down = min(down, 10 * UNIT)

    shadow = looks.skin * (0.35 + 0.4 * style[0])
    if style[1] < 0.3 and not looks.male:
        fill(face, ellipse(lids.mean(axis=0) + [side * 2, -8], (26, 11)), shadow * 0.6, 0.3 + 0.5 * style[2], 3)
    lifted = upper + [0, -6 - 6 * style[3]]
    stroke(face, [lifted], shadow, 2, 0.25 + 0.5 * style[4], 1.0)

    y0, x0 = int(lids[:, 1].min()) - 10, int(lids[:, 0].min()) - 10
    window = np.s_[y0 : int(lids[:, 1].max()) + 11, x0 : int(lids[:, 0].max()) + 11]
    part, shift = face[window], np.array([x0, y0])
    ball = part.copy()
    white = np.array([0.97, 0.94, 0.92]) * (0.72 + 0.28 * style[5])
    ball[:] = white
    stroke(ball, [outline - shift], white * 0.45, 5, 0.6, 2.5, closed=True)
    radius = 0.092 + 0.02 * (style[2] - 0.5)
    centre = lids.mean(axis=0) - shift + gaze * [across, UNIT] + [0, -0.02 * down]
    iris = np.array([[0.16, 0.08, 0.04], [0.3, 0.2, 0.1], [0.35, 0.45, 0.55], [0.3, 0.4, 0.28]])
    colour = iris[min(int(style[0] * 6), 3)] if looks.hair.mean() > 0.15 else iris[int(style[0] * 1.2)]
    fill(ball, ellipse(centre, (radius * across, radius * down)), colour * 0.45, 1.0, 0.6)
    fill(ball, ellipse(centre, (radius * 0.82 * across, radius * 0.82 * down)), colour, 0.9, 0.8)
    pupil = radius * (0.35 + 0.3 * style[1])
    fill(ball, ellipse(centre, (pupil * across, pupil * down)), [0.01, 0.01, 0.01], 1.0, 0.5)
    stroke(ball, [upper + [0, 2] - shift], [0.03, 0.02, 0.02], 3, 0.25 + 0.4 * style[3], 1.3)
    if style[4] < 0.85:
        glint = centre + [(style[5] - 0.5) * 10, -0.035 * down]
        fill(ball, ellipse(glint, (0.02 * across, 0.02 * down)), [1.0, 1.0, 1.0], 0.95, 0.4)
    fill(part, outline - shift, ball, 1.0, 0.4)

    lash = looks.hair * 0.25
    makeup = 1.0 + 2.0 * style[1] * (not looks.male)
    stretch = 1.0 if opened > 0.3 else 2.5
    stroke(face, [upper], lash, (1.0 + makeup) * stretch, 0.55 + 0.4 * style[2], 0.5)
    stroke(face, [lower], looks.skin * 0.4, 1.2 * stretch, 0.25 + 0.5 * style[3], 0.6)
    if makeup > 1.8:
        stroke(face, [np.array([outer, outer + [side * 7, -5]])], lash, 2, 0.8, 0.6)
    inner = lids[0] if side > 0 else lids[3]
    fill(face, ellipse(inner, (3, 2.5)), looks.skin * [0.8, 0.5, 0.45], 0.7, 0.8)
