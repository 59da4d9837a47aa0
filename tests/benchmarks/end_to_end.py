"""What the pipeline costs beside decoding and detecting: python -m tests.benchmarks.end_to_end [--each 60]

The pictures of `tests.benchmarks.pictures`, each under several names, in one run on the same cores:

- `msrrn.annotate` by one worker on one core and by two on two, against the same number of processes that decode and
  detect alone, on the same cores (beside a worker is a process for the pictures: free, it would use a second core);
  by turns, `--rounds` times, so that what else the machine does slows all of them; each round starts workers of its
  own, and what that takes them counts;
- from the shell prompt to the summary of ten pictures.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import cv2
import ray

from pipelines.annotation.looking import look
from pipelines.annotation.run import annotate
from pipelines.detection import open_detector
from pipelines.engine import start_ray
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings, EngineChoice
from tests.benchmarks.pictures import mix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=60, help="pictures of every size")
    parser.add_argument("--names", type=int, default=4, help="names of every picture")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--detector", default="auto")
    parser.add_argument("--engine", choices=get_args(EngineChoice), default="openvino")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MSRRN_DATA", "../shared/data")))
    arguments = parser.parse_args()
    settings = AnnotateSettings(detector=arguments.detector, engine=arguments.engine)
    model = open_model("box")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        # By turns, so that every unit has pictures of all sizes.
        by_turns = zip(*mix(arguments.data, arguments.each).values(), strict=True)
        pictures = [picture.data for turn in by_turns for picture in turn]
        for index in range(arguments.names * len(pictures)):
            (folder / "in" / f"{index:05d}.jpg").write_bytes(pictures[index % len(pictures)])
        files = sorted((folder / "in").iterdir())
        print(f"{len(files)} pictures, detector {open_detector(settings.detector).name}")
        cores = sorted(os.sched_getaffinity(0))
        alone, whole = dict.fromkeys((1, 2), 0.0), dict.fromkeys((1, 2), 0.0)
        for turn in range(arguments.rounds):
            ray.shutdown()
            os.sched_setaffinity(0, cores[:2])
            start_ray(2)
            for workers in alone:
                os.sched_setaffinity(0, cores[:workers])
                looked = _looking(files, workers, settings)
                alone[workers] += looked
                out = folder / f"out-{workers}-{turn}"
                summary = annotate(str(folder / "in"), str(out), model, settings, workers)
                assert summary.throughput is not None
                seconds = summary.throughput.seconds
                whole[workers] += seconds
                print(f"round {turn + 1}, {workers} workers: {looked / seconds:.3f} of looking alone", flush=True)
        for workers, seconds in whole.items():
            rate = arguments.rounds * len(files) / seconds
            print(f"{workers} workers: {rate:.1f} pictures/s, {alone[workers] / seconds:.3f} of looking alone")
        print(f"two workers over one: {whole[1] / whole[2]:.3f}, of looking alone: {alone[1] / alone[2]:.3f}")
        (folder / "ten").mkdir()
        for file in files[:10]:
            file.rename(folder / "ten" / file.name)
        began = time.monotonic()
        command = [sys.executable, "-c", "from flows.cli import entry; entry()", "annotate", str(folder / "ten")]
        subprocess.run([*command, "--out", str(folder / "ten-out")], check=True, capture_output=True)
        print(f"ten pictures, from the shell prompt to the summary: {time.monotonic() - began:.1f} s")


def _looking(files: Sequence[Path], processes: int, settings: AnnotateSettings) -> float:
    """Seconds in which so many processes decode and detect, without their start."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _ready) as pool:
        pool.map(_look, [(file, settings) for file in files[: 8 * processes]])
        began = time.monotonic()
        pool.map(_look, [(file, settings) for file in files], chunksize=16)
        return time.monotonic() - began


def _ready() -> None:
    cv2.setNumThreads(1)


def _look(job: tuple[Path, AnnotateSettings]) -> int:
    path, settings = job
    seen = look(path.read_bytes(), open_detector(settings.detector), settings, 1.5)
    return sum(len(view.faces) for view in seen.views)


if __name__ == "__main__":
    main()
