"""How far landmarks move where the picture hardly changed: python -m tests.benchmarks.steadiness [--ert FILE]

Frames of video, each as it is and a little changed, from the bytes of a file to landmarks: ours with either detector,
and, with a file of dlib's 68 points, dlib's HOG and ERT as a user would call them, which gives whole pixels.
Of each frame the largest face; after the change the one that lies nearest to it. Distances are means over landmarks,
in % of the pupils' distance, the picture's own movement taken off; all contenders on the frames in which all find a
face before and after the change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import dlib
import numpy as np

from msrrn.geometry import Points
from msrrn.metrics import nrmse_ip
from pipelines.annotation.looking import look
from pipelines.decoding import decode
from pipelines.detection import Detector, open_detector
from pipelines.models import Model
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings
from tests.benchmarks.calls import parser_with_data
from tests.benchmarks.pictures import Pixels, frames

MARGIN: Final = 4
"""Pixels that are cut off at each side, so that a picture can move."""

Contender = Callable[[bytes], Sequence[Points]]
"""The bytes of a file → shapes (68, 2) of its faces, in its pixels, largest first."""


@dataclass(frozen=True)
class Change:
    """What is done to a picture (H, W, 3), and by how much its content moves by that: x, y in pixels."""

    of: Callable[[Pixels], bytes]
    moves: tuple[int, int] = (0, 0)


def png(rgb: Pixels) -> bytes:
    return encoded(rgb, ".png", [])


def encoded(rgb: Pixels, ending: str, how: Sequence[int]) -> bytes:
    return bytes(cv2.imencode(ending, np.ascontiguousarray(rgb[..., ::-1]), how)[1])


def cut(rgb: Pixels, right: int = 0, down: int = 0) -> Pixels:
    """Without its margins, the content moved."""
    height, width = rgb.shape[:2]
    kept = rgb[MARGIN - down : height - MARGIN - down, MARGIN - right : width - MARGIN - right]
    return np.ascontiguousarray(kept)


def brighter(rgb: Pixels) -> Pixels:
    return np.asarray(np.minimum(rgb * 1.03, 255).round(), np.uint8)


def noisy(rgb: Pixels) -> Pixels:
    noise = np.random.default_rng(0).normal(0, 3, rgb.shape)
    return np.asarray(np.clip(rgb + noise, 0, 255).round(), np.uint8)


CHANGES: Final = {
    "moved by 1 px": Change(lambda rgb: png(cut(rgb, right=1)), (1, 0)),
    "moved by 3 px": Change(lambda rgb: png(cut(rgb, down=3)), (0, 3)),
    "3 % brighter": Change(lambda rgb: png(brighter(cut(rgb)))),
    "noise, sd 3 of 255": Change(lambda rgb: png(noisy(cut(rgb)))),
    "JPEG, quality 90": Change(lambda rgb: encoded(cut(rgb), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 90])),
    "JPEG, quality 70": Change(lambda rgb: encoded(cut(rgb), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 70])),
}


def ours(model: Model, detector: Detector) -> Contender:
    def shapes(data: bytes) -> list[Points]:
        seen = look(data, detector, AnnotateSettings(), model.card.crop_margin)
        faces = [face for view in seen.views for face in view.faces]
        if not faces:
            return []
        found = model.on_one_core(np.stack([face.crop for face in faces])).shapes
        shapes_in_crops = zip(faces, found.astype(np.float64), strict=True)
        return [face.frame.shape_to_upright(shape) for face, shape in shapes_in_crops]

    return shapes


def in_whole_pixels(contender: Contender) -> Contender:
    """As dlib gives landmarks: in small faces that alone is much of what they move."""
    return lambda data: [shape.round() for shape in contender(data)]


def dlibs(file: Path) -> Contender:
    detector, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(file))

    def shapes(data: bytes) -> list[Points]:
        rgb = decode(data).rgb
        boxes = sorted(detector(rgb), key=lambda box: box.area(), reverse=True)
        return [np.array([(point.x, point.y) for point in predictor(rgb, box).parts()], float) for box in boxes]

    return shapes


def moved(contender: Contender, rgb: Pixels) -> dict[str, float]:
    """Change → by how much the landmarks move; not those after which, or without which, no face is found."""
    if not (before := contender(png(cut(rgb)))):
        return {}
    found = {}
    for name, change in CHANGES.items():
        if after := contender(change.of(rgb)):
            still = np.stack(after) - change.moves
            found[name] = float(nrmse_ip(still, np.broadcast_to(before[0], still.shape)).min())
    return found


def table(by_contender: Mapping[str, Sequence[dict[str, float]]]) -> list[str]:
    """Lines: each change, on how many frames, and of each contender mean and 95th percentile, in %."""
    lines = []
    for name in CHANGES:
        common = [row for row in zip(*by_contender.values(), strict=True) if all(name in each for each in row)]
        errors = 100 * np.array([[each[name] for each in row] for row in common])
        told = [
            f"{contender} {of_it.mean():.2f} ({np.percentile(of_it, 95):.2f})"
            for contender, of_it in zip(by_contender, errors.T, strict=True)
        ]
        lines.append(f"{name}, {len(common)} frames: {', '.join(told)}")
    return lines


def main() -> None:
    parser = parser_with_data(__doc__)
    parser.add_argument("--frames", type=int, default=402)
    parser.add_argument("--model", help="an artifact (default: the model in the box)")
    parser.add_argument("--ert", type=Path, metavar="FILE", help="a predictor of dlib's, 68 points")
    arguments = parser.parse_args()
    model = open_model(arguments.model or "box").in_precision("auto")
    contenders = {name: ours(model, open_detector(name, model.precision)) for name in ("blazeface", "hog")}
    contenders["hog, in whole pixels"] = in_whole_pixels(contenders["hog"])
    if arguments.ert:
        contenders["dlib's HOG and ERT"] = dlibs(arguments.ert)
    pictures = [decode(frame.data).rgb for frame in frames(arguments.data, arguments.frames)]
    by_contender = {name: [moved(contender, rgb) for rgb in pictures] for name, contender in contenders.items()}
    print("mean (95th percentile) of the distance, % of the pupils' distance")
    for line in table(by_contender):
        print(line)


if __name__ == "__main__":
    main()
