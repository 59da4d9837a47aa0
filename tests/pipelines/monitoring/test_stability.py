import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.monitoring.stability import difference, grouped, ks, psi
from pipelines.settings import DriftSettings

COUNTS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=60).filter(
    lambda pairs: sum(a for a, _ in pairs) > 0 and sum(b for _, b in pairs) > 0
)
DEFAULT = DriftSettings()


@given(COUNTS)
def test_ks_is_that_of_the_samples_with_every_value_at_its_bin(pairs: list[tuple[int, int]]) -> None:
    base, now = np.array(pairs, np.int64).T
    samples = [np.repeat(np.arange(len(pairs)), counts) for counts in (base, now)]
    assert ks(base, now) == pytest.approx(stats.ks_2samp(*samples, method="asymp").statistic)


@given(COUNTS)
def test_psi_is_the_sum_of_both_relative_entropies(pairs: list[tuple[int, int]]) -> None:
    base, now = np.array(pairs, np.int64).T
    p, q = base + 0.5, now + 0.5
    assert psi(base, now) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), abs=1e-12)
    assert psi(base, now) == pytest.approx(psi(now, base), abs=1e-12)
    assert psi(base, base) == 0


@given(COUNTS, st.integers(2, 12))
def test_groups_hold_their_share_and_nothing_is_lost(pairs: list[tuple[int, int]], most: int) -> None:
    base, now = np.array(pairs, np.int64).T
    base_groups, now_groups = grouped(base, now, most)
    assert len(base_groups) == len(now_groups) <= most
    assert base_groups.sum() == base.sum()
    assert now_groups.sum() == now.sum()
    assert (base_groups >= base.sum() / most).all() or len(base_groups) == 1
    np.testing.assert_array_equal(grouped(base, base, most)[1], base_groups)
    assert difference(base, now, DriftSettings(least=1, bins=most)).psi == psi(base_groups, now_groups)


@given(st.integers(2, 10), st.integers(100, 5000), st.integers(100, 5000), st.floats(0.0001, 0.2))
def test_noise_is_the_quantile_of_the_tests_by_name(bins: int, n: int, m: int, chance: float) -> None:
    base, now = np.full(bins, n), np.full(bins, m)
    found = difference(base, now, DriftSettings(chance=chance))
    scale = 1 / (bins * n) + 1 / (bins * m)
    assert found.psi_noise == pytest.approx(stats.chi2.isf(chance, bins - 1) * scale)
    assert found.ks_noise == pytest.approx(stats.kstwobign.isf(chance) * np.sqrt(scale))


@pytest.mark.parametrize(("n", "m"), [(100, 100), (2000, 120), (5000, 20_000)])
def test_samples_of_one_population_differ_by_noise_only(n: int, m: int) -> None:
    rng = np.random.default_rng(7)
    edges = np.linspace(-5, 5, 61)
    beyond = {"psi": 0, "ks": 0}
    for _ in range(400):
        base, now = (np.histogram(rng.normal(size=size), edges)[0] for size in (n, m))
        found = difference(base, now, DriftSettings(chance=0.01))
        assert found.psi is not None
        assert found.psi_noise is not None
        assert found.ks is not None
        assert found.ks_noise is not None
        beyond["psi"] += found.psi > found.psi_noise
        beyond["ks"] += found.ks > found.ks_noise
        assert difference(base, now, DEFAULT).verdict == "stable"
    assert max(beyond.values()) <= 12  # 4 are expected, and more than 12 once in 2,000 such tests


def test_half_a_standard_deviation_is_where_the_thresholds_lie() -> None:
    edges = np.linspace(-6, 6, 61)
    counts = [
        np.rint(1e6 * np.diff(stats.norm.cdf(edges, loc=shift))).astype(np.int64) for shift in (0, 0.4, 0.52, 1)
    ]
    assert psi(counts[0], counts[2]) == pytest.approx(0.52**2, rel=0.01)
    assert [difference(counts[0], now, DEFAULT).verdict for now in counts] == [
        "stable",
        "stable",
        "drifted",
        "drifted",
    ]
    between = np.rint(1e6 * np.diff(stats.norm.cdf(edges, loc=0.47))).astype(np.int64)
    for told in (DEFAULT, DriftSettings(ks_warning=0.19), DriftSettings(psi_warning=0.24)):  # either is enough
        assert difference(counts[0], between, told).verdict == "warning"


def test_with_few_nothing_is_said_and_with_one_bin_nothing_differs() -> None:
    assert difference(np.array([99, 0]), np.array([0, 1000]), DEFAULT).verdict == "unknown"
    assert difference(np.array([0, 1000]), np.array([99, 0]), DEFAULT).psi is None
    assert difference(np.array([100, 0]), np.array([0, 100]), DEFAULT).verdict == "drifted"
    same = difference(np.array([0, 500, 0]), np.array([0, 400, 0]), DEFAULT)
    assert (same.verdict, same.ks) == ("stable", 0)
    assert difference(np.array([0, 500, 0]), np.array([400, 0, 0]), DEFAULT).verdict == "drifted"


def test_names_have_no_order() -> None:
    base, now = np.array([900, 90, 0, 10, 0]), np.array([700, 90, 0, 200, 10])
    found = difference(base, now, DEFAULT, ordered=False)
    assert found.ks is None
    assert found.psi == pytest.approx(psi(np.array([900, 90, 10, 0]), np.array([700, 90, 200, 10])))
    assert found.verdict == "drifted"


@settings(max_examples=30)
@given(COUNTS)
def test_any_counts_have_a_verdict(pairs: list[tuple[int, int]]) -> None:
    base, now = np.array(pairs, np.int64).T
    for ordered in (True, False):
        found = difference(base, now, DriftSettings(least=1), ordered)
        assert found.psi is not None
        assert np.isfinite(found.psi)
        assert found.verdict != "unknown"
