"""The keeper: ticks and heartbeats into the chain, and the audit of its ledger. One leads, the others wait.

It leads who holds the lock in the database. Beyond that all keepers write by one transactional id: a new leader fences
the one before it, so that a leader that lost its lock without knowing can write no more.
"""

import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import structlog
from pydantic import ValidationError

from errata.contracts import Receipt, canonical
from errata.contracts.strict import instant, rfc3339
from errata.contracts.topics import LEDGER, PREDICTIONS
from errata.domain.ledger import FLOWS, SETTLE_S, Fault, Flow, Head, LedgerAuditor, judged_from_us
from errata.errors import Aborted, ErrataError, Fenced, Unavailable
from errata.ports import LeaderLock, Offsets, Outgoing, Producer, Transport
from errata.runtime.health import Health
from errata.runtime.telemetry import Beat, BreakerState, KeeperTelemetry

TRANSACTIONAL_ID = "errata.keeper"  # of all keepers
HEARTBEAT_MODEL = "errata.heartbeat"

LOCK_EVERY_S = 1.0  # between two looks at the lock, whether held or wanted
AUDIT_EVERY_S = 3.0
AGAIN_AFTER_S = 3.0  # when Kafka did not answer, or another keeper has taken over
READ_TIMEOUT_S = 10.0
WAIT_LIMIT_S = 90.0  # for Kafka, at a time: longer, and the process does not live
SLICE = 5_000  # receipts, or waiting records, that one turn of the loop reads at most: ticks must not wait for long


def beat(kind: Beat, time_us: int, name: str, partitions: int) -> list[Outgoing]:
    """A tick or a heartbeat for each partition, by its number and without a key. ``name`` is unique to these."""
    time_text = rfc3339(instant(time_us))
    said: dict[str, object] = {}
    if kind == "heartbeat":  # which the contract wants to have a model and a result
        said = {"model": {"name": HEARTBEAT_MODEL}, "status": {"code": "ok"}}
    return [
        Outgoing(
            PREDICTIONS,
            None,
            canonical({"event_id": f"{kind}-{name}-{number}", "time": time_text, "purpose": kind, **said}),
            partition=number,
        )
        for number in range(partitions)
    ]


class LedgerWatch:
    """Audits the ledger from its begin on, a slice a turn. What it has seen it keeps: no fault is told twice.

    It starts over with its process: a million receipts take about a minute, and so no second truth about them has to be
    kept anywhere. A fault that was there before comes with the time at which it was
    written, by which alerts tell old from new.
    """

    def __init__(
        self, transport: Transport, flows: Sequence[Flow] = FLOWS, *, settle_s: float = SETTLE_S, slice_: int = SLICE
    ) -> None:
        self._transport = transport
        self._flows = flows
        self._settle_s = settle_s
        self._slice = slice_
        self._auditor: LedgerAuditor | None = None
        self._from_us = 0
        self._waiting = {flow: _Waiting(flow.topic) for flow in flows}
        self.positions: Offsets = {}
        self.newest_us = 0
        self.booked: Counter[str] = Counter()  # receipts by stage, since the start

    def turn(self, now_s: float, now_us: int) -> tuple[list[Fault], bool]:
        """Read on, at most a slice; the faults found, and whether the end was reached.

        ``now_s`` is monotonic, ``now_us`` microseconds since 1970, both of before the turn."""
        auditor = self._auditor or self._begin(now_us)
        faults: list[Fault] = []
        if not self._read(auditor, now_s, faults):
            return faults, False
        faults += auditor.settle(now_s)
        for flow in self._flows:
            owed, put_out = auditor.owed(flow), auditor.put_out(flow)
            if auditor.balanced(flow):
                auditor.weigh(flow, owed, 0, 0, now_s)
                continue
            reached = auditor.reached(flow.reader, flow.topic)
            waiting = self._waiting[flow].count(self._transport, reached, self._slice)
            if waiting is not None and self._read(auditor, now_s, faults):
                faults += auditor.weigh(flow, owed, waiting, auditor.put_out(flow) - put_out, now_s)
        return faults, True

    def _begin(self, now_us: int) -> LedgerAuditor:
        places = [(LEDGER, number) for number in range(self._transport.partitions(LEDGER))]
        begins = self._transport.begin_offsets(places, timeout_s=READ_TIMEOUT_S)
        heads = []
        for place in places:
            first = next(iter(self._transport.read_from(place, timeout_s=READ_TIMEOUT_S)), None)
            heads.append(Head(begins[place], None if first is None else first.timestamp_us))
        self._from_us = judged_from_us(heads, now_us)
        self.positions = dict.fromkeys(places, 0)
        whole = all(head.whole for head in heads)
        self._auditor = LedgerAuditor(self._flows, whole=whole, settle_s=self._settle_s)
        return self._auditor

    def _read(self, auditor: LedgerAuditor, now_s: float, faults: list[Fault]) -> bool:
        """Book receipts, at most a slice; whether all were read that stood there when this began."""
        left = self._slice
        ends = self._transport.end_offsets(self.positions, timeout_s=READ_TIMEOUT_S)
        for place, end in sorted(ends.items()):
            if self.positions[place] >= end:
                continue
            for record in self._transport.read_from(place, self.positions[place], timeout_s=READ_TIMEOUT_S):
                self.positions[place] = record.offset + 1
                self._book(auditor, record.value, record.timestamp_us, now_s, faults)
                left -= 1
                if not left:
                    return False
            self.positions[place] = max(end, self.positions[place])  # behind the last there may be a mark
        return True

    def _book(
        self, auditor: LedgerAuditor, value: bytes | None, time_us: int, now_s: float, faults: list[Fault]
    ) -> None:
        if time_us < self._from_us:
            return
        self.newest_us = max(self.newest_us, time_us)
        try:
            receipt = Receipt.model_validate_json(value or b"")
        except ValidationError:  # by whom ever it was written; its chain will show a gap
            return
        self.booked[receipt.stage] += 1
        faults += auditor.take(receipt, now_s, time_us)


