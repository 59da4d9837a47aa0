"""What changed in an archive since its plan was made, whatever the plan is of."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.annotation.plan import fingerprint, make_plan, read_plan
from pipelines.archives import Input
from pipelines.errors import UserError
from pipelines.storage import Store


def row(name: str, number: int, container: str = "t.parquet", version: str = "1") -> Input:
    return Input(name, container, number, 0, 0, version)


def planned(out: Store, inputs: list[Input]) -> list[str]:
    make_plan(iter(inputs), out, 2).publish(out)
    plan = read_plan(out)
    assert plan is not None
    return [str(uri) for uri in plan["uri"].to_pylist()]


def test_rows_without_names_are_those_that_older_plans_named_by_fewer_digits(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    older = [row(f"{number:02}", number) for number in range(11)]
    older += [row(f"in/X.PARQUET/{number}", number, "in/X.PARQUET") for number in range(2)]
    before = planned(out, [*older, row("007", 3, "y.parquet")])  # a name of its own that looks like one
    now = [row(f"{number:010}", number) for number in range(12)]
    now += [row(f"in/X.PARQUET/{number:010}", number, "in/X.PARQUET") for number in range(2)]
    assert planned(out, [*now, row("007", 3, "y.parquet")]) == [*before, "0000000011"]


@pytest.mark.parametrize("change", [{"version": "2"}, {"problem": "forbidden"}, {"size": 1}, {"offset": 2}])
def test_a_picture_that_was_replaced_is_done_again(change: dict[str, Any], tmp_path: Path) -> None:
    out, replaced = Store(str(tmp_path)), replace(row("b", 1), **change)
    for before, now in ((row("b", 1), replaced), (replaced, row("b", 1))):
        planned(out, [row("a", 0), before])
        plan = make_plan(iter([row("a", 0), now]), out, 2)
        assert plan.addition is not None
        assert plan.addition["uri"].to_pylist() == ["b"]
        assert [item for unit in plan.units() for item in unit.inputs] == [row("a", 0), now]
        assert fingerprint(before) != fingerprint(now)


def test_what_a_list_names_and_is_gone_keeps_its_row(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    first, second, third = (Input(name, "", 0, 9, 9, "1") for name in "abc")
    never = Input("d", "", 0, 0, 0, "")
    planned(out, [first, second, third, never])
    lost = replace(second, size=0, packed=0, version="")
    changed = replace(third, version="2")
    plan = make_plan(iter([first, lost, changed, never]), out, 2)
    assert plan.gone.tolist() == [False, True, False, False]
    assert [list(unit.inputs) for unit in plan.units()] == [[first, second], [changed, never]]
    plan = make_plan(iter([first, second, third, replace(never, size=9, packed=9, version="3")]), out, 2)
    assert plan.addition is not None
    assert plan.addition["uri"].to_pylist() == ["d"], "it came"


def test_a_plan_of_other_columns_is_of_another_version(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    planned(out, [row("a", 0)])
    table = pq.read_table(tmp_path / "plan" / "00000.parquet")
    for other in (table.drop_columns(["packed"]), table.append_column("etag", table["uri"])):
        pq.write_table(other, tmp_path / "plan" / "00000.parquet")
        with pytest.raises(UserError, match=r"plan/00000\.parquet is of another version of msrrn: use that version"):
            make_plan(iter([row("a", 0)]), out, 2)


def test_of_two_that_planned_at_once_one_is_told(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    first, second = (make_plan(iter([row(name, 0, "")]), out, 2) for name in ("a", "b"))
    second.publish(out)
    with pytest.raises(UserError, match=r"another run has planned what is new in .* meanwhile: run again"):
        first.publish(out)
    assert pq.read_table(tmp_path / "plan" / "00000.parquet")["uri"].to_pylist() == ["b"]
    assert not make_plan(iter([row("b", 0, "")]), out, 2).gone.any()
    assert make_plan(iter([row("c", 0, "")]), out, 2).gone.tolist() == [True, False]


def test_of_two_of_one_name_the_other_stays_what_it_was(tmp_path: Path) -> None:
    first, second, third = (Input("t.tar/a.jpg", "t.tar", 512 + 1024 * at, 9, 9, str(at)) for at in range(3))
    moved = replace(second, offset=512)
    out = Store(str(tmp_path))
    planned(out, [first, second])
    plan = make_plan(iter([moved]), out, 2)
    assert plan.gone.tolist() == [True, False]
    assert [list(unit.inputs) for unit in plan.units()] == [[first, moved]]
    # Two that were replaced are so in their order; one more gets a unit of its own.
    plan = make_plan(iter([third, second, first, moved]), out, 2)
    assert [list(unit.inputs) for unit in plan.units()] == [[first, second], [third, moved]]
    plan = make_plan(iter([third, replace(third, size=8)]), out, 2)
    assert [list(unit.inputs) for unit in plan.units()] == [[third, replace(third, size=8)]]
    assert not plan.gone.any()


def test_of_two_of_one_name_one_that_became_as_the_other_is_done_again_once(tmp_path: Path) -> None:
    first, second = (Input("t.zip/a.jpg", "t.zip", at, 9, 9, str(at)) for at in (0, 50))
    out, now = Store(str(tmp_path)), [replace(second, offset=0), second]
    planned(out, [first, second])
    plan = make_plan(iter(now), out, 2)
    assert plan.addition is not None
    assert plan.addition["row"].to_pylist() == [0]
    plan.publish(out)
    assert make_plan(iter(now), out, 2).addition is None


@pytest.mark.parametrize(
    ("module", "loaded"), [("run", "True"), ("rehearsal", "True"), ("sightings", "False"), ("tiles", "False")]
)
def test_pandas_is_loaded_with_a_command_and_not_in_the_midst_of_its_work_nor_in_a_sandbox(
    module: str, loaded: str
) -> None:
    """An interrupt that comes while it is loaded may be lost; while a command is, it ends that."""
    asked = f"import sys; import pipelines.annotation.{module}; print('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == f"{loaded}\n"
