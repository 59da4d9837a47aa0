"""The flow `retrain`: prepare → train → evaluate → gate → promote, then annotate an archive."""

from prefect import flow
from pydantic import BaseModel

from flows.tasks import (
    annotate_archive,
    evaluate_model,
    gate,
    load_model,
    prepare_dataset,
    register_model,
    train_network,
    write_page,
)
from pipelines.annotation import Summary
from pipelines.archives import list_inputs
from pipelines.report import Retraining
from pipelines.settings import AnnotateSettings, PrepareSettings, TrainSettings
from pipelines.storage import Store, short_digest


class RetrainResult(BaseModel):
    """Where everything is that a retraining made, and what it decided."""

    report: str
    dataset: str
    model: str
    registered: str
    promoted: bool
    reason: str
    nrmse_ip: float
    annotations: str | None
    summary: Summary | None


@flow(name="retrain")
def retrain(
    data: list[str],
    out: str,
    archive: str | None = None,
    name: str = "msrrn",
    prepare_settings: PrepareSettings | None = None,
    train_settings: TrainSettings | None = None,
    workers: int = 2,
) -> RetrainResult:
    """New annotations in; a better champion out, or nothing changes.

    Args:
        data: sources of annotated photos; what they declare as validation or test photos, or else a share
            of the photos held out by their digest, is evaluated and never trained on.
        out: a folder or `s3://` URL for the dataset, checkpoints, model, annotations and report.
        archive: photos to annotate with the champion, in anything that the flow `annotate` takes.
        name: the registered model.
        prepare_settings: how the dataset is made.
        train_settings: how the network is trained.
        workers: Ray workers.
    """
    place = Store(out)
    prepare_settings = prepare_settings or PrepareSettings()
    val_share = prepare_settings.val_share
    if archive:
        list_inputs(archive)  # what is wrong with it is better known now than after the training
    dataset, manifest = prepare_dataset(data, place.child("datasets").url, prepare_settings, workers)
    trained = train_network(dataset.url, out, train_settings or TrainSettings(), workers, name)
    model = load_model(trained.artifact.url)
    evaluation = evaluate_model(model, data, val_share, workers)
    version = register_model(trained.artifact.url, model, evaluation, name)
    decision, champion = gate(version, evaluation, data, val_share, workers)

    annotations, summary = None, None
    if archive:
        best = load_model(f"models:/{name}@champion")
        annotations = place.child("annotations").child(f"{best.card.version}-{short_digest(archive)}")
        summary = annotate_archive(archive, annotations.url, best, AnnotateSettings(), workers)
    job = Retraining(manifest, trained, evaluation, champion, decision, archive, annotations, summary)
    return RetrainResult(
        report=write_page(job, data, place),
        dataset=dataset.url,
        model=trained.artifact.url,
        registered=f"models:/{name}/{version.version}",
        promoted=decision.promote,
        reason=decision.reason,
        nrmse_ip=evaluation.table()["all"]["nrmse_ip"],
        annotations=annotations.url if annotations else None,
        summary=summary,
    )
