"""The gate: a challenger meets the champion on the same faces, and takes its place or does not.

Both are asked with their own artifact, detector and crop, about photos that neither was trained on: their cards
know those by their SHA-256 (cards of older models do not; then the split is what says it). What was decided,
and everything that it rests on, is a run of the MLflow experiment `NAME-promotions`, a line of the ledger there
(`pipelines.registry.ledger`), and tags of both versions. Undecided, nothing changes but these: the champion
stays, the version is `challenger`, and the next judgement on more faces may decide it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from pipelines.errors import UserError
from pipelines.evaluation.results import Evaluation
from pipelines.opening import open_model
from pipelines.promotion.challenge import Challenge, beside_the_box, challenge_of, meeting_of
from pipelines.promotion.comparison import Meeting, pace_row, paired
from pipelines.promotion.decision import Decision, Verdict, decide, first_model
from pipelines.promotion.page import decision_files
from pipelines.registry.evaluated_on import SOURCES_TAG
from pipelines.registry.ledger import open_ledger
from pipelines.registry.succession import AWAITING, OvertakenError, await_approval, log, lost_champion, settle
from pipelines.registry.tracking import connected, finish_run, log_files, log_metrics, metric_names, open_run
from pipelines.registry.turns import DECISION_TAG, GIVEN_UP, JUDGED_TAG, Waiting, was_rolled_back, whoami
from pipelines.registry.versions import CHAMPION, ModelVersion, champion, version_of
from pipelines.settings import GateSettings

ATTEMPTS: Final = 3
"""How often a challenger is judged anew because another one became champion meanwhile."""


@dataclass(frozen=True)
class Judgement:
    """A decision that is not carried out yet."""

    version: ModelVersion
    champion: ModelVersion | None
    decision: Decision
    meeting: Meeting | None
    """of challenger and champion, where there was need of one"""
    files: dict[str, bytes]
    """what the run of the decision holds"""
    run: str
    """the MLflow run of the decision; empty where nothing is to be carried out"""
    judged: str
    """digest of what was judged: champion, faces and thresholds"""
    known: int
    """the last line of the ledger that was over before"""


class Approval(BaseModel):
    """What a person says to a promotion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    approve: bool = Field(False, description="promote this version")
    note: str = Field("", max_length=1000, description="why; kept with the decision")
    who: str = Field("", max_length=100, description="your name; kept with the decision")


Ask = Callable[[Judgement], Approval]


def judge(challenge: Challenge) -> Judgement:
    """Compares a challenger with the champion of now, and records that; nothing moves.

    Raises:
        UserError: the champion or the faces cannot be used, or changed meanwhile; the champion was deleted.
    """
    # First the ledger, then the tags: whoever decides the same in between writes a line that is not known here.
    known = max((line.number for line in log(challenge.version.name) if line.end), default=0)
    version = version_of(challenge.version.name, challenge.version.version)  # its tags may be others by now
    old = champion(version.name)
    judged = _digest(challenge, old)
    if (before := settled(challenge, version, old)) is not None:
        return Judgement(version, old, before, None, {}, "", judged, known)
    pair, meeting = None, None
    if old is None:
        if lost := lost_champion(version.name):
            raise UserError(lost)
        decision = first_model(challenge.evaluation, beside_the_box(challenge))
    else:
        model = open_model(old.uri)
        # Of two shares the smaller holds out photos that the other nearly always holds out, too.
        meeting = meeting_of(challenge, model, min(model.val_share, challenge.model.val_share))
        pair = paired(*meeting)
        decision = decide(pair, challenge.settings, pace_row(challenge.model, model, pair, challenge.settings))
    against = f"champion {old.version}" if old else "no champion"
    files = decision_files(f"{version.name}: version {version.version} against {against}", decision, pair)
    compared = meeting.challenger if meeting else challenge.evaluation
    run = _log(challenge, old, decision, compared, files, judged)
    return Judgement(version, old, decision, meeting, files, run, judged, known)


