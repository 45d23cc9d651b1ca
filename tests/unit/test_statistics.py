"""The figures detectors judge by, against scipy, a plain-Python oracle and a bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from errata.domain.detection.statistics import (
    CHI2_1E6,
    EXPECTED_MIN,
    G_SHARE,
    SHARE_FLOOR,
    WINDOW,
    drift_figures,
    g_of_share,
    merge_cells,
    share_threshold,
)

COUNTS = st.lists(st.integers(0, 5_000), min_size=2, max_size=20)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def test_the_table_holds_the_quantiles_at_1e_6() -> None:
    assert len(CHI2_1E6) == 64
    for df, quantile in enumerate(CHI2_1E6, start=1):
        assert quantile == pytest.approx(stats.chi2.isf(1e-6, df), abs=1e-6)
    assert pytest.approx(CHI2_1E6[0], abs=0.002) == G_SHARE


def test_the_table_is_of_no_other_level() -> None:
    assert abs(CHI2_1E6[0] - stats.chi2.isf(1e-5, 1)) > 4


@given(st.integers(0, 500), st.integers(0, 10_000))
def test_g_of_a_share_is_scipys(k: int, wrong: int) -> None:
    m = 10_000
    if k + wrong in (0, WINDOW + m):
        return
    table = [[k, WINDOW - k], [wrong, m - wrong]]
    expected = stats.chi2_contingency(table, lambda_="log-likelihood", correction=False).statistic
    assert g_of_share(k, WINDOW, wrong, m) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("seen", "k"), [(0, 10), (100, 21), (500, 54)])
def test_thresholds_of_shares(seen: int, k: int) -> None:
    assert share_threshold(seen, 10_000) == k


@given(st.integers(0, 10_000))
def test_a_threshold_is_the_smallest_count_that_meets_all_three_rules(seen: int) -> None:
    def meets(k: int) -> bool:
        share, ours = seen / 10_000, k / WINDOW
        far = ours >= max(2 * share, share + 0.02) - 1e-9
        return far and round(g_of_share(k, WINDOW, seen, 10_000), 6) >= G_SHARE

    k = share_threshold(seen, 10_000)
    assert k == WINDOW + 1 or meets(k)
    assert k == 1 or not meets(k - 1)


def test_a_share_that_cannot_double_never_fires() -> None:
    assert share_threshold(6_000, 10_000) == WINDOW + 1
    assert share_threshold(4_000, 10_000) <= WINDOW


def test_a_small_reference_asks_for_more() -> None:
    assert share_threshold(0, 100) > share_threshold(0, 10_000)


# -- drift ------------------------------------------------------------------------------------------------------------


def plain_figures(window: list[int], reference: list[int]) -> tuple[float, float, float]:
    """G, PSI* and SE in scalar code, cell by cell."""
    n, m, cells = sum(window), sum(reference), len(window)
    g = psi = first = second = 0.0
    for ours, theirs in zip(window, reference, strict=True):
        pooled = (ours + theirs) / (n + m)
        g += ours * math.log(ours / n / pooled) if ours else 0.0
        g += theirs * math.log(theirs / m / pooled) if theirs else 0.0
        q, p = max(ours / n, SHARE_FLOOR), max(theirs / m, SHARE_FLOOR)
        psi += (q - p) * math.log(q / p)
        if ours:
            d = math.log(q / p) + 1 - p / q
            first += ours / n * d
            second += ours / n * d * d
    return 2 * g, psi - (cells - 1) * (1 / n + 1 / m), math.sqrt(max((second - first**2) / n, 0.0))


@settings(max_examples=60)
@given(st.data())
def test_drift_figures_are_those_of_the_plain_formula(data: st.DataObject) -> None:
    features = []
    for _ in range(data.draw(st.integers(1, 3))):
        window = data.draw(COUNTS.filter(lambda counts: sum(counts) > 0))
        same = st.lists(st.integers(0, 5_000), min_size=len(window), max_size=len(window))
        features.append((window, data.draw(same.filter(lambda counts: sum(counts) > 0))))
    starts = np.cumsum([0, *(len(window) for window, _ in features)])[:-1].astype(np.int64)
    windows, references = (np.concatenate([ints(*feature[side]) for feature in features]) for side in (0, 1))
    for at, (window, reference) in enumerate(features):
        found = [float(figure[at]) for figure in drift_figures(windows, references, starts)]
        assert found == pytest.approx(plain_figures(window, reference), abs=2e-6)


@given(COUNTS.filter(lambda counts: sum(counts) > 0), st.integers(2, 9))
def test_a_window_of_the_references_shares_is_no_drift(counts: list[int], times: int) -> None:
    g, psi, se = drift_figures(ints(*counts), ints(*counts) * times, ints(0))
    assert g[0] == pytest.approx(0, abs=1e-5)
    assert psi[0] <= 0
    assert se[0] == pytest.approx(0, abs=1e-5)


def test_g_is_scipys_too() -> None:
    window, reference = [216, 162, 122, 10], [4000, 3000, 2250, 750]
    g, _, _ = drift_figures(ints(*window), ints(*reference), ints(0))
    expected = stats.chi2_contingency([window, reference], lambda_="log-likelihood", correction=False).statistic
    assert g[0] == pytest.approx(expected, abs=1e-5)


def test_shares_are_floored_so_that_a_vanished_cell_counts_in_full() -> None:
    """Smoothing by half a count would measure less: (0.5/511) instead of the floor of 10⁻⁴."""
    window, reference = ints(250, 250, 0), ints(4700, 4700, 600)
    _, psi, _ = drift_figures(window, reference, ints(0))
    kept = 2 * (0.5 - 0.47) * math.log(0.5 / 0.47) - 2 * (1 / 500 + 1 / 10_000)
    assert psi[0] == pytest.approx(kept + (1e-4 - 0.06) * math.log(1e-4 / 0.06), abs=1e-6)
    smoothed = (0.5 / 501.5 - 0.06) * math.log(0.5 / 501.5 / 0.06)
    assert psi[0] > kept + smoothed + 0.1


@pytest.mark.parametrize("q", [(0.5, 0.2, 0.2, 0.1), (0.25, 0.35, 0.1, 0.3), (0.1, 0.2, 0.3, 0.4)])
def test_the_standard_error_is_that_of_a_bootstrap(q: tuple[float, ...]) -> None:
    reference, n = ints(4000, 3000, 2000, 1000), 500
    draws = np.random.default_rng(7).multinomial(n, q, 4_000)
    starts = np.arange(0, draws.size, 4)
    _, psi, _ = drift_figures(draws.ravel(), np.tile(reference, len(draws)), starts)
    _, _, se = drift_figures((np.array(q) * n).astype(np.int64), reference, ints(0))
    assert float(se[0]) == pytest.approx(float(psi.std()), rel=0.15)
    assert abs(float(psi.mean()) - plain_figures([round(500_000 * share) for share in q], reference.tolist())[1]) < 0.02


# -- merging of cells -------------------------------------------------------------------------------------------------


def expected_of(counts: list[int], merged: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.bincount(merged, np.array(counts) * (WINDOW / max(sum(counts), 1))).astype(np.float64)


@given(COUNTS, st.booleans())
def test_merged_cells_each_expect_five_or_are_one(counts: list[int], ordered: bool) -> None:
    merged = merge_cells(ints(*counts), ordered)
    assert sorted(set(merged.tolist())) == list(range(int(merged.max()) + 1))
    expected = expected_of(counts, merged)
    assert len(expected) == 1 or expected.min() >= EXPECTED_MIN - 1e-9


@given(COUNTS)
def test_bins_merge_with_neighbours_only(counts: list[int]) -> None:
    steps = np.diff(merge_cells(ints(*counts), ordered=True))
    assert set(steps.tolist()) <= {0, 1}


@given(COUNTS, st.booleans())
def test_cells_that_expect_enough_stay_alone_when_all_do(counts: list[int], ordered: bool) -> None:
    merged = merge_cells(ints(*counts), ordered)
    if (np.array(counts) * (WINDOW / max(sum(counts), 1)) >= EXPECTED_MIN).all():
        assert merged.tolist() == list(range(len(counts)))


@given(COUNTS)
def test_a_large_category_never_shares_its_cell_with_another_large_one(counts: list[int]) -> None:
    merged = merge_cells(ints(*counts), ordered=False)
    large = np.flatnonzero(np.array(counts) * (WINDOW / max(sum(counts), 1)) >= EXPECTED_MIN)
    assert len(set(merged[large].tolist())) == len(large)
