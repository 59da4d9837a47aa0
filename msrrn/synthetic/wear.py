"""What a person wears or holds: clothes, glasses, and things in front of the face."""

import numpy as np

from msrrn.synthetic.anatomy import Array, Rng
from msrrn.synthetic.camera import Camera
from msrrn.synthetic.head import Person
from msrrn.synthetic.paint import Picture, ellipse, fill, octaves, smooth, stroke


def _shoulders(camera: Camera, spread: float, neckline: float) -> tuple[Array, Array]:
    """Outlines in pixels: the trunk with the neck, and the clothes with their opening."""
    right = np.array([[-0.62, 2.0], [-0.85, 2.35], [-1.5 * spread, 2.65], [-2.4 * spread, 3.0], [-2.9 * spread, 4.0]])
    foot = np.array([[-3.1 * spread, 12.0], [3.1 * spread, 12.0]])
    left = right[::-1] * [-1.0, 1.0]
    opening = smooth(np.array([[0.66, 2.15], [0.45, 2.15 + 0.75 * (neckline - 2.15)], [0.0, neckline],
                               [-0.45, 2.15 + 0.75 * (neckline - 2.15)], [-0.66, 2.15]]), False)  # fmt: skip
    trunk = np.concatenate([smooth(right, False), foot, smooth(left, False)])
    clothes = np.concatenate([smooth(right[1:], False), foot, smooth(left[:-1], False), opening])
    body = Camera(0.0, 0.0, 0.35 * camera.roll, camera.distance, camera.scale, camera.centre)
    base = camera.see(np.array([0.0, 2.5, -1.1])) - body.see(np.array([0.0, 2.5, -1.1]))
    outlines = []
    for flat in (trunk, clothes):
        points = np.column_stack([flat, np.full(len(flat), -1.1)])
        outlines.append(body.see(points) + base)
    return outlines[0], outlines[1]


def draw_trunk(picture: Picture, person: Person, rng: Rng) -> Array:
    """The bare trunk, before the head; gives the outline (K, 2) of the clothes for `draw_clothes`."""
    trunk, clothes = _shoulders(person.camera, rng.uniform(0.8, 1.15), rng.uniform(2.2, 3.4))
    lit = person.looks.skin * (person.light.ambient + 0.4 * person.light.colours.sum(axis=0))
    fill(picture, trunk, lit * rng.uniform(0.6, 0.95), 1.0, 0.8)
    return clothes


def draw_clothes(picture: Picture, outline: Array, person: Person, rng: Rng) -> None:
    """Clothes over trunk and neck, with stripes, folds, and at times a collar."""
    top = int(np.clip(outline[:, 1].min() - 8, 0, picture.shape[0]))
    size = picture.shape[0] - top, picture.shape[1]
    if size[0] < 4:
        return
    colour = rng.uniform(0.02, 0.95, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0.02, 0.95))
    cloth = np.empty((*size, 3), np.float32)
    cloth[:] = colour
    if rng.random() < 0.4:
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
        pitch, turn = rng.uniform(4, 30) / (2 * np.pi), rng.uniform(0, np.pi)
        wave = np.sin((rows * np.sin(turn) + columns * np.cos(turn)) / pitch)
        cloth += ((wave > rng.uniform(-0.5, 0.8))[..., None] * rng.uniform(-0.5, 0.5, 3)).astype(np.float32)
    folds = octaves(rng, size, rng.uniform(20, 90), 2) * rng.uniform(0.05, 0.25)
    cloth *= (1 + folds)[..., None]
    np.clip(cloth, 0.0, 1.0, out=cloth)
    fill(picture[top:], outline - [0, top], cloth * rng.uniform(0.6, 1.1), 1.0, 0.7)
    if rng.random() < 0.35:
        shade = rng.uniform(0.05, 1.0) * np.ones(3)
        for side in (-1, 1):
            flap = np.array([[side * 0.70, 1.95], [side * 0.85, 2.4], [side * 0.45, 2.95], [side * 0.05, 2.75]])
            seen = person.camera.see(np.column_stack([flap, np.full(4, -0.7)]))
            fill(picture, seen, shade, 1.0, 0.6)
            stroke(picture, [seen], shade * 0.5, 1, 0.6)


