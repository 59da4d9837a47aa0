"""Eyes, brows and mouth, painted on the unrolled head's skin."""

import numpy as np

from msrrn.synthetic.anatomy import Array, Expression, Rng
from msrrn.synthetic.paint import Picture, ellipse, fill, noise, smooth, stroke
from msrrn.synthetic.skin import LANDMARKS, UNIT, Looks


def paint_features(face: Picture, rng: Rng, anchors: Array, expression: Expression, looks: Looks) -> None:
    """Paints over skin (HEIGHT, WIDTH, 3) in place.

    The texture is the mean face's; the anchors tell how the person stretches it, so that the iris is round
    and the teeth keep their height once they are there.
    """
    _mouth(face, rng, anchors, expression, looks)
    for side in (-1, 1):
        _brow(face, rng, side, looks)
    style = rng.random(6)
    gaze = np.array(expression.gaze)
    for side, opened in zip((-1, 1), expression.eyes_open, strict=True):
        _eye(face, rng, side, opened, anchors, looks, gaze, style)
    np.clip(face, 0.0, 1.0, out=face)


def _mouth(face: Picture, rng: Rng, anchors: Array, e: Expression, looks: Looks) -> None:
    outer, inner = smooth(LANDMARKS[48:60], True), smooth(LANDMARKS[60:68], True)
    fill(face, outer + [0, 7], looks.skin * 0.5, rng.uniform(0.0, 0.5), 4)
    window = np.s_[
        int(outer[:, 1].min()) - 8 : int(outer[:, 1].max()) + 9,
        int(outer[:, 0].min()) - 8 : int(outer[:, 0].max()) + 9,
    ]
    part, shift = face[window], np.array([window[1].start, window[0].start])
    grain = (1 + noise(rng, (part.shape[0], part.shape[1]), 2.5, 3.0) * rng.uniform(0, 0.1))[..., None]
    strength, soft = rng.uniform(0.45, 1.0), rng.uniform(0.6, 1.8)
    fill(part, outer - shift, looks.lips * grain, strength, soft)
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
    density = rng.uniform(0.45, 1.0)
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
    radius = 0.098 + 0.02 * (style[2] - 0.5)
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
    stroke(face, [upper], lash, (1.0 + makeup) * stretch, 0.7 + 0.3 * style[2], 0.5)
    stroke(face, [lower], looks.skin * 0.35, 1.3 * stretch, 0.35 + 0.5 * style[3], 0.6)
    if makeup > 1.8:
        stroke(face, [np.array([outer, outer + [side * 7, -5]])], lash, 2, 0.8, 0.6)
    inner = lids[0] if side > 0 else lids[3]
    fill(face, ellipse(inner, (3, 2.5)), looks.skin * [0.8, 0.5, 0.45], 0.7, 0.8)
