import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.models import Model
from pipelines.promotion import comparison
from pipelines.promotion.comparison import Row, error_row, faces_needed, floor_rows, pace_row, paired
from pipelines.settings import GateSettings
from tests.pipelines.judged import errors_of, judged, judged_face, pair_of

GATE = GateSettings(resamples=500)


def rows_of(*arguments: object, **kinds: object) -> dict[str, Row]:
    return {row.what: row for row in floor_rows(pair_of(*arguments, **kinds), GATE)}  # type: ignore[arg-type]


def test_figures_are_paired_by_face() -> None:
    old = errors_of(100, 0.05)
    row = error_row(pair_of(old - 0.001, old), GATE)
    # Faces differ by a third, models by a fiftieth: without pairing the interval would be 20 times as wide.
    assert (row.change, row.low, row.high) == pytest.approx((-0.001, -0.001, -0.001), abs=1e-9)
    assert (row.challenger, row.champion) == pytest.approx((0.049, 0.05))


def test_what_a_face_errs_by_is_found_once() -> None:
    face = judged_face(0.05)
    assert face.nrmse_ip is face.nrmse_ip


def test_an_interval_holds_the_true_change_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        old = errors_of(60, 0.05, seed)
        new = old + np.random.default_rng(seed + 1000).normal(-0.001, 0.004, 60)
        row = error_row(pair_of(np.abs(new), old), GATE.model_copy(update={"seed": seed}))
        held += row.low <= -0.001 <= row.high
    assert 0.9 <= held / 200 <= 0.99


