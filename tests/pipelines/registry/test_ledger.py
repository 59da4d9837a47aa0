import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from pipelines.errors import UserError
from pipelines.registry import tracking
from pipelines.registry.ledger import Ledger, Move, Turn, experiment_of, find_ledger, open_ledger, plain


@pytest.fixture
def ledger(mlflow_store: Path, request: pytest.FixtureRequest) -> Ledger:
    return open_ledger(tracking.client(), request.node.name.removeprefix("test_"))


def turn(version: int, reason: str = "better") -> Turn:
    moves = (Move(alias="champion", before=None, after=version),)
    return Turn(what="promoted", version=version, champion=None, moves=moves, reason=reason, who="me", when="now")


def test_lines_are_read_as_they_were_written(ledger: Ledger) -> None:
    first, second = turn(1), turn(2, 'größer & "besser"\n' + "x" * 1900)
    assert ledger.lines() == []
    assert ledger.take(1, first)
    ledger.end(1, "done")
    assert ledger.take(2, second)
    (one, two) = ledger.lines()
    assert (one.number, one.turn, one.end) == (1, first, "done")
    assert (two.number, two.turn, two.end) == (2, second, None)


def test_a_line_is_written_once(ledger: Ledger) -> None:
    mine, other = turn(1), turn(2)
    assert ledger.take(1, mine)
    assert not ledger.take(1, other)
    assert ledger.take(1, mine)  # the answer to the first write may have been lost
    ledger.end(1, "done")
    ledger.end(1, "given up")
    assert [(line.turn, line.end) for line in ledger.lines()] == [(mine, "done")]
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        ledger.mlflow.log_param(ledger.run_id, "turn-000001", other.model_dump_json())


@pytest.mark.parametrize("written", [True, False])
def test_a_write_of_which_no_answer_came_counts_where_it_was_made(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    write = ledger.mlflow.log_param

    def unheard(*arguments: str) -> None:
        if written:
            write(*arguments)
        raise MlflowException("no answer")

    monkeypatch.setattr(ledger.mlflow, "log_param", unheard)
    if written:
        assert ledger.take(1, turn(1))
    else:
        with pytest.raises(MlflowException, match="no answer"):
            ledger.take(1, turn(1))
    assert len(ledger.lines()) == written


def test_a_turn_has_one_heir_at_a_time(ledger: Ledger) -> None:
    ledger.take(1, turn(1))
    (left,) = ledger.lines()
    assert left.heirs == 0
    assert ledger.inherit(left, "ann")
    assert not ledger.inherit(left, "bob")
    assert not ledger.inherit(left, "ann")  # another process of the same person
    (left,) = ledger.lines()
    assert left.heirs == 1
    assert ledger.inherit(left, "bob")
    assert [line.heirs for line in ledger.lines()] == [2]


def test_a_long_ledger_is_gone_through_as_often_as_a_short_one(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Params(dict[str, str]):
        passes = 0

        def __iter__(self) -> Iterator[str]:
            Params.passes += 1
            return super().__iter__()

    def passes_over(lines: int) -> int:
        params = Params()
        for number in range(1, lines + 1):
            params[f"turn-{number:06d}"] = turn(number).model_dump_json()
            for heir in range(1, number % 3 + 1):
                params[f"heir-{number:06d}-{heir}"] = "ann"
        Params.passes = 0
        run = SimpleNamespace(data=SimpleNamespace(params=params))
        monkeypatch.setattr(ledger.mlflow, "get_run", lambda run_id: run)
        assert [line.heirs for line in ledger.lines()] == [number % 3 for number in range(1, lines + 1)]
        return Params.passes

    assert passes_over(50) == passes_over(1)


def test_two_turns_are_never_the_same_text() -> None:
    assert turn(1) != turn(1)


def test_of_those_that_begin_together_one_makes_the_ledger(
    mlflow_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, made = tracking.client(), []
    rename = client.rename_experiment

    def beaten(*arguments: str) -> None:
        monkeypatch.setattr(client, "rename_experiment", rename)
        made.append(open_ledger(client, "race"))
        rename(*arguments)

    monkeypatch.setattr(client, "rename_experiment", beaten)
    assert open_ledger(client, "race") == made[0] == find_ledger(client, "race")
    names = [each.name for each in client.search_experiments()]
    assert [name for name in names if name.startswith("race")] == ["race-promotions"]


def test_nothing_is_made_by_looking(mlflow_store: Path) -> None:
    assert find_ledger(tracking.client(), "never") is None
    assert tracking.client().get_experiment_by_name(experiment_of("never")) is None


def test_a_deleted_ledger_is_not_begun_anew(mlflow_store: Path) -> None:
    client = tracking.client()
    one, two = open_ledger(client, "gone"), open_ledger(client, "lost")
    client.delete_run(one.run_id)
    with pytest.raises(UserError, match=f"mlflow runs restore --run-id {one.run_id}"):
        open_ledger(client, "gone")
    number = client.get_experiment_by_name(two.experiment).experiment_id
    client.delete_experiment(number)
    with pytest.raises(UserError, match=f"mlflow experiments restore -x {number}"):
        open_ledger(client, "lost")
    client.restore_experiment(number)
    assert open_ledger(client, "lost") == Ledger(client, two.run_id, two.experiment)


def test_an_experiment_of_somebody_else_is_no_ledger(mlflow_store: Path) -> None:
    tracking.open_run("foreign-promotions", "key", {}, {})
    with pytest.raises(UserError, match="not one of msrrn"):
        open_ledger(tracking.client(), "foreign")


def test_people_read_it_as_parameters_of_a_run(ledger: Ledger) -> None:
    ledger.take(1, turn(7))
    run = ledger.mlflow.get_run(ledger.run_id)
    assert run.info.run_name == "ledger"
    assert json.loads(run.data.params["turn-000001"])["version"] == 7
    assert "Do not delete" in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(("key", "length"), [("turn-000002", 100), ("turn-two", 1000)])
def test_a_damaged_line_is_named(ledger: Ledger, key: str, length: int) -> None:
    ledger.take(1, turn(1))
    ledger.mlflow.log_param(ledger.run_id, key, turn(2).model_dump_json()[:length])
    with pytest.raises(
        UserError, match=f"{re.escape(ledger.experiment)}', parameter '{key}' .* rename the experiment"
    ):
        ledger.lines()


def test_whatever_a_person_says_can_be_read_again(ledger: Ledger) -> None:
    for number, said in enumerate(["\x1b" * 3000, "caf\udce9", '"\\' * 1500, "größer\n😀"], 1):
        written = turn(number, plain(said, 2000))
        ledger.take(number, written)
        assert ledger.lines()[-1].turn == written
    assert ledger.lines()[-1].turn.reason == "größer 😀"
