import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from pipelines.errors import UserError
from pipelines.registry import succession, tracking, turns
from pipelines.registry import versions as registry
from pipelines.registry.ledger import Ledger, Line, find_ledger
from pipelines.registry.store import tracking_uri
from pipelines.registry.succession import OvertakenError, finish_turn, log, rollback, settle
from tests.factories import forked

NEVER = -1


@pytest.fixture
def name(mlflow_store: Path, request: pytest.FixtureRequest) -> str:
    """A model of three versions."""
    name = str(request.node.name).split("[")[0].removeprefix("test_")
    name += f"-{getattr(request.node, 'callspec', None) and request.node.callspec.id}"
    make_versions(name, 3)
    return name


def make_versions(name: str, count: int) -> None:
    client = tracking.client()
    client.create_registered_model(name)
    for version in range(count):
        client.create_model_version(name, "s3://nowhere/model", tags={registry.DIGEST_TAG: f"{version:064}"})


def promote_two(name: str) -> None:
    """The first version becomes champion, and the second takes over."""
    settle(name, "promoted", 1, None, "first", "me")
    settle(name, "promoted", 2, 1, "better", "me")


def work(name: str, version: int | str, champion: int, crash: int, run: str, uri: str) -> None:
    """Settles, or rolls back; ends this process with 3 where it was overtaken, with 9 where it crashes."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    left, write = crash, MlflowClient.set_registered_model_alias

    def counting(self: MlflowClient, *arguments: str) -> None:
        nonlocal left
        if left == 0:
            os._exit(9)
        left -= 1
        write(self, *arguments)

    MlflowClient.set_registered_model_alias = counting
    try:
        if isinstance(version, str):
            rollback(name, "misses profiles", "ann")
        else:
            settle(name, "promoted", version, champion or None, "better", "me", run)
    except OvertakenError:
        os._exit(3)


def start(name: str, version: int | str, champion: int = 0, crash: int = NEVER, run: str = "") -> ForkServerProcess:
    """`work` in a process of its own, which dies before its alias write number `crash`, counted from 0."""
    process = forked(work, name, version, champion, crash, run, tracking_uri())
    process.start()
    return process


@contextmanager
def killed_in(owner: object, attribute: str) -> Iterator[None]:
    """What is done within dies where it calls this."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, attribute, killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def crashed(name: str, version: int | str, champion: int = 0, crash: int = 0, run: str = "") -> None:
    process = start(name, version, champion, crash, run)
    process.join(600)
    assert process.exitcode == 9


def aliases(name: str) -> dict[str, int]:
    return registry.aliases_of(tracking.client(), name)


def tags(name: str, version: int) -> dict[str, str]:
    return registry.version_of(name, version).tags


def test_champions_follow_each_other_and_come_back(name: str) -> None:
    assert log(name) == []
    settle(name, "promoted", 1, None, "first model", "me")
    assert aliases(name) == {"champion": 1}
    settle(name, "kept", 2, 1, "worse", "me")
    assert aliases(name) == {"champion": 1, "challenger": 2}
    settle(name, "undecided", 3, 1, "too close", "me")
    assert aliases(name) == {"champion": 1, "challenger": 3}
    settle(name, "promoted", 3, 1, "better", "me", run="r", judged="j")
    assert aliases(name) == {"champion": 3, "previous": 1}
    assert tags(name, 3)["msrrn.decision"] == "promoted"
    assert tags(name, 3)["msrrn.decision_run"] == "r"
    assert tags(name, 1)["msrrn.last_challenge"] == "version 3 took over: better"
    assert tags(name, 2)["msrrn.decision"] == "kept the champion"

    now, before = rollback(name, "worse on beards", "ann")
    assert before is not None
    assert (now.version, now.aliases) == (1, ("champion",))
    assert (before.version, before.aliases) == (3, ("previous",))
    assert before.tags["msrrn.decision"] == "rolled back to version 1"
    assert (before.tags["msrrn.reason"], before.tags["msrrn.who"]) == ("worse on beards", "ann")
    assert now.tags["msrrn.decision"] == "champion again after version 3"
    assert (now.tags["msrrn.reason"], now.tags["msrrn.who"]) == ("worse on beards", "ann")

    lines = log(name)
    assert [(line.number, line.turn.what, line.turn.version, line.end) for line in lines] == [
        (1, "promoted", 1, "done"),
        (2, "kept", 2, "done"),
        (3, "undecided", 3, "done"),
        (4, "promoted", 3, "done"),
        (5, "rolled back", 3, "done"),
    ]
    assert (lines[-1].turn.who, lines[-1].turn.reason) == ("ann", "worse on beards")
    told: list[str] = []
    rollback(name, "beards are back", "ann", told.append)
    assert aliases(name) == {"champion": 3, "previous": 1}
    assert told == [
        f"{name}: version 3 was rolled back itself, by ann (worse on beards): call again if it is not to be champion"
    ]


