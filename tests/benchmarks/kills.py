"""Up to fifty kills at random moments, and the tables of a run never killed: python -m tests.benchmarks.kills

A cluster of two nodes on loopback annotates photographs. Each kill takes the driver (which is started again), a
process of Ray or of a sandbox, or a whole node (another takes its place). In the end the tables must be byte for
byte those of an uninterrupted run, with every picture once; else the exit code is 1.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines.annotation.run import annotate
from pipelines.annotation.tables import SUMMARY, Annotations
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store
from tests.benchmarks.calls import parser_with_data
from tests.cluster import Cluster, cluster, kill_one
from tests.factories import tree


def main() -> int:
    parser = parser_with_data(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pictures", type=int, default=4000, help="a run that ends before the kills do wants more")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    photos = sorted((arguments.data / "photos").rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for index in range(arguments.pictures):
            (folder / "in" / f"{index:05d}.jpg").symlink_to(photos[index % len(photos)].absolute())
        settings = AnnotateSettings(images_per_unit=16)
        whole = annotate(str(folder / "in"), str(folder / "whole"), open_model("box"), settings, 1)
        began = time.monotonic()
        with cluster(0) as made:
            made.add_node()
            made.add_node()
            os.environ["RAY_ADDRESS"] = made.address
            killed = _killing(made, folder, arguments.kills, moments)
        seconds = time.monotonic() - began
        found, expected = _parts(folder / "out"), _parts(folder / "whole")
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        same = not differing
        run = Annotations(Store(str(folder / "out")))
        uris = [uri for unit in run.units() for uri in run.images(unit)["uri"].to_pylist()]
    print(f"{dict(killed)} killed in {seconds:.0f} s; {len(uris)} rows, {len(set(uris))} pictures of {whole.images}")
    print("tables are those of the run that was never killed" if same else f"TABLES DIFFER: {differing}")
    return 0 if same and sorted(uris) == sorted(set(uris)) and len(uris) == whole.images else 1


def _killing(made: Cluster, folder: Path, kills: int, moments: random.Random) -> Counter[str]:
    """Kills until so many are done, then lets the run end; where it ended before, the rest is not done."""
    killed: Counter[str] = Counter()
    driver = _driver(folder)
    while killed.total() < kills and not (folder / "out" / SUMMARY).exists():
        time.sleep(moments.uniform(1, 8))
        kind = moments.choices(("driver", "process", "node"), (3, 5, 1))[0]
        if kind == "driver":
            driver.kill()
            driver.wait()
            driver = _driver(folder)
        elif kind == "node":
            made.kill_node(moments.randrange(2))
            made.add_node()
        else:
            workers = made.workers()
            if not kill_one([*workers, *sandboxes([psutil.Process(driver.pid), *workers])], moments):
                continue
        killed[kind] += 1
    while driver.wait():
        driver = _driver(folder)
    return killed


def _driver(folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", "from flows.cli import entry; entry()", "annotate", str(folder / "in")]
    command += ["--out", str(folder / "out"), "--model", "box", "--workers", "2", "--images-per-unit", "16"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def sandboxes(parents: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes that look at pictures for these: what else annotates on this machine is nobody's to kill."""
    found = []
    for parent in parents:
        with suppress(psutil.Error):  # that one has ended
            found += [each for each in parent.children(recursive=True) if _is_sandbox(each)]
    return found


def _is_sandbox(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("pipelines.annotation.sandbox" in part for part in process.cmdline())
    return False


def _parts(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if name.endswith(".parquet")}


if __name__ == "__main__":
    sys.exit(main())
