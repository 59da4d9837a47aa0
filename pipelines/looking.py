"""One picture of an archive: its bytes → its faces, each with its box and its crop."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box, CropFrame
from pipelines.decoding import decode
from pipelines.detection import Detection, Detector
from pipelines.detection.boxes import ordered
from pipelines.pyramid import crop, frame_around
from pipelines.settings import AnnotateSettings


@dataclass(frozen=True, eq=False)
class SeenFace:
    """A face that was found.

    `detection` has its box, in pixels of the upright image. `frame` maps between that image and `crop`, grey
    (200, 200) uint8, which shows the face upright however the picture lies.
    """

    detection: Detection
    frame: CropFrame
    crop: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen in a picture.

    `width` and `height` are those of the upright image, which is as the EXIF `orientation` (1 to 8) says to look.
    `turned` is by how many degrees, clockwise, that was turned on to find the faces: 0, 90, 180 or 270; 0 where
    there are none. `faces` come largest box first, ties by x0, then y0.
    """

    width: int
    height: int
    orientation: int
    turned: int
    faces: tuple[SeenFace, ...]


def look(data: bytes, detector: Detector, settings: AnnotateSettings, crop_margin: float) -> Look:
    """Finds the faces of a picture, given as the bytes of its file, and crops them as `pipelines.pyramid.crop` does.

    Raises:
        Undecodable: the picture cannot be used; it says why.
    """
    photo = decode(data)
    height, width = photo.rgb.shape[:2]
    turned, detections = _find(photo.rgb, detector, settings)
    frames = [frame_around(item.box, crop_margin, roll=np.deg2rad(turned)) for item in detections]
    faces = [SeenFace(item, frame, crop(photo.rgb, frame)) for item, frame in zip(detections, frames, strict=True)]
    return Look(width, height, photo.orientation, turned, tuple(faces))


def _find(rgb: NDArray[np.uint8], detector: Detector, settings: AnnotateSettings) -> tuple[int, list[Detection]]:
    """The faces as the picture lies; where there are none, those of the quarter turn with the surest one."""
    height, width = rgb.shape[:2]
    smallest = settings.min_face * max(height, width) if settings.min_face < 1 else settings.min_face
    least = -np.inf if settings.min_score is None else settings.min_score
    best: tuple[int, list[Detection]] = 0, []
    for turned in (0, 90, 180, 270) if settings.any_rotation else (0,):
        found = [
            Detection(turned_back(item.box, turned, width, height), item.score)
            for item in detector(np.ascontiguousarray(np.rot90(rgb, -turned // 90)))
            if item.score >= least and item.box.side >= smallest
        ]
        if found and (not best[1] or max(item.score for item in found) > max(item.score for item in best[1])):
            best = turned, found
        if turned == 0 and found:
            break
    return best[0], ordered(best[1])[: settings.max_faces]


def turned_back(box: Box, turned: int, width: int, height: int) -> Box:
    """A box of a picture (width, height) after it was turned by `turned` degrees clockwise, as it was before."""
    x0, y0, x1, y1 = box.edges
    if turned == 90:
        return Box(y0, height - 1 - x1, y1, height - 1 - x0)
    if turned == 180:
        return Box(width - 1 - x1, height - 1 - y1, width - 1 - x0, height - 1 - y0)
    if turned == 270:
        return Box(width - 1 - y1, x0, width - 1 - y0, x1)
    return box
