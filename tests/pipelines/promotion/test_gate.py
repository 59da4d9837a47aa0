import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msrrn.artifact import CARD
from msrrn.provenance import DatasetSettings, Training
from pipelines.errors import UsageError, UserError
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.results import Evaluation
from pipelines.models import ONNX_FILE, PHOTO_DIGITS, Model, read_model
from pipelines.promotion import challenge as station
from pipelines.promotion import gate
from pipelines.promotion.challenge import Challenge, challenge_of
from pipelines.promotion.decision import Decision
from pipelines.promotion.gate import (
    Approval,
    Judgement,
    carry_out,
    judge,
    judged_where_registered,
    pass_gate,
)
from pipelines.promotion.page import CHANGED, DECISION, FACES, FIGURES, PAGE, SCATTER
from pipelines.registry import tracking, turns
from pipelines.registry.succession import log, rollback, settle
from pipelines.registry.tracking import client
from pipelines.registry.versions import champion, models, version_of
from pipelines.settings import GateSettings, Selection

LENIENT = GateSettings(least_faces=2, resamples=200, bias=1000, rank_loss=2, slower=1000)
"""For networks that were never trained, on a handful of faces."""


@pytest.fixture(scope="module", autouse=True)
def _store(mlflow_store: Path) -> Iterator[None]:
    """A store of its own, and no face measured twice."""
    known: dict[tuple[object, ...], Evaluation] = {}

    def remembered(
        model: Model,
        sources: list[str],
        selection: Selection,
        workers: int,
        val_share: float,
        source_format: str,
        unseen_by: list[Model],
    ) -> Evaluation:
        key = (model, selection, val_share, source_format, tuple(each.photos for each in unseen_by))
        if key not in known:
            known[key] = evaluate(
                model,
                sources,
                selection,
                workers,
                val_share=val_share,
                source_format=source_format,
                unseen_by=unseen_by,
            )
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(station, "evaluate", remembered)
        yield


@pytest.fixture(scope="module")
def sources(annotated: Path) -> list[str]:
    return [str(annotated)]


def challenge(artifact: str, sources: list[str], name: str, settings: GateSettings = LENIENT) -> Challenge:
    return challenge_of(artifact, sources, "all", name, 1, settings)


def run_files(run: str) -> set[str]:
    return {file.path for file in tracking.client().list_artifacts(run)}


def read(run: str, file: str, folder: Path) -> bytes:
    return Path(tracking.client().download_artifacts(run, file, str(folder))).read_bytes()


def test_a_worse_model_meets_the_champion_and_is_kept_out(
    artifacts: dict[str, str], sources: list[str], tmp_path: Path
) -> None:
    first, _ = pass_gate(challenge(artifacts["good"], sources, "worse"))
    assert first.promote
    assert "first model" in first.reason
    assert "On 12 faces new to both it has" in first.reason
    assert "`--model box`" in first.reason  # which is better than a network that was never trained
    decision, judgement = pass_gate(challenge(artifacts["bad"], sources, "worse"))
    assert decision.verdict == "kept"
    assert "is worse" in decision.reason
    assert judgement.meeting is not None
    worse, good = models("worse")
    assert (worse.aliases, good.aliases) == (("challenger",), ("champion",))
    assert worse.tags["msrrn.decision"] == "kept the champion"
    assert worse.tags["msrrn.reason"] == decision.reason
    assert good.tags["msrrn.last_challenge"] == f"version 2 was kept out: {decision.reason}"
    assert worse.tags["msrrn.decision_run"] == good.tags["msrrn.last_challenge_run"] == judgement.run
    assert worse.tags["msrrn.normalisation"] == "inter-pupil (IP)"
    assert float(worse.tags["msrrn.nrmse_ip"]) > float(good.tags["msrrn.nrmse_ip"])

    run = tracking.client().get_run(judgement.run)
    assert run.info.status == "FINISHED"
    assert run.data.tags["msrrn.verdict"] == "kept"
    assert run.data.params["least_faces"] == "2"
    assert json.loads(run.data.tags["msrrn.eval_sources"]) == sources
    assert run.data.metrics["NRMSE _IP_"] == pytest.approx(decision.rows[0].change)
    assert run_files(judgement.run) == {DECISION, FIGURES, FACES, SCATTER, CHANGED, PAGE}
    assert Decision.model_validate_json(read(judgement.run, DECISION, tmp_path)) == judgement.decision
    rows = list(csv.DictReader(io.StringIO(read(judgement.run, FACES, tmp_path).decode())))
    assert len(rows) == 12
    changes = [float(row["challenger_nrmse_ip"]) - float(row["champion_nrmse_ip"]) for row in rows]
    assert np.mean(changes) == pytest.approx(decision.rows[0].change, rel=1e-4)
    assert "milliseconds for a face" in read(judgement.run, PAGE, tmp_path).decode()
    assert [(line.turn.what, line.turn.version, line.turn.run) for line in log("worse")][1:] == [
        ("kept", 2, judgement.run)
    ]


