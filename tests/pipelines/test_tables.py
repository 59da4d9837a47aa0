"""Results as text."""

from pipelines.tables import rows_text


def test_what_looks_like_markup_is_printed_as_it_is() -> None:
    reasons = ["worse on [/data/new]", "less data [train]", "[bold]done[/bold] :smile:"]
    lines = rows_text([{"[model]": "msrrn", "reason": reason} for reason in reasons]).splitlines()
    assert lines[0].startswith("[model]")
    assert [line.split(maxsplit=1)[1].strip() for line in lines[1:]] == reasons
