"""One picture of an archive: its bytes → its faces, each with its box and its crop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box, CropFrame
from pipelines.decoding import Photo, decode, decode_grey
from pipelines.detection import Detection, Detector
from pipelines.detection.boxes import ordered
from pipelines.pyramid import CROP, crop, frame_around
from pipelines.settings import AnnotateSettings

TURNS: Final = (0, 90, 180, 270)
"""Degrees, clockwise, by which an upright image may be turned on to find its faces."""

MOST_CROPS: Final = 800
"""Longer side of a reduced picture from which most faces of photographs can be cropped. Smaller pictures are
halved nevertheless: where crops need more, grey at full size costs less than colours at full size did.
"""


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
class View:
    """An image turned on by `turned`, one of `TURNS`, and the faces that it shows so, largest box first, ties by x0,
    then y0.
    """

    turned: int
    faces: tuple[SeenFace, ...]


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen in a picture.

    `width` and `height` are those of the upright image, which is as the EXIF `orientation` (1 to 8) says to look.
    """

    width: int
    height: int
    orientation: int
    views: tuple[View, ...]


def look(
    data: bytes, detector: Detector, settings: AnnotateSettings, crop_margin: float, turns: Sequence[int] = TURNS[:1]
) -> Look:
    """Finds the faces of a picture, given as the bytes of its file, and crops them as `pipelines.pyramid.crop` does.

    It is turned by all of `turns`, unless it shows faces as it is, where that is one of them.

    Raises:
        Undecodable: the picture cannot be used; it says why.
    """

    def smallest(longer: int) -> float:
        return settings.min_face * longer if settings.min_face < 1 else settings.min_face

    def enough(longer: int) -> float:
        return max(detector.resolution * longer / smallest(longer), min(longer / 2, MOST_CROPS))

    photo = decode(data, enough=enough)
    found: dict[int, list[Detection]] = {}
    for turned in turns:
        found[turned] = _find(photo, detector, smallest(max(photo.size)), settings, turned)
        if turned == 0 and found[turned]:
            break
    detections = [(turned, item) for turned, items in found.items() for item in items]
    frames = [frame_around(item.box, crop_margin, roll=np.deg2rad(turned)) for turned, item in detections]
    crops = _crops(data, photo, frames)
    views: dict[int, list[SeenFace]] = {}
    for (turned, item), frame, pixels in zip(detections, frames, crops, strict=True):
        views.setdefault(turned, []).append(SeenFace(item, frame, pixels))
    return Look(*photo.size, photo.orientation, tuple(View(turned, tuple(faces)) for turned, faces in views.items()))


def _find(
    photo: Photo, detector: Detector, smallest: float, settings: AnnotateSettings, turned: int
) -> list[Detection]:
    height, width = photo.rgb.shape[:2]
    to_full = photo.to_reduced(photo.reduction).inverse()
    least = -np.inf if settings.min_score is None else settings.min_score
    lying = np.ascontiguousarray(np.rot90(photo.rgb, -turned // 90))
    found = [
        Detection(turned_back(item.box, turned, width, height).mapped(to_full), item.score)
        for item in detector(lying, smallest / photo.reduction)
        if item.score >= least and item.box.side * photo.reduction >= smallest
    ]
    return ordered(found)[: settings.max_faces]


def _crops(data: bytes, photo: Photo, frames: Sequence[CropFrame]) -> list[NDArray[np.uint8]]:
    """Each from the picture as it was decoded, where that is as fine as the crop, else from one that is."""
    wanted = [_reduction(frame, photo.reduction) for frame in frames]
    finest = min(wanted, default=photo.reduction)
    sources = {photo.reduction: (photo.rgb, photo.to_reduced(photo.reduction).inverse())}
    if finest < photo.reduction:
        sources[finest] = decode_grey(data, photo, finest), photo.to_reduced(finest).inverse()
    made = []
    for frame, reduction in zip(frames, wanted, strict=True):
        source = reduction if reduction == photo.reduction else finest
        picture, to_full = sources[source]
        # One that was reduced has few pixels more than the crop: bilinear samples between them would be less sharp
        # than those of the whole picture, by which training faces are cropped and their sharpness is measured.
        sampled = cv2.INTER_CUBIC if source > 1 else cv2.INTER_LINEAR
        made.append(crop(picture, CropFrame(frame.to_crop.after(to_full)), sampled))
    return made


def _reduction(frame: CropFrame, most: int) -> int:
    """The strongest reduction that leaves a crop its resolution."""
    return next((factor for factor in (8, 4, 2) if factor <= most and frame.side / factor >= CROP), 1)


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
