import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.models import Model
from pipelines.outages import OutageError
from pipelines.promotion import reconcile as station
from pipelines.promotion.gate import judged_where_registered
from pipelines.promotion.reconcile import Finding, reconcile
from pipelines.registry import succession, tracking
from pipelines.registry.evaluated_on import SELECTION_TAG, SOURCES_TAG
from pipelines.registry.ledger import find_ledger
from pipelines.registry.succession import await_approval, rollback, settle
from pipelines.registry.versions import ModelVersion, models, names
from pipelines.settings import GateSettings
from pipelines.storage import Store
from tests.factories import tiny_model
from tests.pipelines.registry.test_succession import aliases, crashed, make_versions, promote_two
from tests.registered import register_model

LENIENT = GateSettings(least_faces=2, resamples=200, bias=1000, rank_loss=2, slower=1000)


@pytest.fixture(autouse=True)
def _store(mlflow_store: Path) -> None:
    pass


@pytest.fixture
def few_models(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without the models of other tests, for one that looks at all: each costs it some tenths of a second."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def judge(version: ModelVersion) -> str:
    settle(version.name, "undecided", version.version, aliases(version.name).get("champion"), "too close", "net")
    return "undecided"


def mended(name: str | None, **options: object) -> list[Finding]:
    return reconcile(judge, name, minutes=0, patience=0, **options)  # type: ignore[arg-type]


def known_place(name: str, version: int) -> None:
    for tag, value in ((SOURCES_TAG, json.dumps(["somewhere"])), (SELECTION_TAG, "val")):
        tracking.client().set_model_version_tag(name, str(version), tag, value)


def test_where_all_is_well_nothing_is_done(mlflow_store: Path) -> None:
    make_versions("well", 2)
    promote_two("well")
    assert mended("well") == []


def test_a_name_that_no_model_has_is_told_before_anything_is_done(tmp_path: Path) -> None:
    make_versions("some", 1)
    place = Store(str(tmp_path))
    place.publish("lease.json", b'{"token": "x", "host": "elsewhere", "pid": 1, "started": 1.0}')
    with pytest.raises(UserError, match=r"No model 'smoe' is registered at .*some"):
        mended("smoe", places=[str(tmp_path)])
    assert place.keys("") == ["lease.json"]


def test_what_died_between_two_aliases_is_finished_once() -> None:
    make_versions("cut", 2)
    settle("cut", "promoted", 1, None, "first", "me")
    crashed("cut", 2, 1, crash=1)
    assert aliases("cut") == {"champion": 1, "previous": 1}
    (found,) = mended("cut")
    assert found.where == "cut"
    assert found.what == "promoted, version 2, by me was cut off"
    assert found.done.startswith("done, by ")
    assert aliases("cut") == {"champion": 2, "previous": 1}
    assert mended("cut") == []
    rollback("cut", "after all", "me")
    crashed("cut", "back", crash=1)
    (found,) = mended("cut")
    assert found.what == "rolled back, version 1, by ann was cut off"
    assert aliases("cut") == {"champion": 2, "previous": 1}


def test_what_was_given_up_is_not_judged_anew() -> None:
    make_versions("by hand", 3)
    promote_two("by hand")
    known_place("by hand", 3)
    crashed("by hand", 3, 2, crash=1)
    tracking.client().set_registered_model_alias("by hand", "champion", "1")
    (found,) = mended("by hand")
    assert found.done == "given up: champion was moved by hand, to version 1"
    assert mended("by hand") == []


def test_what_was_never_judged_is_judged_oldest_first() -> None:
    make_versions("missed", 4)
    settle("missed", "promoted", 1, None, "first", "me")
    for version in (2, 3):
        known_place("missed", version)
    found = mended("missed")
    assert [(each.where, each.done) for each in found[:2]] == [
        ("models:/missed/2", "undecided"),
        ("models:/missed/3", "undecided"),
    ]
    assert "msrrn promote --name missed --model models:/missed/4 --data" in found[2].done
    assert aliases("missed") == {"champion": 1, "challenger": 3}
    assert [each.where for each in mended("missed")] == ["models:/missed/4"]


def test_who_was_made_champion_by_hand_is_not_judged() -> None:
    make_versions("crowned", 1)
    known_place("crowned", 1)
    tracking.client().set_registered_model_alias("crowned", "champion", "1")
    assert mended("crowned") == []


def test_what_is_young_may_still_be_at_work() -> None:
    make_versions("young", 1)
    known_place("young", 1)
    assert reconcile(judge, "young", minutes=10, patience=0) == []
    assert len(mended("young")) == 1


def test_what_was_registered_before_a_clock_was_set_back_is_not_young(monkeypatch: pytest.MonkeyPatch) -> None:
    make_versions("ahead", 1)
    known_place("ahead", 1)
    earlier = time.time() - 3600
    monkeypatch.setattr("pipelines.promotion.reconcile.time", SimpleNamespace(time=lambda: earlier))
    assert [each.where for each in reconcile(judge, "ahead", minutes=10, patience=0)] == ["models:/ahead/1"]


def test_what_cannot_be_judged_stops_nothing() -> None:
    make_versions("gone", 2)
    for version in (1, 2):
        known_place("gone", version)

    def cannot(version: ModelVersion) -> str:
        if version.version == 1:
            raise UserError("somewhere does not exist")
        return judge(version)

    found = reconcile(cannot, "gone", minutes=0, patience=0)
    assert [each.done for each in found] == ["nothing: somewhere does not exist", "undecided"]


def test_what_awaits_approval_is_left_to_people() -> None:
    make_versions("held", 1)
    known_place("held", 1)
    await_approval("held", 1, "better")
    for _ in range(2):
        (found,) = mended("held")
        assert found.what.startswith("awaits approval since 20")
        assert "--approve" in found.done
    assert aliases("held") == {}
    tracking.client().set_registered_model_alias("held", "champion", "1")  # a person did not wait for the flow
    assert mended("held") == []


def test_no_name_of_a_model_is_a_command_of_its_own_in_what_is_told() -> None:
    make_versions("shell; touch x", 1)
    known_place("shell; touch x", 1)
    await_approval("shell; touch x", 1, "better")
    (found,) = mended("shell; touch x")
    assert "call msrrn promote --name 'shell; touch x' --model 'models:/shell; touch x/1' --approve" in found.done


def test_runs_of_decisions_that_died_are_ended() -> None:
    make_versions("run", 1)
    settle("run", "promoted", 1, None, "first", "me")
    run = tracking.open_run("run-promotions", "v2-v1-0123", {}, {})
    assert reconcile(judge, "run", minutes=10, patience=0) == []
    (found,) = mended("run")
    assert run.run_id in found.where
    assert tracking.client().get_run(run.run_id).info.status == "KILLED"
    assert mended("run") == []


def test_the_run_of_a_decision_that_is_taken_up_again_is_not_ended_for_its_age() -> None:
    make_versions("again", 1)
    settle("again", "promoted", 1, None, "first", "me")
    client = tracking.client()
    number = client.get_experiment_by_name("again-promotions").experiment_id
    began = client.create_run(number, start_time=1, tags={tracking.KEY_TAG: "v2-v1-4567"})
    client.set_terminated(began.info.run_id, status="FAILED")
    assert tracking.open_run("again-promotions", "v2-v1-4567", {}, {}).run_id == began.info.run_id
    assert reconcile(judge, "again", minutes=10, patience=0) == []


def test_dashboards_see_who_is_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_versions("shown", 3)
    settle("shown", "promoted", 1, None, "first", "me")
    crashed("shown", 2, 1, crash=1)
    monkeypatch.setenv("MSRRN_METRICS_DIR", str(tmp_path))

    def shown() -> set[str]:
        return {line.split("{")[0] for line in (tmp_path / "msrrn.prom").read_text().splitlines() if "{" in line}

    mended("shown")
    assert 'msrrn_champion_version{model="shown"} 2.0' in (tmp_path / "msrrn.prom").read_text()
    assert shown() == {"msrrn_champion_version", "msrrn_last_promotion_timestamp_seconds"}
    settle("shown", "promoted", 3, 2, "better", "me")
    assert 'msrrn_champion_version{model="shown"} 3.0' in (tmp_path / "msrrn.prom").read_text()
    rollback("shown", "misses profiles", "me")
    assert 'msrrn_champion_version{model="shown"} 2.0' in (tmp_path / "msrrn.prom").read_text()
    tracking.client().delete_model_version("shown", "2")
    mended("shown")
    assert shown() == {"msrrn_last_promotion_timestamp_seconds"}


def test_dashboards_on_a_new_disk_see_since_when_there_is_a_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions("older", 3)
    for version, when in ((1, "2025-01-02T03:04:05+00:00"), (2, "2026-01-02T03:04:05+00:00")):
        monkeypatch.setattr(succession, "now", lambda when=when: when)
        settle("older", "promoted", version, version - 1 or None, "better", "me")
    known_place("older", 3)
    monkeypatch.setenv("MSRRN_METRICS_DIR", str(tmp_path))
    mended("older")
    assert (
        'msrrn_last_promotion_timestamp_seconds{model="older"} 1.767323045e+09'
        in (tmp_path / "msrrn.prom").read_text()
    )


def test_a_champion_that_was_deleted_is_said_and_nobody_takes_its_place() -> None:
    make_versions("lost", 3)
    promote_two("lost")
    known_place("lost", 3)
    tracking.client().delete_model_version("lost", "2")
    for _ in range(2):
        (found,) = mended("lost")
        assert found.done == (
            "nothing: lost has no champion any more (version 2 was): give the alias 'champion' to version 1, the one "
            "before, or another in MLflow's UI"
        )
    tracking.client().set_registered_model_alias("lost", "champion", "1")
    assert [each.where for each in mended("lost")] == ["models:/lost/3"]


def test_nothing_is_taken_from_who_was_silent_for_less_than_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_versions("patient", 1)
    told: list[float] = []

    def nothing(of: object, patience: float, *_: object) -> list[str]:
        told.append(patience)
        return []

    monkeypatch.setattr(station, "finish_turn", nothing)
    monkeypatch.setattr(station, "free_stale", nothing)
    reconcile(judge, "patient", places=[str(tmp_path)], patience=7)
    assert told == [7, 7]


def test_leases_of_the_dead_are_freed(tmp_path: Path) -> None:
    place = Store(str(tmp_path))
    place.publish("set/lease.json", b'{"token": "x", "host": "elsewhere", "pid": 1, "started": 1.0}')
    make_versions("leased", 1)
    (found,) = reconcile(judge, "leased", places=[str(tmp_path)], patience=0)
    assert (found.where, found.done) == (f"{tmp_path}/set/lease.json", "freed")
    assert place.keys("") == []


def test_a_place_that_is_not_there_yet_has_no_leases(tmp_path: Path) -> None:
    """A deployment names the places in which it will work."""
    make_versions("early", 1)
    assert reconcile(judge, "early", places=[str(tmp_path / "later")], patience=0) == []


@pytest.mark.usefixtures("few_models")
def test_a_ledger_and_a_place_that_a_person_must_mend_stop_nothing(tmp_path: Path) -> None:
    for name in ("damaged", "deleted", "later"):
        make_versions(name, 2)
        settle(name, "promoted", 1, None, "first", "me")
    known_place("later", 2)
    client = tracking.client()
    ledger = find_ledger(client, "damaged")
    assert ledger is not None
    client.log_param(ledger.run_id, "turn-000002", "no decision")
    experiment = client.get_experiment_by_name("deleted-promotions")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    place = Store(str(tmp_path / "place"))
    place.publish("lease.json", b'{"token": "x", "host": "elsewhere", "pid": 1, "started": 1.0}')
    for freed in ([f"{place.url}/lease.json"], []):
        found = {each.where: each for each in mended(None, places=["ftp://place", place.url])}
        assert found["damaged"].done.startswith("nothing: the ledger is damaged, or of a newer version of msrrn: in")
        assert found["deleted"].done.startswith("nothing: MLflow experiment 'deleted-promotions' is deleted")
        assert found["ftp://place"].done.startswith("nothing: cannot open 'ftp://place'")
        assert ("models:/later/2" in found) == bool(freed)
        assert [where for where in found if where.endswith(".json")] == freed


def test_an_outage_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_versions("away", 1)
    asked: list[str] = []

    def away(name: str) -> None:
        asked.append(name)
        raise OutageError("No MLflow server answers")

    monkeypatch.setattr(station, "lost_champion", away)
    with pytest.raises(OutageError):
        mended(None)
    assert len(asked) == 1


@pytest.mark.usefixtures("few_models")
def test_every_model_is_looked_after() -> None:
    for name in ("one", "other"):
        make_versions(name, 1)
        known_place(name, 1)
    assert [each.where for each in mended(None)] == ["models:/one/1", "models:/other/1"]


@pytest.mark.usefixtures("few_models")
def test_what_others_registered_is_left_alone() -> None:
    make_versions("shared", 1)
    settle("shared", "promoted", 1, None, "first", "me")
    client = tracking.client()
    client.create_model_version("shared", "s3://nowhere/theirs")
    client.create_registered_model("Conan O'Brien")
    client.create_model_version("Conan O'Brien", "s3://nowhere/theirs")
    client.create_experiment("Conan O'Brien-promotions")
    assert [each.where for each in mended(None) if "shared" in each.where or "Brien" in each.where] == []
    assert {each.name for each in models(None)} >= {"shared"}
    assert "Conan O'Brien" not in names(None)
    with pytest.raises(UserError, match=r"No model 'msrrn' is registered at (?!.*Brien).*shared"):
        names("msrrn")


def test_a_registered_model_really_goes_through_the_gate(model: Model, annotated: Path, tmp_path: Path) -> None:
    tiny_model(tmp_path / "bad", np.full((68, 2), 0.9, np.float32), seed=3)
    first = register_model(str(tmp_path / "bad"), "real", annotated)
    # By another machine, at once.
    tracking.client().create_model_version("real", "s3://nowhere/copy", tags=first.tags)
    for verdicts in (["promoted"], []):
        found = reconcile(lambda each: judged_where_registered(each, 1, LENIENT), "real", minutes=0, patience=0)
        assert [each.done.partition(".")[0] for each in found] == verdicts
    assert [each.aliases for each in models("real")] == [(), ("champion",)]
