"""What is kept of a model that was evaluated: the figures, with its run, and a version that says where."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.evaluation.results import Evaluation
from pipelines.models import Model
from pipelines.registry.artifacts import register
from pipelines.registry.evaluated_on import evaluation_tags
from pipelines.registry.tracking import RunRecord, finish_run, log_files, log_metrics, metric_names, open_run
from pipelines.registry.versions import ModelVersion
from pipelines.storage import Store
from pipelines.training.outcome import HISTORY


def record(artifact: str, model: Model, evaluation: Evaluation, name: str, sources: Sequence[str]) -> ModelVersion:
    """Logs what evaluation measured to the model's run and registers the model as a version of `name`.

    An artifact that is registered already keeps its version. The version says where it was evaluated, so that it can
    be judged later, by whoever finds it.
    """
    table = evaluation.table()
    called = metric_names(table)
    run = _run_of(model, name)
    log_metrics(
        run,
        {
            f"eval.{called[subset]}.{key}": value
            for subset, row in table.items()
            for key, value in row.items()
            if isinstance(value, int | float)
        },
    )
    log_files(run, {"evaluation.json": json.dumps(table, indent=1).encode(), **_history(artifact)})
    figures, protocol = table["all"], table["all"]["protocol"]
    tags = {
        "msrrn.dataset": str(model.card.training.dataset),
        "msrrn.boxes": protocol["boxes"],
        "msrrn.normalisation": "inter-pupil (IP)",
        "msrrn.eval_faces": protocol["faces_digest"],
        **evaluation_tags(evaluation, sources),
        "msrrn.nrmse_ip": f"{figures['nrmse_ip']:.5f}",
        "msrrn.failure_ip_010": f"{figures['failure_ip_010']:.4f}",
        "msrrn.code_version": str(model.card.training.code_version),
        "msrrn.licence": model.card.licence,
    }
    with tempfile.TemporaryDirectory(prefix="msrrn-") as folder:
        for file, data in model.files:
            Path(folder, file).write_bytes(data)
        version = register(run, name, Path(folder), tags)
    finish_run(run, "FINISHED")
    return version


def _run_of(model: Model, name: str) -> RunRecord:
    training = model.card.training
    key = training.run or model.digest[:16]
    return open_run(name, key, training.settings.model_dump(), {"msrrn.dataset": str(training.dataset)})


def _history(artifact: str) -> dict[str, bytes]:
    if artifact.startswith("models:"):
        return {}
    store = Store(artifact)
    return {HISTORY: store.read_bytes(HISTORY)} if store.exists(HISTORY) else {}
