from types import SimpleNamespace

import pytest
from prefect.states import Completed, Failed

from flows import annotate as station
from flows.tasks import STATION
from pipelines.errors import UserError
from pipelines.outages import MissingError, OutageError


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OutageError("S3 failed after 5 attempts"), True),
        (OSError("broken pipe"), True),
        (UserError("no such model"), False),
        (MissingError("the photos are gone"), False),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception, again: bool) -> None:
    assert STATION["retry_condition_fn"](None, None, Failed(data=error)) is again


def test_each_champion_annotates_at_a_place_of_its_own_and_so_does_code_that_makes_other_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(model: str | None, one_look: bool) -> SimpleNamespace:
        return SimpleNamespace(card=SimpleNamespace(version="9c1e-one-look" if one_look else "9c1e"))

    places: list[str] = []
    monkeypatch.setattr(station, "RECIPE", 7)
    monkeypatch.setattr(station, "load_model", opened)
    monkeypatch.setattr(station, "annotate_archive", lambda source, out, *_: places.append(out))
    station.annotate.fn("photos", "out/annotations/archive/")
    station.annotate.fn("photos", "out/annotations/mine", model="box")
    station.annotate.fn("photos", "out/annotations/archive/", one_look=True)
    assert places == [f"out/annotations/{name}" for name in ("archive-9c1e-7", "mine", "archive-9c1e-one-look-7")]


def test_what_is_done_is_not_done_again() -> None:
    assert not STATION["retry_condition_fn"](None, None, Completed(data=1))
