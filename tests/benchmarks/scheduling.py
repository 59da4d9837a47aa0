"""The scheduling of 100 million pictures, without pixels: python -m tests.benchmarks.scheduling [--pictures 1000000]

Units of 4,096 pictures go through `run_units` on a local Ray as those of an annotation run do; each does nothing and
returns its record. What is watched is the driver: its memory, and how many of Ray's objects it refers to.
"""

import argparse
import time
from collections.abc import Iterator

import psutil

from pipelines.annotation.records import UnitRecord
from pipelines.engine import run_units, start_ray

PER_UNIT = 4096


def work(_: None, unit: tuple[int, bytes]) -> UnitRecord:
    digest = f"{unit[0]:064x}"
    counts = {"annotated": PER_UNIT - 96, "no_face": 80, "quarantined": 16}
    return UnitRecord(
        inputs=[], parts={"faces": digest, "images": digest}, statuses=counts, reasons={"corrupt": 16}, faces=5000
    )


def units(pictures: int) -> Iterator[tuple[int, bytes]]:
    """As large as those of a plan: some 120 bytes a picture travel with a unit."""
    for number in range(pictures // PER_UNIT):
        yield number, bytes(120 * PER_UNIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100_000_000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    start_ray(arguments.workers)
    from ray._private.worker import global_worker

    process = psutil.Process()
    total = arguments.pictures // PER_UNIT
    print(f"{arguments.pictures} pictures in {total} units of {PER_UNIT}; {arguments.workers} workers")
    print(f"{'units':>8}{'driver MB':>11}{'objects':>9}{'units/s':>9}")
    kept = []
    began = time.monotonic()
    for done, record in enumerate(run_units(work, None, units(arguments.pictures), arguments.workers), start=1):
        kept.append(record)
        if done in {10, 100, 1000} or done % 5000 == 0 or done == total:
            objects = len(global_worker.core_worker.get_all_reference_counts())
            rate = done / (time.monotonic() - began)
            print(f"{done:>8}{process.memory_info().rss / 1e6:>11.0f}{objects:>9}{rate:>9.0f}", flush=True)
    assert len(kept) == total


if __name__ == "__main__":
    main()
