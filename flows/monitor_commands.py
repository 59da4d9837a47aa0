"""The commands that watch: what annotation runs see, and what is due. See `flows.commands`."""

import argparse
from pathlib import Path

from flows.options import Commands, add_command, add_json, add_settings, given, positive, print_json, settings_of
from pipelines.settings import DriftSettings


def add_monitor_commands(commands: Commands) -> None:
    """Declares the commands."""
    _monitor(commands)
    _serve(commands)


def _monitor(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> int:
        from pipelines.monitoring.drift import compare
        from pipelines.monitoring.page import write_drift
        from pipelines.storage import Store
        from pipelines.texts import drift_text

        settings = settings_of(DriftSettings, given(call, DriftSettings))
        report = compare(call.runs, settings, call.dataset, call.reference)
        page = write_drift(report, Store(call.out))
        if call.json:
            print_json({"page": page, **report.model_dump()})
        else:
            print(f"{drift_text(report)}\n\n{report.verdict}: {page}")
        return 1 if report.verdict == "drifted" else 0

    parser = add_command(
        commands,
        "monitor",
        run,
        "Compares what recent annotation runs saw with what the model was trained on. Size, roll, sharpness and "
        "brightness of faces with the dataset; confidence, size in the picture, faces in a picture and what became "
        "of the pictures with an older run. Writes OUT/drift.json and a page with both histograms; no picture is "
        "read. Exits with 1 where something drifted.",
        "  msrrn monitor --runs work/annotations --dataset work/datasets --out work/drift\n"
        "  msrrn monitor --runs march april --reference january --out s3://bucket/drift --json",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        action="extend",
        required=True,
        metavar="URL",
        help="what `annotate` was told with --out, or folders of such; msrrn orders them by when they began",
    )
    parser.add_argument(
        "--dataset",
        metavar="URL",
        help="the dataset that the model was trained on, or a place of datasets, of which that of the champion is "
        "taken (default: all is compared with the reference)",
    )
    parser.add_argument(
        "--reference",
        metavar="URL",
        help="the run to compare with (default: the oldest of --runs with the model and settings of the newest)",
    )
    parser.add_argument("--out", required=True, metavar="URL", help="where report and page go")
    add_settings(parser, DriftSettings)
    add_json(parser)


def _serve(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.serve import serve

        serve(Path(call.file), call.limit)

    parser = add_command(
        commands,
        "serve",
        run,
        "Runs the deployments of prefect.yaml on this machine. They retrain, reconcile and look for drift on their "
        "schedules, judge a model when it is registered, and annotate on demand. It does what `prefect deploy` with "
        "a work pool and a worker does, without them. Ctrl-C, SIGTERM or the end of the terminal ends what runs, a "
        "training at a checkpoint, and pauses the schedules.",
        "  prefect server start & export PREFECT_API_URL=http://127.0.0.1:4200/api\n"
        "  msrrn serve\n  msrrn serve --file my/prefect.yaml --limit 4",
    )
    parser.set_defaults(loud=True)  # a service says what it does
    parser.add_argument("--file", default="prefect.yaml", help="the file that describes them (default: %(default)s)")
    parser.add_argument(
        "--limit", type=positive, default=2, metavar="N", help="how many runs at once (default: %(default)s)"
    )
