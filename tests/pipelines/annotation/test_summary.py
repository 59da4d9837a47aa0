"""What a run has come to, as the records of its units say it."""

import hashlib
from pathlib import Path

import pytest

from pipelines.annotation.records import UnitRecord
from pipelines.annotation.summary import summary_before, totals
from pipelines.annotation.tables import SUMMARY
from pipelines.storage import Store
from tests.pipelines.runs import write_run


def record(parts: dict[str, str], **reasons: int) -> UnitRecord:
    statuses = {"annotated": 2, "quarantined": sum(reasons.values())}
    return UnitRecord(inputs=[], parts=parts, statuses=statuses, reasons=reasons, faces=3)


def test_totals_are_the_same_in_whatever_order_records_come() -> None:
    first = record({"images": "1", "faces": "2"}, truncated=1, empty=1)
    second = record({"images": "3", "faces": "4"}, timeout=2)
    told = totals({"000000": first, "000001": second})
    assert (told["images"], told["annotated"], told["no_face"], told["quarantined"]) == (8, 4, 0, 4)
    assert told["faces"] == 6
    assert list(told["reasons"].items()) == [("timeout", 2), ("empty", 1), ("truncated", 1)]  # the most common first
    assert told["digest"] == hashlib.sha256(b"2143").hexdigest()  # by unit, and by table
    turned = first.model_copy(update={"parts": {"faces": "2", "images": "1"}})
    assert totals({"000001": second, "000000": turned}) == told
    assert totals({"000000": second, "000001": first})["digest"] != told["digest"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"images": 3}'])
def test_a_damaged_summary_says_nothing(content: bytes, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert summary_before(store) is None
    _, summary = write_run(tmp_path / "run", [], [])
    store.publish(SUMMARY, summary.model_dump_json().encode())
    assert summary_before(store) == summary
    store.publish(SUMMARY, content)
    assert summary_before(store) is None