@dataclass(slots=True)
class _Waiting:
    """The offsets of a topic's records that wait for its reader. Each is read once, however long it waits."""

    topic: str
    offsets: dict[int, "array[int]"] = field(default_factory=dict)
    read_to: dict[int, int] = field(default_factory=dict)

    def count(self, transport: Transport, reached: Mapping[int, int], most: int) -> int | None:
        """How many records are at what the reader ``reached`` and behind; None when more came than one turn reads."""
        places = [(self.topic, number) for number in range(transport.partitions(self.topic))]
        ends = transport.end_offsets(places, timeout_s=READ_TIMEOUT_S)
        for place in places:
            number = place[1]
            offsets, first = self.offsets.setdefault(number, array("q")), reached.get(number, 0)
            del offsets[: bisect_left(offsets, first)]
            start = max(first, self.read_to.get(number, 0))
            if start >= ends[place]:
                continue
            for record in transport.read_from(place, start, timeout_s=READ_TIMEOUT_S):
                offsets.append(record.offset)
                self.read_to[number] = record.offset + 1
                most -= 1
                if not most:
                    return None
            self.read_to[number] = max(ends[place], self.read_to.get(number, 0))
        return sum(map(len, self.offsets.values()))


@dataclass(slots=True)
class Schedule:
    """What is due when, by a clock that never goes back; seconds."""

    every_s: float
    due_s: float = 0.0

    def due(self, now_s: float) -> bool:
        """Whether it is; then next in ``every_s``. What was missed is not made up for."""
        if now_s < self.due_s:
            return False
        self.due_s = max(self.due_s + self.every_s, now_s + self.every_s / 2)
        return True