def test_a_better_model_takes_over(artifacts: dict[str, str], sources: list[str]) -> None:
    pass_gate(challenge(artifacts["bad"], sources, "better"))
    decision, _ = pass_gate(challenge(artifacts["good"], sources, "better"))
    assert decision.verdict == "promoted"
    assert {each.version: each.aliases for each in models("better")} == {2: ("champion",), 1: ("previous",)}
    assert (
        models("better")[1].tags["msrrn.last_challenge"].startswith("version 2 took over: The challenger is better")
    )


def test_what_is_undecided_changes_nothing_but_tags_and_the_challenger(
    artifacts: dict[str, str], sources: list[str]
) -> None:
    pass_gate(challenge(artifacts["bad"], sources, "few"))
    strict = LENIENT.model_copy(update={"least_faces": 500})
    decision, _ = pass_gate(challenge(artifacts["good"], sources, "few", strict))
    assert (decision.verdict, decision.faces_needed) == ("undecided", 600)  # 12 faces are of 10 photos
    new, old = models("few")
    assert (new.aliases, old.aliases) == (("challenger",), ("champion",))
    assert new.tags["msrrn.decision"] == "undecided"
    assert "500" in new.tags["msrrn.reason"]
    decision, judgement = pass_gate(challenge(artifacts["good"], sources, "few", strict))
    assert (decision.verdict, judgement.run) == ("undecided", "")


