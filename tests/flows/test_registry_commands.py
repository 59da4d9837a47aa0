"""The commands about the champion, as a person calls them."""

import io
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from flows.cli import main
from flows.gate import ask_here, asking
from flows.promote import PromoteResult
from pipelines.errors import UsageError
from pipelines.promotion import challenge as station
from pipelines.promotion.decision import Decision
from pipelines.promotion.gate import Judgement
from pipelines.promotion.reconcile import Finding, reconcile
from pipelines.registry import turns
from pipelines.registry.succession import finish_turn, log, rollback, settle
from pipelines.registry.tracking import client
from pipelines.registry.versions import ModelVersion, champion, names
from tests.factories import start_msrrn
from tests.pipelines.registry.test_succession import crashed, make_versions, promote_two
from tests.registered import register_model

LENIENT = ("--gate-least-faces", "2", "--gate-bias", "1000", "--gate-rank-loss", "2", "--gate-slower", "1000")


@pytest.fixture(scope="module", autouse=True)
def _store(mlflow_store: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        yield


def promote(capsys: pytest.CaptureFixture[str], *call: str) -> str:
    assert main(["promote", *call, *LENIENT, "--workers", "1"]) == 0
    return capsys.readouterr().out


def fails(capsys: pytest.CaptureFixture[str], *call: str, code: int) -> str:
    assert main(list(call)) == code
    return capsys.readouterr().err


def test_a_registry_from_the_first_model_to_a_rollback(
    artifacts: dict[str, str], annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", str(annotated), "--name", "told")
    assert "told version 1 is champion. This is the first model" in promote(
        capsys, "--model", artifacts["bad"], *data
    )
    result = json.loads(promote(capsys, "--model", artifacts["good"], *data, "--json"))
    assert (result["verdict"], result["promoted"], result["version"]) == ("promoted", True, 2)
    assert result["run"]
    assert "nothing changed" in promote(capsys, "--model", artifacts["good"], *data)

    assert main(["rollback", "--name", "told", "--reason", "misses profiles", "--who", "ann"]) == 0
    assert capsys.readouterr().out == "told: version 1 is champion again, version 2 is previous\n"
    assert main(["models", "--log", "--name", "told"]) == 0
    text = capsys.readouterr().out
    for words in ("promoted, version 1", "promoted, version 2", "rolled back, version 2", "misses profiles", "ann"):
        assert words in text
    assert main(["models", "--log", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["told"]
    assert [line["turn"]["what"] for line in lines] == ["promoted", "promoted", "rolled back"]
    assert main(["models", "--name", "told", "--json"]) == 0
    assert [each["aliases"] for each in json.loads(capsys.readouterr().out)] == [["previous"], ["champion"]]


def test_a_champion_goes_back_whatever_its_model_is_called(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.registry.artifacts.lost", lambda version: "")  # they never had files
    make_versions("Our faces", 2)
    promote_two("Our faces")
    assert main(["rollback", "--name", "Our faces", "--reason", "misses profiles"]) == 0
    out, err = capsys.readouterr()
    assert out == "Our faces: version 1 is champion again, version 2 is previous\n"
    assert err == "models:/Our faces/1: looking for its files\n"


def test_whoever_waits_for_another_decision_is_told_so(
    artifacts: dict[str, str], annotated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", str(annotated), "--name", "waits")
    promote(capsys, "--model", artifacts["bad"], *data)
    client().create_model_version("waits", "s3://nowhere/model")
    crashed("waits", 2, 1)
    client().delete_model_version("waits", "2")
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)
    assert main(["promote", "--model", artifacts["good"], *data, *LENIENT, "--workers", "1"]) == 0
    assert "waits: a decision is under way (version 2 promoted, by me)" in capsys.readouterr().err


def test_a_rollback_that_was_finished_for_the_dead_is_told_without_the_bad_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_versions("killed", 2)
    promote_two("killed")
    crashed("killed", "back", crash=0)
    finish_turn("killed", patience=0)
    client().delete_model_version("killed", "2")
    call = ["rollback", "--name", "killed", "--reason", "misses profiles"]
    assert main(call) == 0
    assert capsys.readouterr().out == "killed: version 1 is champion again, there is no previous one\n"
    assert main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "killed", "champion": 1, "previous": None}


def test_the_log_tells_of_a_champion_that_a_person_gave(capsys: pytest.CaptureFixture[str]) -> None:
    make_versions("given", 3)
    promote_two("given")

    def rows() -> list[str]:
        assert main(["models", "--log", "--name", "given"]) == 0
        return [row for row in capsys.readouterr().out.splitlines() if row.startswith("given")]

    assert "moved by hand" not in str(rows())
    client().set_registered_model_alias("given", "champion", "3")
    assert rows()[2:] == ["given: champion moved by hand, from version 2 to 3"]
    rollback("given", "misses profiles", "ann")
    rollback("given", "no, it does not", "ann")
    assert [number for number, row in enumerate(rows()) if "moved by hand" in row] == [2]
    assert rows()[2] == "given: champion moved by hand, from version 2 to 3"
    client().delete_registered_model_alias("given", "champion")
    assert rows()[-1] == "given: champion moved by hand, from version 3 to none"


def test_a_ledger_that_was_deleted_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lost-ledger", "whole-ledger"):
        make_versions(name, 1)
        settle(name, "promoted", 1, None, "the first", "me")
    ledger = client().get_experiment_by_name("lost-ledger-promotions")
    assert ledger is not None
    client().delete_experiment(ledger.experiment_id)
    for call in (["models", "--log"], ["models", "--log", "--json"]):
        assert main(call) == 1
        said = capsys.readouterr()
        assert "whole-ledger" in said.out
        assert "'lost-ledger-promotions' is deleted" in said.err
    assert main(["models", "--log", "--name", "lost-ledger"]) == 1
    assert capsys.readouterr().out == ""
    client().restore_experiment(ledger.experiment_id)


def test_the_log_of_a_model_that_was_renamed_says_what_else_to_rename(capsys: pytest.CaptureFixture[str]) -> None:
    make_versions("old", 1)
    settle("old", "promoted", 1, None, "the first", "me")
    client().rename_registered_model("old", "renamed")
    assert main(call := ["models", "--log", "--name", "renamed"]) == 0
    assert "renamed: version 1 is champion, and no line says so" in capsys.readouterr().out
    ledger = client().get_experiment_by_name("old-promotions")
    assert ledger is not None
    client().rename_experiment(ledger.experiment_id, "renamed-promotions")
    assert main(call) == 0
    assert "promoted, version 1, by me: done" in capsys.readouterr().out


def test_what_is_told_of_models_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    make_versions("wide", 1)
    client().set_model_version_tag("wide", "1", "msrrn.nrmse_ip", "0.04298")
    reason = "Better:" + " NRMSE 4.298 %, with 95 % between -0.31 and -0.12 points, on new faces;" * 9
    settle("wide", "promoted", 1, None, reason, "ann", run="run")
    for call in (["models"], ["models", "--log"]):
        assert main([*call, "--name", "wide"]) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        assert reason in " ".join(text.split())
        assert ("  4.30%  promoted\n" in text) is (call == ["models"])


def test_a_version_is_judged_where_it_was_registered(
    artifacts: dict[str, str], annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(capsys, "--model", artifacts["good"], "--data", str(annotated), "--name", "known")
    said = promote(capsys, "--model", "models:/known@champion", "--name", "known")
    assert "is the champion already" in said
    said = fails(capsys, "promote", "--model", artifacts["bad"], "--name", "known", code=1)
    assert "does not say which photos it was evaluated on" in said


@pytest.mark.parametrize(
    ("option", "value"), [("--split", "all"), ("--split", "val"), ("--format", "300w"), ("--format", "auto")]
)
def test_what_is_said_of_photos_that_are_not_named_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, "promote", "--model", "models:/msrrn/1", option, value, code=2)
    assert f"{option} needs --data: without it, the model is judged on what it was evaluated on" in said
    with pytest.raises(SystemExit):
        main(["promote", "--help"])
    assert capsys.readouterr().out.count("only with --data") == 2


def test_thresholds_are_checked_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "promote", "--model", "nowhere", "--data", "x", "--gate-confidence", "7", code=2)
    assert "--gate-confidence 7.0: Input should be less than 1" in said


def test_approval_needs_somebody_to_ask(
    artifacts: dict[str, str], annotated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "evaluate", None)
    call = ("promote", "--model", artifacts["good"], "--data", str(annotated), "--name", "asked", "--approve")
    for each in (call, ("reconcile", "--approve")):
        said = fails(capsys, *each, code=2)
        assert "--approve asks a person: run it on a terminal, or set PREFECT_API_URL" in said
    with pytest.raises(UsageError):
        asking(True)
    assert asking(False) is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "approved"), [("y", True), ("YES ", True), ("", False), ("n", False), ("why?", False)]
)
def test_a_person_at_the_terminal_decides(
    typed: str, approved: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = ModelVersion("msrrn", 7, "run", (), {}, 0)
    judgement = Judgement(version, None, Decision(verdict="promoted", reason="better"), None, {}, "run", "judged", 0)
    monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\n looked at it \n"))
    approval = ask_here(judgement)
    assert (approval.approve, approval.note) == (approved, "looked at it")
    said = capsys.readouterr()
    assert "Promote msrrn version 7? [y/N] " in said.err
    assert said.out == ""


def test_approval_on_the_terminal_from_end_to_end(
    artifacts: dict[str, str], annotated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("n\nnot on a Friday\n"))
    said = promote(
        capsys, "--model", artifacts["good"], "--data", str(annotated), "--name", "friday", "--approve", "--json"
    )
    assert json.loads(said)["verdict"] == "kept"
    assert "not on a Friday" in json.loads(said)["reason"]
    assert champion("friday") is None
    assert [line.turn.what for line in log("friday")] == ["kept"]


def test_reconcile_asks_before_it_promotes(
    artifacts: dict[str, str], annotated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "over looked"  # as it may have been called in MLflow's UI
    register_model(artifacts["good"], name, annotated)
    monkeypatch.setattr("sys.stdin", Terminal("n\nnot on a Friday\ny\nit is Monday\n"))
    call = ("reconcile", "--name", name, "--minutes", "0", "--approve", "--workers", "1")
    assert main([*call, *LENIENT]) == 0
    said = capsys.readouterr().out
    assert f"models:/{name}/1: registered, but never judged: kept." in said
    assert "not on a Friday" in said
    assert champion(name) is None
    promote(capsys, "--model", f"models:/{name}/1", "--name", name, "--approve", "--again")
    assert "it is Monday" in log(name)[-1].turn.reason
    assert champion(name) is not None


MISTYPED = (
    ("models",),
    ("models", "--json"),
    ("models", "--log"),
    ("reconcile", "--workers", "1"),
    ("rollback", "--reason", "misses profiles"),
)


@pytest.mark.parametrize("call", MISTYPED)
def test_a_mistyped_name_is_told(call: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    if "typed" not in names(None):
        make_versions("typed", 1)
    said = fails(capsys, *call, "--name", "tpyed", code=1)
    assert "No model 'tpyed' is registered at " in said
    assert "typed" in said.partition("there is ")[2]
    assert client().get_experiment_by_name("tpyed-promotions") is None


def test_a_server_that_is_away_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with start_msrrn("promote", "--model", "models:/msrrn/1") as process:
        _, said = process.communicate(timeout=600)
    assert said.startswith("msrrn: No MLflow server answers at http://127.0.0.1:9")
    assert said.count("\n") == 1


def test_where_nothing_is_registered_yet_no_name_is_mistyped(
    empty_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    for call, said in (
        (["models"], "no model is registered yet"),
        (["models", "--log"], "nothing was decided yet"),
        (["reconcile", "--workers", "1"], "nothing to do"),
    ):
        assert main(call) == main([*call, "--name", "msrrn"]) == 0
        assert capsys.readouterr().out.count(said) == 2
    said = fails(capsys, "rollback", "--reason", "misses profiles", code=1)
    assert "No model 'msrrn' is registered at " in said
    assert "there is none yet: `msrrn retrain` or `msrrn promote` registers one" in said
    assert "MLFLOW_TRACKING_URI" in said


def test_reconcile_takes_no_mistyped_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipelines.promotion.reconcile.reconcile", lambda *arguments, **options: pytest.fail("it began")
    )
    said = fails(capsys, "reconcile", "--place", str(tmp_path), str(tmp_path / "typo"), code=1)
    assert f"{tmp_path}/typo does not exist: give the --out of `prepare`, `train` or `annotate`" in said


def test_what_tags_of_the_registry_say_is_no_order_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "version 1 was rolled back (\x1b[2Jred): it does not return by itself."
    finding = Finding(where="told", what="version 1 was never judged", done=f"kept. {reason}")
    monkeypatch.setattr("pipelines.promotion.reconcile.reconcile", lambda *arguments, **options: [finding])
    assert main(["reconcile"]) == 0
    assert r"(\x1b[2Jred)" in capsys.readouterr().out
    result = PromoteResult(
        name="told", version=1, verdict="kept", promoted=False, reason=reason, faces_needed=None, run=""
    )
    monkeypatch.setattr("pipelines.promotion.challenge.challenge_of", lambda *arguments: None)
    monkeypatch.setattr("pipelines.promotion.gate.pass_gate", lambda *arguments, **options: (None, None))
    monkeypatch.setattr(PromoteResult, "of", lambda *arguments: result)
    assert main(["promote", "--model", "models:/told/1"]) == 0
    assert r"(\x1b[2Jred)" in capsys.readouterr().out


def test_reconcile_says_what_it_did(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.promotion.reconcile.reconcile", partial(reconcile, patience=0.2))
    make_versions("half", 2)
    crashed("half", 1, crash=0)
    assert main(["reconcile", "--name", "half", "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("half: promoted, version 1, by me was cut off: done, by ")
    assert main(["reconcile", "--name", "half", "--workers", "1"]) == 0
    assert capsys.readouterr().out == "nothing to do\n"
