"""Load without end, with faults that come and go, and how it reaches Kafka."""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread
from uuid import uuid4

from tests.benchmarks.bench_models import fault
from tests.benchmarks.events import START_US
from tests.benchmarks.stages import Stream
from tests.integration.chain import Chain

from errata.contracts import Contract, Reference
from errata.contracts.strict import EPOCH
from errata.contracts.topics import PREDICTIONS, STAGES
from errata.ports import Outgoing, Producer

MODELS = 28
PHASE = 1_000  # events of a model until its fault begins or ends
EVENT_MS = 25  # between two events: windows are full before their age would close them, which takes ticks
AHEAD = 60_000  # records that are published and that the detector has not read, at most
PUBLISHED_AT_ONCE = 2_000
A_SECOND = 5  # transactions of a publisher with a rate
RETRY_S = 0.5
_TIME = re.compile(rb'"time":"[^"]+"')

DEEP = b'{"event_id":' + b"[" * 500 + b"]" * 500 + b"}"
POISON: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("cut off", lambda line: line[: len(line) * 2 // 3]),
    ("no JSON", lambda line: b"\x00\xff\xfe" + line[:20]),
    ("not UTF-8", lambda line: line.replace(b'"prediction":"', b'"prediction":"\xff\xfe')),
    ("a field missing", lambda line: line.replace(b'"event_id"', b'"event_it"')),
    ("a text for a number", lambda line: re.sub(rb'"confidence":[0-9.]+', b'"confidence":"high"', line)),
    ("no finite number", lambda line: re.sub(rb'"confidence":[0-9.]+', b'"confidence":1e999', line)),
    ("too deep", lambda line: DEEP),
    ("too large", lambda line: line[:-1] + b',"more":"' + b"x" * 300_000 + b'"}'),
    ("NUL in a text", lambda line: line.replace(b'"prediction":"', b'"prediction":"\\u0000')),
)
"""Nine kinds of records that no decoder may take, made of a good one."""


class Story:
    """The same events in the same order each time. Every model's fault is there for ``phase`` of its events, then away
    for as many, half of the models in turn.

    One record of ``poison_every`` is poison, of the nine kinds in turn; 0: none.
    """

    def __init__(self, models: int = MODELS, phase: int = PHASE, poison_every: int = 0) -> None:
        self._stream = Stream(models)
        self._period = models * phase
        self._poison_every = poison_every
        self._made = 0
        self._spoilt = 0
        self._stream.fault = self._fault
        self.tables: list[Contract | Reference] = [
            table for _, contract, reference in self._stream.tables() for table in (contract, reference)
        ]

    def _fault(self, number: int, raw: bytes) -> bytes:
        return fault(number, raw) if (self._made // self._period + number) % 2 else raw

    def take(self) -> Outgoing:
        (made,) = self._stream.take(1)
        line = _timed(self._made, made.value or b"")
        self._made += 1
        if self._poison_every and self._made % self._poison_every == 0:
            line = POISON[self._spoilt % len(POISON)][1](line)
            self._spoilt += 1
        return Outgoing(PREDICTIONS, made.key, line)


def _timed(at: int, line: bytes) -> bytes:
    time_ = EPOCH + timedelta(microseconds=START_US + at * EVENT_MS * 1_000)
    text = time_.strftime('"time":"%Y-%m-%dT%H:%M:%S.').encode() + b'%03dZ"' % (time_.microsecond // 1000)
    return _TIME.sub(text, line, count=1)


@dataclass
class Publisher:
    """Publishes a story from a thread of its own, as fast as the detector reads, or ``rate`` records a second.

    It survives outages of the broker as a publisher does that tries again: what was sent twice is a duplicate.
    """

    four: Chain
    story: Story
    rate: float = 0.0
    ahead: int = AHEAD
    published: int = 0
    failures: int = 0
    _stopping: Event = field(default_factory=Event)
    _thread: Thread | None = None
    _producer: Producer | None = None
    _error: BaseException | None = None

    def start(self) -> "Publisher":
        self._thread = Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> int:
        """End publishing after the records at hand; how many there are."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self.published

    def until(self, records: int, timeout_s: float = 600.0) -> None:
        self.four.until(
            lambda: self.published >= records or self._error is not None, f"{records:,} published", timeout_s
        )
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._publish()
        except BaseException as error:  # told by whoever stops or waits
            self._error = error

    def _publish(self) -> None:
        due_s = time.monotonic()
        while not self._stopping.is_set():
            rate = self.rate
            size = max(1, min(PUBLISHED_AT_ONCE, int(rate / A_SECOND))) if rate else PUBLISHED_AT_ONCE
            self._send([self.story.take() for _ in range(size)])
            if rate:
                due_s = max(due_s + size / rate, time.monotonic() - 1)
                self._stopping.wait(max(0.0, due_s - time.monotonic()))
            else:
                self._wait_for_the_detector()
        self._close()

    def _send(self, batch: list[Outgoing]) -> None:
        """Until it is there, or nobody wants it any more."""
        while True:
            try:
                if self._producer is None:
                    self._producer = self.four.transport.producer(f"publisher-{uuid4().hex}")
                send(self._producer, batch)
            except Exception:  # whatever an outage does to a client: another takes its place, as in a publisher
                self.failures += 1
                self._close()
                if self._stopping.wait(RETRY_S):
                    return
            else:
                self.published += len(batch)
                return

    def _close(self) -> None:
        if self._producer is not None:
            with suppress(Exception):  # it goes in any case
                self._producer.close()
            self._producer = None

    def _wait_for_the_detector(self) -> None:
        while self.published > self.ahead and not self._stopping.is_set():
            try:
                read = sum(self.four.offsets(STAGES[0]).values())
            except Exception:  # while the group moves: whatever it is, asking again is the answer
                read = 0
            if self.published - read < self.ahead:
                return
            self._stopping.wait(0.2)


def send(producer: Producer, batch: list[Outgoing]) -> None:
    """In one transaction. A producer that failed is of no more use."""
    producer.begin()
    for record in batch:
        producer.produce(record)
    producer.commit()


def publish(four: Chain, story: Story, records: int) -> int:
    """So many records, now."""
    producer = four.transport.producer(f"publisher-{uuid4().hex}")
    for size in _sizes(records):
        send(producer, [story.take() for _ in range(size)])
    producer.close()
    return records


def _sizes(records: int) -> Iterator[int]:
    for at in range(0, records, PUBLISHED_AT_ONCE):
        yield min(PUBLISHED_AT_ONCE, records - at)


def chooser(name: str) -> random.Random:
    """Chance that is the same in each run."""
    return random.Random(f"errata {name}")
