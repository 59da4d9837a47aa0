"""What the pipeline costs beside decoding and detecting: python -m tests.benchmarks.end_to_end [--each 60]

The pictures of `tests.benchmarks.pictures`, each under several names, in one run on the same cores:

- annotation by one worker on one core and by two on two, against the same number of processes that decode and detect
  alone, on the same cores (beside a worker is a process for the pictures: free, it would use a second core); all four
  by turns of two seconds, so that what else the machine does slows all of them; what the workers' start takes counts;
- from the shell prompt to the summary of ten pictures.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import get_args

import cv2

from pipelines.annotation.looking import look
from pipelines.annotation.run import annotate
from pipelines.detection import Detector, open_detector
from pipelines.engine import start_ray
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings, EngineChoice, PrecisionChoice
from tests.benchmarks.calls import parser_with_data
from tests.benchmarks.pictures import mix
from tests.benchmarks.turns import Job, Prepared, by_turns

RAY_SECONDS = 15.0
"""After it says that it is there, Ray starts processes that take five seconds of a core."""


def main() -> None:
    parser = parser_with_data(__doc__)
    parser.add_argument("--each", type=int, default=60, help="pictures of every size")
    parser.add_argument("--names", type=int, default=4, help="names of every picture")
    parser.add_argument("--detector", default="auto")
    parser.add_argument("--engine", choices=get_args(EngineChoice), default="openvino")
    parser.add_argument("--one-look", action="store_true", help="look at each face once")
    arguments = parser.parse_args()
    precision = open_model("box").in_precision("auto").precision
    settings = AnnotateSettings(detector=arguments.detector, engine=arguments.engine, precision=precision)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        # By turns, so that every unit has pictures of all sizes.
        rounds = zip(*mix(arguments.data, arguments.each).values(), strict=True)
        pictures = [picture.data for round_ in rounds for picture in round_]
        for index in range(arguments.names * len(pictures)):
            file, first = (folder / "in" / f"{each:05d}.jpg" for each in (index, index % len(pictures)))
            if file == first:
                file.write_bytes(pictures[index])
            else:  # no more than the machine's memory keeps at hand
                file.hardlink_to(first)
        files = sorted((folder / "in").iterdir())
        print(f"{len(files)} pictures, detector {open_detector(settings.detector).name}")
        cores = sorted(os.sched_getaffinity(0))
        jobs: dict[str, Job] = {}
        for workers in (1, 2):
            on = frozenset(cores[:workers])
            jobs[f"alone, {workers}"] = Job(on, partial(_alone, files, workers, settings))
            jobs[f"whole, {workers}"] = Job(on, partial(_whole, folder, workers, settings, arguments.one_look))
        seconds = by_turns(jobs)
        alone, whole = ({workers: seconds[f"{what}, {workers}"] for workers in (1, 2)} for what in ("alone", "whole"))
        for workers, spent in whole.items():
            rate, share = len(files) / spent, alone[workers] / spent
            print(f"{workers} workers: {rate:.1f} pictures/s, {share:.3f} of looking alone", flush=True)
        print(f"two workers over one: {whole[1] / whole[2]:.3f}, of looking alone: {alone[1] / alone[2]:.3f}")
        (folder / "ten").mkdir()
        for file in files[:10]:
            file.rename(folder / "ten" / file.name)
        began = time.monotonic()
        command = [sys.executable, "-c", "from flows.cli import entry; entry()", "annotate", str(folder / "ten")]
        subprocess.run([*command, "--out", str(folder / "ten-out")], check=True, capture_output=True)
        print(f"ten pictures, from the shell prompt to the summary: {time.monotonic() - began:.1f} s")


def _alone(files: Sequence[Path], processes: int, settings: AnnotateSettings) -> Prepared:
    """So many processes that decode and detect, and have begun to."""
    pool = multiprocessing.get_context("spawn").Pool(processes, _ready)
    pool.map(faces_in, [(file, settings) for file in files[: 8 * processes]])
    return lambda: pool.map(faces_in, [(file, settings) for file in files], chunksize=16)


def _whole(folder: Path, workers: int, settings: AnnotateSettings, one_look: bool) -> Prepared:
    """Annotation by so many workers; Ray is there where it is needed, its workers are not."""
    model = open_model("box", one_look)
    if workers > 1:
        start_ray(workers)
        time.sleep(RAY_SECONDS)
    out = folder / f"out-{workers}"
    return lambda: annotate(str(folder / "in"), str(out), model, settings, workers)


def _ready() -> None:
    cv2.setNumThreads(1)


def faces_in(job: tuple[Path, AnnotateSettings]) -> int:
    """How many a picture shows; nothing else is done with it."""
    path, settings = job
    seen = look(path.read_bytes(), _detector(settings.detector, settings.precision), settings, 1.5)
    return sum(len(view.faces) for view in seen.views)


@cache
def _detector(name: str, precision: PrecisionChoice) -> Detector:
    """Opened once by a process, as a worker's is: reading and checking a model's file takes a millisecond."""
    assert precision != "auto"
    return open_detector(name, precision)


if __name__ == "__main__":
    main()
