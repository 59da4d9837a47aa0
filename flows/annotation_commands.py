"""The commands about annotation runs: what each is told, and the one call that it makes."""

import argparse
from typing import Final, get_args

from flows.options import (
    Commands,
    add_command,
    add_json,
    add_model,
    add_one_look,
    add_settings,
    add_workers,
    given,
    positive,
    print_json,
    settings_of,
    share,
)
from pipelines.errors import UsageError
from pipelines.settings import AnnotateSettings, ExportFormat, ReviewFormat

_UNFINISHED: Final = "  the run is not finished: these are its finished units"


def add_annotation_commands(commands: Commands) -> None:
    """Declares the commands."""
    _annotate(commands)
    _export(commands)
    _review(commands)


def _annotate(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import progress
        from pipelines.annotation.run import annotate
        from pipelines.annotation.work import Again
        from pipelines.metrics_export import metered
        from pipelines.opening import open_model
        from pipelines.texts import annotation_text

        settings = settings_of(AnnotateSettings, given(call, AnnotateSettings))
        again = None
        if call.retry is not None:
            try:
                again = Again.parse(call.retry)
            except ValueError as error:
                raise UsageError(f"--retry {error}") from error
        if call.dry_run and again:
            raise UsageError("--dry-run looks at the whole archive, not at what --retry would do: leave one out")
        if call.dry_run:
            _rehearse(call, settings)
            return
        with (
            progress("annotating, pictures") as shown,
            metered(call.out, settings.images_per_unit, shown) as update,
        ):
            model = open_model(call.model, call.one_look)
            summary = annotate(
                call.source, call.out, model, settings, call.workers, update, limit=call.limit, again=again
            )
        if call.json:
            print_json({"out": call.out, **summary.model_dump()})
        else:
            print(annotation_text(call.out, summary))
        _tell_of_faster(settings, summary.settings["detector"])

    parser = add_command(
        commands,
        "annotate",
        run,
        "Puts 68 landmarks on every face of an archive. Every picture gets a row in OUT/images, annotated, no_face "
        "or quarantined with its reason; every face a row in OUT/faces; OUT/index.html shows what came out. Run "
        "again after a crash, or when pictures came in, it does what is missing. `msrrn export` makes the files "
        "that other tools read, `msrrn review` those that a person should look at.",
        "  msrrn annotate photos --out annotations --dry-run\n"
        "  msrrn annotate photos.zip --out annotations\n"
        "  msrrn annotate jane.jpg --out jane\n"
        "  msrrn annotate s3://bucket/photos --out s3://bucket/annotations --model models:/msrrn@champion\n"
        "  msrrn annotate scans --out annotations --any-rotation --min-face 40\n"
        "  msrrn annotate photos --out annotations --retry quarantined:timeout --timeout 600",
    )
    parser.set_defaults(surplus="; SRC is one place: give the folder of the pictures, or a .txt that lists them")
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a folder, .tar, .tar.gz, .zip, WebDataset shards, .parquet with an image column, a .txt of URIs, or a "
        "picture; local or s3://",
    )
    parser.add_argument("--out", required=True, metavar="URL", help="where the tables and the page go")
    add_model(parser, required=False)
    add_one_look(parser)
    add_settings(parser, AnnotateSettings)
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="only the first N pictures; a later run does the others",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list the pictures, look at some, say what would be done and how long it would take; write nothing",
    )
    parser.add_argument(
        "--retry",
        metavar="WHICH",
        help="do finished pictures again, beside what a killed run left to do: quarantined, quarantined:REASON (such "
        "as quarantined:timeout), or no_face; what came in or was replaced since waits for a call without it",
    )
    add_workers(parser)
    add_json(parser)


def _rehearse(call: argparse.Namespace, settings: AnnotateSettings) -> None:
    """Says what `annotate` would do."""
    from flows.progress import progress
    from pipelines.annotation.claim import continued
    from pipelines.annotation.rehearsal import rehearse
    from pipelines.opening import open_model
    from pipelines.storage import Store
    from pipelines.texts import rehearsal_text

    with progress("listing pictures") as update:
        model = open_model(call.model, call.one_look)
        chosen = continued(Store(call.out).absolute(), call.source, model, settings)
        rehearsal = rehearse(call.source, model, chosen, call.workers, call.limit, update, call.out)
    if call.json:
        print_json(rehearsal.model_dump())
    else:
        print(rehearsal_text(rehearsal, model.label, call.workers))
    _tell_of_faster(chosen, rehearsal.detector)