def test_faces_of_a_photo_count_as_one_witness() -> None:
    old = errors_of(120, 0.05)
    new = old + np.repeat(np.random.default_rng(1).normal(0, 0.004, 12), 10)
    alone = error_row(pair_of(new, old), GATE)
    together = error_row(pair_of(new, old, photo=[number // 10 for number in range(120)]), GATE)
    assert together.change == alone.change
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    pair = pair_of(errors_of(40, 0.05, 1), errors_of(40, 0.05, 2))
    assert error_row(pair, GATE) == error_row(pair, GATE)
    for other in ({"seed": 1}, {"resamples": 499}):
        assert error_row(pair, GATE) != error_row(pair, GATE.model_copy(update=other))


def test_an_interval_is_as_wide_as_the_confidence_that_is_asked_for() -> None:
    pair = pair_of(errors_of(100, 0.05, 1), errors_of(100, 0.05, 2))
    rows = [error_row(pair, GATE.model_copy(update={"confidence": level})) for level in (0.5, 0.95)]
    narrow, wide = (row.high - row.low for row in rows)
    assert wide / narrow == pytest.approx(1.96 / 0.674, rel=0.2)  # of the normal distribution


def test_other_faces_are_not_compared() -> None:
    one, other = judged([judged_face(0.05, 1)]), judged([judged_face(0.05, 2)])
    assert len(paired(one, one).errors[0]) == 1
    with pytest.raises(UserError, match="different faces"):
        paired(one, other)


def test_failures_are_a_floor_of_their_own() -> None:
    old = np.full(100, 0.05)
    new = np.where(np.arange(100) < 8, 0.12, 0.02)
    row = rows_of(new, old)["failures, NRMSE over 0.1"]
    assert (row.challenger, row.champion, row.limit, row.holds) == (0.08, 0, 0.01, False)
    assert rows_of(np.where(np.arange(100) < 1, 0.12, 0.02), old)["failures, NRMSE over 0.1"].holds


def test_a_slice_that_becomes_worse_breaks_its_floor() -> None:
    roll = [45.0 if number < 30 else 0.0 for number in range(200)]
    old = errors_of(200, 0.05)
    new = np.where(np.array(roll) > 0, 1.3 * old, 0.7 * old)
    rows = rows_of(new, old, roll=roll)
    assert not rows["NRMSE (IP), roll from 30°"].holds
    assert rows["NRMSE (IP), roll from 30°"].faces == 30
    assert rows["NRMSE (IP), roll from 30°"].limit == pytest.approx(0.1 * old[:30].mean())
    assert rows["NRMSE (IP), roll under 10°"].holds
    # 5 % worse is within the allowance, and 10 faces are too few to stop anybody.
    assert rows_of(np.where(np.array(roll) > 0, 1.05 * old, old), old, roll=roll)["NRMSE (IP), roll from 30°"].holds
    few = [45.0 if number < 10 else 0.0 for number in range(200)]
    row = rows_of(np.where(np.array(few) > 0, 1.5 * old, old), old, roll=few)["NRMSE (IP), roll from 30°"]
    assert row.holds
    assert row.low > row.limit


def test_a_slice_of_few_photos_stops_nobody_however_many_faces_it_has() -> None:
    roll = [45.0 if number < 60 else 0.0 for number in range(200)]
    old = errors_of(200, 0.05)
    new = np.where(np.array(roll) > 0, 1.5 * old, old)

    def row(photos: int) -> Row:
        photo = [number % photos if number < 60 else number for number in range(200)]
        return rows_of(new, old, roll=roll, photo=photo)["NRMSE (IP), roll from 30°"]

    assert (row(19).holds, row(20).holds) == (True, False)
    assert row(19).low > row(19).limit


def test_of_one_photo_there_is_no_interval_and_no_row() -> None:
    old = errors_of(20, 0.05)
    photos = [0, 0, *range(1, 19)]
    rows = rows_of(2 * old, old, roll=[45.0, 45.0] + [0.0] * 18, photo=photos)
    assert [what for what in rows if "roll" in what] == ["NRMSE (IP), roll under 10°"]


def test_a_confidence_that_tells_less_breaks_a_floor() -> None:
    true = errors_of(150, 0.05)
    blind = errors_of(150, 0.05, seed=9)
    honest, blinded = [{"expected": values.tolist()} for values in (true, blind)]
    good, bad = pair_of(true, true, **honest), pair_of(true, true, **blinded)
    rows = {row.what: row for row in floor_rows(bad._replace(champion=good.champion), GATE)}
    row = rows["rank correlation of expected and true error"]
    assert row.champion == pytest.approx(1)
    assert abs(row.challenger) < 0.3
    assert not row.holds
    rows = {row.what: row for row in floor_rows(good._replace(champion=bad.champion), GATE)}
    assert rows["rank correlation of expected and true error"].holds


@pytest.mark.parametrize(("faces", "noise", "holds"), [(40, 0.15, True), (300, 0.25, False)])
def test_a_confidence_tells_too_little_where_it_surely_does(faces: int, noise: float, holds: bool) -> None:
    true = errors_of(faces, 0.05)
    expected = true * np.exp(np.random.default_rng(4).normal(0, noise, faces))
    pair = pair_of(true, true, expected=expected.tolist())._replace(champion=pair_of(true, true).champion)
    row = {row.what: row for row in floor_rows(pair, GATE)}["rank correlation of expected and true error"]
    assert row.change < row.limit == -0.1
    assert row.low < row.limit
    assert row.holds == (row.high > row.limit) == holds


def test_an_expectation_that_is_off_breaks_a_floor_unless_the_champions_is_off_more() -> None:
    true = errors_of(100, 0.05)
    fair = pair_of(true, true)
    boasting = pair_of(true, true, expected=(true / 2).tolist())
    fearful = pair_of(true, true, expected=(true * 4).tolist())
    what = "expected error off the true one by"

    def row(pair: object) -> Row:
        return {row.what: row for row in floor_rows(pair, GATE)}[what]  # type: ignore[arg-type]

    assert row(boasting._replace(champion=fair.champion)).change == pytest.approx(2)
    assert not row(boasting._replace(champion=fair.champion)).holds
    assert not row(fearful._replace(champion=fair.champion)).holds
    assert row(boasting._replace(champion=fearful.champion)).holds
    assert row(fair).holds


def test_a_challenger_is_too_slow_where_every_round_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of(errors_of(3, 0.05), errors_of(3, 0.05))
    monkeypatch.setattr(comparison, "_asked", lambda *_: None)
    for rounds, holds in (([1.9, 3.0, 5.0], True), ([2.1, 3.0, 5.0], False)):
        seconds = {"challenger": np.array(rounds), "champion": np.ones(3)}
        monkeypatch.setattr(comparison, "race", lambda _, seconds=seconds: seconds)
        row = pace_row(model, model, pair, GATE)
        assert (row.change, row.low, row.high, row.holds) == (3, rounds[0], 5, holds)
        assert row.challenger == pytest.approx(3 * row.champion)


def test_as_many_faces_as_are_needed_decide() -> None:
    rng = np.random.default_rng(3)

    def row(count: int) -> Row:
        old = errors_of(count, 0.05, seed=count)
        return error_row(pair_of(old + rng.normal(-0.0005, 0.004, count), old), GATE)

    few = row(60)
    while not few.low < few.limit < few.high:
        few = row(60)
    steady = few.model_copy(update={"change": -0.0005, "low": -0.0015, "high": 0.0005})
    needed = faces_needed(steady)
    assert needed == 240
    assert faces_needed(few.model_copy(update={"change": 0.0005, "low": -0.0005, "high": 0.0025})) == 240
    decided = [row(2 * needed).high < 0 for _ in range(20)]
    assert sum(decided) >= 15
    assert faces_needed(few.model_copy(update={"change": few.limit})) is None


def test_photos_are_drawn_for_the_confidence_too() -> None:
    true = errors_of(120, 0.05)
    noise = np.exp(np.random.default_rng(2).normal(0, 0.8, 12))
    expected = {"expected": (true * np.repeat(noise, 10)).tolist()}
    what = "rank correlation of expected and true error"
    alone = floor_rows(pair_of(true, true, **expected)._replace(champion=pair_of(true, true).champion), GATE)
    photos = {"photo": [number // 10 for number in range(120)]}
    pair = pair_of(true, true, **expected, **photos)._replace(champion=pair_of(true, true, **photos).champion)
    widths = [row.high - row.low for rows in (alone, floor_rows(pair, GATE)) for row in rows if row.what == what]
    assert widths[1] > 1.2 * widths[0]
