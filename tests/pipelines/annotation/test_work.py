"""What of a plan is left to do."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import pipelines.annotation.work as station
from pipelines.annotation.plan import Plan, Unit, make_plan
from pipelines.annotation.records import UnitRecord
from pipelines.annotation.unit import Job
from pipelines.annotation.work import READS_AHEAD, Work
from tests.pipelines.listings import a_face
from tests.pipelines.runs import run_of


def test_records_wait_for_their_units_in_small_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has all inputs of its unit: of a long run they would be as large as its plan, and more."""
    count = 4 * READS_AHEAD
    run = run_of(tmp_path / "run", {f"{number:04}.jpg": [a_face()] for number in range(count)}, per_unit=1)
    plan = make_plan(iter(()), run.store, 1, lambda: False)
    read: list[str] = []
    ahead: list[int] = []
    units = Plan.units

    def slow(plan: Plan) -> Iterator[Unit]:
        for given, unit in enumerate(units(plan)):
            if given % READS_AHEAD == 1:
                time.sleep(0.1)  # in which threads that do not wait read all
            ahead.append(len(read) - given)
            yield unit

    def spy(out: object, unit: str) -> UnitRecord | None:
        read.append(unit)
        return None

    monkeypatch.setattr(Plan, "units", slow)
    monkeypatch.setattr(station, "read_record", spy)
    work = Work(Job(run.store, cast(Any, None), cast(Any, None)), plan, None)
    assert sorted(read) == plan.keys()
    assert work.left == count
    assert max(ahead) <= READS_AHEAD