def test_what_was_decided_is_not_decided_again(
    artifacts: dict[str, str], sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(challenge(artifacts["good"], sources, "again"))
    pass_gate(challenge(artifacts["bad"], sources, "again"))
    known, worse = (challenge(artifacts[each], sources, "again") for each in ("good", "bad"))
    lines = log("again")
    with monkeypatch.context() as patch:
        patch.setattr(station, "evaluate", None)  # nobody is measured
        decision, _ = pass_gate(known)
        assert "champion already" in decision.reason
        decision, judgement = pass_gate(worse)
    assert decision.verdict == "kept"
    assert "judged on the same faces before: The challenger is worse" in decision.reason
    assert judgement.run == ""
    assert log("again") == lines
    assert judge(replace(worse, again=True)).run
    stricter = challenge(artifacts["bad"], sources, "again", LENIENT.model_copy(update={"confidence": 0.9}))
    assert judge(stricter).run


def test_a_namesake_of_a_model_that_was_deleted_leaves_its_decisions_alone(
    artifacts: dict[str, str], sources: list[str]
) -> None:
    pass_gate(challenge(artifacts["good"], sources, "reborn"))
    _, before = pass_gate(challenge(artifacts["bad"], sources, "reborn"))
    client().delete_registered_model("reborn")
    challenge(artifacts["good"], sources, "reborn")
    client().set_registered_model_alias("reborn", "champion", "1")
    _, now = pass_gate(challenge(artifacts["bad"], sources, "reborn"))
    assert now.judged == before.judged
    assert now.run != before.run
    assert [line.turn.run for line in log("reborn")][1:] == [before.run, now.run]


def test_what_two_judge_at_once_is_one_decision(artifacts: dict[str, str], sources: list[str]) -> None:
    pass_gate(challenge(artifacts["good"], sources, "at-once"))
    worse = challenge(artifacts["bad"], sources, "at-once")
    both = [judge(worse), judge(worse)]
    assert [carry_out(each).verdict for each in both] == ["kept", "kept"]
    assert len(log("at-once")) == 2
    pass_gate(replace(worse, again=True))
    assert [line.turn.what for line in log("at-once")] == ["promoted", "kept", "kept"]


def test_a_promotion_that_died_is_done_for_who_judges_the_same_before_it_is_finished(
    artifacts: dict[str, str], sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(challenge(artifacts["bad"], sources, "died"))
    better = challenge(artifacts["good"], sources, "died")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(turns, "_apply", dies)
        with pytest.raises(KeyboardInterrupt):
            pass_gate(better)
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)
    decision, _ = pass_gate(better)
    assert decision.promote
    assert [(line.turn.what, line.turn.version) for line in log("died")] == [("promoted", 1), ("promoted", 2)]


def test_a_model_that_was_rolled_back_does_not_return_by_itself(
    artifacts: dict[str, str], sources: list[str]
) -> None:
    pass_gate(challenge(artifacts["bad"], sources, "back"))
    pass_gate(challenge(artifacts["good"], sources, "back"))
    rollback("back", "misses profiles", "ann")
    decision, _ = pass_gate(challenge(artifacts["good"], sources, "back"))
    assert not decision.promote
    assert "misses profiles" in decision.reason
    assert (known := champion("back")) is not None
    assert known.version == 1
    client().copy_model_version("models:/back/2", "elsewhere")
    decision, _ = pass_gate(challenge("models:/elsewhere/1", sources, "elsewhere"))
    assert decision.reason.startswith("Version 1 of elsewhere is tagged as rolled back (misses profiles)")


def test_where_the_champion_was_deleted_nobody_is_the_first_model(
    artifacts: dict[str, str], sources: list[str]
) -> None:
    pass_gate(challenge(artifacts["good"], sources, "lost"))
    tracking.client().delete_model_version("lost", "1")
    with pytest.raises(
        UserError, match=r"no champion any more \(version 1 was\): give the alias 'champion' to one of"
    ):
        pass_gate(challenge(artifacts["bad"], sources, "lost"))
    assert champion("lost") is None


def test_a_challenger_that_is_overtaken_is_judged_anew(artifacts: dict[str, str], sources: list[str]) -> None:
    pass_gate(challenge(artifacts["bad"], sources, "race"))
    better = challenge(artifacts["good"], sources, "race")
    tracking.client().create_model_version("race", "s3://nowhere/model")
    judged: list[int | None] = []

    def overtaken(given: Challenge) -> Judgement:
        judgement = judge(given)
        judged.append(judgement.champion.version if judgement.champion else None)
        if len(judged) == 1:  # while this one was judged, version 3 became champion, and was taken back
            settle("race", "promoted", 3, 1, "better", "another")
            return judgement
        return judgement

    def settled(judgement: Judgement, approval: Approval | None) -> Decision:
        try:
            return carry_out(judgement, approval)
        finally:
            if len(judged) == 1:
                rollback("race", "too quick", "ann")

    decision, _ = pass_gate(better, judge=overtaken, carry_out=settled)
    assert judged == [1, 1]
    assert decision.promote
    assert [(line.turn.what, line.turn.version) for line in log("race")] == [
        ("promoted", 1),
        ("promoted", 3),
        ("rolled back", 3),
        ("promoted", 2),
    ]


def test_a_version_that_was_copied_to_another_model_is_judged_there(
    artifacts: dict[str, str], sources: list[str]
) -> None:
    assert pass_gate(challenge(artifacts["good"], sources, "staging"))[0].promote
    tracking.client().copy_model_version("models:/staging/1", "production")
    assert pass_gate(challenge("models:/production/1", sources, "production"))[0].promote
    assert (known := champion("production")) is not None
    assert known.version == 1


@pytest.mark.parametrize(("approve", "verdict"), [(True, "promoted"), (False, "kept")])
def test_a_person_has_the_last_word(
    artifacts: dict[str, str], sources: list[str], approve: bool, verdict: str
) -> None:
    name = f"approve-{approve}"
    pass_gate(challenge(artifacts["bad"], sources, name))

    def ask(judgement: Judgement) -> Approval:
        assert version_of(name, 2).tags["msrrn.decision"] == "awaits approval"
        assert version_of(name, 2).aliases == ()
        said = Approval(note="looked at the faces", who="ann")  # a form that was left as it is approves nothing
        return said.model_copy(update={"approve": True}) if approve else said

    decision, _ = pass_gate(challenge(artifacts["good"], sources, name), ask)
    assert decision.verdict == verdict
    said = "Approved by ann" if approve else "Not approved by ann"
    assert f"{said}: looked at the faces." in decision.reason
    assert (known := champion(name)) is not None
    assert known.version == (2 if approve else 1)
    assert (log(name)[-1].turn.what, log(name)[-1].turn.who) == (verdict, "ann")


def test_what_was_refused_and_awaits_approval_again_can_be_approved(
    artifacts: dict[str, str], sources: list[str]
) -> None:
    """The flow that asked for the second time died: `reconcile` says to promote it with --approve."""
    pass_gate(challenge(artifacts["bad"], sources, "regret"))
    better = challenge(artifacts["good"], sources, "regret")
    assert pass_gate(better, lambda judgement: Approval(approve=False))[0].verdict == "kept"
    assert "judged on the same faces before" in pass_gate(better)[0].reason

    def dies(judgement: Judgement) -> Approval:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pass_gate(replace(better, again=True), dies)
    assert version_of("regret", 2).tags["msrrn.decision"] == "awaits approval"
    assert pass_gate(better, lambda judgement: Approval(approve=True))[0].promote
    assert version_of("regret", 2).tags["msrrn.who"] == "somebody who gave no name"


def test_what_was_given_up_is_judged_only_when_asked(artifacts: dict[str, str], sources: list[str]) -> None:
    """A person moved an alias while it was promoted: the next retraining, of the same model, leaves it so."""
    pass_gate(challenge(artifacts["bad"], sources, "left"))
    better = challenge(artifacts["good"], sources, "left")
    client().set_model_version_tag("left", "2", "msrrn.decision", "given up")
    client().set_model_version_tag("left", "2", "msrrn.reason", "champion was moved by hand")
    decision, judgement = pass_gate(better)
    assert (decision.verdict, judgement.run) == ("kept", "")
    assert "was given up (champion was moved by hand): it is judged again with --again" in decision.reason
    assert pass_gate(replace(better, again=True))[0].promote


def test_nobody_is_asked_about_what_is_not_promoted(artifacts: dict[str, str], sources: list[str]) -> None:
    pass_gate(challenge(artifacts["good"], sources, "unasked"))

    def ask(judgement: Judgement) -> Approval:
        raise AssertionError("asked")

    decision, judgement = pass_gate(challenge(artifacts["bad"], sources, "unasked"), ask)
    assert decision.verdict == "kept"
    assert carry_out(judgement, Approval(approve=True)) == decision


def test_a_version_knows_where_it_can_be_judged(artifacts: dict[str, str], annotated: Path) -> None:
    made = challenge_of(artifacts["good"], [os.path.relpath(annotated)], None, "where", 1, LENIENT)
    assert json.loads(made.version.tags["msrrn.eval_sources"]) == [str(annotated.absolute())]
    assert made.version.tags["msrrn.eval_selection"] == "val"
    for tag, edited in (("eval_sources", "photos"), ("eval_selection", "some"), ("eval_sources", "[]")):
        key = f"msrrn.{tag}"
        client().set_model_version_tag("where", "1", key, edited)
        with pytest.raises(UserError, match=rf"models:/where/1: the tag `{key}` does not say .*--data"):
            challenge_of("models:/where/1", None, None, "where", 1, LENIENT)
        client().set_model_version_tag("where", "1", key, made.version.tags[key])


def test_without_sources_nothing_is_said_of_them(artifacts: dict[str, str], annotated: Path) -> None:
    challenge_of(artifacts["good"], [str(annotated)], "all", "as before", 1, LENIENT, source_format="300w")
    made = challenge_of("models:/as before/1", None, None, "as before", 1, LENIENT)
    assert (made.sources, made.selection) == ([str(annotated.absolute())], "all")
    with pytest.raises(UsageError, match="--split needs --data"):
        challenge_of("models:/as before/1", None, "all", "as before", 1, LENIENT)
    with pytest.raises(UsageError, match="--format needs --data"):
        challenge_of("models:/as before/1", None, None, "as before", 1, LENIENT, source_format="300w")


def test_a_version_is_judged_in_the_format_that_was_said(
    artifacts: dict[str, str], sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for artifact in artifacts.values():
        made = challenge_of(artifact, sources, "all", "said", 1, LENIENT, source_format="300w")
        assert made.version.tags["msrrn.eval_format"] == "300w"
    settle("said", "promoted", 1, None, "first", "me")
    formats: list[str] = []
    remembered: Callable[..., Evaluation] = vars(station)["evaluate"]

    def seen(*arguments: Any, **options: Any) -> Evaluation:
        formats.append(options["source_format"])
        return remembered(*arguments, **options)

    monkeypatch.setattr(station, "evaluate", seen)
    judged_where_registered(version_of("said", 2), 1, LENIENT)
    assert formats == ["300w", "300w"]


def test_photos_that_one_of_them_was_trained_on_decide_nothing(
    artifacts: dict[str, str], sources: list[str], tmp_path: Path
) -> None:
    given = challenge(artifacts["good"], sources, "known")
    photos = {face.photo_sha256 for face in given.evaluation.faces}
    known = sorted(photos)[:3]
    shutil.copytree(artifacts["bad"], tmp_path / "taught")
    card = json.loads((tmp_path / "taught" / CARD).read_bytes())
    card["training"] = {"photos": " ".join(digest[:PHOTO_DIGITS] for digest in known)}
    (tmp_path / "taught" / CARD).write_text(json.dumps(card))
    taught = challenge(str(tmp_path / "taught"), sources, "known")
    assert {face.photo_sha256 for face in taught.evaluation.faces} == photos - set(known)
    pass_gate(taught)
    _, judgement = pass_gate(given)
    assert judgement.meeting is not None
    assert {face.photo_sha256 for face in judgement.meeting.champion.faces} == photos - set(known)
    assert judgement.decision.rows[0].faces == len(judgement.meeting.champion.faces)
    # Its own evaluation knows more photos: what is shown beside the champion's is of the same faces.
    assert judgement.meeting.challenger.faces_digest == judgement.meeting.champion.faces_digest
    tags = client().get_run(judgement.run).data.tags
    assert tags["msrrn.eval_faces"] == judgement.meeting.champion.faces_digest != given.evaluation.faces_digest


def test_photos_that_came_in_since_the_challenger_was_evaluated_are_judged_too(
    artifacts: dict[str, str], sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retraining failed at its end, as an annotator had saved one more photo between two evaluations."""
    monkeypatch.setattr(station, "evaluate", evaluate)  # what is remembered knows nothing of new photos
    growing = tmp_path / "300w"
    shutil.copytree(sources[0], growing)
    pictures = sorted(growing.rglob("*.jpg"))
    late = [path for path in growing.rglob("*") if path.is_file() and path.name.startswith(pictures[0].stem)]
    for path in late:
        path.rename(tmp_path / path.name)
    pass_gate(challenge(artifacts["bad"], [str(growing)], "growing"))
    given = challenge(artifacts["good"], [str(growing)], "growing")
    for path in late:
        (tmp_path / path.name).rename(path)
    decision, judgement = pass_gate(given)
    assert decision.promote
    assert judgement.meeting is not None
    assert decision.rows[0].faces == len(judgement.meeting.champion.faces) > len(given.evaluation.faces)


def test_the_smaller_share_holds_out_what_neither_was_trained_on(
    artifacts: dict[str, str], sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(challenge(artifacts["bad"], sources, "shares"))
    given = challenge(artifacts["good"], sources, "shares")
    wider = given.model.card.model_copy(
        update={"training": Training(dataset_settings=DatasetSettings(val_share=0.3))}
    )
    shares = []

    def seen(
        model: Model, *arguments: object, val_share: float, source_format: str, unseen_by: list[Model]
    ) -> Evaluation:
        shares.append((model.card == wider, val_share))
        return given.evaluation

    timed: list[bool] = []
    monkeypatch.setattr(station, "evaluate", seen)
    monkeypatch.setattr(
        gate, "pace_row", lambda new, old, *_: timed.extend(each.card == wider for each in (new, old))
    )
    judge(Challenge(**{**vars(given), "model": Model(given.model.files, wider)}))
    assert shares == [(True, 0.1), (False, 0.1)]
    assert timed == [True, False]  # the challenger first


def test_the_first_model_meets_the_model_in_the_box_where_that_saw_none_of_the_photos(
    artifacts: dict[str, str], sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = challenge(artifacts["good"], sources, "boxed")
    wider = Training(dataset_settings=DatasetSettings(val_share=0.3))
    card = given.model.card.model_copy(update={"training": wider})
    shares: list[float] = []

    def seen(*arguments: Any, val_share: float, **options: Any) -> Evaluation:
        shares.append(val_share)
        return given.evaluation

    monkeypatch.setattr(station, "evaluate", seen)
    first = replace(given, model=Model(given.model.files, card))
    assert "the model in the box" in judge(first).decision.reason
    assert shares == [0.3]  # with a smaller one there might be no photo
    one = given.evaluation.faces[0].photo_sha256
    for photos, told in (({one}, True), ({face.photo_sha256 for face in given.evaluation.faces}, False)):
        monkeypatch.setattr(
            Model, "saw", lambda model, sha256, photos=photos: bool(model.photos) and sha256 in photos
        )
        known = replace(first, settings=LENIENT.model_copy(update={"seed": len(photos)}))  # or it was judged before
        assert ("the model in the box" in judge(known).decision.reason) == told
    assert shares == [0.3] * 3  # where the box knows one, the challenger is asked about the others, too


def test_an_export_is_no_challenger(
    artifacts: dict[str, str], sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_model(Path(artifacts["good"])).card
    monkeypatch.setattr(station, "open_model", lambda _: Model(((ONNX_FILE, b"a graph"),), card))
    with pytest.raises(UserError, match=r"face\.onnx is an export: promote the artifact that it was made from"):
        challenge_of("face.onnx", sources, "all", "exported", 1, LENIENT)


def test_a_version_of_another_model_is_refused(sources: list[str]) -> None:
    with pytest.raises(UserError, match="models:/gate@champion is not a version of 'other'"):
        challenge_of("models:/gate@champion", sources, "val", "other", 1, LENIENT)
