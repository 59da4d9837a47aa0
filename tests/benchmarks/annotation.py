"""Bytes → faces, how fast and how many: python -m tests.benchmarks.annotation [--each 40]

On the pictures of `tests.benchmarks.pictures`, one process, one thread, CPU time, the contenders by turns on each
picture, so that ratios hold on a busy machine:

- what a user would write: decode, dlib's HOG at full resolution, dlib's shape predictor (ERT, 15 cascades; it is
  trained here on a few faces, which changes no cost) on every face;
- `look` with every detector that is installed, alone and with the landmarks of the model in the box.

Then recall and pictures a second over `--min-face`.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import dlib
import numpy as np
import torch
from numpy.typing import NDArray

from msrrn.augmentation import AugmentationSettings
from msrrn.geometry import Box
from msrrn.synthetic import draw_photo
from pipelines.annotation.looking import look
from pipelines.dataset.prepare import prepare
from pipelines.detection import Detection, Detector, match, open_detector
from pipelines.errors import UserError
from pipelines.evaluation.ert import trained_ert
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings, PrepareSettings
from tests.benchmarks.calls import parser_with_data
from tests.benchmarks.pictures import Picture, mix
from tests.factories import write_face

DETECTORS = ("hog", "blazeface")
MIN_FACES = (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25)
BANDS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 1.0)
BATCH = 64

Annotate = Callable[[bytes], Sequence[Detection]]


def naive(predictor_file: Path) -> Annotate:
    """What a user would write."""
    detector, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(predictor_file))

    def annotate(data: bytes) -> list[Detection]:
        rgb = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        found = []
        for r in detector(rgb, 0):
            predictor(rgb, r).parts()
            found.append(Detection(Box(r.left() - 0.5, r.top() - 0.5, r.right() + 0.5, r.bottom() + 0.5), 1.0))
        return found

    return annotate


def looking(detector: Detector, settings: AnnotateSettings, keep: list[NDArray[np.uint8]] | None = None) -> Annotate:
    def annotate(data: bytes) -> list[Detection]:
        faces = [face for view in look(data, detector, settings, 1.5).views for face in view.faces]
        if keep is not None:
            keep.extend(face.crop for face in faces)
        return [face.detection for face in faces]

    return annotate


def trained_predictor(folder: Path) -> Path:
    """A shape predictor of 15 cascades, of a dozen synthetic faces."""
    for index in range(8):
        photo = draw_photo(3, index)
        for number, shape in enumerate(photo.shapes):
            write_face(folder / "photos", f"{index}_{number}", photo.jpeg, shape)
    settings = PrepareSettings(augmentation=AugmentationSettings(copies=1), val_share=0)
    store, _ = prepare([str(folder / "photos")], str(folder / "datasets"), settings, workers=1)
    return trained_ert(store.url, folder, threads=2).file


class Tally:
    """Seconds of CPU, and annotated faces found, by group of pictures and by band of size."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.found: dict[float, list[int]] = {band: [0, 0] for band in BANDS[:-1]}
        self.beside = 0

    def count(self, group: str, picture: Picture, seconds: float, detections: Sequence[Detection]) -> None:
        self.seconds[group] += seconds
        own = [match(detections, shape) is not None for shape in picture.shapes]
        self.beside += len(detections) - sum(own)
        for share, hit in zip(picture.shares(), own, strict=True):
            band = max((low for low in BANDS if low <= share), default=None)
            if band is not None:
                self.found[band][0] += hit
                self.found[band][1] += 1

    def recall(self, least: float) -> tuple[int, int]:
        """Annotated faces of so large a share that were found, and all of them."""
        counts = [counts for low, counts in self.found.items() if low >= least]
        return sum(hit for hit, _ in counts), sum(all_ for _, all_ in counts)


