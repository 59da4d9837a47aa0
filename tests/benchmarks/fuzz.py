"""Thousands of damaged pictures and archives, every one accounted for: python -m tests.benchmarks.fuzz [--cases 5000]

Real photographs and frames, in every format, damaged by `tests.fuzz` with a fixed seed. A
crash, a hang, an error that nobody foresaw, or a missing row ends it with exit code 1.
"""

import sys
import tempfile
from pathlib import Path

from pipelines.annotation.run import annotate
from pipelines.annotation.tables import Annotations
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store
from tests.benchmarks.calls import parser_with_data
from tests.fuzz import encodings, write_containers, write_pictures

UNFORESEEN = ("crashed", "timeout", "failed")


def main() -> int:
    parser = parser_with_data(__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    photos = sorted((arguments.data / "photos").rglob("*.jpg"))[::40] + sorted(arguments.data.rglob("afw/*.jpg"))[:4]
    seeds = [data for photo in photos for data in encodings(photo.read_bytes())]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = write_pictures(folder / "in" / "pictures", seeds, arguments.cases, arguments.seed)
        archives = write_containers(folder / "in" / "archives", seeds, arguments.cases // 10, arguments.seed)
        settings = AnnotateSettings(timeout=20, images_per_unit=256)
        summary = annotate(str(folder / "in"), str(folder / "out"), open_model("box"), settings, arguments.workers)
        run = Annotations(Store(str(folder / "out")))
        rows = [row for unit in run.units() for row in run.images(unit).to_pylist()]
    print(f"{len(seeds)} sound pictures; {len(expected)} damaged ones and {len(archives)} damaged archives")
    print(summary.model_dump_json(indent=1, exclude={"settings"}))
    uris = [row["uri"] for row in rows]
    missing = {f"pictures/{name}" for name in expected} - set(uris)
    silent = [name for name in archives if not any(uri.startswith(f"archives/{name}") for uri in uris)]
    for row in rows:
        if row["reason"] in UNFORESEEN:
            print(row["uri"], row["reason"], row["message"])
    print(f"missing: {len(missing)}; archives without a row: {silent}; rows: {len(rows)} of {summary.images}")
    wrong = missing or len(rows) != summary.images or any(summary.reasons.get(reason) for reason in UNFORESEEN)
    return 1 if wrong or silent else 0


if __name__ == "__main__":
    sys.exit(main())