def test_there_must_be_something_to_move(name: str) -> None:
    with pytest.raises(UserError, match="no champion"):
        rollback(name, "why", "me")
    settle(name, "promoted", 1, None, "first", "me")
    with pytest.raises(UserError, match="no previous"):
        rollback(name, "why", "me")
    with pytest.raises(UserError, match="no version 9"):
        settle(name, "promoted", 9, 1, "better", "me")
    with pytest.raises(UserError, match="No model 'none'"):
        settle("none", "kept", 1, None, "worse", "me")
    assert find_ledger(tracking.client(), "none") is None
    assert [line.turn.version for line in log(name)] == [1]


def test_after_a_champion_by_hand_it_goes_back_to_the_one_before(name: str) -> None:
    promote_two(name)
    tracking.client().set_registered_model_alias(name, "champion", "3")
    rollback(name, "misses profiles", "ann")
    assert aliases(name) == {"champion": 2, "previous": 3}
    tracking.client().set_registered_model_alias(name, "champion", "1")
    rollback(name, "misses profiles, too", "ann")  # version 2 is so again, and version 3 was rolled back
    assert aliases(name) == {"champion": 2, "previous": 1}


def test_a_previous_that_a_person_gave_is_the_one_to_go_back_to(name: str) -> None:
    settle(name, "promoted", 2, None, "first", "me")
    for alias, version in {"champion": "3", "previous": "1"}.items():
        tracking.client().set_registered_model_alias(name, alias, version)
    rollback(name, "misses profiles", "ann")
    assert aliases(name) == {"champion": 1, "previous": 3}


@pytest.mark.parametrize("said", ["rolled back to version 1", ""], ids=["rolled back", "of another model"])
def test_after_a_champion_by_hand_it_goes_to_none_that_was_no_champion(name: str, said: str) -> None:
    promote_two(name)
    tracking.client().set_registered_model_alias(name, "champion", "3")
    tracking.client().set_model_version_tag(name, "2", "msrrn.decision", said)
    rollback(name, "misses profiles", "ann")
    assert aliases(name) == {"champion": 1, "previous": 3}


def test_of_a_champion_that_was_lost_the_way_back_is_said(name: str) -> None:
    promote_two(name)
    tracking.client().delete_model_version(name, "2")
    with pytest.raises(
        UserError, match=r"no champion any more .*: give the alias 'champion' to version 1, the one before"
    ):
        rollback(name, "misses profiles", "ann")


def test_of_a_champion_that_was_lost_no_way_leads_back_to_what_was_rolled_back(name: str) -> None:
    promote_two(name)
    rollback(name, "misses profiles", "ann")
    tracking.client().delete_model_version(name, "1")
    with pytest.raises(UserError, match="to one of its versions, but not to 2, which was rolled back, in MLflow"):
        rollback(name, "misses them still", "ann")


def test_a_champion_was_lost_only_where_there_was_one(name: str) -> None:
    with killed_in(turns, "_apply"):
        settle(name, "promoted", 1, None, "first", "me")
    assert succession.lost_champion(name) is None
    tracking.client().set_registered_model_alias(name, "previous", "2")  # who had a champion before msrrn did this
    assert "no champion any more (there was one)" in (succession.lost_champion(name) or "")


