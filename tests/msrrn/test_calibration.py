import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msrrn.calibration import LEAST_FACES, Calibration, fit


def faces(count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """What networks say: logarithms of errors, and disagreements."""
    rng = np.random.default_rng(0)
    return rng.normal(-3, 0.2, count), np.exp(rng.normal(-4, 0.5, count))


@given(st.floats(-1, 1), st.floats(0.1, 1), st.floats(0.1, 0.8))
def test_coefficients_are_found_again(constant: float, own: float, disagreement: float) -> None:
    log_own, apart = faces()
    truth = Calibration(constant=constant, own=own, disagreement=disagreement)
    found = fit(log_own, apart, truth.expected(log_own, apart))
    assert found.constant == pytest.approx(constant, abs=0.01)
    assert found.own == pytest.approx(own, abs=0.01)
    assert found.disagreement == pytest.approx(disagreement, abs=0.01)


def test_noise_leaves_the_estimate_right_in_the_middle() -> None:
    log_own, apart = faces(5000)
    noise = np.random.default_rng(1).normal(0, 0.4, 5000)
    true = np.exp(0.7 + 0.8 * log_own + 0.3 * np.log(apart) + noise)
    expected = fit(log_own, apart, true).expected(log_own, apart)
    for part in np.array_split(np.argsort(expected), 5):
        assert np.median(true[part] / expected[part]) == pytest.approx(1, abs=0.06)


def test_faces_seen_once_are_calibrated_by_what_the_network_expects() -> None:
    log_own, _ = faces()
    found = fit(log_own, np.zeros_like(log_own), 1.3 * np.exp(log_own))
    assert found.disagreement == 0
    np.testing.assert_allclose(found.expected(log_own, np.zeros_like(log_own)), 1.3 * np.exp(log_own), rtol=1e-4)


def test_few_faces_change_nothing() -> None:
    log_own, apart = faces(LEAST_FACES - 1)
    assert fit(log_own, apart, np.full_like(apart, 0.5)) == Calibration()
    np.testing.assert_allclose(Calibration().expected(log_own, apart), np.exp(log_own), rtol=1e-5)


def test_an_estimate_that_says_the_contrary_only_gets_its_level() -> None:
    log_own, apart = faces()
    found = fit(log_own, apart, np.exp(-5 - log_own))
    assert (found.own, found.disagreement) == (1.0, 0.0)
    expected = found.expected(log_own, apart)
    assert np.log(expected).mean() == pytest.approx((-5 - log_own).mean(), abs=1e-3)


@pytest.mark.parametrize("log_own", [-1e6, 0.0, 1e6])
def test_whatever_a_network_says_the_estimate_is_a_number_above_0(log_own: float) -> None:
    expected = Calibration(disagreement=1.0).expected(np.array([log_own]), np.array([0.0]))
    assert np.isfinite(expected).all()
    assert (expected > 0).all()