class Keeper:
    """The loop of one keeper. Trouble with Kafka or the database passes: it waits, says so, and goes on.

    ``clock`` gives seconds that never go back, ``now_us`` microseconds since 1970, ``wait`` lets seconds pass, and
    ``name`` draws a name that is unique to a term as leader.
    """

    def __init__(
        self,
        transport: Transport,
        lock: LeaderLock,
        telemetry: KeeperTelemetry,
        health: Health,
        *,
        tick_every_s: float,
        heartbeat_every_s: float,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
        wait: Callable[[float], None] = time.sleep,
        name: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._transport = transport
        self._lock = lock
        self._telemetry = telemetry
        self._health = health
        self._clock, self._now_us, self._wait, self._name = clock, now_us, wait, name
        now_s = clock()
        self._beats: dict[Beat, Schedule] = {
            "tick": Schedule(tick_every_s, now_s),
            "heartbeat": Schedule(heartbeat_every_s, now_s),
        }
        self._lock_looks = Schedule(LOCK_EVERY_S, now_s)
        self._audits = Schedule(AUDIT_EVERY_S, now_s)
        self._watch = LedgerWatch(transport)
        self._producer: Producer | None = None
        self._term = ""
        self._beats_of_term = 0
        self._leads = False
        self._rests_until_s = now_s
        self._log = structlog.get_logger()
        health.started()
        health.assigned({})

    @property
    def leads(self) -> bool:
        return self._leads

    def run_once(self, timeout_s: float = 0.0) -> int:
        """What is due now: the lock, ticks, heartbeats, a slice of the audit; the number of records written.

        With nothing due it waits, at most ``timeout_s``."""
        now_s = self._clock()
        written, busy = 0, False
        if now_s >= self._rests_until_s:
            try:
                self._look_at_lock(now_s)
                if self._leads:
                    written, busy = self._lead(now_s)
            except (Unavailable, Aborted, Fenced) as error:
                self._recover(error)
        if not written and not busy:
            self._wait(timeout_s)
        return written

    def close(self) -> None:
        self._resign()
        self._lock.close()

    # The lock.

    def _look_at_lock(self, now_s: float) -> None:
        if not self._lock_looks.due(now_s):
            return
        if self._leads:
            self._still_leads()
            return
        try:
            mine = self._lock.acquire()
        except Unavailable:
            self._database("open")
            raise
        self._database("closed")
        if mine:
            self._term, self._beats_of_term = self._name(), 0
            self._leads = True
            self._telemetry.leads(True)
            self._log.info("leads", term=self._term)

    def _still_leads(self) -> bool:
        """Asked before everything that only a leader may do."""
        if self._leads and not self._lock.held():
            self._log.warning("the lock is lost: leads no more")
            self._resign()
        return self._leads

    def _resign(self) -> None:
        if self._leads:
            self._leads = False
            self._telemetry.leads(False)
            self._health.assigned({})
        self._drop_producer()
        self._lock.release()

    # What a leader does.

    def _lead(self, now_s: float) -> tuple[int, bool]:
        """Records written, and whether there is more to do at once."""
        written = 0
        for kind, schedule in self._beats.items():
            if not schedule.due(now_s) or not self._still_leads():
                continue
            try:
                written += self._write(kind)
            except ErrataError:
                schedule.due_s = now_s  # and not a whole interval later
                raise
        if not self._leads or not self._audits.due(now_s):
            return written, False
        at_end = self._audit(now_s)
        if not at_end:
            self._audits.due_s = now_s
        return written, not at_end

    def _write(self, kind: Beat) -> int:
        if self._producer is None:
            with self._health.waiting("transactions", WAIT_LIMIT_S):
                self._producer = self._transport.producer(TRANSACTIONAL_ID)
            if not self._still_leads():  # that may have taken a while
                return 0
        time_us = self._now_us()
        self._beats_of_term += 1
        records = beat(kind, time_us, f"{self._term}-{self._beats_of_term}", self._transport.partitions(PREDICTIONS))
        self._producer.begin()
        try:
            for record in records:
                self._producer.produce(record)
            self._producer.commit()
        except Fenced:
            raise
        except BaseException:
            self._producer.abort()
            raise
        self._telemetry.beat(kind, PREDICTIONS, len(records), time_us / 1e6)
        self._kafka_answers()
        return len(records)

    def _audit(self, now_s: float) -> bool:
        before = self._watch.booked.copy()
        now_us = self._now_us()
        with self._health.waiting("the ledger", WAIT_LIMIT_S):
            faults, at_end = self._watch.turn(now_s, now_us)
        for fault in faults:
            self._tell(fault)
        self._telemetry.audited(self._watch.booked - before)
        if at_end:
            self._telemetry.audited_to_the_end(now_us / 1e6)
        self._health.assigned(self._watch.positions)
        self._kafka_answers()
        return at_end

    def _tell(self, fault: Fault) -> None:
        """Each fault is a line in the log, with its place; never anything of an event."""
        time_us = fault.time_us or self._watch.newest_us
        self._telemetry.fault(fault.kind, fault.stage, fault.topic, time_us / 1e6)
        self._log.error(
            "ledger fault",
            kind=fault.kind,
            at_stage=fault.stage,
            topic=fault.topic,
            partition=fault.partition,
            offset=fault.at,
            records=fault.records,
            written=rfc3339(instant(time_us)),
        )

    # Trouble.

    def _recover(self, error: ErrataError) -> None:
        """Wait, and come back with a new producer: the end of a transaction may be in doubt."""
        self._health.failed(error)
        self._log.warning("waits", error=str(error), again_in_s=AGAIN_AFTER_S)
        if self._leads:
            self._health.breaker("kafka", "open")
            self._telemetry.breaker("kafka", "open")
        if isinstance(error, Fenced):
            self._resign()
        else:
            self._drop_producer()
        self._rests_until_s = self._clock() + AGAIN_AFTER_S

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.close()
            except ErrataError as error:
                self._health.failed(error)

    def _kafka_answers(self) -> None:
        self._health.breaker("kafka", "closed")
        self._telemetry.breaker("kafka", "closed")
        self._health.committed(self._watch.positions)

    def _database(self, state: BreakerState) -> None:
        self._health.breaker("postgresql", state)
        self._telemetry.breaker("postgresql", state)