def test_no_version_whose_files_are_lost_becomes_champion_again(name: str) -> None:
    promote_two(name)
    settle(name, "promoted", 3, 2, "better", "me")
    gone = {2}

    def lost(version: registry.ModelVersion) -> str:
        return "its files are gone" if version.version in gone else ""

    before = r"version 3 stays champion: nobody could use version 2, the one before \(its files are gone\).* "
    with pytest.raises(UserError, match=before + r"give the alias 'previous' to version 1, which was champion, too"):
        rollback(name, "misses profiles", "ann", lost=lost)
    gone.add(1)
    with pytest.raises(UserError, match=before + r"give the alias 'previous' to a version whose files are there"):
        rollback(name, "misses profiles", "ann", lost=lost)
    assert aliases(name) == {"champion": 3, "previous": 2}
    assert [line.turn.version for line in log(name)] == [1, 2, 3]
    gone.remove(1)
    tracking.client().set_registered_model_alias(name, "previous", "1")
    rollback(name, "misses profiles", "ann", lost=lost)
    assert aliases(name) == {"champion": 1, "previous": 3}


def test_of_one_version_under_both_aliases_there_is_no_way_back(name: str) -> None:
    promote_two(name)
    tracking.client().set_registered_model_alias(name, "champion", "1")
    with pytest.raises(UserError, match="version 1 is both champion and previous: give the alias 'previous'"):
        rollback(name, "misses profiles", "ann")


@pytest.mark.parametrize("said", ["\x1b" * 2000, "caf\udce9"], ids=["control", "bytes"])
def test_no_reason_makes_the_ledger_unreadable(name: str, said: str) -> None:
    promote_two(name)
    rollback(name, said, said)
    assert [line.turn.what for line in log(name)] == ["promoted", "promoted", "rolled back"]


def test_a_model_that_does_not_exist_gets_no_ledger(name: str) -> None:
    for look in (log, lambda mistyped: rollback(mistyped, "why", "me")):
        with pytest.raises(UserError, match=f"No model 'mistyped' is registered at .*{name}"):
            look("mistyped")
    assert find_ledger(tracking.client(), "mistyped") is None


def test_the_log_of_a_model_that_was_deleted_can_be_read(name: str) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    tracking.client().delete_registered_model(name)
    make_versions(f"{name}-other", 1)
    assert [line.turn.version for line in log(name)] == [1]


def test_a_decision_against_another_champion_does_not_count(name: str) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    settle(name, "undecided", 3, 1, "too close", "me")
    settle(name, "promoted", 2, 1, "better", "me")
    with pytest.raises(OvertakenError, match="version 2 became champion while version 3 was judged"):
        settle(name, "promoted", 3, 1, "better", "me")
    assert aliases(name) == {"champion": 2, "previous": 1, "challenger": 3}


def test_what_was_rolled_back_meanwhile_does_not_return(name: str) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    settle(name, "promoted", 2, 1, "better", "another who judged it")
    rollback(name, "misses profiles", "ann")
    with pytest.raises(OvertakenError, match="version 2 was rolled back while it was judged"):
        settle(name, "promoted", 2, 1, "better", "me")
    with pytest.raises(OvertakenError, match="rolled back"):
        succession.await_approval(name, 2, "better")
    assert aliases(name) == {"champion": 1, "previous": 2}
    assert tags(name, 2)["msrrn.decision"] == "rolled back to version 1"


def test_of_promotions_at_once_one_wins(name: str) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    started = [start(name, version, champion=1) for version in (2, 3, 2, 3)]
    for process in started:
        process.join(600)
    codes = [process.exitcode or 0 for process in started]
    assert sorted(codes) == [0, 3, 3, 3]
    winner = (2, 3, 2, 3)[codes.index(0)]
    assert aliases(name) == {"champion": winner, "previous": 1}
    assert [(line.turn.version, line.end) for line in log(name)] == [(1, "done"), (winner, "done")]


@pytest.mark.parametrize("crash", [0, 1])
def test_a_promotion_that_died_between_two_aliases_is_finished(name: str, crash: int) -> None:
    promote_two(name)
    crashed(name, 3, 2, crash=crash)
    assert aliases(name) == {"champion": 2, "previous": (1, 2)[crash]}
    line = finish_turn(name, patience=0)
    assert line is not None
    assert line.end is not None
    assert line.end.startswith("done, by ")
    assert aliases(name) == {"champion": 3, "previous": 2}
    assert tags(name, 3)["msrrn.decision"] == "promoted"
    assert finish_turn(name, patience=0) is None
    assert [each.end for each in log(name)][:2] == ["done", "done"]


