"""Invalid output: a class the contract does not name, a number out of its range, a score outside 0 … 1.

Rule: a broken output is never normal, so the admission policy lets each one open a case; at most eight findings a
window go out, the count stays exact. Where the policy says ``count`` the rule of shares holds (see `missing_values`).

>>> from errata.domain.detection.profile import DEFAULT_ADMISSION
>>> DEFAULT_ADMISSION["invalid_output"]
'open'
"""

from collections.abc import Sequence

from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Wave


class InvalidOutput:
    id = "invalid_output"
    version = "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        return [columns.share_signal(hit) for hit in columns.hits(self.id)]
