"""What a detector is given: one wave of a batch, in which at most one window of each slot lies, and its state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from errata.contracts.topics import PREDICTIONS
from errata.domain.columns import Predictions
from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Channel, Profile
from errata.domain.detection.runs import flatnonzero
from errata.domain.detection.shares import Reached
from errata.domain.detection.state import LAST_US, START_US, Ints, Sampled, Slot, State, smallest
from errata.domain.detection.statistics import DIGITS, PSI_MIN, WINDOW, WINDOW_MIN, drift_figures
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

    channel: Channel
    n: int
    g: float
    psi: float  # PSI*
    se: float
    counts: Ints

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
            found["categories"] = int((raw[:-1] > 0).sum())
        else:
            ratio = _median_ratio(self.counts, raw, self.channel.edges)
            if ratio is not None:
                found["median_ratio"] = ratio
        return found


def _median_ratio(counts: Ints, reference: Ints, edges: Sequence[float]) -> float | None:
    """The window's median over the reference's, each taken at the inner edge below it; None at the ends or at zero."""
    where = [int(np.searchsorted(c.cumsum(), c.sum() / 2)) for c in (counts, reference)]
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
            onset_us=int(self.time_us[hit.row]) if hit.isolated else int(self.state.first_us[counter]),
            time_us=int(self.time_us[hit.row]),
            record_time_us=int(self.p.record_time_us[hit.row]),
            count=hit.count,
            exemplars=tuple(smallest(held, [self.row(row) for row in rows])),
            evidence={**({} if hit.isolated else figures), **(evidence or {})},
        )

    def shifted(self, slot: int, detector: str) -> list[Drift]:
        """Channels of a detector that shifted in the window of a slot that ends here; judged once for all detectors."""
        if slot not in self._drift:
            self._drift = _shifted([self.state.slot(end.slot) for end in self.ended], self.state)
        return [drift for drift in self._drift[slot] if drift.channel.detector == detector]

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


def _shifted(slots: Sequence[Slot], state: State) -> dict[int, list[Drift]]:
    """Channels with at least 100 values for which G and PSI agree, by slot: G alone alarms on clustered clean data,
    PSI alone on small windows."""
    found: dict[int, list[Drift]] = {slot.index: [] for slot in slots}
    judged = [slot for slot in slots if slot.profile.drift.places]
    if not judged:
        return found
    tables = [slot.profile.drift for slot in judged]
    sizes = [len(table.reference) for table in tables]
    cells = [state.cells[state.cells_of(slot)] for slot in judged]
    merged = zip(tables, cells, sizes, strict=True)
    window = np.concatenate([np.bincount(table.merged, mine, size + 1)[:size] for table, mine, size in merged])
    window = window.astype(np.int64)
    first = np.cumsum([0, *sizes])
    starts = np.concatenate([table.starts + at for table, at in zip(tables, first[:-1], strict=True)])
    n = np.add.reduceat(window, starts)
    g, psi, se = drift_figures(window, np.concatenate([table.reference for table in tables]), starts)
    limits = np.concatenate([table.g_limits for table in tables])
    fires = (n >= WINDOW_MIN) & (g >= limits) & (np.round(psi - 2 * se, DIGITS) >= PSI_MIN)
    channels = [(at, place) for at, table in enumerate(tables) for place in table.places]
    for i in flatnonzero(fires).tolist():
        at, place = channels[i]
        profile = judged[at].profile
        channel = profile.channels[place]
        assert channel is not None
        base = profile.cell_base[place]
        counts = cells[at][base : base + channel.cells].copy()
        drift = Drift(channel, int(n[i]), float(g[i]), float(psi[i]), float(se[i]), counts)
        found[judged[at].index].append(drift)
    return found


class Detector(Protocol):
    """Judges one wave. ``reference`` are the profiles by slot; a detector sees no clock, randomness or I/O.

    ``state`` holds what the windows counted so far; the engine has already added this wave to it. Findings come with
    the record at which they arose, so that their order does not depend on the batch.
    """

    id: str
    version: str

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]: ...
