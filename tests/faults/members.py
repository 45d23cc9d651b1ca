"""Members of the detector: what they hold, what they say of themselves, how long their partitions were silent."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.rig import DETECTOR, receipts
from tests.integration.chain import Chain, Service

from errata.contracts.topics import PARTITIONS, PREDICTIONS

EVERY = frozenset(range(PARTITIONS))
JOIN_S = 180.0
_COUNTER = re.compile(r"^(errata_(?:transactions_aborted|rebalances)_total)\{[^}]*\} (\S+)$", re.M)


def share(member: Service) -> frozenset[int]:
    """The partitions that a member says it has; none while it does not answer."""
    try:
        partitions: Any = member.status()["partitions"]
    except OSError:
        return frozenset()
    return frozenset(one["partition"] for one in partitions if one["topic"] == PREDICTIONS)


def shared(members: Iterable[Service]) -> bool:
    """Whether each has some, and together they have each partition once."""
    shares = [share(member) for member in members]
    return all(shares) and sorted(number for one in shares for number in one) == sorted(EVERY)


def until_shared(four: Chain, members: Iterable[Service], timeout_s: float = JOIN_S) -> None:
    every = list(members)
    names = ", ".join(member.instance for member in every)
    four.until(lambda: shared(every), f"the members {names} share all partitions", timeout_s)


@dataclass
class Counts:
    """Aborts and rebalances of members, by process; the newest figures count."""

    aborts: dict[int, float] = field(default_factory=dict)
    rebalances: dict[int, float] = field(default_factory=dict)

    def look(self, member: Service) -> None:
        try:
            page = member.page("/metrics")
        except OSError:
            return
        sums: defaultdict[str, float] = defaultdict(float)
        for name, value in _COUNTER.findall(page):
            sums[name] += float(value)
        self.aborts[member.process.pid] = sums["errata_transactions_aborted_total"]
        self.rebalances[member.process.pid] = sums["errata_rebalances_total"]

    @property
    def worst(self) -> float:
        """Aborts for each rebalance, of the member where that is most."""
        return max((aborts / max(1.0, self.rebalances[pid]) for pid, aborts in self.aborts.items()), default=0.0)


def silences(four: Chain, from_us: int, to_us: int) -> dict[int, float]:
    """The longest time in seconds without a receipt, by partition that had any, between two record times."""
    last: dict[int, int] = {}
    longest: dict[int, float] = {}
    for at_us, receipt in receipts(four, DETECTOR):
        for part in receipt.inputs:
            if part.topic != PREDICTIONS or at_us > to_us:
                continue
            if at_us >= from_us:
                quiet_s = (at_us - max(from_us, last.get(part.partition, from_us))) / 1e6
                longest[part.partition] = max(longest.get(part.partition, 0.0), quiet_s)
            last[part.partition] = at_us
    for number, at_us in last.items():  # one that stays silent to the end is silent too
        longest[number] = max(longest.get(number, 0.0), (to_us - max(from_us, at_us)) / 1e6)
    return longest


def instances(four: Chain) -> set[str]:
    return {receipt.instance for _, receipt in receipts(four, DETECTOR)}
