"""Counting rule shared by the detectors of faults: an isolated fault is a count, a share of faults is a failure.

A counter fires at the *event* whose count in the window reaches its threshold (`statistics.share_threshold`), once a
window. Faults that the admission policy lets open a case by themselves fire at each event, at most eight a window; the
exact count is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from errata.domain.detection.profile import Counter
from errata.domain.detection.runs import flatnonzero, runs
from errata.domain.detection.state import Ints, Slot, State

STORM_CAP = 8  # findings a window of one (model, fault); counts go on exactly


@dataclass(frozen=True, slots=True)
class Reached:
    """Counter ``place`` of a slot fired at row ``row``, with ``count`` events of the window so far."""

    slot: Slot
    place: int
    counter: Counter
    row: int
    count: int
    isolated: bool


def reached(rows: Ints, targets: Ints, before: Ints, state: State, slot_of_counter: Ints) -> Iterator[Reached]:
    """Which counters fire at which of these flags (sorted by row). ``before`` are the counts of the window so far,
    per counter."""
    if not len(targets):
        return
    t = state.tables
    order = np.argsort(targets, kind="stable")
    grouped = targets[order]
    starts, sizes = runs(grouped)
    counters = grouped[starts]
    had = before[counters]
    threshold = t.threshold[counters]
    for g in flatnonzero((had < threshold) & (had + sizes >= threshold)):
        place = starts[g] + threshold[g] - had[g] - 1
        yield _reached(state, slot_of_counter, int(counters[g]), int(rows[order[place]]), int(threshold[g]), False)
    for g in flatnonzero(t.admitted[counters] & (had < STORM_CAP)):
        for k in range(min(int(sizes[g]), STORM_CAP - int(had[g]))):
            row = int(rows[order[starts[g] + k]])
            yield _reached(state, slot_of_counter, int(counters[g]), row, int(had[g]) + k + 1, True)


def _reached(state: State, slot_of_counter: Ints, counter: int, row: int, count: int, isolated: bool) -> Reached:
    slot = state.slot(int(slot_of_counter[counter]))
    place = counter - slot.counter_base
    return Reached(slot, place, slot.profile.counters[place], row, count, isolated)
