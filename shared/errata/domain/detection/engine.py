"""All detectors over one batch: who is judged, which windows end, what fires, and what moves an episode.

The engine knows no transport and no bytes. The same records in the same order give the same moves, however they are cut
into batches: counts are integers, windows are cut at their exact event, and floats appear at window ends only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from errata.contracts.topics import OUTCOMES as OUTCOMES_TOPIC
from errata.contracts.topics import PREDICTIONS
from errata.domain.columns import Batch, Tick
from errata.domain.detection import state as at
from errata.domain.detection.bad_status import BadStatus
from errata.domain.detection.confidence_shift import ConfidenceShift
from errata.domain.detection.contract_violation import ContractViolation
from errata.domain.detection.distribution_shift import DistributionShift
from errata.domain.detection.episodes import Move, Row, Signal, WindowEnd
from errata.domain.detection.error_rate import ErrorRate, Labels
from errata.domain.detection.invalid_output import InvalidOutput
from errata.domain.detection.latency_limit import LatencyLimit
from errata.domain.detection.latency_shift import LatencyShift
from errata.domain.detection.missing_values import MissingValues
from errata.domain.detection.policy_violation import PolicyViolation
from errata.domain.detection.runs import flatnonzero, order_of, runs
from errata.domain.detection.shares import Reached, reached
from errata.domain.detection.state import (
    SAMPLE_LIMIT,
    WRONG_LIMIT,
    Ints,
    Sampled,
    Slot,
    State,
    hold,
)
from errata.domain.detection.statistics import WINDOW, WINDOW_MIN
from errata.domain.detection.wave import Detector, Ended, Wave
from errata.domain.detection.waves import SAMPLED_BELOW, Counted, Pairs, best, count

DETECTORS: tuple[Detector, ...] = (
    ContractViolation(),
    MissingValues(),
    BadStatus(),
    InvalidOutput(),
    PolicyViolation(),
    LatencyLimit(),
    LatencyShift(),
    DistributionShift(),
    ConfidenceShift(),
)
LABEL_DETECTORS = (ErrorRate(),)

MINUTE_US = 60_000_000
LATE_US = 10 * MINUTE_US  # behind a model's newest event: catalogued and counted, kept out of windows
AHEAD_US = 5 * MINUTE_US  # ahead of the record time: clamped and counted
WINDOW_AGE_US = 15 * MINUTE_US
UNJUDGED_AGE_US = 24 * 60 * MINUTE_US


@dataclass(slots=True)
class Judged:
    """What a batch came to. ``touched``: slots whose state changed; counts by reason of what left the statistics."""

    moves: list[tuple[Slot, Move]] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    findings: dict[tuple[str, str, str], int] = field(default_factory=dict)  # (model, detector, level) -> n
    late: int = 0
    clamped: int = 0

    def add(self, later: "Judged") -> None:
        """What the next part of the same batch came to."""
        self.moves += later.moves
        self.touched |= later.touched
        for name, n in later.findings.items():
            self.findings[name] = self.findings.get(name, 0) + n
        self.late += later.late
        self.clamped += later.clamped


def clamped(time_us: Ints, record_time_us: Ints) -> Ints:
    """Event times; those of a clock too far ahead are the record times.

    >>> clamped(np.array([7, 7 + AHEAD_US + 1]), np.array([0, 7])).tolist()
    [7, 7]
    """
    taken: Ints = np.where(time_us > record_time_us + AHEAD_US, record_time_us, time_us)
    return taken


class Engine:
    """Steps a state over batches. ``new_id(record, slot)`` derives the id of an episode from its opening record."""

    def __init__(
        self, state: State, detectors: Sequence[Detector] = DETECTORS, labels: Sequence[ErrorRate] = LABEL_DETECTORS
    ) -> None:
        self.state = state
        self.detectors = detectors
        self.labels = labels

    def step(
        self,
        batch: Batch,
        slots: Ints,
        outcome_slots: Ints,
        keep: NDArray[np.bool_],
        keep_outcomes: NDArray[np.bool_],
        new_id: Callable[[int, int], str],
    ) -> Judged:
        """Judge a decoded batch. ``slots``: of each prediction row; ``keep``: False for duplicates."""
        run = _Run(self, batch, slots, outcome_slots, keep, keep_outcomes)
        run.judge()
        return run.finish(new_id)


class _Run:
    """One batch on its way through the engine."""

    def __init__(
        self,
        engine: Engine,
        batch: Batch,
        slots: Ints,
        outcome_slots: Ints,
        keep: NDArray[np.bool_],
        keep_outcomes: NDArray[np.bool_],
    ) -> None:
        self.engine, self.state, self.batch = engine, engine.state, batch
        self.p, self.slots = batch.predictions, slots
        self.o, self.outcome_slots = batch.outcomes, outcome_slots
        self.keep, self.keep_outcomes = keep, keep_outcomes
        self.out = Judged()
        self.signals: list[Signal] = []
        self.ends: list[WindowEnd] = []
        self.controls: dict[int, dict[int, Sequence[Row]]] = {}
        self.controls_before: dict[int, Sequence[Row]] = {}
        self.tick_time_us = 0
        p, o = self.p, self.o
        self.time_us = clamped(p.time_us, p.record_time_us)
        self.outcome_time_us = clamped(o.time_us, o.record_time_us)
        for rows, of_rows, kept, taken_at_us in (
            (p, slots, keep, self.time_us), (o, outcome_slots, keep_outcomes, self.outcome_time_us),
        ):  # fmt: skip
            ahead = (rows.time_us > taken_at_us) & kept
            if ahead.any():
                self.out.clamped += int(ahead.sum())
                np.add.at(self.state.fixed[:, at.CLAMPED], of_rows[ahead], 1)
        self.late = np.zeros(len(p), np.bool_)
        self.profiles = self.state.tables.profiles
        self.slot_of_counter = self.state.tables.slot_of_counter
        self.counted: Counted = count(p, slots, self.state) if len(p) else Counted([], _no_pairs(), _none())

    # -- the cut into segments between ticks ------------------------------------------------------------------------

    def judge(self) -> None:
        row, outcome = 0, 0
        for tick in self._effective_ticks():
            row_end = int(np.searchsorted(self.p.record, tick.record))
            outcome_end = int(np.searchsorted(self.o.record, tick.record))
            self._segment(row, row_end, outcome, outcome_end)
            self._tick(tick)
            row, outcome = row_end, outcome_end
        self._segment(row, len(self.p), outcome, len(self.o))

    def _effective_ticks(self) -> Iterator[Tick]:
        """Ticks that could close a window: others cost next to nothing, however many slots there are."""
        for tick in self.batch.ticks:
            before = [
                rows.record_time_us[(rows.partition == tick.partition) & (rows.record < tick.record)]
                for rows in (self.p, self.o)
            ]
            fuller = any(map(len, before))  # by rows of this batch that are not counted yet
            old_us = tick.record_time_us - WINDOW_AGE_US
            if any(bool((times <= old_us).any()) for times in before) or any(self._due_slots(tick, fuller)):
                yield tick

    def _due_slots(self, tick: Tick, fuller: bool = False) -> Iterator[Slot]:
        """Slots of the tick's partition with a window that it closes; ``fuller``: windows may hold more than is
        counted."""
        if not self.state.slots:
            return
        fixed = self.state.fixed[: len(self.state.slots)]
        due = np.zeros(len(fixed), np.bool_)
        for start, fill in ((at.START_RECORD_US, at.FILL), (at.OUT_START_RECORD_US, at.OUT_FILL)):
            age = tick.record_time_us - fixed[:, start]
            due |= (fixed[:, start] >= 0) & (age >= np.where(
                fuller | (fixed[:, fill] >= WINDOW_MIN), WINDOW_AGE_US, UNJUDGED_AGE_US
            ))  # fmt: skip
        for index in flatnonzero(due).tolist():
            slot = self.state.slots[index]
            if slot is not None and slot.partition == tick.partition and slot.purpose != "backfill":
                yield slot

    # -- predictions -------------------------------------------------------------------------------------------------

    def _segment(self, low: int, high: int, outcome_low: int, outcome_high: int) -> None:
        rows = flatnonzero(self.keep[low:high]) + low
        if len(rows):
            order = order_of(self.slots[rows])
            self._lateness(rows[order])
            live = rows[~self.late[rows]]
            self._waves(live, low, high)
        self._label_rows(low, high, outcome_low, outcome_high)

    def _lateness(self, rows: Ints) -> None:
        """Mark rows behind their model's watermark; ``rows`` sorted by slot. Moves the watermarks."""
        fixed, slots = self.state.fixed, self.slots[rows]
        starts, lengths = runs(slots)
        times = self.time_us[rows]
        newest = fixed[slots[starts], at.MAX_US]
        before = np.empty_like(times)
        before[1:] = times[:-1]
        before[starts] = newest
        behind = times < before
        peaks = np.maximum.reduceat(times, starts)
        disordered = np.logical_or.reduceat(behind, starts)
        for g in flatnonzero(disordered):
            part = slice(int(starts[g]), int(starts[g] + lengths[g]))
            running = np.maximum.accumulate(np.append(newest[g], times[part]))[:-1]
            self.late[rows[part]] = times[part] < running - LATE_US
        fixed[slots[starts], at.MAX_US] = np.maximum(newest, peaks)
        late = np.add.reduceat(self.late[rows].astype(np.int64), starts)
        fixed[slots[starts], at.EVENTS] += lengths
        fixed[slots[starts], at.LATE] += late
        self.out.late += int(late.sum())
        self.out.touched.update(slots[starts].tolist())

    def _waves(self, live: Ints, low: int, high: int) -> None:
        """Cut the live rows of a segment at window ends and judge wave by wave."""
        state = self.state
        order = order_of(self.slots[live])
        rows = live[order]
        slots = self.slots[rows]
        starts, lengths = runs(slots)
        rank = np.arange(len(rows)) - starts.repeat(lengths)
        place = state.fixed[slots, at.FILL] + rank
        window = place // WINDOW
        waves = int(window.max()) + 1 if len(rows) else 0
        wave_of_row = np.full(high - low, -1, np.int64)
        wave_of_row[rows - low] = window
        total = len(state.cells)
        # Cells of each wave behind those of the one before; rows that are in none would stand behind the last.
        first_cell = np.where(wave_of_row < 0, waves, wave_of_row) * total
        counted = np.zeros(waves * total, np.int64)
        for pairs in self.counted.cells:
            part = pairs.between(low, high)
            places = first_cell[part.row - low if low else part.row] + part.target
            np.add.at(counted, places[places < len(counted)], 1)
        counts = counted.reshape(waves, total)
        flags = self.counted.flags
        first, last = np.searchsorted(flags.row, (low, high))
        flag_wave = wave_of_row[flags.row[first:last] - low]
        self._late_points(flags, int(first), int(last), flag_wave)
        for w in range(waves):
            mine = flatnonzero(flag_wave == w) + first
            members = flatnonzero(window == w)
            self._wave(
                rows[members],
                slots[members],
                place[members] % WINDOW,
                counts[w],
                Pairs(flags.row[mine], flags.target[mine]),
                self.counted.milli[mine],
            )

    def _late_points(self, flags: Pairs, first: int, last: int, wave: Ints) -> None:
        """Late rows are judged for what one event alone may open, each by itself; windows do not see them."""
        late = flatnonzero(wave < 0) + first
        late = late[self.keep[flags.row[late]] & self.state.tables.admitted[flags.target[late]]]
        hits = []
        for target, row in zip(flags.target[late], flags.row[late], strict=True):
            slot = self.state.slot(int(self.slot_of_counter[target]))
            place = int(target) - slot.counter_base
            hits.append(Reached(slot, place, slot.profile.counters[place], int(row), 1, True))
        if hits:
            self._detect(self._view(_no_pairs(), _none(), hits, []))

    def _view(self, flags: Pairs, milli: Ints, hits: Sequence[Reached], ended: Sequence[Ended]) -> Wave:
        return Wave(self.p, self.slots, self.time_us, flags, milli, hits, ended, self.state)

    def _detect(self, wave: Wave) -> None:
        for detector in self.engine.detectors:
            self.signals += detector.step(wave, self.state, self.profiles)

    def _wave(self, rows: Ints, slots: Ints, place: Ints, cells: Ints, flags: Pairs, milli: Ints) -> None:
        """One wave: ``rows`` sorted by slot, ``place`` of each in its window."""
        state, fixed = self.state, self.state.fixed
        starts, lengths = runs(slots)
        ends = starts + lengths - 1
        here = slots[starts]
        new = here[fixed[here, at.FILL] == 0]
        opening = rows[starts][fixed[here, at.FILL] == 0]
        fixed[new, at.START_US] = self.time_us[opening]
        fixed[new, at.START_RECORD_US] = self.p.record_time_us[opening]
        fixed[here, at.FILL] = place[ends] + 1
        fixed[here, at.LAST_US] = self.time_us[rows[ends]]
        state.cells += cells
        self._sample(rows, slots)
        if len(flags.row):
            unset = flatnonzero(state.first_us[flags.target] < 0)[::-1]
            state.first_us[flags.target[unset]] = self.time_us[flags.row[unset]]
        hits = list(reached(flags.row, flags.target, state.counts, state, self.slot_of_counter))
        full = flatnonzero(place[ends] == WINDOW - 1)
        ended = [
            Ended(int(here[i]), int(self.p.record[rows[ends[i]]]), int(self.p.record_time_us[rows[ends[i]]]), WINDOW)
            for i in full
        ]
        self._detect(self._view(flags, milli, hits, ended))
        if len(flags.row):
            np.add.at(state.counts, flags.target, 1)
            np.add.at(state.milli_sums, flags.target, milli)
            self._sample_flags(flags)
        for end in ended:
            self._close(end)

    def _sample(self, rows: Ints, slots: Ints) -> None:
        hashes = self.p.id_hash[rows]
        low = flatnonzero(hashes < SAMPLED_BELOW)
        low = low[hashes[low] <= self.state.limits[slots[low], SAMPLE_LIMIT]]  # of many models these are few
        chosen = low[best(slots[low], hashes[low])]
        self.state.hold(slots[chosen], self._rows(rows[chosen]))

    def _sample_flags(self, flags: Pairs) -> None:
        chosen = best(flags.target, self.p.id_hash[flags.row])
        targets = flags.target[chosen]
        slots = map(self.state.slot, self.slot_of_counter[targets].tolist())
        samples = [
            slot.counter_samples.setdefault(target - slot.counter_base, [])
            for slot, target in zip(slots, targets.tolist(), strict=True)
        ]
        hold(samples, self._rows(flags.row[chosen]))

    def _row(self, row: int) -> Sampled:
        p = self.p
        return int(p.id_hash[row]), PREDICTIONS, int(p.partition[row]), int(p.offset[row]), p.prediction_ids[row]

    def _rows(self, rows: Ints) -> Iterator[Sampled]:
        """As `_row`, of many at once, which costs a fraction for each."""
        p = self.p
        places = p.partition[rows].tolist(), p.offset[rows].tolist()
        ids = map(p.prediction_ids.__getitem__, rows.tolist())
        return zip(p.id_hash[rows].tolist(), repeat(PREDICTIONS), *places, ids, strict=False)

    def _close(self, end: Ended, judged: bool = True) -> None:
        """End a slot's window of predictions: note what fired, keep controls of a quiet one, start the next."""
        slot, fixed = self.state.slot(end.slot), self.state.fixed[end.slot]
        counters = self.state.counters_of(slot)
        counts = self.state.counts[counters]
        threshold = self.state.tables.threshold[counters]
        admitted = self.state.tables.admitted[counters]
        fired: dict[str, int] = {}
        for place in flatnonzero((counts >= threshold) | (admitted & (counts > 0))):
            counter = slot.profile.counters[place]
            name = f"{counter.detector}|{counter.subject}"
            fired[name] = max(fired.get(name, 0), int(counts[place]))
        for signal in self.signals:
            if signal.slot == end.slot and signal.record == end.record and signal.statistic == "psi":
                fired[signal.name] = max(fired.get(signal.name, 0), signal.count)
        self.ends.append(
            WindowEnd(
                end.record, end.slot, "predictions", end.n, int(fixed[at.START_US]), int(fixed[at.LAST_US]),
                end.record_time_us, int(fixed[at.WINDOWS]), fired, judged,
            )
        )  # fmt: skip
        if judged and not fired:
            self.controls_before.setdefault(end.slot, slot.controls)
            slot.controls = slot.sample
            self.controls.setdefault(end.slot, {})[end.record] = slot.controls
        self.state.begin_window(slot)
        self.state.cells[self.state.cells_of(slot)] = 0
        self.state.counts[counters] = 0
        self.state.milli_sums[counters] = 0
        self.state.first_us[counters] = -1
        fixed[[at.FILL, at.START_US, at.START_RECORD_US, at.LAST_US]] = (0, -1, -1, -1)
        fixed[at.WINDOWS] += 1
        self.out.touched.add(end.slot)

    # -- labels -------------------------------------------------------------------------------------------------------

    def _label_rows(self, low: int, high: int, outcome_low: int, outcome_high: int) -> None:
        """Inline labels and outcomes that carry their prediction, as one stream a slot in receipt order."""
        p, o, state = self.p, self.o, self.state
        inline = flatnonzero(self.keep[low:high] & ~self.late[low:high] & (p.wrong[low:high] >= 0)) + low
        carried = flatnonzero(self.keep_outcomes[outcome_low:outcome_high] & (o.wrong[outcome_low:outcome_high] >= 0))
        carried = carried + outcome_low
        slot = np.concatenate([self.slots[inline], self.outcome_slots[carried]])
        if not len(slot):
            return
        record = np.concatenate([p.record[inline], o.record[carried]])
        order = np.argsort(record, kind="stable")
        order = order[order_of(slot[order])]
        source = np.concatenate([inline, ~carried])[order]  # ~i: row i of the outcomes
        slot, record = slot[order], record[order]
        starts, lengths = runs(slot)
        place = state.fixed[slot, at.OUT_FILL] + np.arange(len(slot)) - starts.repeat(lengths)

        def row(i: int) -> Sampled:
            k = int(source[i])
            if k >= 0:
                return self._row(k)
            k = ~k
            return int(o.id_hash[k]), OUTCOMES_TOPIC, int(o.partition[k]), int(o.offset[k]), o.prediction_ids[k]

        labels = Labels(
            slot=slot,
            starts=starts,
            record=record,
            record_time_us=np.concatenate([p.record_time_us[inline], o.record_time_us[carried]])[order],
            time_us=np.concatenate([self.time_us[inline], self.outcome_time_us[carried]])[order],
            wrong=np.concatenate([p.wrong[inline], o.wrong[carried]])[order] == 1,
            window=place // WINDOW,
            id_hash=np.concatenate([p.id_hash[inline], o.id_hash[carried]])[order],
            row=row,
        )
        found = [s for detector in self.engine.labels for s in detector.step(labels, state, self.profiles)]
        self.signals += found
        self._label_windows(labels, found, lengths, place)

    def _label_windows(self, c: Labels, found: Sequence[Signal], lengths: Ints, place: Ints) -> None:
        """End windows of outcomes, and carry what the open ones hold."""
        fixed = self.state.fixed
        window_of = {(int(c.slot[i]), int(c.record[i])): int(c.window[i]) for i in range(len(c.slot))} if found else {}
        fired: dict[tuple[int, int], set[str]] = {}
        for signal in found:
            fired.setdefault((signal.slot, window_of[signal.slot, signal.record]), set()).add(signal.name)
        wrong = np.concatenate([[0], c.wrong.cumsum()])
        last = c.starts + lengths - 1
        ending = place[last] >= WINDOW - 1
        first = c.starts.copy()  # of the window that stays open
        for group in flatnonzero(ending).tolist():
            start, end = int(c.starts[group]), int(last[group]) + 1
            slot = self.state.slot(int(c.slot[start]))
            mine = fixed[slot.index]
            for stop in range(start + WINDOW - int(mine[at.OUT_FILL]), end + 1, WINDOW):
                names = fired.get((slot.index, int(c.window[stop - 1])), set())
                if c.window[stop - 1] == 0:
                    names = names | slot.fired
                    slot.fired = set()
                if mine[at.OUT_START_US] < 0:
                    mine[at.OUT_START_US] = c.time_us[first[group]]
                events = int(mine[at.OUT_WRONG] + wrong[stop] - wrong[first[group]])
                self._end_outcomes(slot, WINDOW, names, events, c, stop - 1)
                first[group] = stop
        left = first <= last
        self._open_outcomes(c, place, wrong, first[left], last[left])
        open_window = dict(zip(c.slot[last[left]].tolist(), c.window[last[left]].tolist(), strict=True))
        for (index, window), names in fired.items():
            if open_window.get(index) == window:
                self.state.slot(index).fired |= names

    def _open_outcomes(self, c: Labels, place: Ints, wrong: Ints, first: Ints, last: Ints) -> None:
        """What open windows of outcomes hold of this cut: rows ``first`` to ``last``, of one slot each."""
        fixed, slots = self.state.fixed, c.slot[first]
        unset = fixed[slots, at.OUT_START_US] < 0
        fixed[slots[unset], at.OUT_START_US] = c.time_us[first[unset]]
        fixed[slots[unset], at.OUT_START_RECORD_US] = c.record_time_us[first[unset]]
        fixed[slots, at.OUT_LAST_US] = c.time_us[last]
        fixed[slots, at.OUT_FILL] = place[last] % WINDOW + 1
        fixed[slots, at.OUT_WRONG] += wrong[last + 1] - wrong[first]
        self.out.touched.update(slots.tolist())
        mine = np.zeros(len(c.slot) + 1, np.int64)
        mine[first] += 1
        mine[last + 1] -= 1
        rows = flatnonzero(c.wrong & (np.cumsum(mine[:-1]) > 0))
        rows = rows[c.id_hash[rows] <= self.state.limits[c.slot[rows], WRONG_LIMIT]]
        rows = rows[best(c.slot[rows], c.id_hash[rows])]
        self.state.hold_wrong(c.slot[rows], map(c.row, rows.tolist()))

    def _end_outcomes(self, slot: Slot, n: int, names: set[str], events: int, c: Labels | None, last: int) -> None:
        mine = self.state.fixed[slot.index]
        if c is not None:
            record, record_time_us, to_us = int(c.record[last]), int(c.record_time_us[last]), int(c.time_us[last])
        else:
            record, record_time_us, to_us = last, self.tick_time_us, int(mine[at.OUT_LAST_US])
        self.ends.append(
            WindowEnd(
                record, slot.index, "outcomes", n, int(mine[at.OUT_START_US]), to_us, record_time_us,
                int(mine[at.OUT_WINDOWS]), dict.fromkeys(sorted(names), events), n >= WINDOW_MIN,
            )
        )  # fmt: skip
        mine[[at.OUT_FILL, at.OUT_START_US, at.OUT_START_RECORD_US, at.OUT_LAST_US, at.OUT_WRONG]] = (0, -1, -1, -1, 0)
        mine[at.OUT_WINDOWS] += 1
        self.state.begin_outcomes(slot)
        self.out.touched.add(slot.index)

    # -- ticks --------------------------------------------------------------------------------------------------------

    def _tick(self, tick: Tick) -> None:
        """Close windows older than 15 minutes that hold at least 100; a smaller one after a day, unjudged."""
        self.tick_time_us = tick.record_time_us
        ended: list[Ended] = []
        unjudged: list[Ended] = []
        for slot in list(self._due_slots(tick)):
            fixed = self.state.fixed[slot.index]
            age = tick.record_time_us - int(fixed[at.START_RECORD_US])
            end = Ended(slot.index, tick.record, tick.record_time_us, int(fixed[at.FILL]))
            if end.n >= WINDOW_MIN and age >= WINDOW_AGE_US:
                ended.append(end)
            elif end.n and age >= UNJUDGED_AGE_US:
                unjudged.append(end)
            age = tick.record_time_us - int(fixed[at.OUT_START_RECORD_US])
            n = int(fixed[at.OUT_FILL])
            if n and (age >= WINDOW_AGE_US if n >= WINDOW_MIN else age >= UNJUDGED_AGE_US):
                names, slot.fired = slot.fired, set()
                self._end_outcomes(slot, n, names, int(fixed[at.OUT_WRONG]), None, tick.record)
        if ended:
            self._detect(self._view(_no_pairs(), _none(), [], ended))
        for end in ended:
            self._close(end)
        for end in unjudged:
            self.state.fixed[end.slot, at.UNJUDGED] += 1
            self._close(end, judged=False)

    # -- episodes -----------------------------------------------------------------------------------------------------

    def finish(self, new_id: Callable[[int, int], str]) -> Judged:
        """Walk findings and window ends of each slot in order; moves come back in receipt order."""
        by_slot: dict[int, list[Signal | WindowEnd]] = {}
        marks: list[Signal | WindowEnd] = [*self.signals, *self.ends]
        for mark in marks:
            by_slot.setdefault(mark.slot, []).append(mark)
        for signal in self.signals:
            key = (self.state.slot(signal.slot).model, signal.detector, signal.level)
            self.out.findings[key] = self.out.findings.get(key, 0) + 1
        moves: list[tuple[Slot, Move]] = []
        for index, mine in sorted(by_slot.items()):
            slot = self.state.slot(index)
            controls: dict[int, Sequence[Row]] = {-1: self.controls_before.get(index, slot.controls)}
            controls |= self.controls.get(index, {})
            walked = slot.episodes.walk(sorted(mine, key=lambda mark: mark.order), new_id, controls)
            moves += [(slot, move) for move in walked]
            self.out.touched.add(index)
        self.out.moves = sorted(moves, key=lambda pair: (pair[1].record, pair[0].key))
        return self.out


def _none() -> Ints:
    return np.zeros(0, np.int64)


def _no_pairs() -> Pairs:
    return Pairs(_none(), _none())
