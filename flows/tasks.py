"""The Prefect tasks: each is one call into `pipelines`, and the artifacts that an operator wants to see.

A task is tried again where storage or a server can fail (`OutageError`), never where a person has to act (any other
`UserError`).
What it made is found by the next try, and by the next run: datasets and models are named by digests.
"""

import base64
from collections.abc import Sequence
from typing import Any, Final

from prefect import task
from prefect.artifacts import create_image_artifact, create_link_artifact
from prefect.cache_policies import NO_CACHE

from flows import artifacts
from flows.limits import outlive_leases
from flows.progress import epoch_progress, progress, say
from pipelines.annotation.run import annotate
from pipelines.annotation.summary import Summary
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.prepare import prepare
from pipelines.errors import NothingYetError, UserError
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.results import Evaluation
from pipelines.metrics_export import metered
from pipelines.models import Model
from pipelines.monitoring.drift import DriftReport, compare
from pipelines.monitoring.page import write_drift
from pipelines.opening import open_model
from pipelines.outages import OutageError
from pipelines.registry.record import record
from pipelines.report import LEGEND, TILES, Retraining, by_error, faces_sheet, retraining_page
from pipelines.retraining import begun_from, require_unseen, require_validation, train_tracked
from pipelines.settings import AnnotateSettings, DriftSettings, PrepareSettings, TrainSettings
from pipelines.storage import Store
from pipelines.training.outcome import TrainedModel

REPORT: Final = "report.html"

outlive_leases()  # whatever loads a flow, a worker or `msrrn serve`, comes by here


def _worth_retrying(task: Any, run: Any, state: Any) -> bool:
    try:
        state.result()
    except Exception as error:
        return isinstance(error, OutageError) or not isinstance(error, UserError)
    return False


STATION: Final[dict[str, Any]] = {
    "retries": 2,
    "retry_delay_seconds": [2, 10],
    "retry_condition_fn": _worth_retrying,
    "cache_policy": NO_CACHE,
}


@task(name="prepare dataset", **STATION)
def prepare_dataset(
    sources: Sequence[str], out: str, settings: PrepareSettings, workers: int, source_format: str
) -> tuple[Store, Manifest]:
    """Annotated photos → a dataset of shards below `out`."""
    with progress("dataset") as update:
        dataset, manifest = prepare(sources, out, settings, workers, update, source_format)
    require_validation(manifest)
    say(f"dataset {manifest.name}: " + ", ".join(f"{count} {name}" for name, count in manifest.counts.items()))
    artifacts.table(
        "dataset",
        [{"source": source, **splits} for source, splits in manifest.faces_by_source.items()],
        f"Dataset {manifest.name} at {dataset.url}: {manifest.counts}",
    )
    return dataset, manifest


@task(name="train network", **STATION)
def train_network(
    dataset: str, out: str, settings: TrainSettings, workers: int, name: str, init: str | None
) -> TrainedModel:
    """A dataset → a model artifact, followed by MLflow."""
    settings, network = begun_from(init, settings, dataset, out)
    require_unseen(dataset, settings)
    with epoch_progress(settings) as (epoch, wait):
        trained = train_tracked(dataset, out, settings, workers, name, epoch, network, wait)
    say(f"model {trained.artifact.url}" + (" (trained before: reused)" if trained.reused else ""))
    return trained


@task(name="evaluate model", **STATION)
def evaluate_model(
    model: Model, sources: Sequence[str], val_share: float, workers: int, source_format: str
) -> Evaluation:
    """Detector and model on the photos held out of training."""
    with progress("evaluating, photos") as update:
        evaluation = evaluate(model, sources, "val", workers, update, val_share, source_format, unseen_by=[model])
    artifacts.table(
        "evaluation",
        [
            {"subset": name, **{key: value for key, value in row.items() if not isinstance(value, dict)}}
            for name, row in evaluation.table().items()
        ],
        f"{evaluation.model}, {evaluation.selection} faces, fractions. "
        f"Boxes: {evaluation.detector}; ip: over the distance of the pupils.",
    )
    return evaluation


register_model = task(name="register model", **STATION)(record)


@task(name="annotate archive", **STATION)
def annotate_archive(source: str, out: str, model: Model, settings: AnnotateSettings, workers: int) -> Summary:
    """Landmarks on every face of an archive."""
    with progress("annotating, pictures") as shown, metered(out, settings.images_per_unit, shown) as update:
        summary = annotate(source, out, model, settings, workers, update)
    say(
        f"annotations {out}: {summary.images} pictures = {summary.annotated} annotated + {summary.no_face} "
        f"without a face + {summary.quarantined} quarantined; {summary.faces} faces"
    )
    artifacts.table(
        "annotations",
        [summary.model_dump(exclude={"settings", "reasons", "throughput"})],
        f"Annotations at {out}. Quarantined: {summary.reasons or 'none'}",
    )
    return summary


@task(name="compare runs", **STATION)
def compare_runs(
    runs: Sequence[str], out: str, settings: DriftSettings, dataset: str | None, reference: str | None
) -> tuple[DriftReport, str] | str:
    """What recent annotation runs saw against the training dataset and a reference run; the report and its page.

    Or, where there is nothing to compare yet, what is missing.
    """
    try:
        report = compare(runs, settings, dataset, reference)
    except NothingYetError as error:
        say(str(error))
        return str(error)
    page = write_drift(report, Store(out))
    say(f"drift: {report.verdict} {', '.join(report.named('drifted'))}")
    artifacts.table(
        "drift",
        [
            feature.model_dump(include={"name", "verdict", "base", "psi", "psi_noise", "ks", "ks_noise", "note"})
            for feature in report.features
        ],
        f"{report.verdict}: {len(report.runs)} runs against {report.dataset or report.reference}. {page}",
    )
    return report, page


@task(name="write page", **STATION)
def write_page(job: Retraining, out: Store) -> str:
    """The page with tables, figures and pictures."""
    out.publish(REPORT, retraining_page(job).encode())
    place = f"{out.url}/{REPORT}"
    worst = base64.b64encode(faces_sheet(by_error(job.evaluation)[::-1][:TILES])).decode()
    create_image_artifact(
        key="worst-faces", image_url=f"data:image/jpeg;base64,{worst}", description=f"The worst faces; {LEGEND}."
    )
    create_link_artifact(key="report", link=place, description="The page of this retraining")
    return place


load_model = task(name="open model", **STATION)(open_model)
