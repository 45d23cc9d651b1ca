"""A batch cut into waves: at most one window of each slot per wave, so that windows close at their exact event whatever
the batch size, and a wave costs a constant number of numpy calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from errata.domain.columns import MISSING_CODE, Predictions, Violation
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
from errata.domain.detection.runs import flatnonzero, runs, widths
from errata.domain.detection.state import SAMPLE, Ints, Slot, State

# Rows whose hash lies in the lowest eighth may become samples: 62 of 500 expected, eight wanted.
SAMPLED_BELOW = np.uint64(1 << 61)
BLOCK = 8_192  # values
ROWS = 1_024
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
    bins = np.empty(len(values), np.int64)
    for start in range(0, len(values), BLOCK):  # temporaries that stay in the cache: twice as fast
        part = values[start : start + BLOCK]
        first = channels[start : start + BLOCK] * edges.shape[1] - 1
        below = first  # the last edge known to lie at or below the value
        for step in (8, 4, 2, 1):
            below = below + step * (flat.take(below + step) <= part)
        bins[start : start + BLOCK] = below - first
    return bins


def ragged(sizes: Ints) -> tuple[Ints, Ints]:
    """Row and place within the row of ragged entries.

    >>> [x.tolist() for x in ragged(np.array([2, 0, 1]))]
    [[0, 0, 2], [0, 1, 0]]
    """
    rows = np.arange(len(sizes)).repeat(sizes)
    before = sizes.cumsum() - sizes
    return rows, np.arange(len(rows)) - before.repeat(sizes)


class _Flags:
    """Collects (row, counter) flags, with the violating number in thousandths where there is one."""

    def __init__(self, p: Predictions, slots: Ints, state: State) -> None:
        t = state.tables
        self.required = t.required
        self.feature_base = t.feature_base[slots]
        self.features = t.features[slots]
        self.base = t.counter_base[slots]
        self.singles = self.base + len(FEATURE_KINDS) * self.features
        # An answer that failed need not carry features: their absence says nothing.
        self.answered = (p.status == 0) | (p.status == 3)
        self.rows: list[Ints] = []
        self.targets: list[Ints] = []
        self.milli: list[Ints] = []

    def add(self, rows: Ints, targets: Ints, numbers: NDArray[np.float64] | None = None) -> None:
        if not len(rows):
            return
        self.rows.append(rows)
        self.targets.append(targets)
        sums = np.zeros(len(rows), np.int64)
        if numbers is not None:
            sums = np.round(np.clip(numbers, -1e12, 1e12) * 1000).astype(np.int64)
        self.milli.append(sums)

    def feature(self, kind: int, rows: Ints, feature: Ints, numbers: NDArray[np.float64] | None = None) -> None:
        self.add(rows, self.base[rows] + kind * self.features[rows] + feature, numbers)

    def missing(self, rows: Ints, feature: Ints) -> None:
        answered = self.answered[rows]
        rows, feature = rows[answered], feature[answered]
        self.feature(MISSING, rows, feature)
        must = self.required[self.feature_base[rows] + feature]
        self.feature(REQUIRED, rows[must], feature[must])

    def single(self, mask: NDArray[np.bool_], kind: int) -> None:
        at = flatnonzero(mask)
        self.add(at, self.singles[at] + kind)

    def sorted(self) -> tuple[Pairs, Ints]:
        if not self.rows:
            nothing = np.zeros(0, np.int64)
            return Pairs(nothing, nothing), nothing
        row, target, milli = np.concatenate(self.rows), np.concatenate(self.targets), np.concatenate(self.milli)
        order = np.lexsort((target, row))
        row, target, milli = row[order], target[order], milli[order]
        # A row counts once for a fault, however often it shows.
        first = np.ones(len(row), np.bool_)
        first[1:] = (row[1:] != row[:-1]) | (target[1:] != target[:-1])
        return Pairs(row[first], target[first]), milli[first]


def count(p: Predictions, slots: Ints, state: State) -> Counted:
    """Cells and flags of all rows of a batch, in one pass whatever the number of models."""
    t = state.tables
    flags = _Flags(p, slots, state)
    cells = [*_numbers(p, slots, state, flags), *_categories(p, slots, state, flags)]
    n_numbers, n_categories = t.numbers[slots], widths(p.category_start, len(p.categories))
    rows, within = ragged(widths(p.others_start, len(p.others)))
    absent = flatnonzero(p.others == 0)
    flags.missing(rows[absent], n_numbers[rows[absent]] + n_categories[rows[absent]] + within[absent])

    channel = t.number_channel[slots] + n_numbers  # latency, confidence, number output follow the features
    numeric, classes = t.numeric_output[slots], t.class_output[slots]
    outside = numeric & ((p.predicted < t.output_low[slots]) | (p.predicted > t.output_high[slots]))
    predicted = np.where(numeric & ~outside, p.predicted, np.nan)
    confidence = np.where((p.confidence >= 0) & (p.confidence <= 1), p.confidence, np.nan)
    for place, column in enumerate((p.latency_ms, confidence, predicted)):
        at = flatnonzero(~np.isnan(column) & (t.number_cell[channel + place] >= 0))
        bins = search_bins(column[at], channel[at] + place, t.edges)
        cells.append(Pairs(at, t.number_cell[channel[at] + place] + bins))
    first_cell = t.category_cell[t.category_channel[slots] + n_categories]
    at = flatnonzero(classes & (p.predicted >= 0) & (first_cell >= 0))
    cells.append(Pairs(at, first_cell[at] + p.predicted[at].astype(np.int64)))

    flags.single(p.latency_ms > t.latency_limit_ms[slots], OVER_LIMIT)
    flags.single(p.latency_ms > t.latency_p95_ms[slots], TAIL)
    flags.single(classes & np.isnan(p.predicted), UNSEEN_CLASS)
    flags.single(outside, OUTPUT_RANGE)
    flags.single((p.confidence < 0) | (p.confidence > 1), SCORES)
    bad = flatnonzero(p.status > 0)
    flags.add(bad, flags.singles[bad] + STATUS + p.status[bad] - 1)
    _violations(p, slots, state, flags)
    if t.forbids.any():
        _policies(p, slots, state, flags)
    return Counted(cells, *flags.sorted())


def _numbers(p: Predictions, slots: Ints, state: State, flags: _Flags) -> Iterator[Pairs]:
    t = state.tables
    sizes, number_channel = t.numbers[slots], t.number_channel[slots]
    for first, last in _blocks(len(p)):
        rows, within = ragged(sizes[first:last])
        rows += first
        values = p.numbers[_part(p.number_start, p.numbers, first, last)]
        channels = number_channel[rows] + within
        missing, broken = np.isnan(values), np.isinf(values)
        cell = t.number_cell[channels]
        unusable = missing | broken | (cell < 0)
        if t.bounded:
            outside = ((values < t.low[channels]) | (values > t.high[channels])) & ~broken
            at = flatnonzero(outside)
            flags.feature(RANGE, rows[at], within[at], values[at])
            unusable |= outside
        at = flatnonzero(missing)
        flags.missing(rows[at], within[at])
        target = cell + search_bins(values, channels, t.edges)
        if unusable.any():
            usable = flatnonzero(~unusable)
            rows, target = rows[usable], target[usable]
        yield Pairs(rows, target)


def _categories(p: Predictions, slots: Ints, state: State, flags: _Flags) -> Iterator[Pairs]:
    t = state.tables
    sizes, channel, before = widths(p.category_start, len(p.categories)), t.category_channel[slots], t.numbers[slots]
    for first, last in _blocks(len(p)):
        rows, within = ragged(sizes[first:last])
        rows += first
        codes = p.categories[_part(p.category_start, p.categories, first, last)]
        cell = t.category_cell[channel[rows] + within]
        usable = flatnonzero((codes >= 0) & (cell >= 0))
        feature = before[rows] + within
        at = flatnonzero(codes == MISSING_CODE)
        flags.missing(rows[at], feature[at])
        at = flatnonzero(np.isnan(codes))
        flags.feature(UNSEEN, rows[at], feature[at])
        yield Pairs(rows[usable], cell[usable] + codes[usable].astype(np.int64))


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Rows a thousand at a time: what comes of them stays in the cache, and in memory that the heap has."""
    return ((first, min(first + ROWS, rows)) for first in range(0, rows, ROWS))


