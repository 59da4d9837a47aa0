"""A whole photograph: who stands where, drawn from back to front, encoded as JPEG."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.synthetic.anatomy import Rng, draw_anchors, draw_expression
from msrrn.synthetic.camera import Camera
from msrrn.synthetic.covers import Shell, draw_brim, draw_covers
from msrrn.synthetic.head import Person, draw_head
from msrrn.synthetic.light import Light, draw_light
from msrrn.synthetic.paint import Picture
from msrrn.synthetic.pose import draw_pose, landmarks_seen
from msrrn.synthetic.scene import develop, draw_background
from msrrn.synthetic.skin import draw_looks
from msrrn.synthetic.surface import head_grid
from msrrn.synthetic.wear import draw_clothes, draw_glasses, draw_occluder, draw_trunk

FACE_WIDTH = 2.35
"""A typical face's width in pupil distances: what `scale` is chosen by."""
HEAD_BOX = np.array([-1.5, -2.6, 1.5, 1.2])
"""A head's edges around the camera's pivot, in pupil distances."""


@dataclass(frozen=True)
class SyntheticPhoto:
    """A photograph as an encoded file, and everything about its F faces, largest face first."""

    jpeg: bytes
    width: int
    height: int
    shapes: NDArray[np.float32]
    """(F, 68, 2) landmarks in pixels, 0-based pixel centres, x before y."""
    poses: NDArray[np.float32]
    """(F, 3) yaw, pitch, roll in degrees; positive: the nose to the picture's right, up, turned clockwise."""


def draw_photo(seed: int, index: int) -> SyntheticPhoto:
    """The photograph number `index` of the series `seed`: the same two numbers, the same bytes."""
    rng = np.random.default_rng((seed, index))
    width, height = (int(side) for side in rng.integers(300, 641, 2))
    cameras = _place(rng, width, height)
    picture = draw_background(rng, (height, width))
    light = draw_light(rng)
    faces = []
    for camera in sorted(cameras, key=lambda c: c.centre[1]):
        person = _draw_person(rng, camera, light)
        _draw(picture, person, rng)
        faces.append((landmarks_seen(person.anchors, camera), (camera.yaw, camera.pitch, camera.roll)))
    faces.sort(key=lambda face: -float(np.prod(np.ptp(face[0], axis=0))))
    done = cv2.cvtColor(develop(picture, min(camera.scale for camera in cameras), rng), cv2.COLOR_RGB2BGR)
    quality = int(rng.integers(35, 97))
    _, encoded = cv2.imencode(".jpg", done, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return SyntheticPhoto(
        encoded.tobytes(),
        width,
        height,
        np.stack([shape for shape, _ in faces]),
        np.array([pose for _, pose in faces], np.float32),
    )


def _place(rng: Rng, width: int, height: int) -> list[Camera]:
    """One camera a head; heads keep clear of each other, and their faces mostly inside the picture."""
    wanted = int(rng.choice([1, 2, 3, 4], p=[0.74, 0.15, 0.07, 0.04]))
    largest = min(300.0, 0.85 * min(width, height * 0.9), width / wanted * 0.95)
    placed: list[tuple[Camera, NDArray[np.float64]]] = []
    for attempt in range(60):
        size = float(np.exp(rng.uniform(np.log(80), np.log(max(largest, 85)))))
        if attempt > 30:
            size = 80.0
        scale = size / FACE_WIDTH
        margin = scale * np.array([1.2, 1.35, 1.2, 1.0])
        low, high = margin[:2], np.array([width, height]) - margin[2:]
        if (high <= low).any():
            low = high = (low + high) / 2
        centre = rng.uniform(low, high)
        box = np.concatenate([centre, centre]) + HEAD_BOX * scale
        if any((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for _, other in placed):
            continue
        camera = Camera(*draw_pose(rng), distance=float(rng.uniform(8, 28)), scale=scale,
                        centre=(float(centre[0]), float(centre[1])))  # fmt: skip
        placed.append((camera, box))
        if len(placed) == wanted:
            break
    return [camera for camera, _ in placed]


def _draw_person(rng: Rng, camera: Camera, light: Light) -> Person:
    expression = draw_expression(rng)
    anchors = draw_anchors(rng, expression)
    looks = draw_looks(rng)
    grid = head_grid(anchors, rng.uniform(0.05, 0.30))
    return Person(anchors, expression, looks, camera, light, grid)


def _draw(picture: Picture, person: Person, rng: Rng) -> None:
    covers = draw_covers(rng, person.looks.male, person.looks.age)
    shells = [Shell(cover, person, rng) for cover in covers]
    for shell in reversed(shells):
        shell.behind(picture)
    clothes = draw_trunk(picture, person, rng)
    draw_head(picture, person, rng)
    draw_clothes(picture, clothes, person, rng)
    glasses = rng.random() < 0.2
    if glasses:
        draw_glasses(picture, person, rng)
    for shell in shells:
        shell.before(picture)
    for cover in covers:
        if cover.brim:
            draw_brim(picture, cover, person, rng)
    if rng.random() < 0.12:
        draw_occluder(picture, person, rng)
