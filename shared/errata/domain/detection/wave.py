"""What a detector is given: one wave of a batch, in which at most one window of each slot lies, and its state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from errata.contracts.topics import PREDICTIONS
from errata.domain.columns import Predictions
from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Channel, Profile
from errata.domain.detection.shares import Reached
from errata.domain.detection.state import LAST_US, START_US, Ints, Sampled, Slot, State, smallest
from errata.domain.detection.statistics import CHI2_1E6, DIGITS, PSI_MIN, WINDOW, WINDOW_MIN, drift_figures
from errata.domain.detection.waves import Pairs


@dataclass(frozen=True, slots=True)
class Ended:
    """A window that ends in this wave: at a record of the batch, by its 500th event or by a tick."""

    slot: int
    record: int
    record_time_us: int
    n: int


@dataclass(frozen=True, slots=True)
class Drift:
    """The figures of one channel of an ended window."""

    place: int
    channel: Channel
    n: int
    g: float
    psi: float  # PSI*
    se: float
    counts: Ints

    @property
    def shifted(self) -> bool:
        """Both figures must agree: G alone alarms on clustered clean data, PSI alone on small windows."""
        return self.g >= CHI2_1E6[len(self.channel.reference) - 2] and round(self.psi - 2 * self.se, DIGITS) >= PSI_MIN

    @property
    def upwards(self) -> bool:
        """Whether the mean bin lies above the reference's."""
        raw = np.array(self.channel.raw_reference)
        bins = np.arange(len(raw))
        return bool((self.counts @ bins) * int(raw.sum()) > (raw @ bins) * self.n)

    def evidence(self) -> dict[str, Any]:
        """Shares by cell, and what vanished or appeared; names only where the contract shows them."""
        raw = np.array(self.channel.raw_reference)
        q, p = self.counts / self.n, raw / raw.sum()
        top = [int(i) for i in np.argsort(-np.abs(q - p), kind="stable")[:5]]
        labels = self.channel.labels
        named = [labels[i] if labels else f"#{i}" for i in range(len(raw))]
        gone = [named[i] for i in range(len(raw)) if p[i] >= 0.01 and self.counts[i] == 0]
        found: dict[str, Any] = {
            "kind": self.channel.kind,
            "psi": self.psi,
            "psi_se": self.se,
            "g": self.g,
            "n": self.n,
            "gone": gone,
            "top": [
                {"cell": named[i], "reference_share": round(float(p[i]), 6), "window_share": round(float(q[i]), 6)}
                for i in top
            ],
        }
        if self.channel.kind == "category":
            found["new_share"] = round(float(q[-1]), 6)
        else:
            ratio = _median_ratio(self.counts, raw, self.channel.edges)
            if ratio is not None:
                found["median_ratio"] = ratio
        return found


def _median_ratio(counts: Ints, reference: Ints, edges: Sequence[float]) -> float | None:
    """The window's median over the reference's, each taken at the inner edge below it; None at the ends or at zero."""
    where = [int(np.searchsorted(np.cumsum(c), c.sum() / 2)) for c in (counts, reference)]
    if not edges or min(where) == 0:
        return None
    low, high = (edges[min(i, len(edges)) - 1] for i in where)
    return round(low / high, DIGITS) if high else None


