"""Bad statuses: the model's service answers with an error, a time-out, a fallback or nothing.

Rule: as a share by status against the reference's (see `missing_values`). Where the reference has none of it, the
admission policy lets a single one open a case; isolated errors at 0.1 % would open 29 cases per 100,000 events.

>>> from errata.domain.detection.statistics import share_threshold
>>> share_threshold(10, 10_000)  # one error in a thousand is normal here
11
"""

from collections.abc import Sequence

from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Wave


class BadStatus:
    id = "bad_status"
    version = "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        return [columns.share_signal(hit) for hit in columns.hits(self.id)]
