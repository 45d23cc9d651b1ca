"""The figures detectors judge by. Floats appear here only, computed from integer counts at window ends.

Rules and defaults with their measured false-alarm rates: two-sample G statistic, population stability index with its
small-sample bias and standard error. Judged figures are rounded to 6 digits, so that the last bit of a logarithm
never decides.
"""

from functools import lru_cache
from math import ceil, log

import numpy as np
from numpy.typing import NDArray

from errata.domain.detection.runs import widths

WINDOW = 500  # events of a model, or outcomes for statistics on labels
WINDOW_MIN = 100  # a window closed early by a tick is judged from this many on; so is a feature within a window
PSI_MIN = 0.25
SHARE_FLOOR = 1e-4
EXPECTED_MIN = 5.0  # cells that expect fewer at n = 500 are merged
G_SHARE = 23.93  # the χ² quantile at 10⁻⁶ for one degree of freedom
DIGITS = 6

# χ² quantiles at 10⁻⁶ for 1 … 64 degrees of freedom (tested against scipy.stats.chi2.isf).
CHI2_1E6: tuple[float, ...] = (
    23.928127, 27.631021, 30.66485, 33.376842, 35.888187, 38.258336, 40.521831, 42.700914,
    44.810938, 46.863047, 48.865643, 50.825252, 52.747068, 54.635306, 56.493442, 58.32439,
    60.130614, 61.914227, 63.677052, 65.420681, 67.146509, 68.855769, 70.549557, 72.228854,
    73.894539, 75.547405, 77.188173, 78.817496, 80.43597, 82.044143, 83.642516, 85.231551,
    86.811675, 88.383282, 89.946741, 91.502391, 93.050551, 94.591516, 96.125565, 97.652957,
    99.173938, 100.688735, 102.197565, 103.700633, 105.19813, 106.690237, 108.177129, 109.658966,
    111.135905, 112.608092, 114.075668, 115.538764, 116.997508, 118.452021, 119.902419, 121.34881,
    122.791301, 124.229993, 125.664982, 127.09636, 128.524217, 129.948637, 131.369702, 132.787491,
)  # fmt: skip


def g_of_share(k: int, n: int, wrong: int, m: int) -> float:
    """Two-sample G of k in n against ``wrong`` in m (Woolf 1957, the log-likelihood ratio of a 2 × 2 table).

    >>> round(g_of_share(21, 500, 100, 10_000), 2)
    26.45
    """
    pooled = (k + wrong) / (n + m)
    return 2 * sum(
        observed * log(observed / expected)
        for observed, expected in (
            (k, n * pooled),
            (n - k, n * (1 - pooled)),
            (wrong, m * pooled),
            (m - wrong, m * (1 - pooled)),
        )
        if observed > 0
    )


@lru_cache(maxsize=65_536)
def share_threshold(reference_count: int, reference_n: int) -> int:
    """The count in a window of 500 at which a share is a failure: at least twice the reference's share and two points
    above it, and G ≥ 23.93. 501 (never) where even a full window would not do.

    >>> share_threshold(0, 10_000), share_threshold(100, 10_000), share_threshold(500, 10_000)
    (10, 21, 54)
    """
    share = reference_count / reference_n
    k = max(1, ceil(round(WINDOW * max(2 * share, share + 0.02), DIGITS)))
    while k <= WINDOW and round(g_of_share(k, WINDOW, reference_count, reference_n), DIGITS) < G_SHARE:
        k += 1
    return min(k, WINDOW + 1)


def merge_cells(counts: NDArray[np.int64], ordered: bool) -> NDArray[np.int64]:
    """The merged cell of each cell, so that each expects at least 5 of a window of 500.

    Ordered cells (bins) merge with their right neighbour, the last with its left; unordered ones (categories) are
    pooled, and a pool that is still too small joins the smallest cell that is not.

    >>> merge_cells(np.array([500, 2, 300, 1]), ordered=True).tolist()
    [0, 1, 1, 1]
    >>> merge_cells(np.array([600, 2, 300, 9]), ordered=False).tolist()
    [0, 2, 1, 2]
    """
    total = int(counts.sum())
    expected = counts * (WINDOW / max(total, 1))
    if ordered:
        merged = np.zeros(len(counts), np.int64)
        cell, held = 0, 0.0
        for i, e in enumerate(expected):
            merged[i] = cell
            held += e
            if held >= EXPECTED_MIN:
                cell, held = cell + 1, 0.0
        if held < EXPECTED_MIN and cell > 0:
            merged[merged == cell] = cell - 1
        return merged
    large = expected >= EXPECTED_MIN
    merged = np.where(large, np.cumsum(large) - 1, -1).astype(np.int64)
    if not large.any():
        return np.zeros(len(counts), np.int64)
    if not large.all():
        pooled = float(expected[~large].sum())
        smallest = int(merged[large][np.argmin(expected[large])])
        merged[~large] = int(large.sum()) if pooled >= EXPECTED_MIN else smallest
    return merged


def drift_figures(
    window: NDArray[np.int64], reference: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """G, PSI* and SE of several features at once.

    ``window`` and ``reference`` are merged counts, the cells of all features one after the other; ``starts`` where
    each feature begins. G: two-sample log-likelihood ratio. PSI: Σ (q − p)·ln(q/p) with shares floored at 10⁻⁴.
    PSI* = PSI − (cells − 1)(1/n + 1/m), the bias of small samples (Yurdakul 2018, section 4). SE by the delta
    method: SE² = (Σ q·d² − (Σ q·d)²)/n with d = ln(q/p) + 1 − p/q over cells with q > 0.

    >>> window, reference = np.array([100, 400]), np.array([5000, 5000])
    >>> g, psi, se = drift_figures(window, reference, np.array([0]))
    >>> [round(float(x[0]), 3) for x in (g, psi, se)]
    [184.172, 0.414, 0.058]
    """
    cells = widths(starts, len(window))
    n = np.maximum(np.add.reduceat(window, starts), 1).astype(np.float64)
    m = np.add.reduceat(reference, starts).astype(np.float64)
    per_n, per_m = np.repeat(n, cells), np.repeat(m, cells)
    q, p = window / per_n, reference / per_m
    pooled = (window + reference) / (per_n + per_m)
    with np.errstate(divide="ignore", invalid="ignore"):
        g_cells = np.where(window > 0, window * np.log(q / pooled), 0.0)
        g_cells += np.where(reference > 0, reference * np.log(p / pooled), 0.0)
    floored_q, floored_p = np.maximum(q, SHARE_FLOOR), np.maximum(p, SHARE_FLOOR)
    log_ratio = np.log(floored_q / floored_p)
    psi = np.add.reduceat((floored_q - floored_p) * log_ratio, starts)
    d = np.where(window > 0, log_ratio + 1 - floored_p / floored_q, 0.0)
    qd = q * d
    variance = (np.add.reduceat(qd * d, starts) - np.add.reduceat(qd, starts) ** 2) / n
    corrected = psi - (cells - 1) * (1 / n + 1 / m)
    return (
        np.round(2 * np.add.reduceat(g_cells, starts), DIGITS),
        np.round(corrected, DIGITS),
        np.round(np.sqrt(np.maximum(variance, 0.0)), DIGITS),
    )
