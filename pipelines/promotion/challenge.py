"""Who challenges the champion, on which photos, and whom it meets on them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import UsageError, UserError
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.results import Evaluation
from pipelines.models import Model
from pipelines.opening import IN_THE_BOX, open_model
from pipelines.promotion.comparison import Meeting, Pair, paired
from pipelines.registry.evaluated_on import evaluated_on
from pipelines.registry.record import record
from pipelines.registry.versions import ModelVersion
from pipelines.settings import GateSettings, Selection


@dataclass(frozen=True)
class Challenge:
    """A registered version, how well it does, and where that was measured."""

    version: ModelVersion
    model: Model
    evaluation: Evaluation
    sources: Sequence[str]
    selection: Selection
    workers: int
    settings: GateSettings
    again: bool = False
    """judge what was judged on the same faces, against the same champion, before"""


def challenge_of(
    artifact: str,
    sources: Sequence[str] | None,
    selection: Selection | None,
    name: str,
    workers: int,
    settings: GateSettings,
    again: bool = False,
    source_format: str | None = None,
) -> Challenge:
    """Evaluates a model (an artifact or a URI) and registers it as a version of `name`, if it is not one.

    Without `sources`, a registered version is evaluated where, and as, it was when it was registered. Of `sources`,
    no selection is `val`, and no format is `auto`.

    Raises:
        UsageError: there is a selection or a format, and no sources.
        UserError: the model, the sources or the registry cannot be used.
    """
    if sources is None and (selection or source_format):
        option = "--split" if selection else "--format"
        raise UsageError(f"{option} needs --data: without it, the model is judged on what it was evaluated on")
    if artifact.startswith("models:") and not artifact.startswith((f"models:/{name}/", f"models:/{name}@")):
        raise UserError(f"{artifact} is not a version of {name!r}: give --name, or the artifact's directory")
    if sources is None:
        where = evaluated_on(artifact)
        sources, selection, source_format = where.sources, where.selection, where.source_format
    selection = selection or "val"
    model = open_model(artifact)
    if model.onnx:
        raise UserError(f"{artifact} is an export: promote the artifact that it was made from")
    evaluation = evaluate(
        model,
        sources,
        selection,
        workers,
        val_share=model.val_share,
        source_format=source_format or "auto",
        unseen_by=[model],
    )
    version = record(artifact, model, evaluation, name, sources)
    return Challenge(version, model, evaluation, sources, selection, workers, settings, again)


def meeting_of(challenge: Challenge, model: Model, share: float) -> Meeting:
    """The challenger and another model on the photos that neither was trained on.

    `share` is that of the photos that are held out, where the selection goes by it.

    Raises:
        UserError: the photos cannot be used, or none is left.
    """
    both = [challenge.model, model]

    def evaluated(model: Model) -> Evaluation:
        return evaluate(
            model,
            challenge.sources,
            challenge.selection,
            challenge.workers,
            val_share=share,
            source_format=challenge.evaluation.source_format,
            unseen_by=both,
        )

    known = any(model.saw(face.photo_sha256) for face in challenge.evaluation.faces)
    new = evaluated(challenge.model) if known or share != challenge.model.val_share else challenge.evaluation
    evaluation = evaluated(model)
    if evaluation.faces_digest != new.faces_digest:
        new = evaluated(challenge.model)  # photos came in, or went, since the challenger was evaluated
    return Meeting(new, evaluation)


def beside_the_box(challenge: Challenge) -> Pair | None:
    """The challenger and the model that comes with the package; None where that was trained on all of the photos."""
    box = open_model(IN_THE_BOX)
    if all(box.saw(face.photo_sha256) for face in challenge.evaluation.faces):
        return None
    return paired(*meeting_of(challenge, box, challenge.model.val_share))  # the box's card knows all of its photos
