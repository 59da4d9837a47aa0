import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.promotion.comparison import Pair, Row
from pipelines.promotion.decision import Decision, decide, first_model, shown
from pipelines.settings import GateSettings
from tests.pipelines.judged import errors_of, judged, judged_face, pair_of

GATE = GateSettings(resamples=300)


def meeting(gain: float, faces: int = 200, spread: float = 0.003, gate: GateSettings = GATE) -> Decision:
    """A challenger that is better by `gain`, a share of the champion's error, on average."""
    old = errors_of(faces, 0.05)
    noise = np.random.default_rng(5).normal(0, spread, faces)
    return decide(pair_of(np.abs(old * (1 - gain) + noise - noise.mean()), old), gate)


def test_a_challenger_that_is_surely_better_is_promoted() -> None:
    decision = meeting(0.05)
    assert (decision.verdict, decision.promote) == ("promoted", True)
    assert "4.750% against the champion's 5.000% (IP) on 200 faces" in decision.reason
    assert "allowed" not in decision.reason
    assert decision.rows[0].high < 0


def test_a_challenger_that_is_surely_worse_is_kept_out() -> None:
    decision = meeting(-0.05)
    assert (decision.verdict, decision.promote) == ("kept", False)
    assert decision.reason.startswith("The challenger is worse: NRMSE 5.250%")


def test_between_the_two_nothing_is_decided_and_it_is_said_how_many_faces_would() -> None:
    decision = meeting(0.004)
    assert (decision.verdict, decision.promote) == ("undecided", False)
    assert decision.faces_needed is not None
    assert 600 < decision.faces_needed < 2000
    assert decision.rows[0].low < 0 < decision.rows[0].high
    assert f"about {decision.faces_needed:,} faces would decide it" in decision.reason
    assert meeting(0.004, 4 * decision.faces_needed).verdict == "promoted"
    assert meeting(-0.004).verdict == "undecided", "worse, but not surely"


def test_the_same_model_again_changes_nothing() -> None:
    decision = meeting(0, spread=0)
    assert decision.verdict == "undecided"
    assert "no number of faces would" in decision.reason
    assert decision.faces_needed is None


@given(gain=st.floats(-0.2, 0.2), asked=st.floats(-0.1, 0.1))
@settings(max_examples=25)
def test_the_gain_that_is_asked_for_moves_the_line(gain: float, asked: float) -> None:
    decision = meeting(gain, gate=GATE.model_copy(update={"least_gain": asked, "slice_loss": 1.0, "resamples": 100}))
    sure = 0.02  # wider than the interval, as a share of the error
    if gain > asked + sure:
        assert decision.verdict == "promoted"
    if gain < asked - sure:
        assert decision.verdict == "kept"


@pytest.mark.parametrize(
    ("gain", "asked", "verdict", "said"),
    [
        (0.02, 0.05, "kept", "is not better by as much as was asked: NRMSE 4.9"),
        (0.0, 0.05, "kept", "is not better by as much as was asked: NRMSE 5.0"),
        (-0.02, 0.05, "kept", "is worse: "),
        (-0.02, -0.01, "kept", "is worse: "),
        (-0.02, -0.05, "promoted", "is not worse by more than is allowed: NRMSE 5.1"),
        (0.0005, -0.05, "promoted", "is not worse by more than is allowed: NRMSE 4.9"),
        (0.02, -0.05, "promoted", "is better: "),
        (0.08, 0.05, "promoted", "is better: "),
    ],
)
def test_better_and_worse_are_said_of_the_models_whatever_gain_is_asked_for(
    gain: float, asked: float, verdict: str, said: str
) -> None:
    decision = meeting(gain, spread=0.001, gate=GATE.model_copy(update={"least_gain": asked}))
    assert decision.verdict == verdict
    assert decision.reason.startswith(f"The challenger {said}")
    assert decision.reason.endswith(", asked for -0.250%." if asked == 0.05 else "% is allowed.")


def test_nobody_is_sacrificed_for_the_mean() -> None:
    old = errors_of(200, 0.05)
    turned = np.arange(200) < 30
    decision = decide(
        pair_of(np.where(turned, 1.4 * old, 0.6 * old), old, roll=[50.0 if each else 0.0 for each in turned]), GATE
    )
    assert decision.verdict == "kept"
    assert "breaks a floor: NRMSE (IP), roll from 30°" in decision.reason
    assert decision.rows[0].high < 0


