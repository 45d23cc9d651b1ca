"""Exact accounting over the receipts of transactions: what was lost, what was doubled, what became of nothing.

Receipts commit with what they account for, so three sums must be right at any time. The receipts of a partition form a
chain, each beginning where the one before ended: a gap is a loss, an overlap a duplicate. No more records have a
disposition than were delivered, nor more delivered than there are offsets. And what a stage put out its successor was
delivered, or it waits there.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from errata.contracts import Receipt

FaultKind = Literal["gap", "overlap", "disposition", "imbalance"]
Part = tuple[int, int]  # offsets from, to


@dataclass(frozen=True, slots=True)
class Flow:
    """``source`` writes all its output to ``topic``, which ``reader`` reads."""

    source: str
    topic: str
    reader: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One error of the accounts. ``partition`` and ``at``, an offset, are -1 where a whole topic is meant; ``records``
    says how many: offsets skipped or doubled, dispositions too many, or outputs that did not arrive (below zero: that
    came from nowhere)."""

    kind: FaultKind
    stage: str
    topic: str
    partition: int
    at: int
    records: int


@dataclass(frozen=True, slots=True)
class Account:
    """What one stage did, in records."""

    stage: str
    receipts: int
    delivered: int
    out: int
    dlq: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Audit:
    accounts: list[Account]
    faults: list[Fault]


def audit(
    receipts: Sequence[Receipt],
    flows: Iterable[Flow] = (),
    waiting: Mapping[str, int] | None = None,
    later: Iterable[Receipt] = (),
) -> Audit:
    """Check all receipts there are, in any order.

    ``flows`` may be judged only if no receipt of theirs has expired: else old ones are missing on one side.
    ``waiting``: records of a topic that its reader, by these receipts, has not read yet; ``later``: receipts that were
    written until those were counted, so that a running chain can be judged.

    >>> def one(start, end):
    ...     part = {"topic": "in", "partition": 0, "from": start, "to": end, "delivered": end - start}
    ...     rest = {"instance": "0", "build": "1", "out": 0, "dlq": 0}
    ...     return Receipt.model_validate({"stage": "a", "inputs": [part], **rest})
    >>> audit([one(5, 9), one(0, 4)]).faults
    [Fault(kind='gap', stage='a', topic='in', partition=0, at=4, records=1)]
    """
    faults = [*_chain_faults(receipts), *_disposition_faults(receipts)]
    delivered: Counter[tuple[str, str]] = Counter()
    out: Counter[str] = Counter()
    for receipt in receipts:
        out[receipt.stage] += receipt.out
        for part in receipt.inputs:
            delivered[receipt.stage, part.topic] += part.delivered
    out_since: Counter[str] = Counter()
    for receipt in later:
        out_since[receipt.stage] += receipt.out
    for flow in flows:
        arrived = delivered[flow.reader, flow.topic] + (waiting or {}).get(flow.topic, 0)
        missing = out[flow.source] - arrived
        if missing > 0 or -missing > out_since[flow.source]:
            lost = missing if missing > 0 else missing + out_since[flow.source]
            faults.append(Fault("imbalance", flow.reader, flow.topic, -1, -1, lost))
    return Audit(_accounts(receipts), faults)


def reached(receipts: Iterable[Receipt]) -> dict[tuple[str, str, int], int]:
    """How far each stage is in each partition: (stage, topic, partition) to the next offset."""
    ends: dict[tuple[str, str, int], int] = {}
    for receipt in receipts:
        for part in receipt.inputs:
            place = receipt.stage, part.topic, part.partition
            ends[place] = max(ends.get(place, 0), part.to)
    return ends


def _chain_faults(receipts: Iterable[Receipt]) -> list[Fault]:
    chains: dict[tuple[str, str, int], list[Part]] = defaultdict(list)
    for receipt in receipts:
        for part in receipt.inputs:
            chains[receipt.stage, part.topic, part.partition].append((part.from_, part.to))
    faults: list[Fault] = []
    for (stage, topic, partition), parts in sorted(chains.items()):
        parts.sort()
        end = parts[0][0]
        for start, stop in parts:
            if start > end:
                faults.append(Fault("gap", stage, topic, partition, end, start - end))
            elif start < end and start < stop:
                faults.append(Fault("overlap", stage, topic, partition, start, min(end, stop) - start))
            end = max(end, stop)
    return faults


def _disposition_faults(receipts: Iterable[Receipt]) -> list[Fault]:
    faults: list[Fault] = []
    for receipt in receipts:
        for part in receipt.inputs:
            extra = part.delivered - (part.to - part.from_)
            if extra > 0:
                faults.append(Fault("disposition", receipt.stage, part.topic, part.partition, part.from_, extra))
        extra = receipt.dlq + sum(receipt.dropped.values()) - sum(part.delivered for part in receipt.inputs)
        if extra > 0:
            first = receipt.inputs[0] if receipt.inputs else None
            place = (first.topic, first.partition, first.from_) if first else ("", -1, -1)
            faults.append(Fault("disposition", receipt.stage, *place, extra))
    return faults


def _accounts(receipts: Iterable[Receipt]) -> list[Account]:
    of_stage: dict[str, list[Receipt]] = defaultdict(list)
    for receipt in receipts:
        of_stage[receipt.stage].append(receipt)
    return [
        Account(
            stage,
            receipts=len(mine),
            delivered=sum(part.delivered for receipt in mine for part in receipt.inputs),
            out=sum(receipt.out for receipt in mine),
            dlq=sum(receipt.dlq for receipt in mine),
            dropped=sum(sum(receipt.dropped.values()) for receipt in mine),
        )
        for stage, mine in sorted(of_stage.items())
    ]
