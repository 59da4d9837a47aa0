"""How a head is held, and its landmarks as an annotator of 300-W would set them."""

import numpy as np
from numpy.typing import NDArray

from msrrn.synthetic.anatomy import Array, Rng
from msrrn.synthetic.camera import Camera
from msrrn.synthetic.surface import jaw_candidates

MAX_YAW, MAX_PITCH, MAX_ROLL = 45.0, 25.0, 25.0


def _held_within(rng: Rng, spread: float, limit: float, even: float) -> float:
    """An angle in degrees: mostly normal, at times uniform, never beyond the limit."""
    if rng.random() < even:
        return float(rng.uniform(-limit, limit))
    angle = spread * rng.standard_normal()
    return float(angle if abs(angle) <= limit else rng.uniform(-limit, limit))


def draw_pose(rng: Rng) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees (see `camera.rotation` for the signs)."""
    return (
        _held_within(rng, 13.0, MAX_YAW, 0.20),
        _held_within(rng, 7.0, MAX_PITCH, 0.06),
        _held_within(rng, 8.0, MAX_ROLL, 0.06),
    )


def landmarks_seen(anchors: Array, camera: Camera) -> NDArray[np.float32]:
    """The 68 landmarks in pixels (68, 2), the jaw on the contour one sees."""
    shape = camera.see(anchors[:68])
    places, outward = jaw_candidates(anchors)
    seen = camera.see(places)
    reach = (seen * camera.directions(outward)[:, None, :]).sum(axis=-1)
    shape[:17] = seen[np.arange(17), reach.argmax(axis=1)]
    return shape.astype(np.float32)