def settled(challenge: Challenge, version: ModelVersion, old: ModelVersion | None) -> Decision | None:
    """What needs no judgement: `version` as it is now, and the champion `old`."""
    what = f"Version {version.version} of {version.name}"
    tags = version.tags
    if old is not None and old.version == version.version:
        return Decision(verdict="kept", reason=f"{what} is the champion already.")
    if was_rolled_back(version):
        why = tags.get("msrrn.reason", "")
        by_hand = f"it becomes champion by hand alone, by the alias {CHAMPION!r} in MLflow's UI"
        # So is a copy of it, of another model.
        return Decision(verdict="kept", reason=f"{what} is tagged as rolled back ({why}): {by_hand}.")
    if tags.get(DECISION_TAG) == GIVEN_UP and not challenge.again:
        why = tags.get("msrrn.reason", "")
        return Decision(verdict="kept", reason=f"{what} was given up ({why}): it is judged again with --again.")
    # What awaits approval may have a verdict of before, which is not the last word on it.
    judged = tags.get(DECISION_TAG) != AWAITING and tags.get(JUDGED_TAG) == _digest(challenge, old)
    if judged and not challenge.again:
        verdict: Verdict = "undecided" if tags.get(DECISION_TAG) == "undecided" else "kept"
        reason = f"{what} was judged on the same faces before: {tags.get('msrrn.reason', '')}"
        return Decision(verdict=verdict, reason=reason)
    return None


def carry_out(
    judgement: Judgement, approval: Approval | None = None, on_wait: Waiting = lambda text: None
) -> Decision:
    """Moves the aliases as was decided, and as a person approved; returns what it came to.

    `on_wait` is told where another decision about the model is under way.

    Raises:
        OvertakenError: the champion is another one meanwhile, or the challenger was rolled back.
        UserError: MLflow cannot be reached.
    """
    decision, version, old = judgement.decision, judgement.version, judgement.champion
    if not judgement.run:
        return decision
    who = whoami()
    if decision.promote and approval is not None:
        who = approval.who.strip() or "somebody who gave no name"  # not the user of a worker, which decided nothing
        said = "Approved" if approval.approve else "Not approved"
        reason = f"{decision.reason} {said} by {who}{approval.note and f': {approval.note}'}."
        verdict: Verdict = "promoted" if approval.approve else "kept"
        decision = decision.model_copy(update={"verdict": verdict, "reason": reason})
    settle(
        version.name,
        decision.verdict,
        version.version,
        old.version if old else None,
        decision.reason,
        who,
        judgement.run,
        judgement.judged,
        judgement.known,
        on_wait,
    )
    return decision


def pass_gate(
    challenge: Challenge,
    ask: Ask | None = None,
    judge: Callable[[Challenge], Judgement] = judge,
    carry_out: Callable[[Judgement, Approval | None], Decision] = carry_out,
) -> tuple[Decision, Judgement]:
    """Judges, asks a person where `ask` is given and it would be promoted, and carries out.

    Where another one became champion meanwhile, or the challenger was rolled back, it begins again.
    """
    for _ in range(ATTEMPTS):
        judgement = judge(challenge)
        approval = None
        try:
            if ask and judgement.decision.promote:
                await_approval(challenge.version.name, challenge.version.version, judgement.decision.reason)
                approval = ask(judgement)
            return carry_out(judgement, approval), judgement
        except OvertakenError as error:
            overtaken = error
    raise overtaken


def judged_where_registered(
    version: ModelVersion, workers: int, settings: GateSettings, ask: Ask | None = None
) -> str:
    """Puts a registered version through the gate, on the photos that it was evaluated on; says what was decided.

    Raises:
        UserError: the photos or the registry cannot be used.
    """
    decision, _ = pass_gate(challenge_of(version.uri, None, None, version.name, workers, settings), ask)
    return f"{decision.verdict}. {decision.reason}"


def _digest(challenge: Challenge, old: ModelVersion | None) -> str:
    # With the name: a version that was copied to another model has the tags of the first one.
    champion_version = f"{challenge.version.name}/{old.version if old else 0}"
    parts = (champion_version, challenge.evaluation.faces_digest, challenge.settings.model_dump_json())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _log(
    challenge: Challenge,
    old: ModelVersion | None,
    decision: Decision,
    compared: Evaluation,
    files: dict[str, bytes],
    judged: str,
) -> str:
    """The run of the decision, its id."""
    version = challenge.version
    with connected() as mlflow:
        experiment = open_ledger(mlflow, version.name).experiment
    tags = {
        "msrrn.verdict": decision.verdict,
        "msrrn.reason": decision.reason,
        "msrrn.challenger": str(version.version),
        "msrrn.champion": str(old.version) if old else "none",
        "msrrn.eval_faces": compared.faces_digest,
        SOURCES_TAG: json.dumps(list(challenge.sources)),
    }
    # A model of this name that was deleted had versions of the same numbers, but of another time.
    key = f"v{version.version}-v{old.version if old else 0}-{judged}-{version.created_ms}"
    run = open_run(experiment, key, challenge.settings.model_dump(), tags)
    called = metric_names(row.what for row in decision.rows)
    log_metrics(run, {called[row.what]: row.change for row in decision.rows})
    log_files(run, files)
    finish_run(run, "FINISHED")
    return run.run_id
