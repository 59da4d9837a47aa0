"""The commands that make, measure and export a model. See `flows.commands`."""

import argparse
import json
import sys
from pathlib import Path

from flows.options import (
    Commands,
    add_command,
    add_data,
    add_detector,
    add_format,
    add_json,
    add_model,
    add_name,
    add_one_look,
    add_split,
    add_train_options,
    add_workers,
    given,
    print_json,
    train_settings,
)
from pipelines.errors import UsageError
from pipelines.settings import NAME, TrainSettings
from pipelines.showable import counted


def add_model_commands(commands: Commands) -> None:
    """Declares the commands."""
    _train(commands)
    _evaluate(commands)
    _benchmark(commands)


def _train(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import epoch_progress
        from pipelines.retraining import begun_from, train_tracked
        from pipelines.texts import training_text
        from pipelines.training.train import resumable

        if call.resume is None:
            dataset, experiment = call.dataset, call.name
            settings, network = begun_from(call.init, train_settings(call), dataset, call.out)
        else:
            if given(call, TrainSettings):
                raise UsageError("--resume goes on with the settings that the run has: leave the others out")
            (dataset, settings, experiment), network = resumable(call.out, call.resume), None
            experiment = experiment or call.name
            if call.name not in (NAME, experiment):
                raise UsageError(f"--resume goes on in the experiment {experiment}, as it began: leave --name out")
        with epoch_progress(settings) as (epoch, wait):
            trained = train_tracked(dataset, call.out, settings, call.workers, experiment, epoch, network, wait)
        measured = {key: value for key, value in trained.card.metrics.items() if key != "protocol"}
        result = {"model": trained.artifact.url, "reused": trained.reused, **trained.history[-1], **measured}
        if call.json:
            print_json(result)
        else:
            print(training_text(result))

    parser = add_command(
        commands,
        "train",
        run,
        "Trains the network on a dataset with Ray Train. MLflow follows it; the same call goes on from the last "
        "checkpoint of a run that was killed, and finds the model of one that was not.",
        "  msrrn train --dataset datasets/3f2a... --out work\n"
        "  msrrn train --dataset datasets/3f2a... --out work --preset best --init models:/msrrn@champion\n"
        "  msrrn train --resume --out work\n"
        "  msrrn train --dataset s3://bucket/datasets/3f2a... --out s3://bucket/work --epochs 40 --workers 8",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", metavar="URL", help="the dataset that `prepare` printed")
    which.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="NAME",
        help="go on with the unfinished run in OUT, with its dataset and settings; NAME where there are several",
    )
    parser.add_argument("--out", required=True, metavar="URL", help="where checkpoints and the model go")
    add_train_options(parser)
    parser.add_argument("--seed", type=int, help="seed of the first weights and of the order of samples (default: 0)")
    add_name(parser, "MLflow experiment that follows the training")
    add_workers(parser, or_none=True)
    add_json(parser)


def _evaluate(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import progress
        from pipelines.evaluation.evaluate import evaluate
        from pipelines.opening import open_model
        from pipelines.storage import publish_file, require_writable_file
        from pipelines.texts import evaluation_text

        model = open_model(call.model, call.one_look)
        if call.json and call.json != "-":
            require_writable_file(call.json)
        with progress("evaluating, photos") as update:
            evaluation = evaluate(
                model, call.data, call.split, call.workers, update, model.val_share, call.format, call.detector
            )
        table = evaluation.table()
        if call.json == "-":
            print_json(table)
            return
        print(evaluation_text(evaluation))
        if call.json:
            publish_file(call.json, (json.dumps(table, indent=2) + "\n").encode())

    parser = add_command(
        commands,
        "evaluate",
        run,
        "Measures detector and model on annotated photos. By subset and by stage; NRMSE over the pupils' "
        "distance (ip) and over the outer eye corners' (io). A face that the detector misses is boxed from its "
        "annotation, counted in `missed`, and is in every figure but nrmse_ip_detected.",
        "  msrrn evaluate --model work/models/9c1e... --data 300w\n"
        "  msrrn evaluate --model models:/msrrn@champion --data helen/testset --json figures.json",
    )
    add_model(parser, required=True)
    add_one_look(parser)
    add_data(parser)
    add_format(parser)
    add_split(parser, "held-out")
    add_detector(parser, "whoever did in training")
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures to FILE as JSON, in fractions, not %%; - prints them"
    )
    add_workers(parser)


def _benchmark(commands: Commands) -> None:
    def run(call: argparse.Namespace) -> None:
        from flows.progress import progress
        from pipelines.evaluation.benchmark import benchmark
        from pipelines.evaluation.benchmark_page import PAGE, shown, write_benchmark
        from pipelines.evaluation.ert import trained_ert
        from pipelines.opening import open_model
        from pipelines.storage import Store
        from pipelines.texts import rows_text

        model, out = open_model(call.model, call.one_look), Store(call.out)
        out.require_writable(PAGE)
        ert = None
        if call.ert_dataset:
            ert = trained_ert(call.ert_dataset, Path(call.ert_folder), call.workers, on_training=_announce)
        with progress("evaluating, photos") as update:
            result = benchmark(model, call.data, call.split, call.workers, ert, update, call.format)
        write_benchmark(result, out)
        if call.json:
            print_json({"page": f"{out.url}/{PAGE}", "table1": result.table1(), "table2": result.table2()})
        else:
            print("\n\n".join(rows_text(shown(rows)) for rows in (result.table1(), result.table2())))
            print(f"\nall tables, figures and pictures: {out.url}/{PAGE}")

    parser = add_command(
        commands,
        "benchmark",
        run,
        "Measures a model as papers do. Published figures beside measured ones, every stage, error curves, "
        "robustness, confidence, speed, examples: CSV tables and one page. With --ert-dataset, dlib's own trainer "
        "is measured on the same faces and boxes.",
        "  msrrn benchmark --data 300w --model box --out bench\n"
        "  msrrn benchmark --data 300w --model work/models/9c1e... --ert-dataset work/datasets/3f2a... --out bench",
    )
    add_data(parser)
    add_format(parser)
    add_model(parser, required=False)
    add_one_look(parser)
    parser.add_argument("--out", required=True, metavar="URL", help="where tables and page go")
    add_split(parser, "held-out")
    parser.add_argument("--ert-dataset", metavar="URL", help="train dlib's ERT on this dataset, to compare")
    parser.add_argument(
        "--ert-folder", default="ert", metavar="DIR", help="where trained ERT files are kept (default: %(default)s)"
    )
    add_workers(parser)
    add_json(parser)


def add_export_model(commands: Commands) -> None:
    """Declares the command; in the list of all it stands behind those of the registry."""

    def run(call: argparse.Namespace) -> None:
        from pipelines.models import export_model
        from pipelines.opening import open_model
        from pipelines.showable import showable
        from pipelines.storage import publish_file, require_writable_file

        require_writable_file(call.out)
        model = open_model(call.model, call.one_look)
        data = export_model(model)
        publish_file(call.out, data)
        if call.json:
            print_json({"file": call.out, "bytes": len(data), "model": model.label, "licence": model.card.licence})
        else:
            said = f"{call.out}: {model.label}, {len(data) / 1e6:.1f} MB. Licence: {model.card.licence}"
            print(showable(said))

    parser = add_command(
        commands,
        "export-model",
        run,
        "Writes a model as one ONNX file. From uint8 crops to landmarks, patch sampling included; it runs in plain "
        "onnxruntime, and every --model but that of `promote` takes it too.",
        "  msrrn export-model --model box --out face.onnx\n"
        "  msrrn annotate photos --model face.onnx --out annotations",
    )
    add_model(parser, required=False)
    add_one_look(parser)
    parser.add_argument("--out", required=True, metavar="FILE", type=onnx_file, help="a file that ends in .onnx")
    add_json(parser)


def onnx_file(text: str) -> str:
    """Raises ArgumentTypeError where a file has not the suffix by which it is known again."""
    if not text.endswith(".onnx"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .onnx")
    return text


def _announce(faces: int) -> None:
    print(
        f"training dlib's ERT on {counted(faces, 'face')}, some 15 minutes for 2,000; a second run finds it",
        file=sys.stderr,
    )
