"""Contract violations: a feature of the wrong type, out of range, missing though required, unseen, or not declared.

Rule: by (feature, reason), as a share against the reference's (see `missing_values`); a single violation is a count,
since clean data hold some: RAC1P = 4 alone is unseen in five of six references of the census stream. For numbers out of
range the mean of the violating values over the reference's median tells a change of unit from a stray value.

>>> from errata.domain.detection.statistics import share_threshold
>>> share_threshold(433, 69_126)  # values out of range at the reference's own small rate
16
"""

from collections.abc import Sequence

from errata.contracts.models import NumberSketch
from errata.domain.detection.episodes import Signal
from errata.domain.detection.profile import Profile
from errata.domain.detection.shares import Reached
from errata.domain.detection.state import State
from errata.domain.detection.statistics import DIGITS
from errata.domain.detection.wave import Wave


class ContractViolation:
    id = "contract_violation"
    version = "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        return [
            columns.share_signal(hit, _ratio(columns, hit, state, reference[hit.slot.index]))
            for hit in columns.hits(self.id)
        ]


def _ratio(columns: Wave, hit: Reached, state: State, profile: Profile) -> dict[str, float]:
    known = profile.layout.reference
    sketch = known.sketches.get(hit.counter.subject) if known else None
    median = sketch.quantiles.get("p50") if isinstance(sketch, NumberSketch) else None
    if hit.counter.reason != "range" or not median:
        return {}
    counter = hit.slot.counter_base + hit.place
    here = (columns.flags.target == counter) & (columns.flags.row <= hit.row)
    milli = int(state.milli_sums[counter]) + int(columns.milli[here].sum())
    return {"mean_ratio": round(milli / 1000 / hit.count / median, DIGITS)}
