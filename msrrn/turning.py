"""A face seen from a little further aside: its crop turned about the axes of the head.

The mean head (`msrrn.synthetic.anatomy`) is laid through a face's landmarks by least squares, as a weak perspective
camera would see it. The crop becomes a sheet whose depths are blended between the head's anchors; it is turned and
seen from the front again. A sheet cannot hide what is behind: a turn that would fold it is made smaller.
A milder kin of "face profiling" (Zhu et al., "Face Alignment Across Large Poses", CVPR 2016, section 4).
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.landmarks import NUM_LANDMARKS
from msrrn.synthetic.anatomy import MEAN

CELLS: Final = 25
"""The sheet's cells a side; between their centres it is bilinear."""
BLEND: Final = 0.07
"""sd, in sides of the crop, of the weights by which a cell's depth hangs on the anchors around it"""
BACKGROUND: Final = 3e-4
"""Weight of no depth at all, which what is far from every anchor has."""
SHARES: Final = (1.0, 0.7, 0.45, 0.25)
"""of a turn that are tried in order"""
STEEPEST: Final = -0.65
"""Change of the displacement from cell to cell, in cells, below which the sheet would nearly fold (-1)."""
INVERSIONS: Final = 6

Floats = NDArray[np.floating]

_CENTRES: Final = ((np.arange(CELLS) + 0.5) / CELLS).astype(np.float32)
_GRID: Final = np.stack(np.meshgrid(_CENTRES, _CENTRES), axis=-1)
_HEAD: Final = MEAN - MEAN[:NUM_LANDMARKS].mean(axis=0)


def turned(
    image: NDArray[np.uint8], shape: NDArray[np.float32], yaw: float, pitch: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A crop (H, H) and its landmarks (68, 2), in [0, 1] of it, after the head was turned.

    `yaw` and `pitch` are radians: positive ones move the tip of the nose right, and up. Where even the smallest of
    `SHARES` of the turn would fold the sheet, both come back as they are.
    """
    sheet = _sheet(shape.astype(np.float64))
    for share in SHARES:
        moved = _displacement(shape, sheet, share * yaw, share * pitch)
        if min(np.diff(moved[..., 0], axis=1).min(), np.diff(moved[..., 1], axis=0).min()) * CELLS > STEEPEST:
            return _warped(image, moved), (shape + _at(moved, shape[None])[0]).astype(np.float32)
    return image, shape


def _sheet(shape: Floats) -> NDArray[np.float32]:
    """(CELLS, CELLS): depth towards the viewer, in sides of the crop."""
    centred = shape - shape.mean(axis=0)
    affine = np.linalg.lstsq(_HEAD[:NUM_LANDMARKS], centred, rcond=None)[0].T
    left, sizes, right = np.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    scale = float(sizes.mean())
    anchors = scale * _HEAD @ np.vstack([rows, np.cross(rows[0], rows[1])]).T
    anchors[:NUM_LANDMARKS, :2] = centred
    places = (anchors[:, :2] + shape.mean(axis=0)).astype(np.float32)
    depth = (anchors[:, 2] - anchors[:NUM_LANDMARKS, 2].mean() + 0.3 * scale).astype(np.float32)
    across, down = (np.exp(-0.5 * (np.subtract.outer(_CENTRES, places[:, axis]) / BLEND) ** 2) for axis in (0, 1))
    down = down * np.exp(np.clip(depth / scale, -2, 1))  # what is in front covers what is behind
    blended: NDArray[np.float32] = (down * depth) @ across.T / (down @ across.T + BACKGROUND)
    return blended


def _displacement(shape: Floats, sheet: NDArray[np.float32], yaw: float, pitch: float) -> NDArray[np.float32]:
    """(CELLS, CELLS, 2): where the turn moves what lies at the centres of cells."""
    centre = shape.mean(axis=0)
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn_yaw = np.array([[cos_yaw, 0, sin_yaw], [0, 1, 0], [-sin_yaw, 0, cos_yaw]])
    turn_pitch = np.array([[1, 0, 0], [0, cos_pitch, -sin_pitch], [0, sin_pitch, cos_pitch]])
    points = np.concatenate([_GRID - centre, sheet[..., None]], axis=-1)
    moved = points @ (turn_pitch @ turn_yaw).T[:, :2]
    return np.asarray(moved + centre - _GRID, np.float32)


def _at(moved: NDArray[np.float32], places: Floats) -> NDArray[np.float32]:
    """The displacement at places (A, B, 2), in [0, 1]."""
    cells = (places * CELLS - 0.5).astype(np.float32)
    found = cv2.remap(moved, cells[..., 0], cells[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32)


def _warped(image: NDArray[np.uint8], moved: NDArray[np.float32]) -> NDArray[np.uint8]:
    source = _GRID
    for _ in range(INVERSIONS):
        source = _GRID - _at(moved, source)
    side = image.shape[0]
    maps = cv2.resize(source * side - 0.5, (side, side), interpolation=cv2.INTER_LINEAR)
    # Between the outermost centres of cells and the edge, where `resize` repeats what it has.
    pixels = np.arange(side) + 0.5
    beyond = (pixels - np.clip(pixels, side / CELLS / 2, side - side / CELLS / 2)).astype(np.float32)
    maps += np.stack(np.meshgrid(beyond, beyond), axis=-1)
    flat = cv2.remap(image, maps[..., 0], maps[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(flat, np.uint8)
