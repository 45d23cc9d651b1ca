"""Policy violations: an output that a rule of the contract forbids.

Rule: each one opens a case unless the contract's admission says otherwise (see `invalid_output` for the cap).

>>> from errata.domain.detection.profile import DEFAULT_ADMISSION
>>> DEFAULT_ADMISSION["policy_violation"]
'open'
"""

from collections.abc import Sequence

from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Wave


class PolicyViolation:
    id = "policy_violation"
    version = "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        return [columns.share_signal(hit) for hit in columns.hits(self.id)]
