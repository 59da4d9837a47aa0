"""The mean head as anchors in three dimensions, and how identity and expression move them.

The unit is the distance of the pupils, the origin lies midway between them; x points to the right of the
picture, y down, z to the viewer. The numbers are round ones after common anthropometric tables (Farkas,
"Anthropometry of the Head and Face", 1994: an inter-pupillary distance of 62 mm, a bizygomatic breadth of
135 mm, ...), set by hand: no annotated data set is embedded here.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.landmarks import MIRROR, NUM_LANDMARKS

Array = NDArray[np.float64]
Rng = np.random.Generator

_LEFT_HALF: Final[dict[int, tuple[float, float, float]]] = {
    8: (0.00, 1.76, 0.04), 9: (0.28, 1.72, -0.06), 10: (0.52, 1.57, -0.24), 11: (0.76, 1.37, -0.48),
    12: (0.95, 1.14, -0.74), 13: (1.06, 0.86, -0.92), 14: (1.13, 0.56, -1.00), 15: (1.17, 0.26, -1.00),
    16: (1.19, -0.03, -1.00),
    22: (0.20, -0.26, 0.23), 23: (0.39, -0.33, 0.20), 24: (0.58, -0.35, 0.12), 25: (0.77, -0.31, -0.02),
    26: (0.92, -0.20, -0.22),
    27: (0.00, -0.03, 0.26), 28: (0.00, 0.17, 0.37), 29: (0.00, 0.37, 0.50), 30: (0.00, 0.57, 0.62),
    33: (0.00, 0.75, 0.41), 34: (0.11, 0.72, 0.38), 35: (0.22, 0.68, 0.30),
    42: (0.30, 0.03, -0.01), 43: (0.43, -0.07, 0.06), 44: (0.57, -0.07, 0.04), 45: (0.69, 0.00, -0.09),
    46: (0.58, 0.055, 0.02), 47: (0.43, 0.055, 0.04),
    51: (0.00, 0.95, 0.41), 52: (0.11, 0.93, 0.40), 53: (0.27, 0.95, 0.28), 54: (0.42, 1.02, 0.06),
    55: (0.28, 1.17, 0.24), 56: (0.12, 1.24, 0.34), 57: (0.00, 1.26, 0.36),
    62: (0.00, 1.03, 0.37), 63: (0.12, 1.02, 0.35), 64: (0.36, 1.03, 0.11), 65: (0.12, 1.10, 0.32),
    66: (0.00, 1.11, 0.34),
}  # fmt: skip

_EXTRA_MIDLINE: Final = (
    (0.0, -0.22, 0.28), (0.0, -0.60, 0.26), (0.0, -1.05, 0.08), (0.0, -1.50, -0.35), (0.0, 0.67, 0.55),
    (0.0, 0.85, 0.38), (0.0, 1.40, 0.24), (0.0, 1.58, 0.24), (0.0, 1.84, -0.22), (0.0, 2.02, -0.50),
    (0.0, 2.50, -0.50),
)  # fmt: skip

_EXTRA_LEFT: Final = (
    (0.29, 0.60, 0.23), (0.22, 0.58, 0.37), (0.10, 0.57, 0.56), (0.12, 0.45, 0.40), (0.17, 0.28, 0.20),
    (0.15, 0.05, 0.12), (0.35, 0.48, 0.17), (0.46, 0.27, 0.10), (0.27, -0.12, 0.12), (0.50, -0.16, 0.09),
    (0.50, -0.005, 0.08), (0.50, 0.16, 0.05), (0.85, 0.05, -0.22), (0.74, 0.38, -0.06), (0.98, 0.25, -0.42),
    (0.57, 0.68, 0.10), (0.81, 0.85, -0.24), (0.45, 0.88, 0.13), (0.28, 1.50, 0.10), (0.52, 1.28, -0.02),
    (0.40, -0.65, 0.19), (0.80, -0.60, -0.16), (0.50, -1.05, -0.03), (0.96, -0.95, -0.52), (1.10, -0.32, -0.66),
    (1.22, 0.15, -1.40), (1.18, -0.50, -1.30), (0.30, 1.82, -0.30), (0.58, 1.68, -0.62), (0.86, 1.36, -1.15),
    (0.52, 2.10, -0.72), (0.72, 2.20, -1.20), (0.76, 2.80, -1.25), (0.58, -1.50, -0.42),
)  # fmt: skip


def _mean_anchors() -> Array:
    anchors = np.zeros((NUM_LANDMARKS, 3))
    for index, point in _LEFT_HALF.items():
        anchors[index] = point
        anchors[MIRROR[index]] = point[0] * -1.0, point[1], point[2]
    left = np.array(_EXTRA_LEFT)
    return np.concatenate([anchors, np.array(_EXTRA_MIDLINE), left, left * [-1.0, 1.0, 1.0]])


MEAN: Final = _mean_anchors()
"""(N, 3): the 68 landmarks first, then points that shape the surface between and around them."""


@dataclass(frozen=True)
class Expression:
    """What the face does. All but `gaze` in units of "fully", around 0."""

    jaw_open: float
    smile: float
    pucker: float
    lip_part: float
    eyes_open: tuple[float, float]
    brow_raise: float
    frown: float
    gaze: tuple[float, float]


def draw_expression(rng: Rng) -> Expression:
    kind = rng.choice(5, p=[0.27, 0.18, 0.31, 0.15, 0.09])
    smile, part, jaw, pucker = rng.normal(0.0, 0.15), 0.0, 0.0, 0.0
    if kind == 1:
        smile = rng.uniform(0.2, 0.9)
    elif kind == 2:
        smile, part, jaw = rng.uniform(0.3, 1.3), rng.uniform(0.2, 1.0), abs(rng.normal(0.0, 0.13))
    elif kind == 3:
        jaw, part, smile = rng.uniform(0.05, 0.85), rng.uniform(0.1, 0.6), rng.normal(0.1, 0.3)
    elif kind == 4:
        pucker, part = rng.uniform(0.2, 1.0), rng.uniform(0.0, 0.4)
    lids = float(np.clip(rng.normal(1.0, 0.17) - 0.15 * max(smile, 0.0), 0.35, 1.6))
    if rng.random() < 0.07:
        lids = rng.uniform(0.0, 0.25)
    wink = rng.uniform(0.0, 0.9) if rng.random() < 0.03 else 1.0
    both = (lids * wink, lids) if rng.random() < 0.5 else (lids, lids * wink)
    return Expression(
        jaw_open=float(jaw),
        smile=float(smile),
        pucker=float(pucker),
        lip_part=float(part),
        eyes_open=(float(both[0]), float(both[1])),
        brow_raise=float(rng.normal(0.0, 0.6)),
        frown=float(rng.normal(0.0, 0.5)),
        gaze=(float(rng.normal(0.0, 0.045)), float(rng.normal(0.0, 0.015))),
    )


def _bump(values: Array, centre: float, width: float) -> Array:
    return np.asarray(np.exp(-0.5 * ((values - centre) / width) ** 2))


def _ramp(values: Array, low: float, high: float) -> Array:
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def draw_anchors(rng: Rng, expression: Expression) -> Array:
    """The anchors (N, 3) of one person with one expression."""
    a = _identity(MEAN.copy(), rng)
    _express(a, expression, rng)
    return a + _asymmetry(rng)


def _identity(a: Array, rng: Rng) -> Array:
    x, y, z = MEAN.T
    side = _ramp(np.abs(x), 0.45, 1.0)
    normal = rng.standard_normal
    child = abs(normal()) * 0.5 if rng.random() < 0.15 else 0.0

    a[:, 0] += x * side * (0.055 * normal() + 0.05 * child)
    a[:, 0] += x * _ramp(np.abs(x), 0.3, 0.8) * _bump(y, 1.3, 0.4) * 0.075 * normal()
    a[:, 0] += x * _bump(y, 1.72, 0.2) * 0.14 * normal()
    a[:, 0] += x * side * _bump(y, 0.3, 0.4) * 0.025 * normal()
    a[:, 1] += np.maximum(y, 0) * (0.045 * normal() - 0.10 * child)
    a[:, 1] += _ramp(y, 1.2, 1.75) * _bump(x, 0.0, 0.8) * 0.075 * normal()
    a[:, 1] += np.minimum(y + 0.4, 0) * (0.08 * normal() + 0.1 * child)
    a[:, 1] += side * _bump(y, 0.5, 0.8) * 0.085 * normal()
    a[:, 2] += (z - 0.1) * np.maximum(0.10 * normal(), -0.25)
    a[:, 2] += _ramp(y, 1.2, 1.6) * _bump(x, 0.0, 0.5) * 0.07 * normal()

    nose = _bump(x, 0.0, 0.30) * _bump(y, 0.58, 0.26)
    a[:, 1] += nose * (0.05 * normal() - 0.05 * child)
    a[:, 0] += x * nose * (0.22 * normal() + 0.05 * child)
    a[:, 2] += nose * np.maximum(0.09 * normal() - 0.08 * child, -0.2)
    a[:, 2] += _bump(x, 0.0, 0.2) * _bump(y, 0.1, 0.25) * 0.05 * normal()
    a[30, 1] += 0.025 * normal()

    width, height, tilt, spacing = (
        1 + 0.05 * normal(),
        1 + 0.12 * normal(),
        0.010 * normal(),
        0.018 * normal(),
    )
    for eye, sign in ((slice(36, 42), -1.0), (slice(42, 48), 1.0)):
        offset = a[eye] - a[eye].mean(axis=0)
        a[eye, 0] += offset[:, 0] * (width - 1 + 0.08 * child) + sign * spacing
        a[eye, 1] += offset[:, 1] * (height - 1 + 0.2 * child) + tilt * sign * offset[:, 0] / 0.2
    brow = _bump(y, -0.3, 0.12) * _ramp(np.abs(x), 0.05, 0.2)
    a[:, 1] += brow * (0.055 * normal() - 0.05 * child)
    a[:, 1] += brow * (np.abs(x) - 0.55) * 0.10 * normal()
    a[:, 1] += brow * ((np.abs(x) - 0.55) ** 2 - 0.06) * 0.35 * normal()
    a[:, 0] += brow * np.sign(x) * 0.03 * normal()
    a[:, 0] += brow * (x - 0.55 * np.sign(x)) * 0.10 * normal()

    mouth = _bump(y, 1.09, 0.14) * _ramp(-np.abs(x), -0.75, -0.4)
    a[:, 0] += x * mouth * 0.10 * normal()
    a[:, 1] += mouth * 0.045 * normal()
    upper, lower = np.maximum(0.35 * normal(), -0.7), np.maximum(0.3 * normal(), -0.7)
    a[49:54, 1] -= upper * 0.06
    a[55:60, 1] += lower * 0.09
    a[49:54, 2] += upper * 0.02
    a[55:60, 2] += lower * 0.02
    return a


def _express(a: Array, e: Expression, rng: Rng) -> None:
    x, y = MEAN[:, 0], MEAN[:, 1]
    sign = np.sign(x)
    jaw = _ramp(y, 0.55, 1.35) * np.clip((MEAN[:, 2] + 1.1) / 1.15, 0, 1) * _ramp(-y, -2.3, -1.8)
    upper, lower, corners = [61, 62, 63], [67, 66, 65], [48, 54, 60, 64]

    shut = (a[lower, 1] - a[upper, 1]) / 2 - 0.006
    a[upper, 1] += shut
    a[lower, 1] -= shut
    a[49:54, 1] += 0.02
    a[55:60, 1] -= 0.03
    part = max(e.lip_part, 0.0)
    for rows, amount in ((upper, -0.085), ([50, 51, 52], -0.06), (lower, 0.08), ([58, 57, 56], 0.07)):
        a[rows, 1] += amount * part
    a[[49, 53], 1] -= 0.035 * part
    a[[59, 55], 1] += 0.045 * part

    drop = 0.50 * e.jaw_open
    jaw[[31, 32, 33, 34, 35]] = 0.0
    jaw[49:54] = 0.06
    jaw[upper] = 0.06
    jaw[lower] = jaw[55:60] = 0.0
    jaw[corners] = 0.0
    a[:, 1] += jaw * drop
    a[:, 2] -= jaw * drop * 0.35
    a[lower, 1] += drop * 0.92
    a[55:60, 1] += drop * np.array([0.75, 0.95, 0.97, 0.95, 0.75])
    a[corners, 1] += 0.45 * drop
    a[corners, 0] -= sign[corners] * 0.12 * drop

    s = e.smile
    lips = np.zeros(len(a))
    lips[48:68] = np.minimum(np.abs(x[48:68]) / 0.42, 1.0)
    around = _bump(y, 0.95, 0.28) * _bump(np.abs(x), 0.5, 0.22) * 0.6
    around[48:68] = 0
    pull = lips + around
    a[:, 0] += sign * pull * 0.125 * s
    a[:, 1] -= pull**2 * 0.075 * s
    a[:, 2] -= lips * 0.09 * s
    a[49:54, 1] -= 0.012 * s
    a[:, 2] += _bump(y, 0.5, 0.2) * _bump(np.abs(x), 0.6, 0.15) * 0.06 * max(s, 0.0)
    a[31:36, 0] *= 1 + 0.08 * max(s, 0.0)
    a[:, 1] -= 0.02 * s * _bump(y, 0.7, 0.1) * _bump(x, 0.0, 0.25)

    a[48:68, 0] -= x[48:68] * 0.35 * e.pucker
    a[48:68, 2] += 0.06 * e.pucker

    for eye, sides, opening in (
        (slice(36, 42), (36, 39), e.eyes_open[0]),
        (slice(42, 48), (42, 45), e.eyes_open[1]),
    ):
        t = np.clip((a[eye, 0] - a[sides[0], 0]) / (a[sides[1], 0] - a[sides[0], 0]), 0, 1)
        rest = a[sides[0], 1] * (1 - t) + a[sides[1], 1] * t + 0.035 * (1 - min(opening, 1.0)) * np.sin(np.pi * t)
        a[eye, 1] = rest + (a[eye, 1] - rest) * np.maximum(opening, 0.06)
    brow = _bump(y, -0.3, 0.13) * _ramp(np.abs(x), 0.05, 0.2)
    inner = brow * _bump(np.abs(x), 0.2, 0.2)
    a[:, 1] -= brow * 0.06 * e.brow_raise
    a[:, 1] += inner * 0.04 * e.frown
    a[:, 0] -= inner * sign * 0.03 * e.frown
    lopsided = 0.03 * rng.standard_normal() * (1 + abs(s))
    a[48:68, 1] += lopsided * x[48:68]
    a[48:68, 0] += 0.015 * rng.standard_normal()


_LENGTH_SCALE: Final = 0.45


def _asymmetry(rng: Rng) -> Array:
    """A smooth random field of a few hundredths: what no named mode describes."""
    waves = 24
    k = rng.standard_normal((waves, 3)) / _LENGTH_SCALE
    phase = rng.uniform(0, 2 * np.pi, waves)
    basis = np.cos(MEAN @ k.T + phase) * np.sqrt(2.0 / waves)
    return np.asarray(basis @ rng.standard_normal((waves, 3)) * [0.015, 0.013, 0.02])
