"""The commands that look at datasets, and take pictures or whole datasets away. See `flows.commands`."""

import argparse
import re

from flows.options import Commands, add_command, add_json, add_workers, print_json
from pipelines.errors import UsageError


def add_upkeep_commands(commands: Commands) -> None:
    """Declares the commands."""
    _datasets(commands)
    _verify(commands)
    _forget(commands)


def _datasets(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from dataclasses import asdict

        from pipelines.dataset.deletion import delete_datasets
        from pipelines.dataset.inventory import datasets
        from pipelines.texts import datasets_text, deleted_text

        if call.delete is not None:
            deleted = delete_datasets(call.url, call.delete, call.dry_run)
            text = deleted_text(deleted, call.dry_run)
            result = asdict(deleted)
        elif call.dry_run:
            raise UsageError("--dry-run says what --delete would delete: give that, too")
        else:
            found = datasets(call.url)
            text, result = datasets_text(found), asdict(found)
        if call.json:
            print_json(result)
        else:
            print(text)

    parser = add_command(
        commands,
        "datasets",
        run,
        "Lists the datasets in a place, or deletes some. Finished, unfinished and damaged ones, those of another "
        "version of msrrn, and shards that none of them uses.",
        "  msrrn datasets work/datasets\n  msrrn datasets s3://bucket/datasets --json\n"
        "  msrrn datasets work/datasets --delete 3f2a0c... --dry-run",
    )
    parser.add_argument("url", metavar="URL", help="what `prepare` was told with --out")
    parser.add_argument(
        "--delete",
        nargs="*",
        metavar="NAME",
        help="delete these datasets, and the shards that no other one lists; without a name those shards alone",
    )
    parser.add_argument("--dry-run", action="store_true", help="with --delete: say what would go, delete nothing")
    add_json(parser)


def _verify(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> int:
        from dataclasses import asdict

        from flows.progress import progress
        from pipelines.dataset.verify import verify
        from pipelines.showable import counted, showable

        with progress("verifying") as update:
            found = verify(call.url, call.workers, update)
        if call.json:
            print_json(asdict(found))
        else:
            for problem in found.problems:
                print(showable(f"{problem.place}: {problem.code}: {problem.message}"))
            looked = ", ".join(f"{count} {name}" for name, count in found.figures.items())
            problems = counted(len(found.problems), "problem") if found.problems else "no problems"
            print(f"{call.url}: {problems} ({looked})")
        return 1 if found.problems else 0

    parser = add_command(
        commands,
        "verify",
        run,
        "Checks a dataset against its manifest. Every hash, every row, the schema, the split, the counts; exits "
        "with 1 where something is wrong, and says what and how to mend it.",
        "  msrrn verify datasets/3f2a0c...\n  msrrn verify s3://bucket/datasets/3f2a0c... --json",
    )
    parser.add_argument("url", metavar="URL", help="the dataset that `prepare` printed")
    add_workers(parser)
    add_json(parser)


def _forget(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from functools import partial

        from flows.progress import progress
        from pipelines.annotation.forget import forget_in_run, keep_out, readable_runs
        from pipelines.dataset.forget import forget_in_datasets
        from pipelines.dataset.inventory import place_of
        from pipelines.forgotten import Forgot
        from pipelines.storage import Store
        from pipelines.texts import forgot_text

        if not call.datasets and not call.annotations:
            raise UsageError("say where: give --datasets, --annotations, or both")
        digests = sorted(set(call.pictures))
        # All places before any is changed: a slip in the last one shall not leave half of it done.
        places = {place.absolute(): place for place in map(place_of, call.datasets)}
        for url in call.annotations:
            readable_runs(url)
        in_places = [partial(forget_in_datasets, place.url, digests, call.workers) for place in places.values()]
        done: list[Forgot] = []
        try:
            with progress("forgetting") as update:
                for url in call.annotations:
                    keep_out(Store(url), digests, update)
            # Those, too, that began before that. One that is told may be in a folder that is told as well.
            runs = {run.absolute(): run for url in call.annotations for run in readable_runs(url)}
            in_runs = [partial(forget_in_run, run, digests) for run in runs.values()]
            for forget in (*in_places, *in_runs):
                with progress("forgetting") as update:
                    done.append(forget(update))
                if not call.json:
                    print(forgot_text(done[-1]))
        finally:  # a dataset's new name is told once, whatever becomes of the next place
            if call.json and done:
                print_json([forgot.model_dump() for forgot in done])

    parser = add_command(
        commands,
        "forget",
        run,
        "Removes pictures from datasets and annotation runs. By the SHA-256 of their files; they are left out of "
        "what is made there from now on. Datasets that held one get another name. Sources, models and exports are "
        "not touched: delete the picture there, and retrain.",
        "  msrrn forget $(sha256sum jane.jpg | cut -c-64) --datasets work/datasets --annotations work/annotations\n"
        "  msrrn forget 9f86d0... 60303a... --datasets s3://bucket/datasets --json",
    )
    parser.add_argument("pictures", nargs="+", type=digest, metavar="SHA256", help="of a picture's bytes")
    parser.add_argument(
        "--datasets", nargs="+", action="extend", default=[], metavar="URL", help="what `prepare` was told with --out"
    )
    parser.add_argument(
        "--annotations",
        nargs="+",
        action="extend",
        default=[],
        metavar="URL",
        help="what `annotate` was told with --out, or folders of such, also for what begins there later",
    )
    add_workers(parser)
    add_json(parser)


def digest(text: str) -> str:
    """Raises ArgumentTypeError where a text is no SHA-256."""
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no SHA-256: give its 64 hexadecimal digits, as of sha256sum")
    return text.lower()