def draw_glasses(picture: Picture, person: Person, rng: Rng) -> None:
    """Two rims, a bridge, temples, and lenses that are clear, tinted, reflecting or dark."""
    camera, anchors = person.camera, person.anchors
    width, height = rng.uniform(0.30, 0.41), rng.uniform(0.19, 0.34)
    power, low, ahead = rng.uniform(0.45, 1.0), rng.uniform(-0.02, 0.12), rng.uniform(0.16, 0.26)
    colour = rng.uniform(0.0, 0.12, 3) if rng.random() < 0.65 else rng.uniform(0.1, 0.8, 3)
    thick = max(1.0, camera.scale * rng.uniform(0.012, 0.065))
    dark = rng.random() < 0.10
    tint, strength = (
        (rng.uniform(0, 0.12, 3), rng.uniform(0.75, 1.0)) if dark else (rng.uniform(0.3, 1, 3), rng.uniform(0, 0.12))
    )
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    rim = np.stack([np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power * width,
                    np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power * height], axis=1)  # fmt: skip
    curves, inner = [], []
    for side, rows in ((-1, slice(36, 42)), (1, slice(42, 48))):
        centre = anchors[rows].mean(axis=0)
        xy = centre[:2] + [side * 0.02, low] + rim
        depth = ahead + centre[2] - 0.22 * (np.abs(xy[:, 0]) - 0.3) ** 2
        lens = camera.see(np.column_stack([xy, depth]))
        fill(picture, lens, tint, strength, 0.5)
        if rng.random() < 0.3:
            middle = lens.mean(axis=0)
            glare = middle + (lens[[3, 8, 16, 22]] - middle) * rng.uniform(0.3, 0.9, (4, 1))
            fill(picture, glare, [1.0, 1.0, 1.0], rng.uniform(0.1, 0.7), rng.uniform(0.5, 3))
        curves.append(np.concatenate([lens, lens[:1]]))
        hinge = np.array([centre[0] + side * (width + 0.02), centre[1] + low - 0.06, ahead + centre[2] - 0.1])
        ear = np.array([side * 1.22, -0.02, -1.25])
        if side * camera.yaw < 8:
            bow = camera.see(np.stack([hinge, (hinge + ear) / 2 + [side * 0.13, 0, 0], ear]))
            stroke(picture, [smooth(bow, False)], colour, thick * 0.8, 0.95, 0.4)
        inner.append(np.array([centre[0] - side * width * 0.95, centre[1] + low - 0.05, ahead + 0.03]))
    top = (inner[0] + inner[1]) / 2 + [0, -0.05, 0.04]
    curves.append(smooth(camera.see(np.stack([inner[0], top, inner[1]])), False))
    if rng.random() < 0.88 or dark:
        stroke(picture, curves, colour, thick, rng.uniform(0.7, 1.0), 0.4)


def draw_occluder(picture: Picture, person: Person, rng: Rng) -> None:
    """A hand, a stick, a board or a blob over a part of the face, mostly over its edge."""
    camera = person.camera
    kind = rng.choice(4, p=[0.4, 0.25, 0.2, 0.15])
    angle = rng.uniform(-0.3, np.pi + 0.3) if rng.random() < 0.8 else rng.uniform(0, 2 * np.pi)
    at = camera.see(np.array([0.95 * np.cos(angle) * 1.15, 0.7 + 1.15 * np.sin(angle), 0.3]))
    scale = camera.scale
    if kind == 0:
        lit = person.looks.skin * (person.light.ambient + 0.5 * person.light.colours.sum(axis=0))
        heading = angle + np.pi + rng.normal(0, 0.7)
        turn = np.array([np.cos(heading), np.sin(heading)])
        sideways = np.array([-turn[1], turn[0]])
        fill(
            picture,
            ellipse(at - turn * scale * 0.6, (scale * 0.55, scale * 0.42), heading),
            lit * 0.9,
            1.0,
            1.0,
        )
        for i in range(4):
            root = at + sideways * (i - 1.5) * scale * 0.2 - turn * scale * 0.3
            tip = root + (turn + sideways * (i - 1.5) * 0.08) * scale * rng.uniform(0.4, 0.8)
            stroke(picture, [np.stack([root, tip])], lit * 0.55, scale * 0.21, 1.0, 0.8)
            stroke(picture, [np.stack([root, tip])], lit * rng.uniform(0.85, 1.1), scale * 0.165, 1.0, 0.8)
    elif kind == 1:
        far = at + rng.normal(0, 1, 2) * scale * 2 + [0, scale * 2.5]
        shade = rng.uniform(0.02, 0.9, 3)
        stroke(picture, [np.stack([at, far])], shade, scale * rng.uniform(0.08, 0.3), 1.0, 0.7)
        fill(picture, ellipse(at, (scale * rng.uniform(0.1, 0.3),) * 2), shade * 0.6, 1.0, 0.7)
    elif kind == 2:
        size = scale * rng.uniform(0.3, 1.0, 2)
        c, s = np.cos(angle + 0.3), np.sin(angle + 0.3)
        box = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size @ np.array([[c, s], [-s, c]])
        fill(
            picture,
            box + at + size.max() * 0.6 * np.array([np.cos(angle), np.sin(angle)]),
            rng.uniform(0, 1, 3),
            1.0,
            0.7,
        )
    else:
        blob = ellipse(at, scale * rng.uniform(0.2, 0.6, 2), angle, 9) + rng.normal(0, scale * 0.08, (9, 2))
        fill(picture, smooth(blob, True), rng.uniform(0, 1, 3), rng.uniform(0.8, 1.0), rng.uniform(0.7, 6))