def _tell_of_faster(settings: AnnotateSettings, found: str) -> None:
    """Where HOG finds the faces since nobody asked for a detector, says what is faster."""
    from flows.progress import say
    from pipelines.detection import FASTER, default_detector

    if settings.detector == "auto" and found == default_detector() == "hog":
        say(FASTER)


def _export(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import progress
        from pipelines.annotation.exports import export
        from pipelines.annotation.tables import Annotations
        from pipelines.showable import counted
        from pipelines.storage import Store

        with progress("exporting, units") as update:
            made = export(Annotations(Store(call.url)), call.format, call.out, call.min_confidence, update)
        if call.json:
            print_json(made.model_dump())
            return
        print(f"{made.place}: {counted(made.faces, 'face')} in {counted(made.pictures, 'picture')}")
        if made.below_confidence:
            print(f"  left out, confidence below {call.min_confidence:g}: {counted(made.below_confidence, 'face')}")
        for reason, count in made.unreadable.items():
            print(f"  left out, {reason}: {counted(count, 'picture')}")
        if not made.finished:
            print(_UNFINISHED)
        if made.format == "pts":
            print(f"  for `msrrn prepare`, put them beside the pictures: cp -r {made.place}/. PHOTOS")

    parser = add_command(
        commands,
        "export",
        run,
        "Writes an annotation run in the format of another tool. pts: a file a face, as 300-W has it; coco: COCO "
        "keypoints; csv: a row a face; cvat: for CVAT, format CVAT 1.1; imglab: for dlib; webdataset: tars with the "
        "pictures in them. Each says the picture's uri, and comes back by `msrrn prepare` beside its pictures.",
        "  msrrn export annotations --format coco --out photos\n"
        "  msrrn export s3://bucket/annotations --format csv --out tables --min-confidence 0.4 --json\n"
        "  msrrn export annotations --format webdataset --out s3://bucket/shards",
    )
    _add_run(parser)
    parser.add_argument("--format", choices=get_args(ExportFormat), required=True, help="see above")
    parser.add_argument("--out", required=True, metavar="DEST", help="folder or s3:// URL for what is written")
    parser.add_argument(
        "--min-confidence",
        type=_confidence,
        default=0.0,
        metavar="C",
        help="leave out faces with a lower confidence, 0 to 1; it is a half where an error of 5%% is expected "
        "(default: take all)",
    )
    add_json(parser)


def _review(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import progress
        from pipelines.annotation.review import README, review
        from pipelines.annotation.tables import Annotations
        from pipelines.showable import counted
        from pipelines.storage import Store

        with progress("looking for doubtful faces, units") as update:
            made = review(Annotations(Store(call.url)), call.worst, call.format, call.out, update)
        if call.json:
            print_json(made.model_dump())
            return
        faces = f"{counted(made.faces, 'face')} in {counted(made.pictures, 'picture')}"
        print(f"{made.annotations}: {made.doubtful} doubtful of {faces}")
        for reason, count in made.unreadable.items():
            print(f"  left out, {reason}: {counted(count, 'picture')}")
        if not made.finished:
            print(_UNFINISHED)
        print(f"what to do with it: {made.out}/{README}; then\n  msrrn prepare --data 300w {made.out} --out datasets")

    parser = add_command(
        commands,
        "review",
        run,
        "Collects the faces that the model is least certain of. Their pictures and one annotation file with all "
        "landmarks drawn, for a person to correct in their tool; the corrected folder is a source for `prepare`, "
        "which knows what was changed.",
        "  msrrn review annotations --worst 200 --format cvat --out review\n"
        "  msrrn prepare --data 300w review --out datasets",
    )
    _add_run(parser)
    parser.add_argument(
        "--worst", type=positive, default=200, metavar="N", help="how many faces (default: %(default)s)"
    )
    parser.add_argument(
        "--format",
        choices=get_args(ReviewFormat),
        default="cvat",
        help="what the person's tool reads (default: %(default)s)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder")
    add_json(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="what `annotate` was told with --out")


def _confidence(text: str) -> float:
    value = share(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
