"""Reads partitions outside any group: restores, tables, and single records by their place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException

from errata.adapters.kafka.config import Kind, transaction_timeout_ms
from errata.adapters.kafka.connection import (
    ANSWER_TIMEOUT_S,
    Connection,
    KeptAdmin,
    OfOneProcess,
    earliest_offsets,
    latest_offsets,
)
from errata.adapters.kafka.consumer import records_of
from errata.adapters.kafka.failures import PASSING, failure
from errata.errors import ErrataError, HangingTransaction, Unavailable
from errata.ports import Record
from errata.ports import TopicPartition as Place

RESTORE_TIMEOUT_S = 60.0
HANGING_AFTER_S = 15.0  # beyond a transaction's time-out: the broker looks for such transactions every 10 s
SOUND_S = 2.0  # how often the brokers are looked at while a reader waits for the end of a transaction
SOUND_ANSWER_S = 1.0
TRANSACTIONS = "__transaction_state"  # Kafka's own topic: what ends a transaction is written there first
POLL_S = 0.1
BATCH = 200  # as fast as 1,000, whose 8 MB of ids' blocks would leave gaps between what is kept of them
PICKED_BATCH = 100  # most of it is thrown away
INTRODUCE_S = 1.0  # as long as a client would take by itself
NEAR = 500  # offsets: records this near are read in one go rather than sought
READER = "errata.reader"  # no group of anybody: assigned by hand, commits nothing

_NO_GROUP = frozenset({KafkaError.GROUP_AUTHORIZATION_FAILED})  # a reader needs no group, so no right to one


class Readers(OfOneProcess):
    """Consumers for reading by hand, kept for the next time: connecting takes longer than most reads."""

    def __init__(self, connection: Connection, admin: KeptAdmin) -> None:
        super().__init__()
        self._connection = connection
        self._admin = admin
        self._idle: dict[Kind, list[_Idle]] = {"reader": [], "picker": []}
        self._hanging_s = transaction_timeout_ms(connection.properties) / 1_000 + HANGING_AFTER_S

    def read_from(self, place: Place, offset: int, timeout_s: float = RESTORE_TIMEOUT_S) -> Iterator[Record]:
        """All committed records from ``offset`` to the end as it was when reading began.

        That end counts what open transactions wrote, so reading waits for them: a restore that stopped before them
        could miss the last transaction. An end-of-partition event below it proves nothing and is waited past.
        """
        self.check_process()
        answer_s = min(ANSWER_TIMEOUT_S, timeout_s)
        target = self._admin.ask(lambda admin: latest_offsets(self._connection, admin, [place], answer_s))[place]
        if offset >= target:
            return
        first = self._admin.ask(lambda admin: earliest_offsets(self._connection, admin, [place], answer_s))[place]
        start = max(offset, first)
        if start >= target:
            return
        with self._borrowed("reader", place[0]) as client:
            client.assign([self._connection.at(place, start)])
            wait = _Wait(self._connection, client, place, target, self._hanging_s, timeout_s)
            while True:
                records, reached = self._some(client, place)
                for record in records:
                    if record.offset >= target:
                        return
                    yield record
                if reached >= target:
                    return
                wait.note(bool(records), reached)

    def read_at(self, place: Place, offsets: Sequence[int]) -> list[Record | None]:
        self.check_process()
        found: dict[int, Record] = {}
        wanted = sorted({offset for offset in offsets if offset >= 0})
        if wanted:
            with self._borrowed("picker", place[0]) as client:
                low, end = self._bounds(client, place)
                for run in _runs([offset for offset in wanted if low <= offset < end]):
                    found |= self._read_run(client, place, run)
        return [found.get(offset) for offset in offsets]

    def close(self) -> None:
        self.check_process()
        for idle in self._idle.values():
            while idle:
                idle.pop().client.close()

    def _bounds(self, client: Consumer, place: Place) -> tuple[int, int]:
        """The first offset and the last stable one: behind that one nothing is committed yet."""
        try:
            return client.get_watermark_offsets(self._connection.at(place), timeout=ANSWER_TIMEOUT_S)
        except KafkaException as error:
            raise self._connection.answered(client, error, f"offsets of {place[0]} partition {place[1]}") from None

    def _read_run(self, client: Consumer, place: Place, run: Sequence[int]) -> dict[int, Record]:
        """Records at offsets near each other, in one go; those that compaction or an abort took are missing."""
        wanted, last = set(run), run[-1]
        found: dict[int, Record] = {}
        client.assign([self._connection.at(place, run[0])])
        deadline_s = monotonic() + ANSWER_TIMEOUT_S
        while True:
            records, reached = self._some(client, place, PICKED_BATCH)
            found |= {record.offset: record for record in records if record.offset in wanted}
            if reached > last or (records and records[-1].offset >= last):
                return found
            if monotonic() > deadline_s:
                doing = f"reading {place[0]} partition {place[1]} at offset {last}"
                raise self._connection.diagnosis.unreachable(doing, self._connection.servers)

    def _some(self, client: Consumer, place: Place, most: int = BATCH) -> tuple[Sequence[Record], int]:
        """Some records, and the offset at which the end of the partition was met, or -1."""
        first = client.poll(POLL_S)
        if first is None:
            return [], -1
        messages: list[Any] = [first, *client.consume(most, 0)]
        reached, good = -1, []
        full = self._connection.full(place[0])
        for message in messages:
            if (message.partition(), message.topic()) != (place[1], full) and message.topic() is not None:
                continue  # a late word about what this client read before: its end is not ours
            error: KafkaError | None = message.error()
            if error is None:
                good.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                reached = max(reached, message.offset() or 0)
            elif error.fatal() or error.code() not in PASSING | _NO_GROUP:
                raise failure(error, f"reading {place[0]} partition {place[1]}")
        return records_of(good, {full: place[0]}), reached

    @contextmanager
    def _borrowed(self, kind: Kind, topic: str) -> Iterator[Consumer]:
        """A client nobody else reads with now, which knows where the topic is.

        After an error it is closed: something may be left in it.
        """
        idle = self._idle[kind]
        one = idle.pop() if idle else self._made(kind)
        keep = False
        try:
            self._introduce(one, topic)
            yield one.client
            keep = True
        except GeneratorExit:  # its reader has had enough
            keep = True
            raise
        finally:
            if keep:
                one.client.unassign()
                idle.append(one)
            else:
                one.client.close()

    def _made(self, kind: Kind) -> "_Idle":
        return _Idle(self._connection.consumer(kind, {"group.id": self._connection.full(READER)}), set())

    def _introduce(self, one: "_Idle", topic: str) -> None:
        """Have the client ask for the topic's leaders now: for a topic that is new to it, it looks once a second."""
        if topic not in one.topics:
            with suppress(KafkaException):  # reading says it better
                one.client.list_topics(self._connection.full(topic), timeout=INTRODUCE_S)
            one.topics.add(topic)


