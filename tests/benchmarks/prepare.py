"""What `prepare` costs beyond decoding and detecting, what a second worker brings, and what memory it takes.

    python -m tests.benchmarks.prepare --data 300w --photos 600
    python -m tests.benchmarks.prepare --data 300w --memory 2000 20000

The first compares, in one run and with the same photos and workers, a bare loop of "decode + detect" with
`prepare` (reading, checks, eight augmented copies of each face, shards, page). The second makes that many
distinct photos (copies with other bytes) and tells the peak memory of a `prepare` in one process.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msrrn.augmentation import AugmentationSettings
from pipelines.dataset.prepare import prepare
from pipelines.decoding import decode
from pipelines.detection import HogDetector
from pipelines.engine import run_units, start_ray
from pipelines.settings import PrepareSettings
from pipelines.sources import AnnotatedPhoto, open_annotated

UNIT = 24


def bare(_: None, unit: Sequence[AnnotatedPhoto]) -> int:
    """Decodes and detects, and nothing else."""
    detect = HogDetector()
    return sum(len(detect(decode(face.read()).rgb)) for face in unit)


def chosen(data: str, photos: int, folder: Path) -> Path:
    """Links to the first photos of a source that have distinct names, with their annotations."""
    seen = 0
    for item in open_annotated(data).scan():
        if not isinstance(item, AnnotatedPhoto) or "afw" in item.uri:
            continue
        for name in (item.uri, item.annotation_uri):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to((Path(item.root) / name).absolute())
        seen += 1
        if seen == photos:
            break
    return folder


def timed(work: Callable[..., object], *arguments: Any) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def speed(data: str, photos: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen(data, photos, Path(scratch) / "in")
        faces = [item for item in open_annotated(str(folder)).scan() if isinstance(item, AnnotatedPhoto)]
        units = [faces[start : start + UNIT] for start in range(0, len(faces), UNIT)]
        start_ray(2)
        # Ray's workers are started now, and import what either needs.
        list(run_units(bare, None, [unit[:1] for unit in units[:4]], 2))
        few, small = chosen(data, 4, Path(scratch) / "few"), PrepareSettings(photos_per_shard=1)
        prepare([str(few)], str(Path(scratch) / "out-few"), small, 2)
        seconds: dict[tuple[str, int], float] = {}
        for workers in (1, 2):
            seconds["bare", workers] = timed(lambda count: list(run_units(bare, None, units, count)), workers)
            out = Path(scratch) / f"out{workers}"
            seconds["prepare", workers] = timed(prepare, [str(folder)], str(out), PrepareSettings(), workers)
        shards = list((Path(scratch) / "out1" / "shards").iterdir())
        size = sum(path.stat().st_size for path in shards)
    print(f"{len(faces)} faces, boxes by hog, {PrepareSettings().augmentation.copies} copies each")
    for (what, workers), took in seconds.items():
        print(f"{what:<8} {workers} workers  {took:7.1f} s  {len(faces) / took:7.1f} faces/s")
    for workers in (1, 2):
        print(f"prepare / bare, {workers} workers: {seconds['bare', workers] / seconds['prepare', workers]:.2f}")
    for what in ("bare", "prepare"):
        print(f"{what}, 2 workers / 1: {seconds[what, 1] / seconds[what, 2]:.2f}")
    print(f"bytes a face on disk, all copies: {size / len(faces):,.0f}")


def memory(data: str, count: int) -> None:
    """Runs in a process of its own: the peak is the process's."""
    with tempfile.TemporaryDirectory() as scratch:
        base = chosen(data, 200, Path(scratch) / "base")
        pictures = sorted(path for path in base.rglob("*.jpg"))
        folder = Path(scratch) / "in"
        for index in range(count):
            picture = pictures[index % len(pictures)]
            target = folder / f"{index % 97}" / f"{index}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(picture.read_bytes() + index.to_bytes(8, "big"))
            shutil.copy(picture.with_suffix(".pts"), target.with_suffix(".pts"))
        # Detection holds one picture at a time, whatever their number: without it the run takes minutes.
        settings = PrepareSettings(detector="annotated", augmentation=AugmentationSettings(copies=1))
        began = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        prepare([str(folder)], str(Path(scratch) / "out"), settings, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took = time.perf_counter() - began
    print(f"{count:>7} photos: peak {peak / 1024:.0f} MB, {before / 1024:.0f} MB of it before; {took:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--memory", type=int, nargs="+", default=[])
    call = parser.parse_args()
    if len(call.memory) == 1:
        memory(call.data, call.memory[0])
        return
    for count in call.memory:
        again = ["-m", "tests.benchmarks.prepare", "--data", call.data, "--memory", str(count)]
        subprocess.run([sys.executable, *again], check=True)
    if not call.memory:
        speed(call.data, call.photos)


if __name__ == "__main__":
    main()
