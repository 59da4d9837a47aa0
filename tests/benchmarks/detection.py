"""What each detector finds, costs and how it places its boxes: python -m tests.benchmarks.detection [--limit 200]

Photographs of 300-W, those of `val.txt` left out, one thread, CPU time. Side by side in one run: dlib's HOG
detector without and with one upsampling, as its own examples use it, and every detector whose model file is
there. The last columns are the spread about the convention of boxes, which the box jitter of training must cover.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import cv2
import dlib
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.decoding import decode
from pipelines.detection import BoxMapping, Detection, DetectorName, expected_box, match, open_detector
from pipelines.errors import UserError
from pipelines.sources.pts import parse_pts
from tests.benchmarks.calls import parser_with_data

Find = Callable[[NDArray[np.uint8]], list[Detection]]
Shapes = list[NDArray[np.float64]]
SLOW = {"cnn": 10}
"""Detectors that see only every so manieth photograph."""


def photographs(root: Path, limit: int) -> list[tuple[bytes, Shapes]]:
    """Photographs with their annotated faces, evenly drawn: AFW has a copy of the photo for each face."""
    held_out = set((root / "val.txt").read_text().split())
    by_digest: dict[str, tuple[Path, Shapes]] = {}
    for annotation in sorted(root.rglob("*.pts")):
        if annotation.relative_to(root).with_suffix("").as_posix() not in held_out:
            photo = annotation.with_suffix(".jpg")
            digest = hashlib.sha256(photo.read_bytes()).hexdigest()
            by_digest.setdefault(digest, (photo, []))[1].append(parse_pts(annotation.read_bytes()))
    chosen = sorted(by_digest)[:: max(1, len(by_digest) // limit)][:limit]
    return [(by_digest[digest][0].read_bytes(), by_digest[digest][1]) for digest in chosen]


def dlib_as_it_is(upsampling: int) -> Find:
    detector = dlib.get_frontal_face_detector()

    def find(rgb: NDArray[np.uint8]) -> list[Detection]:
        rectangles, scores, _ = detector.run(rgb, upsampling, 0.0)
        boxes = [Box(r.left() - 0.5, r.top() - 0.5, r.right() + 0.5, r.bottom() + 0.5) for r in rectangles]
        return [Detection(box, float(score)) for box, score in zip(boxes, scores, strict=True)]

    return find


def main() -> None:
    parser = parser_with_data(__doc__)
    parser.add_argument("--limit", type=int, default=200)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    finds: dict[str, Find] = {"dlib, as it is": dlib_as_it_is(0), "dlib, upsampled": dlib_as_it_is(1)}
    for name in get_args(DetectorName):
        try:
            finds[name] = open_detector(name)
        except UserError as error:
            print(error)
    photos = photographs(arguments.data / "300w", arguments.limit)
    cost: dict[str, list[float]] = defaultdict(list)
    own: dict[str, list[Detection | None]] = defaultdict(list)
    shapes: dict[str, Shapes] = defaultdict(list)
    detections: dict[str, int] = defaultdict(int)
    for find in finds.values():
        find(decode(photos[0][0]).rgb)  # what is loaded at the first look is no photograph's cost
    for index, (data, faces) in enumerate(photos):
        rgb = decode(data).rgb
        for name, find in finds.items():
            if index % SLOW.get(name, 1) == 0:
                began = time.process_time()
                found = find(rgb)
                cost[name].append(time.process_time() - began)
                detections[name] += len(found)
                own[name] += [match(found, face) for face in faces]
                shapes[name] += faces

    full = float(np.mean(cost["dlib, upsampled"]))
    print(f"{len(photos)} photographs, one thread; spread about the median: sd in sides, and of the side's logarithm")
    head = f"{'detector':<16}{'photos':>7}{'faces':>7}{'found':>7}{'lost':>6}{'others':>8}{'ms':>9}{'ratio':>7}"
    print(f"{head}{'sd x':>8}{'sd y':>7}{'sd log':>8}  mapping left (dx, dy, scale)")
    for name in finds:
        pairs = [(item.box, shape) for item, shape in zip(own[name], shapes[name], strict=True) if item]
        reference = own["dlib, upsampled"] if name not in SLOW else own[name]
        lost = sum(not ours and bool(theirs) for ours, theirs in zip(own[name], reference, strict=True))
        left = BoxMapping.median(*zip(*pairs, strict=True))
        residuals = np.array(
            [
                (
                    *np.subtract(expected_box(shape).centre, box.centre) / box.side,
                    np.log(expected_box(shape).side / box.side),
                )
                for box, shape in pairs
            ]
        )
        spread = residuals.std(axis=0)
        mean = float(np.mean(cost[name]))
        row = f"{name:<16}{len(cost[name]):>7}{len(own[name]):>7}{len(pairs):>7}"
        row += f"{lost if name not in SLOW else '-':>6}{detections[name] - len(pairs):>8}"
        row += f"{1000 * mean:>9.1f}{mean / full:>7.3f}"
        row += f"{spread[0]:>8.3f}{spread[1]:>7.3f}{spread[2]:>8.3f}"
        print(f"{row}  ({left.dx:.3f}, {left.dy:.3f}, {left.scale:.3f})")


if __name__ == "__main__":
    main()
