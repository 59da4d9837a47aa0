"""The options of the commands, and what becomes of them: each is declared once, here."""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from msrrn.augmentation import AugmentationSettings
from msrrn.config import Preset
from pipelines.engine import default_workers
from pipelines.errors import UsageError
from pipelines.settings import (
    INIT,
    MODEL_NAME,
    NAME,
    REGISTERED_NAME,
    BoxesBy,
    GateSettings,
    Precision,
    PrepareSettings,
    Selection,
    SourceFormat,
    TrainSettings,
)

Commands = Any
"""What `ArgumentParser.add_subparsers` returns; argparse keeps its type to itself."""

Runner = Callable[[argparse.Namespace], int | None]

_WITH_DATA: Final = "; only with --data"


def add_command(commands: Commands, name: str, run: Runner, text: str, examples: str) -> argparse.ArgumentParser:
    """Declares a command. The first sentence of `text` stands in the list of all; `examples` are whole lines."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text.partition(". ")[0],
        description=textwrap.fill(text, 79),
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a script that has them would end, or mean another option, once there is one more
    )
    parser.set_defaults(run=run, refuse=parser.error, loud=False, surplus="")
    return parser


def positive(text: str) -> int:
    """1 or more; else raises ArgumentTypeError, as `count`, which is for 0 or more."""
    return _from(1, text, "is not 1 or more")


def count(text: str) -> int:
    return _from(0, text, "is less than 0")


def _from(least: int, text: str, otherwise: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} {otherwise}")
    if number > sys.maxsize:  # Python counts no further in a listing
        raise argparse.ArgumentTypeError(f"{text} is more than {sys.maxsize}")
    return number


def add_workers(parser: argparse.ArgumentParser, or_none: bool = False) -> None:
    parser.add_argument(
        "--workers",
        type=count if or_none else positive,
        default=default_workers(),
        help=f"Ray workers{', 0: without Ray' * or_none} (default: the %(default)s cores here)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def add_name(parser: argparse.ArgumentParser, what: str = "registered model") -> None:
    parser.add_argument("--name", type=_model_name, default=NAME, help=f"{what} (default: %(default)s)")


def _model_name(text: str) -> str:
    if not re.fullmatch(MODEL_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r}: a name has letters, digits, - and _ only, at most 100")
    return text


def add_registered_name(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    what = "(default: %(default)s)" if default else "(default: all that msrrn registered)"
    parser.add_argument("--name", type=_registered_name, default=default, help=f"one registered model {what}")


def _registered_name(text: str) -> str:
    if not re.fullmatch(REGISTERED_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r}: the name of a registered model is not empty, and has no / or :")
    return text


def add_data(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        required=required,
        metavar="SRC",
        help="annotated photos: a folder, .zip or .tar of images with .pts files (300-W), imglab or CVAT XML, COCO "
        "JSON, CSV of keypoints, WebDataset tars, or what `msrrn annotate` or `review` wrote; local or s3://"
        + ("" if required else " (default: where the version was evaluated when it was registered)"),
    )


def add_format(parser: argparse.ArgumentParser, data_required: bool = True) -> None:
    """`None` is nothing said, where --data may be left out."""
    parser.add_argument(
        "--format",
        choices=("auto", *get_args(SourceFormat)),
        default="auto" if data_required else None,
        help="format of --data (default: found out by looking at it)" + ("" if data_required else _WITH_DATA),
    )


def add_detector(parser: argparse.ArgumentParser, default: str) -> None:
    text = f"who gives faces their boxes (default: {default})"
    parser.add_argument("--detector", choices=get_args(BoxesBy), help=text)


def share(text: str) -> float:
    """`5%` or `0.05`."""
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


def add_split(parser: argparse.ArgumentParser, default: Selection, data_required: bool = True) -> None:
    """`None` is nothing said, where --data may be left out."""
    parser.add_argument(
        "--split",
        choices=get_args(Selection),
        default=default if data_required else None,
        help="which photos. held-out: those that the source declares val or test, or all where it declares none; "
        f"val: those that `prepare` holds out; all: every one (default: {default})"
        + ("" if data_required else _WITH_DATA),
    )


def add_prepare_options(parser: argparse.ArgumentParser) -> None:
    defaults = PrepareSettings()
    parser.add_argument(
        "--copies",
        type=int,
        help=f"augmented copies of each training face (default: {defaults.augmentation.copies})",
    )
    parser.add_argument(
        "--noise-sigma",
        type=float,
        metavar="SD",
        help="strongest pixel noise of the copies, in standard deviations of the crop's grey values; 0 is best for "
        f"--preset best (default: {defaults.augmentation.noise_sigma})",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        help=f"share of photos held out where the source says none (default: {defaults.val_share})",
    )
    parser.add_argument("--seed", type=int, help="seed of every random draw (default: 0)")
    add_detector(parser, "hog, which needs no file")


def add_train_options(parser: argparse.ArgumentParser) -> None:
    default = TrainSettings()
    others = [TrainSettings(preset=preset) for preset in get_args(Preset) if preset != default.preset]

    def defaults(field: str) -> str:
        of_others = "".join(f", of {other.preset} {getattr(other, field)}" for other in others)
        return f"(default: {getattr(default, field)}{of_others})"

    parser.add_argument(
        "--preset",
        choices=get_args(Preset),
        help="paper: the network and the objective as published, minutes on two cores. best: the most accurate that "
        "the ablations found, some half an hour on two cores; every face is perturbed anew in every epoch "
        f"(default: {default.preset})",
    )
    parser.add_argument("--epochs", type=int, help=f"passes over all copies {defaults('epochs')}")
    parser.add_argument("--batch", type=int, help=f"samples of one update {defaults('batch')}")
    parser.add_argument("--learning-rate", type=float, help=f"peak of the schedule {defaults('learning_rate')}")
    begun = "".join(f", of {preset} {model}" for preset, model in INIT.items())
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="begin with the weights of a model of the same preset: an artifact directory, models:/NAME@ALIAS, box, "
        "synthetic (the model in the package that has seen synthetic faces alone), or none: random weights, which "
        f"want a higher --learning-rate (default: none{begun})",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of convolutions and matrix products; bfloat16 is faster on GPUs, and on CPUs with AMX "
        f"{defaults('precision')}",
    )


def given(call: argparse.Namespace, kind: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """What options, which begin with `prefix`, said of the fields of `kind`; not every field has one."""
    said = {name: getattr(call, f"{prefix}{name}".replace("-", "_"), None) for name in kind.model_fields}
    return {name: value for name, value in said.items() if value is not None}


Settings = TypeVar("Settings", bound=BaseModel)


def settings_of(kind: type[Settings], said: dict[str, Any], prefix: str = "") -> Settings:
    """Settings of what options said, which begin with `prefix`; the rest is as by default.

    Raises:
        UsageError: a value is out of bounds; it names the option.
    """
    try:
        return kind(**said)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{prefix}" + str(first["loc"][-1]).replace("_", "-")
        raise UsageError(f"{option} {first['input']}: {first['msg']}") from error


def prepare_settings(call: argparse.Namespace, base: PrepareSettings | None = None) -> PrepareSettings:
    """The settings given, and for the others those of `base`."""
    base = base or PrepareSettings()
    augmentation = settings_of(
        AugmentationSettings, base.augmentation.model_dump() | given(call, AugmentationSettings)
    )
    return settings_of(
        PrepareSettings, base.model_dump() | given(call, PrepareSettings) | {"augmentation": augmentation}
    )


def train_settings(call: argparse.Namespace) -> TrainSettings:
    """The settings given; --init is the name of a model, which becomes a setting where that is opened."""
    return settings_of(TrainSettings, {k: v for k, v in given(call, TrainSettings).items() if k != "init"})


def add_settings(parser: Any, kind: type[BaseModel], prefix: str = "") -> None:
    """An option for each field, without a default, as `given` wants it; `parser` may be a group."""
    for name, field in kind.model_fields.items():
        default = "" if field.default is None or field.default is False else f" (default: {field.default})"
        text = f"{field.description}{default}".replace("%", "%%")
        parser.add_argument(f"--{prefix}{name.replace('_', '-')}", help=text, **_taken(field.annotation))


def _taken(kind: Any) -> dict[str, Any]:
    """What `add_argument` is told of a field of this type, which may be one of some words, or be left out."""
    if kind is bool:
        return {"action": "store_true", "default": None}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    numbers = [each for each in (kind, *get_args(kind)) if each in (int, float)]
    return {"type": numbers[0], "metavar": "N"}


def add_approve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--approve",
        action="store_true",
        help="ask a person before a promotion: with a Prefect server the flow run pauses until someone resumes it, "
        "else the question is asked in this terminal",
    )


def add_gate_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the gate", "when a challenger replaces the champion; shares are fractions")
    add_settings(group, GateSettings, "gate-")


def gate_settings(call: argparse.Namespace) -> GateSettings:
    return settings_of(GateSettings, given(call, GateSettings, "gate-"), "gate-")


def print_json(result: Any) -> None:
    print(json.dumps(result, indent=2, allow_nan=False))


def add_one_look(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--one-look",
        action="store_true",
        help="look at each face once, where the model looks at it again, in the mirror: 1.6 times as many faces a "
        "second, errors larger by some two in a hundred",
    )


def add_model(parser: argparse.ArgumentParser, required: bool, exported: bool = True) -> None:
    parser.add_argument(
        "--model",
        required=required,
        metavar="M",
        help=f"a directory that `train` made, {'an exported .onnx, ' * exported}models:/NAME@ALIAS, "
        "models:/NAME/VERSION, or box: the model in the package"
        + ("" if required else f" (default: models:/{NAME}@champion where there is one, else box)"),
    )
