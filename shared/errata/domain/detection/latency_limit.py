"""Latency over the contract's limit (``slos.latency_ms.max``, else ``p95``).

Rule: the share of events over the limit against the reference's own (see `missing_values`); a single slow answer is a
count.

>>> from errata.domain.detection.statistics import share_threshold
>>> share_threshold(500, 10_000)  # a limit at the reference's 95th percentile
54
"""

from collections.abc import Sequence

from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Wave


class LatencyLimit:
    id = "latency_limit"
    version = "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        return [columns.share_signal(hit) for hit in columns.hits(self.id)]
