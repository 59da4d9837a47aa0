"""Whether memory grows with the archive: python -m tests.benchmarks.memory [--small 1000] [--large 100000]

Small pictures without a face, in folders of a thousand, annotated by two workers; the peak of what all processes of
the run hold (their proportional set sizes: shared pages are counted once), and the driver's own, are sampled four
times a second.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

PICTURES = 97


def write_album(folder: Path, count: int) -> None:
    """Links to a few pictures, under many names."""
    sources = []
    (folder / "sources").mkdir(parents=True)
    for index in range(PICTURES):
        grey = np.random.default_rng(index).integers(0, 256, (12, 16, 3), np.uint8)
        sources.append(folder / "sources" / f"{index}.jpg")
        cv2.imwrite(str(sources[-1]), cv2.resize(grey, (96, 72)))
    for index in range(count):
        place = folder / "in" / f"{index // 1000:04d}"
        if index % 1000 == 0:
            place.mkdir(parents=True)
        os.link(sources[index % PICTURES], place / f"picture-{index:07d}.jpg")


def peaks(folder: Path, count: int) -> tuple[float, float, float]:
    """MB of all processes and of the driver alone, and seconds, of an annotation run over so many pictures."""
    write_album(folder, count)
    command = [sys.executable, "-c", "from flows.cli import entry; entry()", "annotate", str(folder / "in")]
    command += ["--out", str(folder / "out"), "--model", "box", "--workers", "2", "--images-per-unit", "256"]
    began = time.monotonic()
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = psutil.Process(driver.pid)
    whole = alone = 0.0
    while driver.poll() is None:
        try:
            own = process.memory_full_info().pss
            held = sum(child.memory_full_info().pss for child in process.children(recursive=True))
        except psutil.Error:
            continue  # one of them ended in this moment
        alone, whole = max(alone, own / 1e6), max(whole, (own + held) / 1e6)
        time.sleep(0.25)
    assert driver.returncode == 0
    return whole, alone, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=100_000)
    arguments = parser.parse_args()
    results = []
    for count in (arguments.small, arguments.large):
        with tempfile.TemporaryDirectory() as folder:
            results.append(peaks(Path(folder), count))
        whole, alone, seconds = results[-1]
        print(f"{count:>8} pictures: peak {whole:.0f} MB, of the driver {alone:.0f} MB; {seconds:.0f} s", flush=True)
    print(f"ratio {results[1][0] / results[0][0]:.3f}, of the driver {results[1][1] / results[0][1]:.3f}")


if __name__ == "__main__":
    main()