def test_a_rollback_that_died_between_two_aliases_is_finished(name: str) -> None:
    promote_two(name)
    crashed(name, "back", crash=1)
    assert aliases(name) == {"champion": 1, "previous": 1}
    finish_turn(name, patience=0)
    assert aliases(name) == {"champion": 1, "previous": 2}
    assert tags(name, 2)["msrrn.who"] == "ann"


def test_a_rollback_that_died_between_two_tags_is_finished(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    promote_two(name)
    write = MlflowClient.set_model_version_tag

    def dies(self: MlflowClient, model: str, version: str, key: str, value: str) -> None:
        if version == "1":
            raise KeyboardInterrupt
        write(self, model, version, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_model_version_tag", dies)
        with pytest.raises(KeyboardInterrupt):
            rollback(name, "misses profiles", "ann")
    line = finish_turn(name, patience=0)
    assert line is not None
    assert line.done
    assert tags(name, 1)["msrrn.decision"] == "champion again after version 2"


@pytest.mark.parametrize("crash", [0, 1])
def test_a_rollback_that_is_called_again_is_done_once(name: str, crash: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)
    promote_two(name)
    crashed(name, "back", crash=crash)
    told: list[str] = []
    rollback(name, "misses profiles", "me", told.append)
    assert aliases(name) == {"champion": 1, "previous": 2}
    assert told[-1].startswith("ann rolled version 2 back: nothing is left to do")
    assert [line.turn.what for line in log(name)] == ["promoted", "promoted", "rolled back"]
    assert tags(name, 2)["msrrn.decision"] == "rolled back to version 1"


def test_a_rollback_that_an_heir_finished_is_not_undone_by_calling_it_again(name: str) -> None:
    promote_two(name)
    crashed(name, "back", crash=1)
    finish_turn(name, patience=0)
    for _ in range(2):
        rollback(name, "misses profiles", "me")
        assert aliases(name) == {"champion": 1, "previous": 2}
    tracking.client().set_registered_model_alias(name, "champion", "2")  # a person tries it once more
    tracking.client().set_registered_model_alias(name, "previous", "1")
    assert rollback(name, "misses profiles", "me")[0].version == 1


def test_a_rollback_that_was_given_up_can_be_called_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    promote_two(name)
    with killed_in(turns, "_apply"):
        rollback(name, "misses profiles", "ann")
    tracking.client().set_registered_model_alias(name, "champion", "3")
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)
    rollback(name, "misses them, too", "ann")
    assert aliases(name) == {"champion": 1, "previous": 3}


def test_of_a_rollback_that_an_heir_finished_the_bad_version_may_be_gone_since(name: str) -> None:
    promote_two(name)
    crashed(name, "back", crash=1)
    finish_turn(name, patience=0)
    tracking.client().delete_model_version(name, "2")
    now, before = rollback(name, "misses profiles", "me")
    assert (now.version, before) == (1, None)
    tracking.client().delete_model_version(name, "1")
    with pytest.raises(UserError, match="no champion any more"):
        rollback(name, "misses profiles", "me")


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Somebody else acts after the next call has seen who is champion, and before its turn is taken."""
    finish_last = turns.finish_last

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(turns, "finish_last", finish_last)
        act()
        return finish_last(*arguments)

    monkeypatch.setattr(turns, "finish_last", late)


def test_of_rollbacks_at_once_one_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    promote_two(name)
    meanwhile(monkeypatch, lambda: rollback(name, "misses profiles", "ann"))
    told: list[str] = []
    now, _ = rollback(name, "misses profiles", "me", told.append)
    assert now.version == 1
    (line,) = told
    assert line.startswith("ann rolled version 2 back: nothing is left to do")


def test_a_rollback_takes_nobody_back_who_became_champion_since(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    promote_two(name)
    meanwhile(monkeypatch, lambda: settle(name, "promoted", 3, 2, "better", "me"))
    with pytest.raises(OvertakenError, match="version 3 became champion while version 2 was to be rolled back"):
        rollback(name, "misses profiles", "me")
    assert aliases(name) == {"champion": 3, "previous": 2}


def test_whoever_comes_next_finishes_what_a_dead_process_began(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.2)
    settle(name, "promoted", 1, None, "first", "me")
    crashed(name, 2, 1, crash=1)
    waited: list[str] = []
    with pytest.raises(OvertakenError):
        settle(name, "promoted", 3, 1, "better", "me", on_wait=waited.append)
    (told,) = waited
    assert "a decision is under way (version 2 promoted, by me): waiting for it, at most 0.2 s" in told
    assert aliases(name) == {"champion": 2, "previous": 1}
    rollback(name, "after all", "me")
    assert aliases(name) == {"champion": 1, "previous": 2}


def test_what_a_person_moved_by_hand_stays(name: str) -> None:
    promote_two(name)
    crashed(name, 3, 2, crash=1, run="this decision")
    tracking.client().set_registered_model_alias(name, "champion", "1")
    line = finish_turn(name, patience=0)
    assert line is not None
    assert line.end == "given up: champion was moved by hand, to version 1"
    assert tags(name, 3)["msrrn.decision"] == "given up"
    assert tags(name, 3)["msrrn.reason"] == "champion was moved by hand, to version 1"
    with pytest.raises(OvertakenError):
        settle(name, "promoted", 3, 2, "better", "me", run="this decision")
    assert aliases(name) == {"champion": 1, "previous": 2}


def test_a_champion_that_a_person_deleted_meanwhile_is_said_to_be_none(name: str) -> None:
    promote_two(name)
    with killed_in(turns, "_apply"):
        settle(name, "promoted", 3, 2, "better", "me")
    tracking.client().delete_model_version(name, "2")
    line = finish_turn(name, patience=0)
    assert line is not None
    assert line.end == "given up: champion was moved by hand, to no version"
    assert aliases(name) == {"previous": 1}


@pytest.mark.parametrize("moved", [{"champion": 2, "previous": 3}, {"champion": 2}, {}])
def test_what_a_person_says_was_rolled_back_is_not_promoted(name: str, moved: dict[str, int]) -> None:
    """As the runbook says for who has MLflow's UI alone, or a part of that."""
    promote_two(name)
    crashed(name, 3, 2, crash=1)
    client = tracking.client()
    for alias, version in moved.items():
        client.set_registered_model_alias(name, alias, str(version))
    client.set_model_version_tag(name, "3", "msrrn.decision", "rolled back to version 2")
    before = aliases(name)
    line = finish_turn(name, patience=0)
    assert line is not None
    assert line.end == "given up: version 3 was rolled back by hand"
    assert aliases(name) == before
    assert tags(name, 3)["msrrn.decision"] == "rolled back to version 2"


def test_a_promotion_that_an_heir_carried_out_is_done_for_who_tries_again(name: str) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    crashed(name, 2, 1, crash=1, run="this decision")
    finish_turn(name, patience=0)
    line = settle(name, "promoted", 2, 1, "better", "me", run="this decision")
    assert line.done
    with pytest.raises(OvertakenError):
        settle(name, "promoted", 2, 1, "better", "me", run="another")
    assert len(log(name)) == 2
    settle(name, "promoted", 3, 2, "better still", "me")
    with pytest.raises(OvertakenError, match="version 3 became champion"):
        settle(name, "promoted", 2, 1, "better", "me", run="this decision")


def test_a_decision_about_a_model_that_was_deleted_is_none_about_its_namesake(name: str) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    settle(name, "promoted", 2, 1, "better", "me", run="of both")
    tracking.client().delete_registered_model(name)
    make_versions(name, 3)
    tracking.client().set_registered_model_alias(name, "champion", "3")  # while version 2 was judged against 1
    with pytest.raises(OvertakenError):
        settle(name, "promoted", 2, 1, "better", "me", run="of both", known=2)


def test_what_a_person_put_back_stays_where_it_can_be_told(name: str) -> None:
    promote_two(name)
    with killed_in(MlflowClient, "set_model_version_tag"):
        rollback(name, "misses profiles", "ann")
    assert aliases(name) == {"champion": 1, "previous": 2}
    tracking.client().set_registered_model_alias(name, "champion", "2")
    line = finish_turn(name, patience=0)
    assert line is not None
    assert line.end == "given up: champion was moved by hand, to version 2"
    assert aliases(name) == {"champion": 2, "previous": 2}


@pytest.mark.parametrize(
    ("deleted", "left"), [(["3"], {"champion": 2, "previous": 1}), (["3", "1"], {"champion": 2})]
)
def test_a_promotion_of_what_was_deleted_is_undone(name: str, deleted: list[str], left: dict[str, int]) -> None:
    promote_two(name)
    crashed(name, 3, 2, crash=1)
    for version in deleted:
        tracking.client().delete_model_version(name, version)
    line = finish_turn(name, patience=0)
    assert line is not None
    assert line.end == "given up: version 3 is gone"
    assert aliases(name) == left
    settle(name, "kept", 2, 2, "itself", "me")


def test_a_process_that_was_frozen_lets_go(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    monkeypatch.setattr(turns, "HOLD_SECONDS", 0.0)
    with pytest.raises(UserError, match="msrrn reconcile"):
        settle(name, "promoted", 2, 1, "better", "me")
    monkeypatch.undo()
    assert aliases(name) == {"champion": 1}
    finish_turn(name, patience=0)
    assert aliases(name) == {"champion": 2, "previous": 1}


def test_a_server_in_trouble_is_asked_again_while_there_is_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    write, retries = MlflowClient.set_registered_model_alias, []

    def in_trouble(self: MlflowClient, *arguments: str) -> None:
        retries.append(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))
        if len(retries) < 3:
            raise MlflowException("try again", error_code=TEMPORARILY_UNAVAILABLE)
        write(self, *arguments)

    told = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", in_trouble)
    settle(name, "promoted", 2, 1, "better", "me")
    assert aliases(name) == {"champion": 2, "previous": 1}
    assert set(retries) == {"0"}  # MLflow's own repetitions would come when others are at it
    assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") == told


@pytest.mark.parametrize("request_of", ["set_registered_model_alias", "set_model_version_tag"])
def test_what_a_server_refuses_is_asked_once_and_not_overlooked(
    name: str, monkeypatch: pytest.MonkeyPatch, request_of: str
) -> None:
    asked: list[str] = []

    def refuses(self: MlflowClient, *arguments: str) -> None:
        asked.append(request_of)
        raise MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(MlflowClient, request_of, refuses)
    with pytest.raises(UserError, match="no such thing"):
        settle(name, "promoted", 1, None, "first", "me")
    assert len(asked) == 1
    assert [line.end for line in log(name)] == [None]


def test_a_process_that_was_frozen_between_tags_lets_go(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    write = MlflowClient.set_model_version_tag

    def frozen(self: MlflowClient, *arguments: str) -> None:
        """Others finish this turn, and take the version back, before the second tag is written."""
        monkeypatch.setattr(MlflowClient, "set_model_version_tag", write)
        write(self, *arguments)
        finish_turn(name, patience=0)
        rollback(name, "misses profiles", "ann")
        monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 60))

    monkeypatch.setattr(MlflowClient, "set_model_version_tag", frozen)
    with pytest.raises(UserError, match="msrrn reconcile"):
        settle(name, "promoted", 2, 1, "better", "me")
    assert tags(name, 2)["msrrn.decision"] == "rolled back to version 1"
    assert tags(name, 2)["msrrn.reason"] == "misses profiles"


