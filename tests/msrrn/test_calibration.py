import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msrrn.calibration import LEAST_FACES, Calibration, fit


def faces(count: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What networks say: logarithms of errors, disagreements, and narrowness."""
    rng = np.random.default_rng(0)
    return (
        rng.normal(-3, 0.2, count),
        np.exp(rng.normal(-4, 0.5, count)),
        np.exp(rng.normal(1.6, 0.1, count)),
    )


@given(st.floats(-1, 1), st.floats(0.1, 1), st.floats(0.1, 0.8), st.floats(0.1, 2))
def test_coefficients_are_found_again(constant: float, own: float, disagreement: float, narrowness: float) -> None:
    told = faces()
    truth = Calibration(constant=constant, own=own, disagreement=disagreement, narrowness=narrowness)
    found = fit(*told, truth.expected(*told))
    for name, value in truth.model_dump().items():
        assert getattr(found, name) == pytest.approx(value, abs=0.02)


def test_noise_leaves_the_estimate_right_in_the_middle() -> None:
    log_own, apart, narrow = told = faces(5000)
    noise = np.random.default_rng(1).normal(0, 0.4, 5000)
    true = np.exp(0.7 + 0.8 * log_own + 0.3 * np.log(apart) + 1.2 * np.log(narrow) + noise)
    expected = fit(*told, true).expected(*told)
    for part in np.array_split(np.argsort(expected), 5):
        assert np.median(true[part] / expected[part]) == pytest.approx(1, abs=0.06)


def test_faces_seen_once_are_calibrated_by_what_the_network_expects() -> None:
    log_own, _, narrow = faces()
    told = log_own, np.zeros_like(log_own), narrow
    true = 1.3 * np.exp(log_own) * narrow**0.5
    found = fit(*told, true)
    assert found.disagreement == 0
    np.testing.assert_allclose(found.expected(*told), true, rtol=1e-4)


def test_few_faces_change_nothing() -> None:
    told = faces(LEAST_FACES - 1)
    assert fit(*told, np.full_like(told[0], 0.5)) == Calibration()
    np.testing.assert_allclose(Calibration().expected(*told), np.exp(told[0]), rtol=1e-5)


def test_an_estimate_that_says_the_contrary_only_gets_its_level() -> None:
    log_own, apart, narrow = faces()
    found = fit(log_own, apart, narrow, np.exp(-5 - log_own))
    assert (found.own, found.disagreement, found.narrowness) == (1.0, 0.0, 0.0)
    expected = found.expected(log_own, apart, narrow)
    assert np.log(expected).mean() == pytest.approx((-5 - log_own).mean(), abs=1e-3)


@pytest.mark.parametrize("log_own", [-1e6, 0.0, 1e6])
def test_whatever_a_network_says_the_estimate_is_a_number_above_0(log_own: float) -> None:
    nothing = np.array([0.0])
    expected = Calibration(disagreement=1.0, narrowness=1.0).expected(np.array([log_own]), nothing, nothing)
    assert np.isfinite(expected).all()
    assert (expected > 0).all()
