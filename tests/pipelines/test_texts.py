"""Results as text."""

from dataclasses import replace

from pipelines.dataset.manifest import LeftOut
from pipelines.texts import evaluation_text, rows_text
from tests.pipelines.judged import judged, judged_face


def test_what_looks_like_markup_is_printed_as_it_is() -> None:
    reasons = ["worse on [/data/new]", "less data [train]", "[bold]done[/bold] :smile:"]
    lines = rows_text([{"[model]": "msrrn", "reason": reason} for reason in reasons]).splitlines()
    assert lines[0].startswith("[model]")
    assert [line.split(maxsplit=1)[1].strip() for line in lines[1:]] == reasons


def test_faces_that_are_in_no_figure_are_counted_by_their_reason() -> None:
    whole = judged([judged_face(0.05)])
    assert "left out" not in evaluation_text(whole)
    bad = [LeftOut(uri="1.pts", reason=reason, message="") for reason in ("syntax", "missing", "syntax")]
    assert "left out: 1 missing, 2 syntax" in evaluation_text(replace(whole, left_out=tuple(bad)))