@dataclass(frozen=True, slots=True)
class _Idle:
    """A client, and the topics that it has read."""

    client: Consumer
    topics: set[str]


class _Wait:
    """How long a read has gone without coming nearer to its end.

    A transaction hangs when it stays open although the brokers could end it: all this time they answered, and all
    replicas were in sync. Without that it is an outage, and no reason to stop a stage for good.
    """

    def __init__(
        self, connection: Connection, client: Consumer, place: Place, target: int, hanging_s: float, timeout_s: float
    ) -> None:
        self._connection = connection
        self._client = client
        self._place = place
        self._target = target
        self._hanging_s = hanging_s
        self._timeout_s = timeout_s
        self._begun_s = self._moved_s = self._looked_s = self._sound_since_s = monotonic()
        self._reached = -1
        self._unsound: ErrataError | None = None

    def note(self, came: bool, reached: int) -> None:
        """Raises ``Unavailable`` when nothing moved for too long, or all of it takes too long."""
        now_s = monotonic()
        if came or reached > self._reached:
            self._moved_s = now_s
            self._reached = max(self._reached, reached)
        elif now_s - self._looked_s > SOUND_S:
            now_s = self._look()
        where = f"{self._place[0]} partition {self._place[1]}"
        if now_s - self._moved_s > self._hanging_s:
            if self._reached < 0:
                raise self._connection.diagnosis.unreachable(f"reading {where}", self._connection.servers)
            if self._unsound is not None:
                raise self._unsound
            if now_s - self._sound_since_s > self._hanging_s:
                raise HangingTransaction(
                    f"hanging_transaction: {where} stands at {self._reached}, its end is {self._target}, and the"
                    " transaction between them does not end; find its producer"
                )
        if now_s - self._begun_s > self._timeout_s:
            raise Unavailable(f"reading {where} to {self._target} took longer than {self._timeout_s:.3g} s")

    def _look(self) -> float:
        """Whether the brokers could end a transaction now. Returns when that was known, by the monotonic clock."""
        doing = f"reading {self._place[0]} partition {self._place[1]} to {self._target}"
        self._unsound = None
        for topic in (self._connection.full(self._place[0]), TRANSACTIONS):
            try:
                found = self._client.list_topics(topic, timeout=SOUND_ANSWER_S).topics[topic]
            except KafkaException:
                self._unsound = self._connection.diagnosis.unreachable(doing, self._connection.servers)
                break
            if lacking := sum(len(one.isrs) < len(one.replicas) for one in found.partitions.values()):
                self._unsound = Unavailable(
                    f"{doing}: the transaction before it has not ended, and {lacking} of {len(found.partitions)}"
                    f" partitions of {topic} lack replicas in sync; are all brokers up?"
                )
                break
        self._looked_s = monotonic()
        if self._unsound is not None:
            self._sound_since_s = self._looked_s
        return self._looked_s


def _runs(offsets: Sequence[int]) -> list[list[int]]:
    """Ascending offsets in groups whose neighbours are at most NEAR apart."""
    runs: list[list[int]] = []
    for offset in offsets:
        if runs and offset - runs[-1][-1] <= NEAR:
            runs[-1].append(offset)
        else:
            runs.append([offset])
    return runs
