"""Latency shift: answers have become slower than in the reference; faster ones are no failure.

Rule: that of `distribution_shift` on 16 bins, upwards only, at a window's end; or, at the event, the share of answers
above the reference's 95th percentile is at least twice the reference's with G ≥ 23.93 (54 of 500). Measured on
simulated log-normal latency with σ = 0.5: 0 of 20,000 clean windows, ×1.3 found in 97 %, ×5 on a tenth of the
events in 99 %; autocorrelated latency was not tested.

>>> from errata.domain.detection.statistics import share_threshold
>>> share_threshold(500, 10_000)
54
"""

from collections.abc import Sequence

from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Wave


class LatencyShift:
    id = "latency_shift"
    version = "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        tails = [columns.share_signal(hit) for hit in columns.hits(self.id)]
        shifts = [
            columns.drift_signal(end, drift, "distribution", "up")
            for end in columns.ended
            for drift in columns.shifted(end.slot, self.id)
            if drift.upwards
        ]
        return tails + shifts