def test_a_turn_is_not_taken_from_a_process_that_is_at_it(name: str) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    crashed(name, 2, 1, crash=0)
    began = time.monotonic()
    waited: list[str] = []
    finish_turn(name, patience=1.5, on_wait=waited.append)
    assert time.monotonic() - began >= 1.5
    assert len(waited) == 1


def test_of_heirs_that_come_together_one_finishes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(name, "promoted", 1, None, "first", "me")
    crashed(name, 2, 1, crash=1)
    inherit = Ledger.inherit

    def beaten(self: Ledger, line: Line, who: str) -> bool:
        """Another heir is a moment earlier, finishes, and the next turn begins and ends."""
        monkeypatch.setattr(Ledger, "inherit", inherit)
        finish_turn(name, patience=0)
        rollback(name, "quickly", "ann")
        return inherit(self, line, who)

    monkeypatch.setattr(Ledger, "inherit", beaten)
    assert finish_turn(name, patience=0) is None
    assert aliases(name) == {"champion": 1, "previous": 2}


def test_what_awaits_approval_says_so(name: str) -> None:
    succession.await_approval(name, 1, "better")
    assert tags(name, 1)["msrrn.decision"] == "awaits approval"
    assert tags(name, 1)["msrrn.reason"] == "better"
    assert aliases(name) == {}
    assert log(name) == []


def test_a_user_without_a_name_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert turns.whoami() == "unknown"
