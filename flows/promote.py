"""The flow `promote`: a challenger meets the champion."""

from typing import Annotated, Self

from prefect import flow
from pydantic import BaseModel, Field

from flows.gate import APPROVAL_HOURS, asking, enter, pass_gate
from flows.parameters import Format, Place, RegisteredName, Sources, Workers
from pipelines.promotion.challenge import Challenge
from pipelines.promotion.decision import Decision, Verdict
from pipelines.promotion.gate import Judgement
from pipelines.settings import NAME, GateSettings, Selection


class PromoteResult(BaseModel):
    """What the gate decided, and where that is recorded."""

    name: str
    version: int
    verdict: Verdict
    promoted: bool
    reason: str
    faces_needed: int | None
    run: str
    """the MLflow run with table and pictures; empty where nothing had to be judged"""

    @classmethod
    def of(cls, challenge: Challenge, decision: Decision, judgement: Judgement) -> Self:
        return cls(
            name=challenge.version.name,
            version=challenge.version.version,
            verdict=decision.verdict,
            promoted=decision.promote,
            reason=decision.reason,
            faces_needed=decision.faces_needed,
            run=judgement.run,
        )


@flow(name="promote")
def promote(
    model: Annotated[Place, Field(description="an artifact directory, or models:/NAME/VERSION")],
    name: RegisteredName = NAME,
    data: Sources | None = None,
    selection: Selection | None = None,
    settings: GateSettings | None = None,
    again: bool = False,
    approve: bool = False,
    approval_hours: Annotated[float, Field(gt=0, le=24 * 365)] = APPROVAL_HOURS,
    workers: Workers = 2,
    source_format: Format | None = None,
) -> PromoteResult:
    """Puts a model through the gate: it becomes champion, is kept out, or nothing is decided.

    Args:
        model: the challenger, an artifact directory or `models:/NAME/VERSION`.
        name: the registered model that it is a version of, or becomes one.
        data: sources of annotated photos; none: those that it was evaluated on when it was registered, and their
            format.
        selection: which photos of `data`: held out of training (`val`, where nothing is said), declared as such
            (`held-out`), `all`.
        settings: thresholds of the gate.
        again: judge what was judged on the same faces before.
        approve: hold a promotion until a person resumes the paused run.
        approval_hours: for how long; afterwards the run fails, and the champion stays.
        workers: Ray workers.
        source_format: of `data`; where nothing is said, `auto`.
    """
    ask = asking(approve, approval_hours)
    challenge = enter(model, data, selection, name, workers, settings or GateSettings(), again, source_format)
    decision, judgement = pass_gate(challenge, ask)
    return PromoteResult.of(challenge, decision, judgement)
