"""Results as text."""

from dataclasses import replace

import pytest

from pipelines.annotation.rehearsal import Rehearsal
from pipelines.annotation.summary import Summary
from pipelines.dataset.manifest import LeftOut
from pipelines.texts import annotation_text, evaluation_text, rehearsal_text, rows_text, training_text
from tests.pipelines.judged import judged, judged_face


def test_what_looks_like_markup_is_printed_as_it_is() -> None:
    reasons = ["worse on [/data/new]", "less data [train]", "[bold]done[/bold] :smile:"]
    lines = rows_text([{"[model]": "msrrn", "reason": reason} for reason in reasons]).splitlines()
    assert lines[0].startswith("[model]")
    assert [line.split(maxsplit=1)[1].strip() for line in lines[1:]] == reasons


def test_a_name_of_several_lines_is_one_row() -> None:
    lines = rows_text([{"subset": "afw\nall\t9", "faces": 1}, {"subset": "lfpw", "faces": 2}]).splitlines()
    assert [line.split() for line in lines] == [["subset", "faces"], ["afw", "all", "9", "1"], ["lfpw", "2"]]


def test_what_a_training_came_to_is_told_in_percent_and_over_what() -> None:
    figures = {"model": "work/models/1", "epoch": 2.0, "loss": 1.8812624, "val_nrmse_ip_stage_3": 0.1500292}
    lines = [line.split() for line in training_text({**figures, "reused": False}).splitlines()]
    assert lines[:3] == [["model", "work/models/1"], ["epoch", "2"], ["loss", "1.88126"]]
    assert lines[3] == ["validation", "NRMSE", "(inter-pupil),", "stage_3", "15.00%"]
    assert lines[4] == ["reused", "False"]


def test_faces_that_are_in_no_figure_are_counted_by_their_reason() -> None:
    whole = judged([judged_face(0.05)])
    assert "left out" not in evaluation_text(whole)
    bad = [LeftOut(uri="1.pts", reason=reason, message="") for reason in ("syntax", "missing", "syntax")]
    assert "left out: 1 missing, 2 syntax" in evaluation_text(replace(whole, left_out=tuple(bad)))


def test_nothing_that_others_wrote_is_an_order_to_the_terminal() -> None:
    said = evaluation_text(replace(judged([judged_face(0.05, subset="\x1b[2Jred")]), model="\x1b]0;mine\x07"))
    assert "\x1b" not in said
    assert r"\x1b[2Jred" in said
    assert r"\x1b]0;mine\x07 in float32" in said


@pytest.mark.parametrize(
    ("hours", "said"), [(0, "1 second,"), (0.01, "36 seconds"), (0.017, "1 minute,"), (3, "3.0 h")]
)
def test_what_a_run_would_take_is_said_in_plain_words(hours: float, said: str) -> None:
    counts = {"pictures": 9, "begun": False, "to_do": 9, "bytes": 1, "ignored": 1, "looked_at": 9, "faces": 1}
    found = {
        "suffixes": {},
        "unusable": {},
        "detector": "hog",
        "statuses": {},
        "reasons": {},
        "seconds_per_picture": 0.1,
        "hours": hours,
    }
    text = rehearsal_text(Rehearsal.model_validate(counts | found), "msrrn", 1)
    assert f"would take some {said}" in text
    assert ", beside their start." in text
    assert "; 1 file ignored, " in text


def test_a_page_is_found_where_it_is_said_to_be_whether_or_not_the_place_was_given_with_a_slash() -> None:
    counts = dict.fromkeys(("images", "annotated", "no_face", "quarantined", "faces", "ignored", "gone"), 0)
    summary = Summary(**counts, reasons={}, model="msrrn", settings={}, digest="")
    assert "page: s3://bucket/run/index.html" in annotation_text("s3://bucket/run/", summary)
