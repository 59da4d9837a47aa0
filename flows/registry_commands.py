"""The commands about the champion: who it is, who becomes it, and how to go back. See `flows.commands`."""

import argparse

from flows.options import (
    Commands,
    add_approve,
    add_command,
    add_data,
    add_format,
    add_gate_options,
    add_json,
    add_model,
    add_registered_name,
    add_split,
    add_workers,
    gate_settings,
    print_json,
)
from pipelines.settings import NAME, RECONCILE_MINUTES
from pipelines.showable import showable


def add_registry_commands(commands: Commands) -> None:
    """Declares the commands."""
    _promote(commands)
    _rollback(commands)
    _models(commands)
    _reconcile(commands)


def _promote(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from functools import partial

        from flows.gate import ask_here, asking, has_server
        from flows.progress import say
        from flows.promote import PromoteResult, promote
        from pipelines.promotion.challenge import challenge_of
        from pipelines.promotion.gate import carry_out, pass_gate

        settings = gate_settings(call)
        if asking(call.approve) and has_server():
            result = promote(
                call.model,
                call.name,
                call.data,
                call.split,
                settings,
                call.again,
                approve=True,
                workers=call.workers,
                source_format=call.format,
            )
        else:
            challenge = challenge_of(
                call.model, call.data, call.split, call.name, call.workers, settings, call.again, call.format
            )
            ask = ask_here if call.approve else None
            decision, judgement = pass_gate(challenge, ask, carry_out=partial(carry_out, on_wait=say))
            result = PromoteResult.of(challenge, decision, judgement)
        if call.json:
            print_json(result.model_dump())
        else:
            verdict = {"promoted": "is champion", "kept": "was not promoted", "undecided": "stays challenger"}
            print(showable(f"{result.name} version {result.version} {verdict[result.verdict]}. {result.reason}"))
            print(f"table, faces and thresholds: MLflow run {result.run}" if result.run else "nothing changed")

    parser = add_command(
        commands,
        "promote",
        run,
        "Puts a model through the gate. It meets the champion on the same evaluation faces, paired by face, and "
        "becomes champion if it is surely better and no slice of the faces pays for it; else the champion stays, or "
        "nothing is decided. Table, pictures and reason are an MLflow run, and tags of both versions.",
        "  msrrn promote --model work/models/9c1e... --data 300w\n"
        "  msrrn promote --model models:/msrrn/7 --approve\n"
        "  msrrn promote --model models:/msrrn@challenger --data 300w more --gate-least-gain 0.01 --json",
    )
    add_model(parser, required=True, exported=False)
    add_data(parser, required=False)
    add_format(parser, data_required=False)
    add_split(parser, "val", data_required=False)
    parser.add_argument(
        "--again",
        action="store_true",
        help="judge anew, even if it was judged on the same faces against the same champion",
    )
    add_approve(parser)
    add_gate_options(parser)
    add_registered_name(parser, NAME)
    add_workers(parser)
    add_json(parser)


def _rollback(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import say
        from pipelines.registry.artifacts import lost
        from pipelines.registry.succession import rollback
        from pipelines.registry.turns import whoami
        from pipelines.registry.versions import ModelVersion

        def asked(version: ModelVersion) -> str:
            say(f"{version.uri}: looking for its files")  # where their store hangs, that takes minutes
            return lost(version)

        new, old = rollback(call.name, call.reason, call.who or whoami(), say, asked)
        if call.json:
            print_json({"name": call.name, "champion": new.version, "previous": old.version if old else None})
        else:
            previous = f"version {old.version} is previous" if old else "there is no previous one"
            print(f"{call.name}: version {new.version} is champion again, {previous}")

    parser = add_command(
        commands,
        "rollback",
        run,
        "Makes the previous champion the champion again. The two change places; who and why is recorded.",
        '  msrrn rollback --reason "misses profiles since Tuesday"',
    )
    parser.add_argument(
        "--reason", required=True, type=_reason, help="why, for whoever reads the registry later; not empty"
    )
    parser.add_argument("--who", help="who decided (default: the user of this process)")
    add_registered_name(parser, NAME)
    add_json(parser)


def _models(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from dataclasses import asdict

        from pipelines.errors import UserError
        from pipelines.outages import OutageError
        from pipelines.registry.succession import log
        from pipelines.registry.versions import champion, models, names
        from pipelines.texts import log_text, models_text

        if call.log:
            lines, unread = {}, []
            for name in [call.name] if call.name else names(None):
                try:
                    lines[name] = log(name)
                except OutageError:
                    raise
                except UserError as error:  # what a person has to mend of one model keeps nobody from the others
                    unread.append(str(error))
            if call.json and (lines or not unread):
                print_json({name: [line.model_dump() for line in each] for name, each in lines.items()})
            elif lines or not unread:
                best = {name: champion(name) for name in lines}
                print(log_text(lines, {name: known.version if known else None for name, known in best.items()}))
            if unread:
                raise UserError("\n".join(unread))
            return
        versions = models(call.name)
        if call.json:
            print_json([asdict(version) for version in versions])
        else:
            print(models_text(versions))

    parser = add_command(
        commands,
        "models",
        run,
        "Lists what msrrn registered. Newest first, with aliases, figures and the last decision; with --log every "
        "decision that was ever made, oldest first.",
        "  msrrn models\n  msrrn models --log\n  msrrn models --name msrrn --json",
    )
    add_registered_name(parser)
    parser.add_argument("--log", action="store_true", help="who became champion, who did not, who went back, and why")
    add_json(parser)


def _reconcile(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import say
        from pipelines.errors import UserError
        from pipelines.promotion.gate import judged_where_registered
        from pipelines.promotion.reconcile import reconcile
        from pipelines.storage import Store

        for url in call.place:
            if not Store(url).exists():
                raise UserError(f"{url} does not exist: give the --out of `prepare`, `train` or `annotate`")
        settings = gate_settings(call)
        ask = None
        if call.approve:
            from flows.gate import asking, has_server  # brings in Prefect
            from flows.reconcile import reconcile as flow

            ask = asking(True)
        if ask and has_server():
            found = flow(call.name, call.place, call.minutes, settings, approve=True, workers=call.workers)
        else:
            found = reconcile(
                lambda version: judged_where_registered(version, call.workers, settings, ask),
                call.name,
                call.place,
                call.minutes,
                on_wait=say,
            )
        if call.json:
            print_json([each.model_dump() for each in found])
        else:
            print(showable("\n".join(f"{each.where}: {each.what}: {each.done}" for each in found)) or "nothing to do")

    parser = add_command(
        commands,
        "reconcile",
        run,
        "Finishes what was missed or left half done. A promotion or rollback that died between two aliases is "
        "completed or undone; a version that was registered and never judged is judged where it was evaluated; what "
        "dead processes hold is freed. Says what it did; run again, it does nothing.",
        "  msrrn reconcile\n  msrrn reconcile --approve\n"
        "  msrrn reconcile --place work/datasets s3://bucket/annotations",
    )
    add_registered_name(parser)
    parser.add_argument(
        "--place",
        nargs="+",
        action="extend",
        default=[],
        metavar="URL",
        help="free what dead processes hold in these places of datasets, trainings or annotation runs",
    )
    parser.add_argument(
        "--minutes",
        type=minutes,
        default=RECONCILE_MINUTES,
        help="leave alone what is younger: it may still be at work (default: %(default)s)",
    )
    add_approve(parser)
    add_gate_options(parser)
    add_workers(parser)
    add_json(parser)


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: say why")
    return text


def minutes(text: str) -> float:
    """0 or more; argparse tells the name of this function."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value
