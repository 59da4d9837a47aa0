"""Checks of one annotation: by itself, in its picture, beside the detector's boxes, and beside another one."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from msrrn.landmarks import NUM_LANDMARKS, inter_pupil
from msrrn.synthetic.anatomy import MEAN
from pipelines.checks.catalogue import Problem
from pipelines.detection import Detection, expected_box

_HEAD: Final = np.column_stack([MEAN[:NUM_LANDMARKS], np.ones(NUM_LANDMARKS)])
_FIT: Final = np.linalg.pinv(_HEAD)

MAX_RESIDUAL: Final = 0.62
"""How far a point may lie from where the mean head, seen from the best side, has it; in pupil distances.

The worst point of a face lies 0.16 off in the median. At most: 0.43 on the 2,012 faces of 300-W (LFPW, HELEN,
AFW), 0.30 on 402 video frames, 0.26 on 560 synthetic faces. Mistakes have 0.73 at least: eyes exchanged 0.73,
a point dragged by 1.5 pupil distances 0.76, jaw reversed 1.0, one point twice 1.0, points off by one 1.5,
brows for mouth 1.3, points in a random order 2.3. (After a similarity of the flat mean shape instead, good
faces reach 0.86, because that cannot turn the head.)
"""

MIN_FACING: Final = -0.3
"""The side of the head that is seen: 1 is the front, -1 the back, 0 a full profile.

300-W, video frames and synthetic faces have 0.74 at least; mirrored without renumbering, -0.74 at most.
"""

MAX_OVERHANG: Final = 0.5
"""How far outside the picture a point may lie, in sides of the tight box: faces are cut off by its edge."""

MIN_DISPLACEMENT: Final = 0.28
MAX_DISPLACEMENT: Final = 0.6
MAX_SIZE_RATIO: Final = 1.35
"""A detection of the face's own size is another place for it from 0.28 to 0.6 of its side away.

Of the 2,012 faces the detector's own box lies within 0.20 sides of the expected one (0.19 on 402 video frames,
0.17 on synthetic faces); another person's of the same size is 0.71 sides away at least.
"""

TWICE: Final = 0.3
"""Mean distance of the points, in pupil distances, below which two annotations are of one face.

Two faces of one photo are 1.8 apart at least on AFW; the one face of 300-W that is annotated twice has 0.03.
"""


def check_shape(shape: NDArray[np.floating]) -> Problem | None:
    """Whether a shape (68, 2) can be a face: `unlike_a_face`, `eyes_swapped`, or nothing is wrong.

    The mean head in three dimensions (the synthetic generator's) is fitted by the affine map to the picture
    that leaves the least squares: it turns, tilts and stretches the head. Rotated pictures pass, at any angle.
    """
    camera = _FIT @ shape.astype(np.float64)
    x, y = camera[:3].T
    scale = float(np.sqrt((x @ x + y @ y) / 2))
    distances = np.linalg.norm(shape - _HEAD @ camera, axis=1)
    worst = int(distances.argmax())
    if not distances[worst] <= MAX_RESIDUAL * scale:
        far = distances[worst] / scale if scale > 0 else np.inf
        return Problem(
            "unlike_a_face",
            f"point {worst + 1} lies {far:.1f} pupil distances from where a face has it (limit {MAX_RESIDUAL:g})",
        )
    facing = (x[0] * y[1] - x[1] * y[0]) / float(np.sqrt((x @ x) * (y @ y)))
    if facing < MIN_FACING:
        return Problem("eyes_swapped", "its right half lies where the left half must be")
    return None


def check_in_picture(shape: NDArray[np.floating], width: int, height: int) -> Problem | None:
    """`outside` where a point of `shape` (68, 2) lies beyond `MAX_OVERHANG` outside a picture of this size."""
    beyond = overhang(shape, width, height)
    if beyond <= MAX_OVERHANG:
        return None
    return Problem("outside", f"a point lies {beyond:.1f} face sides outside the picture of {width} × {height} px")


def overhang(shape: NDArray[np.floating], width: int, height: int) -> float:
    """How far outside the picture the outermost point lies, in sides of the tight box; 0 when none is."""
    box = Box.around(shape)
    beyond = max(-0.5 - box.x0, -0.5 - box.y0, box.x1 - (width - 0.5), box.y1 - (height - 0.5), 0.0)
    return beyond / box.side


def check_detection(shape: NDArray[np.floating], detections: Sequence[Detection]) -> Problem | None:
    """`displaced` where a face of this one's size was found near an annotation (68, 2), and none in its place.

    It sees annotations that lie off by 0.3 to 0.6 of the box's side (0.7 to 1.4 pupil distances), of faces that
    the detector finds: one further away could as well be a face that it missed beside one that it found.
    """
    expected = expected_box(shape)
    alike = [item.box for item in detections if abs(np.log(item.box.side / expected.side)) < np.log(MAX_SIZE_RATIO)]
    offset = min((_offset(box, expected) for box in alike), key=lambda vector: float(np.hypot(*vector)), default=None)
    # A box of another size that overlaps may be its own too: detectors differ on turned heads.
    own = any(np.hypot(*_offset(item.box, expected)) < MIN_DISPLACEMENT for item in detections)
    if own or offset is None or np.hypot(*offset) > MAX_DISPLACEMENT:
        return None
    dx, dy = -offset * expected.side
    return Problem("displaced", f"it lies ({round(dx):+d}, {round(dy):+d}) px from the face that the detector finds")


def _offset(box: Box, expected: Box) -> NDArray[np.float64]:
    return np.asarray((np.array(box.centre) - np.array(expected.centre)) / expected.side, np.float64)


def same_face(one: NDArray[np.floating], other: NDArray[np.floating]) -> Problem | None:
    """`face_twice` where two shapes (68, 2) in one photo are of the same face; the message says how they differ."""
    difference = one.astype(np.float64) - other
    pupils = max(float(inter_pupil(one)), float(inter_pupil(other)))
    distance = float(np.linalg.norm(difference, axis=1).mean())
    if distance >= TWICE * pupils:
        return None
    if distance == 0:
        return Problem("face_twice", "both annotations are the same")
    dx, dy = difference.mean(axis=0)
    if difference.std(axis=0).max() < 0.1 and max(abs(dx), abs(dy)) >= 0.4:
        near_one = max(abs(abs(dx) - 1), abs(abs(dy) - 1)) < 0.1
        why = ": one of them counts pixels from 1, the other from 0" if near_one else ""
        return Problem("face_twice", f"the annotations are the same, but shifted by ({dx:+.2f}, {dy:+.2f}) px{why}")
    return Problem("face_twice", f"the annotations differ by {distance:.1f} px on average")


def near_before(shapes: NDArray[np.floating]) -> Iterator[list[int]]:
    """For each of the shapes (N, 68, 2) of one photo: those before it that `same_face` may take for the same.

    Points lie as far apart on average as their centres do, or farther. So a crowd is not compared all with all.
    """
    centres = shapes.mean(axis=1, dtype=np.float64)
    reach = (TWICE + 1e-6) * inter_pupil(shapes)
    for index in range(len(shapes)):
        apart = np.linalg.norm(centres[:index] - centres[index], axis=1)
        yield np.flatnonzero(apart < np.maximum(reach[:index], reach[index])).tolist()