@dataclass(slots=True)
class Wave:
    """The columns of one wave. ``flags`` are (row, counter) pairs; ``first_row`` the wave's first row of a slot."""

    p: Predictions
    slots: Ints
    time_us: Ints
    flags: Pairs
    milli: Ints
    reached: Sequence[Reached]
    ended: Sequence[Ended]
    state: State
    _drift: dict[int, list[Drift]] = field(default_factory=dict)

    def hits(self, detector: str) -> list[Reached]:
        return [hit for hit in self.reached if hit.counter.detector == detector]

    def row(self, row: int) -> Sampled:
        p = self.p
        return int(p.id_hash[row]), PREDICTIONS, int(p.partition[row]), int(p.offset[row]), p.prediction_ids[row]

    def flagged(self, counter: int, last_row: int) -> list[int]:
        """Rows of this wave flagged with a counter, up to a row."""
        return [int(r) for r in self.flags.row[(self.flags.target == counter) & (self.flags.row <= last_row)]]

    def share_signal(self, hit: Reached, evidence: Mapping[str, Any] | None = None) -> Signal:
        """The finding of a counter that reached its threshold, or of one event that is admitted alone."""
        counter = hit.slot.counter_base + hit.place
        rows = [hit.row] if hit.isolated else self.flagged(counter, hit.row)
        held = [] if hit.isolated else hit.slot.counter_samples.get(hit.place, [])
        figures = {"share": round(hit.count / WINDOW, DIGITS), "reference_share": hit.counter.reference_share}
        return Signal(
            record=int(self.p.record[hit.row]),
            slot=hit.slot.index,
            detector=hit.counter.detector,
            subject=hit.counter.subject,
            family="predictions",
            level="event" if hit.isolated else "window",
            reason=hit.counter.reason,
            statistic="events" if hit.isolated else "share",
            value=1.0 if hit.isolated else round(hit.count / WINDOW, DIGITS),
            threshold=1.0 if hit.isolated else round(hit.counter.threshold / WINDOW, DIGITS),
            direction="up",
            onset_us=int(self.state.first_us[counter]),
            time_us=int(self.time_us[hit.row]),
            record_time_us=int(self.p.record_time_us[hit.row]),
            count=hit.count,
            exemplars=tuple(smallest(held, [self.row(row) for row in rows])),
            evidence={**({} if hit.isolated else figures), **(evidence or {})},
        )

    def drift(self, slot: Slot) -> list[Drift]:
        """The figures of all channels of a slot whose window ends in this wave, computed once for all detectors."""
        known = self._drift.get(slot.index)
        if known is None:
            known = self._drift[slot.index] = _drift(slot, self.state)
        return known

    def drift_signal(self, end: Ended, drift: Drift, reason: str, direction: Literal["up", "down", "both"]) -> Signal:
        slot = self.state.slot(end.slot)
        fixed = self.state.fixed[end.slot]
        return Signal(
            record=end.record,
            slot=end.slot,
            detector=drift.channel.detector,
            subject=drift.channel.subject,
            family="predictions",
            level="window",
            reason=reason,
            statistic="psi",
            value=drift.psi,
            threshold=PSI_MIN,
            direction=direction,
            onset_us=int(fixed[START_US]),
            time_us=int(fixed[LAST_US]),
            record_time_us=end.record_time_us,
            count=end.n,
            exemplars=tuple(slot.sample),
            evidence=drift.evidence(),
        )


def _drift(slot: Slot, state: State) -> list[Drift]:
    cells = state.cells[state.cells_of(slot)]
    chosen: list[tuple[int, Channel, Ints]] = []
    for place, channel in enumerate(slot.profile.channels):
        if channel is None:
            continue
        base = slot.profile.cell_base[place]
        counts = cells[base : base + channel.cells]
        if counts.sum() >= WINDOW_MIN:
            chosen.append((place, channel, counts))
    if not chosen:
        return []
    merged = [np.bincount(channel.merged, counts, len(channel.reference)) for _, channel, counts in chosen]
    starts = np.cumsum([0, *(len(m) for m in merged)])[:-1]
    reference = np.concatenate([channel.reference for _, channel, _ in chosen])
    figures = drift_figures(np.concatenate(merged).astype(np.int64), reference, starts)
    return [
        Drift(place, channel, int(counts.sum()), float(g), float(psi), float(se), counts.copy())
        for (place, channel, counts), g, psi, se in zip(chosen, *figures, strict=True)
    ]


class Detector(Protocol):
    """Judges one wave. ``reference`` are the profiles by slot; a detector sees no clock, randomness or I/O.

    ``state`` holds what the windows counted so far; the engine has already added this wave to it. Findings come with
    the record at which they arose, so that their order does not depend on the batch.
    """

    id: str
    version: str

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]: ...
