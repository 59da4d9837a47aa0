"""Which pictures `--any-rotation` puts right: python -m tests.benchmarks.turned [--model M] [--side 220]

The photos of `val.txt` and of AFW, every other frame of video and the groups, each as it is and turned by a quarter,
a half and three quarters. Those in which the detector finds no face as they are do not count. Time is that of the
photos as they are, with and without the option, one process beside its sandbox.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pipelines.annotation.looking import TURNS
from pipelines.annotation.pictures import Rows, annotated, end_sandbox
from pipelines.annotation.sightings import Task
from pipelines.archives import list_inputs
from pipelines.decoding import decode
from pipelines.detection import open_detector
from pipelines.models import Model
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings
from tests.benchmarks.calls import parser_with_data


def photos(data: Path) -> Iterator[Path]:
    yield from (data / "300w" / f"{name}.jpg" for name in (data / "300w/val.txt").read_text().split())
    yield from sorted((data / "300w/afw").glob("*_1.jpg"))
    yield from sorted((data / "photos/video-frames").rglob("*.jpg"))[::2]
    yield from sorted((data / "photos/groups").glob("*.jpg"))


def timed(folder: Path, model: Model, settings: AnnotateSettings) -> tuple[list[Rows], float]:
    task = Task(str(folder), open_detector(settings.detector, model.precision), settings, model.card.crop_margin)
    inputs = list(list_inputs(task.source))
    list(annotated(task, model, inputs[:1]))
    began = time.monotonic()
    rows = list(annotated(task, model, inputs))
    seconds = time.monotonic() - began
    end_sandbox()
    return rows, seconds


def main() -> None:
    parser = parser_with_data(__doc__)
    parser.add_argument("--model", help="an artifact (default: the model in the box, which has seen the photos)")
    parser.add_argument("--detector", default="blazeface")
    parser.add_argument("--side", type=int, help="longer side, in pixels, that pictures are reduced to")
    arguments = parser.parse_args()
    model = open_model(arguments.model or "box").in_precision("auto")
    upright_only = AnnotateSettings(detector=arguments.detector)
    settings = upright_only.model_copy(update={"any_rotation": True})
    with tempfile.TemporaryDirectory() as name:
        for turned in TURNS:
            Path(name, str(turned)).mkdir()
        for number, path in enumerate(photos(arguments.data)):
            rgb = decode(path.read_bytes()).rgb
            scale = arguments.side / max(rgb.shape) if arguments.side else 1
            if scale < 1:
                rgb = np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
            for turned in TURNS:
                lying = np.ascontiguousarray(np.rot90(rgb, turned // 90)[..., ::-1])
                cv2.imwrite(str(Path(name, str(turned), f"{number:04d}.png")), lying)
        as_they_are, seconds = timed(Path(name, "0"), model, upright_only)
        count = [bool(item.faces) for item in as_they_are]
        print(f"{len(count)} photos, {sum(count)} with faces; {arguments.detector}, {model.label}")
        for turned in TURNS:
            rows, spent = timed(Path(name, str(turned)), model, settings)
            kept = Counter(
                "right" if item.image["turned"] == turned else "wrong" if item.faces else "no face"
                for item, counts in zip(rows, count, strict=True)
                if counts
            )
            slower = f", {spent / seconds:.2f} times the time without the option" if turned == 0 else ""
            print(f"turned by {turned}: {dict(sorted(kept.items()))}{slower}", flush=True)


if __name__ == "__main__":
    main()
