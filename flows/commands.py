"""The commands of `msrrn`: what each is told, and the one call that it makes. Those that run the whole line are here.

Heavy libraries are imported inside the commands, so that `--help` and a wrong call answer at once.
"""

import argparse
import shutil
import sys
import tempfile
from typing import Final

from flows.annotation_commands import add_annotation_commands
from flows.dataset_commands import add_dataset_commands
from flows.model_commands import add_export_model, add_model_commands
from flows.monitor_commands import add_monitor_commands
from flows.options import (
    Commands,
    add_approve,
    add_command,
    add_data,
    add_format,
    add_gate_options,
    add_json,
    add_name,
    add_prepare_options,
    add_train_options,
    add_workers,
    gate_settings,
    prepare_settings,
    print_json,
    train_settings,
)
from flows.registry_commands import add_registry_commands
from flows.upkeep_commands import add_upkeep_commands
from pipelines.errors import UserError
from pipelines.showable import showable

_HOME_BYTES: Final = 4 << 20
"""More than a new database of Prefect's takes."""


def add_commands(commands: Commands) -> None:
    """Declares every command."""
    _demo(commands)
    add_dataset_commands(commands)
    add_upkeep_commands(commands)
    add_model_commands(commands)
    add_registry_commands(commands)
    add_export_model(commands)
    add_annotation_commands(commands)
    _retrain(commands)
    add_monitor_commands(commands)


def _require_home() -> None:
    """Raises UserError where Prefect has no server, and nowhere to keep its runs: it would try for two minutes."""
    from prefect.settings import get_current_settings

    from flows.gate import has_server

    settings = get_current_settings()
    own = settings.server.database.connection_url
    in_home = own is not None and own.get_secret_value().endswith(f"{settings.home}/prefect.db")
    if has_server() or not in_home:
        return
    try:
        with tempfile.TemporaryFile(dir=settings.home) as file:
            file.write(bytes(_HOME_BYTES))
    except OSError as error:
        raise UserError(
            f"{settings.home} cannot be written ({error.strerror}), where Prefect keeps what it knows of runs: mend "
            "that, or set PREFECT_HOME to a folder that can be"
        ) from None


def _demo(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.demo import demo
        from pipelines.registry.store import shown_uri

        _require_home()
        program = "msrrn" if shutil.which("msrrn") else sys.argv[0]
        made = demo(call.out, call.workers)
        result = made.result
        if call.json:
            print_json({"photos": made.photos, "archive": made.archive, **result.model_dump()})
            return
        print(
            f"\nDone. Validation NRMSE (inter-pupil) {result.nrmse_ip:.2%} on faces never trained on.\n"
            f"  {result.reason}\n\n"
            f"  page          {result.report}\n"
            f"  model         {result.model}\n"
            f"  registered    {result.registered}\n"
            f"  annotations   {result.annotations}\n"
            f"  MLflow store  {shown_uri()}\n\n"
            "Next, with photos of your own:\n"
            f"  {program} annotate YOUR_PHOTOS --model {result.model} --out annotations"
        )

    parser = add_command(
        commands,
        "demo",
        run,
        "Runs the whole line on synthetic photographs. Draws them, prepares a dataset, trains with Ray Train, "
        "evaluates, registers and promotes in MLflow, annotates an archive, writes a page.",
        "  msrrn demo\n  msrrn demo --out /tmp/demo --workers 4",
    )
    parser.add_argument("--out", default="demo-out", help="where everything goes (default: %(default)s)")
    add_workers(parser)
    add_json(parser)


def _retrain(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.retrain import retrain
        from pipelines.registry.store import shown_uri

        _require_home()
        result = retrain(
            call.data,
            call.out,
            call.archive,
            call.name,
            prepare_settings(call),
            train_settings(call),
            gate_settings(call),
            init=call.init,
            approve=call.approve,
            workers=call.workers,
            source_format=call.format,
        )
        if call.json:
            print_json(result.model_dump())
            return
        print(
            f"\n{showable(result.reason)}\n"
            f"  validation    NRMSE (inter-pupil) {result.nrmse_ip:.2%}\n"
            f"  page          {result.report}\n"
            f"  dataset       {result.dataset}\n"
            f"  model         {result.model}\n"
            f"  registered    {result.registered}{' (champion)' * result.promoted}\n"
            f"  annotations   {result.annotations or '-'}\n"
            f"  MLflow store  {shown_uri()}"
        )

    parser = add_command(
        commands,
        "retrain",
        run,
        "New annotations in, a better champion out, or nothing changes. Prepares, trains, evaluates, compares "
        "with the champion, promotes; annotates --archive with the champion; writes OUT/report.html.",
        "  msrrn retrain --data 300w --out work\n"
        "  msrrn retrain --data 300w corrections --archive photos.tar --out s3://bucket/work --epochs 40",
    )
    add_data(parser)
    add_format(parser)
    parser.add_argument("--archive", metavar="SRC", help="photos to annotate with the champion")
    parser.add_argument("--out", required=True, metavar="URL", help="where everything goes")
    add_prepare_options(parser)
    add_train_options(parser)
    add_approve(parser)
    add_gate_options(parser)
    add_name(parser)
    add_workers(parser)
    add_json(parser)