def _part(start: Ints, values: NDArray[np.float64], first: int, last: int) -> slice:
    """Where the values of some rows stand."""
    return slice(int(start[first]), int(start[last]) if last < len(start) else len(values))


def _violations(p: Predictions, slots: Ints, state: State, flags: _Flags) -> None:
    rows = np.array([violation.row for violation in p.violations], np.int64)
    target_of: dict[tuple[int, str, str], int] = {}  # in a storm many rows break the same rule
    targets = []
    for slot, violation in zip(slots[rows].tolist(), p.violations, strict=True):
        key = slot, violation.feature, violation.reason
        target = target_of.get(key)
        if target is None:
            target = target_of[key] = _target(state.slot(slot), violation)
        targets.append(target)
    flags.add(rows, np.array(targets, np.int64))


def _target(slot: Slot, violation: Violation) -> int:
    profile = slot.profile
    place = profile.place.get(violation.feature)  # a model without a contract has no features to have a place
    if violation.reason == "type" and place is not None:
        return slot.counter_base + TYPE * profile.features + place
    return slot.counter_base + profile.singles + (SCORES if violation.reason == "invalid_output" else EXTRA)


def _policies(p: Predictions, slots: Ints, state: State, flags: _Flags) -> None:
    for index in flatnonzero(state.tables.forbids):
        mine = slots == index
        for i, codes in enumerate(state.slot(int(index)).profile.forbidden):
            flags.single(mine & np.isin(p.predicted, codes), POLICY + i)


def best(groups: Ints, hashes: NDArray[np.uint64]) -> Ints:
    """Places of the eight smallest hashes of each group.

    >>> best(np.array([0, 1, 0]), np.array([9, 5, 3], np.uint64)).tolist()
    [2, 0, 1]
    """
    order = np.lexsort((hashes, groups))
    starts, lengths = runs(groups[order])
    rank = np.arange(len(order)) - starts.repeat(lengths)
    return order[rank < SAMPLE]
