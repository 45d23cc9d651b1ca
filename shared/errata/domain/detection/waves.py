"""A batch cut into waves: at most one window of each slot per wave, so that windows close at their exact event whatever
the batch size, and a wave costs a constant number of numpy calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from errata.domain.columns import MISSING_CODE, UNUSABLE_CODE, Predictions
from errata.domain.detection.episodes import Row
from errata.domain.detection.profile import (
    EXTRA,
    FEATURE_KINDS,
    OUTPUT_RANGE,
    OVER_LIMIT,
    POLICY,
    SCORES,
    STATUS,
    TAIL,
    UNSEEN_CLASS,
)
from errata.domain.detection.state import FILL, SAMPLE, Ints, State
from errata.domain.detection.statistics import WINDOW

# Rows whose hash lies in the lowest eighth may become samples: 62 of 500 expected, eight wanted.
SAMPLED_BELOW = np.uint64(1 << 61)
MISSING, TYPE, RANGE, UNSEEN, REQUIRED = range(len(FEATURE_KINDS))


@dataclass(slots=True)
class Pairs:
    """(row, target) pairs sorted by row."""

    row: Ints
    target: Ints

    def between(self, first: int, last: int) -> "Pairs":
        low, high = np.searchsorted(self.row, (first, last))
        return Pairs(self.row[low:high], self.target[low:high])


@dataclass(slots=True)
class Counted:
    """What the rows of a batch add: cells of channels, and flags of counters. Targets are places in the state."""

    cells: list[Pairs]
    flags: Pairs
    milli: Ints  # per flag: the violating number in thousandths, else 0


def search_bins(values: NDArray[np.float64], channels: Ints, edges: NDArray[np.float64]) -> Ints:
    """The bin of each value among the 15 padded edges of its channel: a search of four comparisons.

    >>> edges = np.array([[1.0, 2.0] + [np.inf] * 13])
    >>> search_bins(np.array([0.5, 1.0, 2.5]), np.zeros(3, np.int64), edges).tolist()
    [0, 1, 2]
    """
    flat = edges.ravel()
    base = channels * edges.shape[1]
    bins = np.zeros(len(values), np.int64)
    for step in (8, 4, 2, 1):
        bins += step * (flat[base + bins + (step - 1)] <= values)
    return bins


def ragged(starts_of_slot: Ints, widths: Ints) -> tuple[Ints, Ints]:
    """Rows and within-row positions of ragged entries: entry k of row i maps to ``starts_of_slot[i] + k``."""
    rows = np.repeat(np.arange(len(widths)), widths)
    before = np.cumsum(widths) - widths
    within = np.arange(len(rows)) - np.repeat(before, widths)
    return rows, within


def count(p: Predictions, slots: Ints, state: State) -> Counted:
    """Cells and flags of all rows of a batch, in one pass whatever the number of models."""
    t = state.tables
    rows_all = np.arange(len(p), dtype=np.int64)
    n_numbers = t.numbers[slots]
    n_features = t.features[slots]
    counter = t.counter_base[slots]
    singles = counter + len(FEATURE_KINDS) * n_features
    cells: list[Pairs] = []
    flag_rows: list[Ints] = []
    flags: list[Ints] = []
    milli: list[Ints] = []

    def flag(rows: Ints, targets: Ints, numbers: NDArray[np.float64] | None = None) -> None:
        if len(rows):
            flag_rows.append(rows)
            flags.append(targets)
            sums = np.zeros(len(rows), np.int64)
            if numbers is not None:
                sums = np.clip(np.round(numbers * 1000), -(2**50), 2**50).astype(np.int64)
            milli.append(sums)

    # Features that are numbers.
    rows, within = ragged(p.number_start, n_numbers)
    values = p.numbers
    channels = t.number_channel[slots][rows] + within
    missing = np.isnan(values)
    broken = np.isinf(values)
    with np.errstate(invalid="ignore"):
        out = (values < t.low[channels]) | (values > t.high[channels])
    out &= ~broken
    cell = t.number_cell[channels]
    usable = ~(missing | broken | out) & (cell >= 0)
    if usable.all():
        cells.append(Pairs(rows, cell + search_bins(values, channels, t.edges)))
    else:
        chosen = np.flatnonzero(usable)
        bins = search_bins(values[chosen], channels[chosen], t.edges)
        cells.append(Pairs(rows[chosen], cell[chosen] + bins))
    for mask, kind in ((missing, MISSING), (out, RANGE)):
        at = np.flatnonzero(mask)
        targets = counter[rows[at]] + kind * n_features[rows[at]] + within[at]
        flag(rows[at], targets, values[at] if kind == RANGE else None)

    # Categories.
    per_row = np.diff(np.append(p.category_start, len(p.categories)))
    rows, within = ragged(p.category_start, per_row)
    codes = p.categories
    unseen = np.isnan(codes)
    cell = t.category_cell[t.category_channel[slots][rows] + within]
    usable = (codes >= 0) & (cell >= 0)
    if usable.all():
        cells.append(Pairs(rows, cell + codes.astype(np.int64)))
    else:
        chosen = np.flatnonzero(usable)
        cells.append(Pairs(rows[chosen], cell[chosen] + codes[chosen].astype(np.int64)))
    for mask, kind in ((codes == MISSING_CODE, MISSING), (unseen, UNSEEN)):
        at = np.flatnonzero(mask)
        flag(rows[at], counter[rows[at]] + kind * n_features[rows[at]] + n_numbers[rows[at]] + within[at])
    category_missing = np.flatnonzero(codes == MISSING_CODE)
    missing_pairs = [(np.flatnonzero(missing), None), (category_missing, None)]
    _required(p, slots, t, missing_pairs, (rows, within), flag, counter, n_numbers, n_features)

    # Text and vectors: present or not.
    per_other = np.diff(np.append(p.others_start, len(p.others)))
    rows, within = ragged(p.others_start, per_other)
    at = np.flatnonzero(p.others == 0)
    feature = n_numbers[rows[at]] + per_row[rows[at]] + within[at]
    flag(rows[at], counter[rows[at]] + feature)
    must = t.required[t.feature_base[slots][rows[at]] + feature]
    flag(rows[at][must], (counter[rows[at]] + REQUIRED * n_features[rows[at]] + feature)[must])

    # Latency, confidence, output, status.
    latency_channel = t.number_channel[slots] + n_numbers
    for offset, column in ((0, p.latency_ms), (1, p.confidence)):
        channel = latency_channel + offset
        at = np.flatnonzero(~np.isnan(column) & (t.number_cell[channel] >= 0))
        cells.append(Pairs(at, t.number_cell[channel[at]] + search_bins(column[at], channel[at], t.edges)))
    numeric = t.numeric_output[slots]
    channel = latency_channel + 2
    out_of_range = numeric & ((p.predicted < t.output_low[slots]) | (p.predicted > t.output_high[slots]))
    at = np.flatnonzero(numeric & ~np.isnan(p.predicted) & ~out_of_range & (t.number_cell[channel] >= 0))
    cells.append(Pairs(at, t.number_cell[channel[at]] + search_bins(p.predicted[at], channel[at], t.edges)))
    classes = t.class_output[slots]
    category = t.category_cell[t.category_channel[slots] + per_row]
    at = np.flatnonzero(classes & (p.predicted >= 0) & (category >= 0))
    cells.append(Pairs(at, category[at] + p.predicted[at].astype(np.int64)))
    for mask, kind in (
        (p.latency_ms > t.latency_limit_ms[slots], OVER_LIMIT),
        (p.latency_ms > t.latency_p95_ms[slots], TAIL),
        (classes & np.isnan(p.predicted), UNSEEN_CLASS),
        (out_of_range, OUTPUT_RANGE),
        ((p.confidence < 0) | (p.confidence > 1), SCORES),
    ):
        at = np.flatnonzero(mask)
        flag(at, singles[at] + kind)
    at = np.flatnonzero(p.status > 0)
    flag(at, singles[at] + STATUS + p.status[at] - 1)
    _violations(p, slots, state, counter, singles, flag)
    if t.forbids.any():
        _policies(p, slots, state, singles, flag)
    row = np.concatenate([np.zeros(0, np.int64), *flag_rows])
    target = np.concatenate([np.zeros(0, np.int64), *flags])
    sums = np.concatenate([np.zeros(0, np.int64), *milli])
    order = np.lexsort((target, row))
    row, target, sums = row[order], target[order], sums[order]
    if len(row) > 1:  # a row counts once for a fault, however often it shows
        new = np.append(True, (np.diff(row) != 0) | (np.diff(target) != 0))
        row, target, sums = row[new], target[new], sums[new]
    del rows_all
    return Counted(cells, Pairs(row, target), sums)


def best(groups: Ints, hashes: NDArray[np.uint64]) -> Ints:
    """Places of the eight smallest hashes of each group.

    >>> best(np.array([0, 1, 0]), np.array([9, 5, 3], np.uint64)).tolist()
    [2, 0, 1]
    """
    order = np.lexsort((hashes, groups))
    sorted_groups = groups[order]
    new = np.append(True, np.diff(sorted_groups) != 0) if len(order) else np.zeros(0, np.bool_)
    starts = np.flatnonzero(new)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return order[rank < SAMPLE]
