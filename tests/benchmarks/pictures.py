"""Pictures for the benchmarks of annotation: real faces in files of four sizes, some without a face.

Small frames and 0.5 MP are photographs as they are. Larger ones are made of those, since none are at hand: a
photograph enlarged, or several pasted without overlap onto a blurred backdrop, each so that its largest face has
a share of the longer side drawn log-uniformly from 3 to 40 %. Grain is laid over them, so that a file has the
bytes of a camera's (some 0.25 per pixel), and decoding its cost. In pictures without a face, those annotated are
pixelated beyond recognition.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.decoding import decode
from pipelines.detection import expected_box
from tests.benchmarks.detection import Shapes, photographs

Pixels = NDArray[np.uint8]
SIZES: Final = {"2 MP": (1632, 1224), "12 MP": (4000, 3000)}
SHARES: Final = (0.03, 0.4)
GRAIN: Final = 5.0
QUALITY: Final = 90


@dataclass(frozen=True, eq=False)
class Picture:
    """A file's bytes, its longer side, and the shapes (68, 2) of its annotated faces, in its pixels."""

    data: bytes
    longer: int
    shapes: Shapes

    def shares(self) -> list[float]:
        """The side of each face's box over the longer side."""
        return [expected_box(shape).side / self.longer for shape in self.shapes]


def mix(data_root: Path, each: int) -> dict[str, list[Picture]]:
    """`each` pictures of every size, and as many without a face."""
    rng = np.random.default_rng(0)
    natural = [of_file(data, shapes) for data, shapes in photographs(data_root / "300w", 2 * each)]
    pixels = [(decode(picture.data).rgb, picture.shapes) for picture in natural]
    made = {"frames": frames(data_root, each), "0.5 MP": natural[::2][:each]}
    for name, size in SIZES.items():
        made[name] = [
            enlarged(*pixels[index % len(pixels)], size, rng) if index % 2 else scene(pixels, size, rng)
            for index in range(each)
        ]
    sizes = [None, *SIZES.values()]
    made["no face"] = [without(*pixels[-1 - index], sizes[index % 3], rng) for index in range(each)]
    return made


def of_file(data: bytes, shapes: Shapes) -> Picture:
    return Picture(data, max(decode(data).rgb.shape[:2]), shapes)


def frames(data_root: Path, limit: int) -> list[Picture]:
    """Frames of video; their annotations are another network's."""
    folder = data_root / "photos" / "video-frames"
    with (folder / "keypoints.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    chosen = rows[:: max(1, len(rows) // limit)][:limit]
    return [
        of_file((folder / row[0]).read_bytes(), [np.reshape(row[1:137], (68, 2)).astype(float)]) for row in chosen
    ]


def scene(photos: Sequence[tuple[Pixels, Shapes]], size: tuple[int, int], rng: np.random.Generator) -> Picture:
    width, height = size
    backdrop = cv2.resize(photos[int(rng.integers(len(photos)))][0], (64, 48), interpolation=cv2.INTER_AREA)
    canvas = _resized(np.asarray(cv2.GaussianBlur(backdrop, (0, 0), 6), np.uint8), size)
    shapes: Shapes = []
    taken: list[Box] = []
    for _ in range(12):
        rgb, faces = photos[int(rng.integers(len(photos)))]
        share = float(np.exp(rng.uniform(*np.log(SHARES))))
        factor = share * width / max(expected_box(face).side for face in faces)
        w, h = (round(side * factor) for side in (rgb.shape[1], rgb.shape[0]))
        if w > width or h > height or min(w, h) < 8:
            continue
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        place = Box(x, y, x + w, y + h)
        if any(place.iou(other) > 0 for other in taken):
            continue
        taken.append(place)
        canvas[y : y + h, x : x + w] = _resized(rgb, (w, h))
        shapes += [_scaled(face, rgb, (w, h)) + [x, y] for face in faces]
    return _file(canvas, shapes, rng)


def enlarged(rgb: Pixels, shapes: Shapes, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    factor = min(max(size) / max(rgb.shape[:2]), min(size) / min(rgb.shape[:2]))
    goal = round(rgb.shape[1] * factor), round(rgb.shape[0] * factor)
    return _file(_resized(rgb, goal), [_scaled(shape, rgb, goal) for shape in shapes], rng)


def without(rgb: Pixels, shapes: Shapes, size: tuple[int, int] | None, rng: np.random.Generator) -> Picture:
    rgb = rgb.copy()
    for shape in shapes:
        box = expected_box(shape)
        (x, y), half = box.centre, 0.9 * box.side
        x0, y0 = max(0, round(x - half)), max(0, round(y - half))
        part = rgb[y0 : round(y + half), x0 : round(x + half)]
        coarse = cv2.resize(part, (3, 3), interpolation=cv2.INTER_AREA)
        part[:] = cv2.resize(coarse, part.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return enlarged(rgb, [], size or (rgb.shape[1], rgb.shape[0]), rng)


def _resized(rgb: Pixels, size: tuple[int, int]) -> Pixels:
    shrinking = size[0] < rgb.shape[1]
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC), np.uint8)


def _scaled(shape: NDArray[np.float64], rgb: Pixels, size: tuple[int, int]) -> NDArray[np.float64]:
    return np.asarray((shape + 0.5) * [size[0] / rgb.shape[1], size[1] / rgb.shape[0]] - 0.5, np.float64)


def _file(canvas: Pixels, shapes: Shapes, rng: np.random.Generator) -> Picture:
    grain = rng.normal(0, GRAIN, canvas.shape[:2])[..., None]
    pixels = np.clip(canvas + grain, 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return Picture(data.tobytes(), max(canvas.shape[:2]), shapes)
