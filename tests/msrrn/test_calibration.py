import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msrrn.calibration import Calibration, Signs, fit


def faces(count: int = 500) -> Signs:
    """What networks say."""
    rng = np.random.default_rng(0)
    return Signs(
        log_error=rng.normal(-3, 0.2, count),
        disagreement=np.exp(rng.normal(-4, 0.5, count)),
        narrowness=np.exp(rng.normal(1.6, 0.1, count)),
        spread=np.exp(rng.normal(-3, 0.3, count)),
        astray=np.exp(rng.normal(-4, 0.4, count)),
    )


some = st.floats(0.1, 1)


@given(st.floats(6, 7), some, some, some, some, some)
def test_coefficients_are_found_again(
    constant: float, own: float, disagreement: float, narrowness: float, spread: float, astray: float
) -> None:
    truth = Calibration(
        constant=constant, own=own, disagreement=disagreement, narrowness=narrowness, spread=spread, astray=astray
    )
    found = fit(faces(), truth.expected(faces()))
    for name, value in truth.model_dump().items():
        assert getattr(found, name) == pytest.approx(value, abs=0.02)


def test_noise_leaves_the_estimate_right_in_the_middle() -> None:
    told = faces(5000)
    noise = np.random.default_rng(1).normal(0, 0.4, 5000)
    truth = Calibration(constant=0.7, own=0.8, disagreement=0.3, narrowness=1.2, spread=0.2, astray=0.3)
    true = truth.expected(told) * np.exp(noise)
    expected = fit(told, true).expected(told)
    for part in np.array_split(np.argsort(expected), 5):
        assert np.median(true[part] / expected[part]) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("level", [1.3, 0.1])
def test_signs_that_say_nothing_are_left_out(level: float) -> None:
    """Those of a network that looks once, and has no heat maps."""
    told = faces()
    nothing = np.zeros_like(told.log_error)
    told = told._replace(disagreement=nothing, spread=nothing, astray=nothing)
    true = level * np.exp(told.log_error) * told.narrowness**0.5
    found = fit(told, true)
    assert (found.disagreement, found.spread, found.astray) == (0, 0, 0)
    np.testing.assert_allclose(found.expected(told), true, rtol=1e-4)


def test_a_sign_that_says_the_contrary_is_left_out_and_the_others_stay() -> None:
    told = faces()
    turned = Calibration(own=0.8, disagreement=-0.3, narrowness=0.7, spread=0.4, astray=-0.2)
    found = fit(told, turned.expected(told))
    assert (found.disagreement, found.astray) == (0, 0)
    for name in ("own", "narrowness", "spread"):
        assert getattr(found, name) == pytest.approx(getattr(turned, name), abs=0.15)


def test_signs_that_say_the_contrary_are_left_out_one_by_one() -> None:
    """Two coefficients are below 0 at first; without the lower one, the other is not."""
    told = faces()
    told = told._replace(astray=np.exp(np.random.default_rng(1).normal(0, 0.1, 500)) / told.disagreement)
    true = Calibration(disagreement=-1.0, astray=-0.2).expected(told)
    found = fit(told, true)
    assert found.disagreement == 0
    assert found.astray == pytest.approx(0.76, abs=0.05)
    assert found.own == pytest.approx(1, abs=0.05)


def test_few_faces_change_nothing() -> None:
    few, enough = faces(29), faces(30)
    assert fit(few, np.full_like(few.log_error, 0.5)) == Calibration()
    assert fit(enough, np.full_like(enough.log_error, 0.5)) != Calibration()
    np.testing.assert_allclose(Calibration().expected(few), np.exp(few.log_error), rtol=1e-5)


def test_signs_that_all_say_the_contrary_only_give_the_level() -> None:
    told = faces()
    contrary = Calibration(constant=-9, own=-1, disagreement=-0.2, narrowness=-0.5, spread=-0.2, astray=-0.2)
    found = fit(told, contrary.expected(told))
    assert found == Calibration(constant=found.constant)
    level = np.log(contrary.expected(told)).mean()
    assert np.log(found.expected(told)).mean() == pytest.approx(level, abs=1e-3)


@pytest.mark.parametrize("log_error", [-1e6, 0.0, 1e6])
def test_whatever_a_network_says_the_estimate_is_a_number_above_0(log_error: float) -> None:
    nothing = np.array([0.0])
    every = Calibration(disagreement=1.0, narrowness=1.0, spread=1.0, astray=1.0)
    expected = every.expected(Signs(np.array([log_error]), nothing, nothing, nothing, nothing))
    assert np.isfinite(expected).all()
    assert (expected > 0).all()
