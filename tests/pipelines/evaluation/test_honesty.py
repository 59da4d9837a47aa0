import numpy as np
import pytest
from scipy.stats import spearmanr

from pipelines.evaluation.honesty import expected_and_true, rank_correlation
from tests.pipelines.judged import judged_face


def test_what_is_expected_is_read_from_the_confidence() -> None:
    expected, true = expected_and_true([judged_face(0.04, expected=0.07), judged_face(0.2, expected=0.01)])
    np.testing.assert_allclose(expected, [0.07, 0.01])
    np.testing.assert_allclose(true, [0.04, 0.2])


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=30), rng.integers(0, 5, 30).astype(float)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)


@pytest.mark.parametrize("first", [np.ones(5), np.arange(2.0), np.array([1.0, 2.0, np.nan])])
def test_what_cannot_be_ranked_correlates_with_nothing(first: np.ndarray) -> None:
    assert rank_correlation(first, np.arange(float(len(first)))) == 0
