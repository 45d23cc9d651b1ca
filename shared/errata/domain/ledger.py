"""Exact accounting over the receipts of transactions: what was lost, what was doubled, what became of nothing.

Receipts commit with what they account for, so three sums must be right at any time. The receipts of a partition form a
chain, each beginning where the one before ended: a gap is a loss, an overlap a duplicate. No more records have a
disposition than were delivered, nor more delivered than there are offsets. And what a stage put out its successor was
delivered, or it waits there.

`audit` judges all receipts at once; `LedgerAuditor` takes them one by one, in bounded memory, to the same sums.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from errata.contracts import Receipt
from errata.contracts.topics import ANOMALIES, ENRICHED, LEDGER, STAGES, TOPICS

FaultKind = Literal["gap", "overlap", "disposition", "imbalance"]
Part = tuple[int, int]  # offsets from, to
Chain = tuple[str, str, int]  # stage, topic, partition

SETTLE_S = 10.0  # a gap or imbalance that is still there then is no receipt that comes in a moment
MAX_HOLES = 4_096  # that a chain may have at a time; of more the first is judged at once, or forgotten when it was
MAX_HOURS = 1_000  # more than receipts are kept for
HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Flow:
    """``source`` writes all its output to ``topic``, which ``reader`` reads."""

    source: str
    topic: str
    reader: str

    @property
    def sources(self) -> tuple[str, str]:
        return self.source, replays_into(self.topic)


def replays_into(topic: str) -> str:
    """The ``stage`` in a receipt for records that were written to a topic again, such as replayed dead letters.

    Its ``out`` says how many; without it the audit would take them for records from nowhere."""
    return f"replay/{topic}"


FLOWS = (Flow(STAGES[0], ANOMALIES, STAGES[1]), Flow(STAGES[1], ENRICHED, STAGES[2]))
"""What passes between stages that write receipts. The catalogue writer keeps its positions in the database."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One error of the accounts. ``partition`` and ``at``, an offset, are -1 where a whole topic is meant; ``records``
    says how many: offsets skipped or doubled, dispositions too many, or outputs that did not arrive (below zero: that
    came from nowhere). ``time_us``: record time of the receipt that shows it, of an imbalance to the hour; 0: not told.
    """

    kind: FaultKind
    stage: str
    topic: str
    partition: int
    at: int
    records: int
    time_us: int = field(default=0, compare=False, repr=False)


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
        missing, since = (sum(counts[source] for source in flow.sources) for counts in (out, out_since))
        missing -= arrived
        if missing > 0 or -missing > since:
            lost = missing if missing > 0 else missing + since
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
    chains: dict[Chain, list[Part]] = defaultdict(list)
    for receipt in receipts:
        for part in receipt.inputs:
            chains[receipt.stage, part.topic, part.partition].append((part.from_, max(part.from_, part.to)))
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
    return [fault for receipt in receipts for fault in _dispositions_of(receipt)]


def _dispositions_of(receipt: Receipt) -> list[Fault]:
    faults: list[Fault] = []
    delivered = 0
    for part in receipt.inputs:
        delivered += part.delivered
        extra = part.delivered - max(0, part.to - part.from_)
        if extra > 0:
            faults.append(Fault("disposition", receipt.stage, part.topic, part.partition, part.from_, extra))
    extra = receipt.dlq + sum(receipt.dropped.values()) - delivered
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


# What has expired.


@dataclass(frozen=True, slots=True)
class Head:
    """The begin of a partition of the ledger: the first offset that is kept, and the record time of the first receipt
    from there on in microseconds, None without any."""

    begin: int
    first_us: int | None

    @property
    def whole(self) -> bool:
        return self.begin == 0


def judged_from_us(heads: Iterable[Head], now_us: int) -> int:
    """The record time from which on all receipts are there; 0 when none has expired.

    Receipts expire by partition of the ledger, and a chain that went from one instance to another has its receipts in
    several: older ones that are left would show gaps where there were none. Of a partition that has nothing left all
    that is known is that it expired.

    >>> judged_from_us([Head(0, 5), Head(7, 60), Head(3, 40)], now_us=99)
    60
    """
    keep_us = (TOPICS[LEDGER].retention_s or 0) * 1_000_000
    expired = [head for head in heads if not head.whole]
    return max((max(0, now_us - keep_us) if head.first_us is None else head.first_us for head in expired), default=0)


# Receipt by receipt.


class LedgerAuditor:
    """Takes the receipts of a ledger one by one, in any order between instances, and tells each fault once.

    An overlap and too many dispositions are told as soon as they are seen. A gap, and an imbalance, only when they are
    still there ``settle_s`` later: what fills them may stand in a partition of the ledger that is read next. So each
    pass over the ledger must take less than that, and must begin where the last one ended. Times are seconds of a
    clock that never goes back.

    With ``whole`` False, the ledger's begin has expired, and what the flows owe at first is taken as it is.

    >>> def one(start, end):
    ...     part = {"topic": "in", "partition": 0, "from": start, "to": end, "delivered": end - start}
    ...     rest = {"instance": "0", "build": "1", "out": 0, "dlq": 0}
    ...     return Receipt.model_validate({"stage": "a", "inputs": [part], **rest})
    >>> auditor = LedgerAuditor(settle_s=10)
    >>> auditor.take(one(0, 4), now_s=0), auditor.take(one(5, 9), now_s=1), auditor.settle(now_s=10.9)
    ([], [], [])
    >>> auditor.settle(now_s=11)
    [Fault(kind='gap', stage='a', topic='in', partition=0, at=4, records=1)]
    """

    def __init__(self, flows: Iterable[Flow] = (), *, whole: bool = True, settle_s: float = SETTLE_S) -> None:
        self.flows = tuple(flows)
        self.receipts = 0
        self._settle_s = settle_s
        self._chains: dict[Chain, _Chain] = {}
        self._out: Counter[str] = Counter()
        self._delivered: Counter[tuple[str, str]] = Counter()
        self._scales = {flow: _Scale((0, 0) if whole else None) for flow in self.flows}
        self._owed = {flow: Debt() for flow in self.flows}
        self._flows_to = {(flow.reader, flow.topic): flow for flow in self.flows}
        self._flows_from: dict[str, list[Flow]] = defaultdict(list)
        for flow in self.flows:
            for source in flow.sources:
                self._flows_from[source].append(flow)

    def take(self, receipt: Receipt, now_s: float, time_us: int = 0) -> list[Fault]:
        """Book a receipt of this record time; the faults that it alone shows."""
        self.receipts += 1
        self._out[receipt.stage] += receipt.out
        faults = [replace(fault, time_us=time_us) for fault in _dispositions_of(receipt)]
        stage, owed = receipt.stage, self._owed
        for flow in self._flows_from.get(stage, ()):
            owed[flow].move(time_us, receipt.out)
        for part in receipt.inputs:
            topic, start, delivered = part.topic, part.from_, part.delivered
            self._delivered[stage, topic] += delivered
            flow_to = self._flows_to.get((stage, topic))
            if flow_to is not None:
                owed[flow_to].move(time_us, -delivered)
            place = stage, topic, part.partition
            chain = self._chains.get(place)
            if chain is None:
                chain = self._chains[place] = _Chain()
            doubled = chain.add(start, max(start, part.to), now_s, time_us)
            if doubled is not None:
                faults.append(Fault("overlap", *place, *doubled, time_us))
            if len(chain.spans) > MAX_HOLES:
                faults += (Fault("gap", *place, *hole) for hole in chain.beyond(MAX_HOLES))
        return faults

    def settle(self, now_s: float) -> list[Fault]:
        """Gaps that have stayed open. To be called when all partitions of the ledger were read to their ends."""
        return [
            Fault("gap", *place, *hole)
            for place, chain in sorted(self._chains.items())
            if len(chain.spans) > 1
            for hole in chain.open_since(now_s - self._settle_s)
        ]

    def reached(self, stage: str, topic: str) -> dict[int, int]:
        """How far a stage is in a topic: partition to the next offset."""
        return {
            number: chain.spans[-1].end
            for (reader, name, number), chain in self._chains.items()
            if (reader, name) == (stage, topic)
        }

    def owed(self, flow: Flow) -> int:
        """Records that the sources have put out and the reader was not delivered, by what was booked until now."""
        return sum(self._out[source] for source in flow.sources) - self._delivered[flow.reader, flow.topic]

    def put_out(self, flow: Flow) -> int:
        """Records that the sources have put out, by what was booked until now."""
        return sum(self._out[source] for source in flow.sources)

    def balanced(self, flow: Flow) -> bool:
        """Whether a flow owes nothing but what is known to be missing, so that nothing that waits need be counted."""
        owed = self.owed(flow)
        return self._scales[flow].known == (owed, owed)

    def weigh(self, flow: Flow, owed: int, waiting: int, since: int, now_s: float) -> list[Fault]:
        """Whether what a flow owes is what waits.

        ``owed``, and where the reader is, at one time; ``waiting``: counted behind there, after that time; ``since``:
        what was put out between that time and the end of the counting, some of which may have been counted.
        """
        for (stage, topic, _), chain in self._chains.items():
            if (stage, topic) == (flow.reader, flow.topic) and chain.waits:
                return []  # what was delivered is not all booked yet
        missing = owed - waiting
        lost = self._scales[flow].weigh(missing, missing + since, now_s, self._settle_s)
        arose_us = self._owed[flow].arose_us(missing, lost) if lost else 0
        return [Fault("imbalance", flow.reader, flow.topic, -1, -1, lost, arose_us)] if lost else []


@dataclass(slots=True)
class _Span:
    """Offsets with receipts and no hole. ``since_s``: when the hole before it was seen, at a receipt of ``time_us``;
    ``told``: it was, as a gap."""

    start: int
    end: int
    since_s: float
    time_us: int
    told: bool = False


@dataclass(slots=True)
class _Chain:
    """The offsets of one chain that have a receipt, as spans in their order; but for faults it is one span."""

    spans: list[_Span] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        """Whether a receipt may still come between others."""
        return any(not span.told for span in self.spans[1:])

    def add(self, start: int, end: int, now_s: float, time_us: int) -> tuple[int, int] | None:
        """Book a part; where and how many of its offsets had a receipt already."""
        spans = self.spans
        last = spans[-1] if spans else None
        if last is not None and last.start <= start == last.end:  # as nearly always
            last.end = end
            return None
        low = _index(spans, lambda span: span.end < start)
        high = _index(spans, lambda span: span.start <= end)
        touched = spans[low:high]
        shared = [(max(start, one.start), min(end, one.end)) for one in touched]
        doubled = [(first, stop - first) for first, stop in shared if stop > first]
        if touched:
            made = touched[0]
            made.start = min(start, made.start)
            made.end = max([end, *(one.end for one in touched)])
        else:
            made = _Span(start, end, now_s, time_us, told=0 < low < len(spans) and spans[low].told)
        if high == 0 < len(spans):  # before all others, where there was no hole
            spans[0].since_s, spans[0].told = now_s, False
        spans[low:high] = [made]
        return (doubled[0][0], sum(n for _, n in doubled)) if doubled else None

    def open_since(self, before_s: float) -> list[tuple[int, int, int]]:
        """Holes seen at that time or before it: offset, size and record time, each told once."""
        return [self._tell(at) for at in range(1, len(self.spans)) if self._untold(at, before_s)]

    def beyond(self, most: int) -> list[tuple[int, int, int]]:
        """Lets go of the first holes until there are at most so many; those that were never told are told now."""
        told = []
        while len(self.spans) > most + 1:
            if not self.spans[1].told:
                told.append(self._tell(1))
            self.spans[0].end = self.spans.pop(1).end
        return told

    def _untold(self, at: int, before_s: float) -> bool:
        return not self.spans[at].told and self.spans[at].since_s <= before_s

    def _tell(self, at: int) -> tuple[int, int, int]:
        span, hole = self.spans[at], self.spans[at - 1].end
        span.told = True
        return hole, span.start - hole, span.time_us


def _index(spans: Sequence[_Span], before: Callable[[_Span], bool]) -> int:
    """How many of the spans, in their order, come before."""
    return bisect_right(spans, False, key=lambda span: not before(span))


@dataclass(slots=True)
class Debt:
    """What a flow owed at the end of each hour, however its receipts came: tells since when something is missing.

    >>> debt = Debt()
    >>> for hour, records in ((1, 5), (2, -5), (3, 4), (3, -3), (9, 2), (9, -2)):
    ...     debt.move(hour * HOUR_US, records)
    >>> debt.arose_us(1, 1) // HOUR_US
    3
    """

    hours: Counter[int] = field(default_factory=Counter)

    def move(self, time_us: int, records: int) -> None:
        if records:
            self.hours[time_us // HOUR_US] += records
            if len(self.hours) > MAX_HOURS:
                first, second, *_ = sorted(self.hours)
                self.hours[second] += self.hours.pop(first)

    def arose_us(self, missing: int, lost: int) -> int:
        """Of a loss the hour after the last in which less was owed than is missing now, since what is lost is owed for
        good; of records from nowhere the first hour in which so little was owed. The newest hour at the latest."""
        arose, owed = min(self.hours, default=0), 0
        for hour in sorted(self.hours):
            before, owed = owed, owed + self.hours[hour]
            if (lost > 0 and before < missing <= owed) or (lost < 0 and owed <= missing < before):
                arose = hour
        return arose * HOUR_US


@dataclass(slots=True)
class _Scale:
    """What of a flow is known to be missing, as bounds; None: not weighed yet."""

    known: Part | None
    odd_since_s: float | None = None

    def weigh(self, low: int, high: int, now_s: float, settle_s: float) -> int:
        """The change of what is missing, when it is certain and has stayed; else 0."""
        if self.known is None or (low <= self.known[1] and self.known[0] <= high):
            first, last = self.known or (low, high)
            self.known, self.odd_since_s = (max(low, first), min(high, last)), None
            return 0
        if self.odd_since_s is None:
            self.odd_since_s = now_s
        if now_s - self.odd_since_s < settle_s:
            return 0
        first, last = self.known
        self.known, self.odd_since_s = (low, high), None
        return low - last if low > last else high - first