def test_a_slow_challenger_breaks_a_floor_however_good_it_is() -> None:
    old = errors_of(100, 0.05)
    pace = Row(
        what="milliseconds for a face",
        unit="×",
        faces=64,
        challenger=5,
        champion=1,
        change=5,
        low=4.5,
        high=6,
        limit=2,
        holds=False,
    )
    decision = decide(pair_of(0.5 * old, old), GATE, pace)
    assert decision.verdict == "kept"
    assert "milliseconds for a face 5 against 1, 4.50× to 6.00× where 2.00× is allowed" in decision.reason
    assert decide(pair_of(0.5 * old, old), GATE, pace.model_copy(update={"holds": True})).promote


@pytest.mark.parametrize(
    ("count", "said"),
    [(1, "1 evaluation face of 1 photo decides"), (19, "19 evaluation faces of 19 photos decide")],
)
def test_few_faces_decide_nothing(count: int, said: str) -> None:
    decision = meeting(0.5, count)
    assert (decision.verdict, decision.faces_needed, decision.rows) == ("undecided", 20, ())
    assert f"{said} nothing, at least 20 photos do" in decision.reason


@pytest.mark.parametrize(("photos", "needed"), [(1, 1200), (2, 600), (19, 64)])
def test_many_faces_of_few_photos_decide_nothing(photos: int, needed: int) -> None:
    old = errors_of(60, 0.05)
    decision = decide(pair_of(0.5 * old, old, photo=[number % photos for number in range(60)]), GATE)
    assert (decision.verdict, decision.faces_needed, decision.rows) == ("undecided", needed, ())
    assert f"60 evaluation faces of {photos} photo" in decision.reason
    assert decide(pair_of(0.5 * old, old, photo=[number % 20 for number in range(60)]), GATE).promote


@pytest.mark.parametrize("photos", [2, 20])
def test_chance_alone_seldom_promotes_however_few_the_photos_are(photos: int) -> None:
    promoted = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        true, photo = errors_of(60, 0.05, seed), np.arange(60) % photos
        new, old = (np.abs(true + rng.normal(0, 0.004, 60)) for _ in range(2))
        promoted += decide(
            pair_of(new, old, photo=photo.tolist()), GATE.model_copy(update={"resamples": 100})
        ).promote
    assert promoted <= 5  # one in forty is what is accepted


@pytest.mark.parametrize(("bad", "who"), [((math.nan, 0.01), "challenger"), ((0.01, math.nan), "champion")])
def test_what_is_not_a_number_changes_nothing(bad: tuple[float, float], who: str) -> None:
    errors = np.full((2, 50), 0.05)
    errors[:, 7] = bad
    decision = decide(pair_of(*errors), GATE)
    assert decision.verdict == "kept"
    assert f"The {who}'s NRMSE is not a number on 1 of 50 faces" in decision.reason


def test_the_first_model_is_promoted() -> None:
    decision = first_model(judged([judged_face(0.3), judged_face(0.1, 1)]))
    assert decision.promote
    assert "first model: NRMSE 20.000%" in decision.reason
    assert not first_model(judged([judged_face(math.nan)])).promote


def test_the_first_model_is_told_whether_the_model_in_the_box_is_better() -> None:
    better, worse = [judged_face(0.04)], [judged_face(0.2)]
    told = first_model(judged(worse), Pair(worse, better))
    assert told.promote
    assert "On 1 face new to both it has 20.000%, and the model in the box 4.000%: to go on with that" in told.reason
    told = first_model(judged(better), Pair(better, worse))
    assert told.reason.endswith("it has 4.000%, and the model in the box 20.000%.")
    assert first_model(judged(worse), Pair(worse, worse)).reason.endswith("and the model in the box 20.000%.")


def test_a_decision_is_kept_as_text_and_read_again() -> None:
    decision = meeting(0.05)
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
    words = shown(decision.rows[0])
    assert (words["challenger"], words["champion"], words["change"]) == ("4.750%", "5.000%", "-0.250%")
    assert words["holds"] == "yes"
