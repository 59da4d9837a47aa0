"""The flow `retrain`: prepare → train → evaluate → gate → promote, then annotate an archive."""

from prefect import flow
from pydantic import BaseModel

from flows.gate import announce, asking, pass_gate
from flows.parameters import Format, ModelName, Place, Sources, Workers
from flows.tasks import (
    annotate_archive,
    evaluate_model,
    load_model,
    prepare_dataset,
    register_model,
    train_network,
    write_page,
)
from pipelines.annotation.claim import RECIPE
from pipelines.annotation.summary import Summary
from pipelines.archives import list_inputs
from pipelines.promotion.challenge import Challenge
from pipelines.promotion.decision import Decision, Verdict
from pipelines.promotion.gate import settled
from pipelines.registry import versions as registry
from pipelines.registry.tracking import short_digest
from pipelines.report import Retraining
from pipelines.retraining import annotator
from pipelines.settings import NAME, AnnotateSettings, GateSettings, PrepareSettings, TrainSettings
from pipelines.storage import Store


class RetrainResult(BaseModel):
    """Where everything is that a retraining made, and what it decided."""

    report: str
    dataset: str
    model: str
    registered: str
    verdict: Verdict | None
    """None: judged by the flow `promote`"""
    promoted: bool
    reason: str
    nrmse_ip: float
    annotations: str | None
    summary: Summary | None


@flow(name="retrain")
def retrain(
    data: Sources,
    out: Place,
    archive: Place | None = None,
    name: ModelName = NAME,
    prepare_settings: PrepareSettings | None = None,
    train_settings: TrainSettings | None = None,
    gate_settings: GateSettings | None = None,
    init: Place | None = None,
    judge: bool = True,
    approve: bool = False,
    workers: Workers = 2,
    source_format: Format = "auto",
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
        gate_settings: when the new model replaces the champion.
        init: whose weights training starts from: an artifact, models:/NAME@ALIAS, box, synthetic, or none for random
            ones; not given: what the preset starts from.
        judge: judge the new model here; else the event `msrrn.model.registered` starts the flow `promote`.
        approve: hold a promotion until a person approves.
        workers: Ray workers.
        source_format: of `data`; kept with the version, for whoever judges it later.
    """
    place = Store(out)
    prepare_settings = prepare_settings or PrepareSettings()
    val_share = prepare_settings.val_share
    ask = asking(approve)
    if archive:
        list_inputs(archive)  # what is wrong with it is better known now than after the training
    dataset, manifest = prepare_dataset(data, place.child("datasets").url, prepare_settings, workers, source_format)
    trained = train_network(dataset.url, out, train_settings or TrainSettings(), workers, name, init)
    model = load_model(trained.artifact.url)
    evaluation = evaluate_model(model, data, val_share, workers, source_format)
    version = register_model(trained.artifact.url, model, evaluation, name, data)
    challenge = Challenge(version, model, evaluation, data, "val", workers, gate_settings or GateSettings())
    decision: Decision | None
    meeting = None
    if judge:
        decision, judgement = pass_gate(challenge, ask)
        meeting = judgement.meeting
    elif (decision := settled(challenge, version, registry.champion(name))) is None:
        announce(version)

    annotations, summary = None, None
    if archive:
        best = load_model(annotator(name, trained.artifact.url))
        # After an upgrade that makes other rows, a run of its own: it would not go on with that of before.
        run = f"{best.card.version}-{RECIPE}-{short_digest(archive)}"
        annotations = place.child("annotations").child(run)
        summary = annotate_archive(archive, annotations.url, best, AnnotateSettings(), workers)
    job = Retraining(manifest, trained, evaluation, meeting, decision, archive, annotations, summary)
    return RetrainResult(
        report=write_page(job, place),
        dataset=dataset.url,
        model=trained.artifact.url,
        registered=version.uri,
        verdict=decision.verdict if decision else None,
        promoted=decision is not None and decision.promote,
        reason=decision.reason if decision else "The flow `promote` judges this model.",
        nrmse_ip=evaluation.table()["all"]["nrmse_ip"],
        annotations=annotations.url if annotations else None,
        summary=summary,
    )
