import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from msrrn.metrics import auc, failure_rate, nrmse_io, nrmse_ip, point_error, share_under
from tests.msrrn.test_landmarks import FACE

error_lists = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 0.5))
thresholds = st.floats(0.001, 0.4)


def test_errors_by_hand() -> None:
    predicted = FACE + [0.03, 0.04]
    assert point_error(predicted, FACE) == pytest.approx(0.05)
    assert nrmse_ip(predicted * 7, FACE * 7) == pytest.approx(0.05 / 1.0)
    assert nrmse_io(predicted * 7, FACE * 7) == pytest.approx(0.05 / 1.4)


def test_the_error_is_a_mean_of_distances_not_a_root_of_squares() -> None:
    predicted = FACE.copy()
    predicted[:17] += [0.3, 0.4]
    assert point_error(predicted, FACE) == pytest.approx(0.5 * 17 / 68)


def test_the_truth_normalises_not_the_prediction() -> None:
    predicted = FACE * 2
    assert nrmse_ip(predicted, FACE) == pytest.approx(point_error(predicted, FACE))
    assert nrmse_ip(FACE, predicted) == pytest.approx(point_error(predicted, FACE) / 2)


def test_errors_broadcast_over_stages_and_faces() -> None:
    stages = np.stack([[FACE + [stage * 0.1, 0] for stage in range(3)] for _ in range(2)])
    np.testing.assert_allclose(nrmse_ip(stages, FACE), [[0, 0.1, 0.2]] * 2, atol=1e-12)


def test_shares_by_hand() -> None:
    errors = np.array([0.02, 0.04, 0.05, 0.08, 0.12])
    assert share_under(errors, 0.05) == pytest.approx(0.4)
    assert failure_rate(errors, 0.08) == pytest.approx(0.2)
    assert failure_rate(errors, 0.05) == pytest.approx(0.4)
    assert auc(errors, 0.1) == pytest.approx((0.8 + 0.6 + 0.5 + 0.2 + 0) / 5)
    assert auc(np.zeros(3), 0.08) == 1
    assert auc(np.full(3, 0.08), 0.08) == 0


@given(error_lists, thresholds)
def test_auc_is_the_area_under_the_ced(errors: NDArray[np.float64], threshold: float) -> None:
    steps = 4000
    middles = (np.arange(steps) + 0.5) / steps * threshold
    ced = np.searchsorted(np.sort(errors), middles) / len(errors)
    assert auc(errors, threshold) == pytest.approx(ced.mean(), abs=1 / steps)
    assert share_under(errors, middles[17]) == pytest.approx(ced[17])


@given(error_lists, thresholds, thresholds)
def test_figures_are_monotonic(errors: NDArray[np.float64], a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert share_under(errors, low) <= share_under(errors, high)
    assert failure_rate(errors, low) >= failure_rate(errors, high)
    assert auc(errors, low) <= auc(errors, high) + 1e-12
    assert auc(errors * 0.5, a) >= auc(errors, a)
    assert failure_rate(errors * 0.5, a) <= failure_rate(errors, a)
    assert 0 <= auc(errors, a) <= share_under(errors, a)
    assert share_under(errors, a) + failure_rate(errors, a) <= 1 + 1e-12


@given(error_lists, thresholds, st.integers(0, 2**32 - 1))
def test_the_order_of_faces_does_not_matter(errors: NDArray[np.float64], threshold: float, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(errors)
    assert auc(shuffled, threshold) == pytest.approx(auc(errors, threshold))
    assert failure_rate(shuffled, threshold) == failure_rate(errors, threshold)


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_what_is_no_number_has_failed(lost: float) -> None:
    errors = np.array([0.0, 0.05, lost, lost])
    assert failure_rate(errors, 0.1) == 0.5
    assert share_under(errors, 0.1) == 0.5
    assert auc(errors, 0.1) == pytest.approx((1 + 0.5) / 4)