def measure(pictures: dict[str, list[Picture]], contenders: dict[str, Annotate]) -> dict[str, Tally]:
    """What each contender takes and finds, after it has looked at one picture that does not count."""
    tallies = {name: Tally() for name in contenders}
    first = next(iter(pictures.values()))[0]
    for annotate in contenders.values():
        annotate(first.data)
    for group, items in pictures.items():
        for number, picture in enumerate(items):
            names = list(contenders)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                began = time.process_time()
                detections = contenders[name](picture.data)
                tallies[name].count(group, picture, time.process_time() - began, detections)
    return tallies


def speeds(pictures: dict[str, list[Picture]], tallies: dict[str, Tally]) -> None:
    reference = next(iter(tallies.values()))
    print(f"\n{'pictures a second (over the first)':<40}" + "".join(f"{group:>16}" for group in [*pictures, "all"]))
    for name, tally in tallies.items():
        row = f"{name:<40}"
        for groups in [[group] for group in pictures] + [list(pictures)]:
            number = sum(len(pictures[group]) for group in groups)
            spent, first = (sum(item.seconds[group] for group in groups) for item in (tally, reference))
            row += f"{number / spent:>8.1f} ({first / spent:>4.1f}x)"
        print(row)
    print(f"\n{'annotated faces found, by share':<40}{'>= a tenth':>18}" + _bands() + f"{'others':>8}")
    for name, tally in tallies.items():
        print(f"{name:<40}{_of(tally.recall(0.1)):>18}{_by_band(tally)}{tally.beside:>8}")


def _bands() -> str:
    return "".join(f"{f'{low:g}-{high:g}':>16}" for low, high in pairwise(BANDS))


def _by_band(tally: Tally) -> str:
    return "".join(f"{_of((hit, all_)):>16}" for hit, all_ in tally.found.values())


def _of(counts: tuple[int, int]) -> str:
    hit, all_ = counts
    return f"{hit}/{all_} {100 * hit / all_:5.1f}%" if all_ else "-"


def curve(pictures: dict[str, list[Picture]], detectors: dict[str, Detector]) -> None:
    contenders = {
        f"{name} --min-face {least:g}": looking(detector, AnnotateSettings(min_face=least))
        for name, detector in detectors.items()
        for least in MIN_FACES
    }
    tallies = measure(pictures, contenders)
    number = sum(len(items) for items in pictures.values())
    print(f"\n{'recall over --min-face':<28}{'pictures/s':>12}{'>= min-face':>18}" + _bands())
    for name, tally in tallies.items():
        least = float(name.rpartition(" ")[2])
        at_least = tally.recall(max((low for low in BANDS if low <= least), default=0.0))
        speed = number / sum(tally.seconds.values())
        print(f"{name:<28}{speed:>12.1f}{_of(at_least):>18}{_by_band(tally)}")


def main() -> None:
    parser = parser_with_data(__doc__)
    parser.add_argument("--each", type=int, default=40, help="pictures of every size")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    model = open_model("box").in_precision("auto")
    detectors: dict[str, Detector] = {}
    for name in DETECTORS:
        try:
            detectors[name] = open_detector(name, model.precision)
        except UserError as error:
            print(error)
    pictures = mix(arguments.data, arguments.each)
    with tempfile.TemporaryDirectory() as folder:
        contenders = {"dlib at full resolution, and its ERT": naive(trained_predictor(Path(folder)))}
        crops: list[NDArray[np.uint8]] = []
        for name, detector in detectors.items():
            contenders[f"look, {name}"] = looking(detector, AnnotateSettings(), crops)
            contenders[f"look, {name}, --min-face 0.1"] = looking(detector, AnnotateSettings(min_face=0.1))
        speeds(pictures, measure(pictures, contenders))
    predictor = model.predictor
    batch = np.stack(crops[:BATCH])
    predictor.predict(batch)
    began = time.process_time()
    for _ in range(5):
        predictor.predict(batch)
    print(f"\nlandmarks, model in the box: {1000 * (time.process_time() - began) / (5 * len(batch)):.1f} ms a face")
    curve({group: items[: max(1, arguments.each // 2)] for group, items in pictures.items()}, detectors)


if __name__ == "__main__":
    main()
