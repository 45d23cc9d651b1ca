"""The transport in one process: a log with partitions, groups and transactions, kept in memory.

It keeps the promises of ``errata.ports`` and two more that Kafka does not make: offsets have no holes (there are no
marker offsets), and a consumer gets the records of all its partitions in the order in which they were appended, so
that a run in one process does not depend on how it is cut into batches. With a journal, committed transactions
outlive the process. Not safe for use from several threads.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from operator import attrgetter, itemgetter

from errata.adapters.journal import Commits, Frame, Journal
from errata.contracts.topics import OUTCOMES, PREDICTIONS, Topic
from errata.domain.partitioner import partition_of
from errata.errors import Aborted, Fenced, Misconfigured, StateDamaged
from errata.ports import Consumer, Headers, Offsets, OnPartitions, Outgoing, Record, TopicPartition

RECORD_TIME_HEADER = "errata-record-time-us"
DEFAULT_RETENTION = {PREDICTIONS: 100_000, OUTCOMES: 100_000}  # records a partition

_SNAPSHOT_RECORDS = 5_000  # records a frame of a rewritten journal
_COMPACT_SLACK = 1_000  # superseded records a partition of a compacted topic may hold beyond its live ones
_partition_of = lru_cache(maxsize=65_536)(partition_of)


@dataclass(slots=True)
class _Partition:
    """Committed records in offset order with their places in the global order. ``start`` is the first offset that
    may still be there; ``end`` the next one to be given."""

    records: list[Record] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    start: int = 0
    end: int = 0
    newest: dict[bytes, int] | None = None  # of compacted topics: key -> offset of its newest record

    def index(self, offset: int) -> int:
        return bisect_left(self.records, offset, key=attrgetter("offset"))

    def append(self, record: Record, order: int) -> None:
        self.records.append(record)
        self.order.append(order)
        self.end = record.offset + 1
        if self.newest is not None:
            self.newest[record.key or b""] = record.offset
            if len(self.records) > 2 * len(self.newest) + _COMPACT_SLACK:
                self.compact()

    def compact(self) -> None:
        """Drop what a newer record of the same key supersedes; tombstones stay."""
        newest = self.newest or {}
        kept = [i for i, record in enumerate(self.records) if newest[record.key or b""] == record.offset]
        self.records = [self.records[i] for i in kept]
        self.order = [self.order[i] for i in kept]

    def drop_before(self, offset: int) -> None:
        cut = self.index(offset)
        del self.records[:cut]
        del self.order[:cut]
        self.start = max(self.start, offset)


@dataclass(slots=True)
class _Group:
    """``generation`` counts the changes of membership; ``members`` are kept by instance."""

    topics: tuple[str, ...] = ()
    generation: int = 0
    members: "dict[str, MemoryConsumer]" = field(default_factory=dict)
    committed: dict[TopicPartition, int] = field(default_factory=dict)


class MemoryTransport:
    """Topics, partitions, groups and transactions in one process. See the module and ``errata.ports.Transport``."""

    def __init__(self, topics: Mapping[str, Topic], *, journal: Journal | None = None) -> None:
        self._logs = {name: [_new_partition(topic) for _ in range(topic.partitions)] for name, topic in topics.items()}
        self._retention = {name: most for name, most in DEFAULT_RETENTION.items() if name in topics}
        self._groups: dict[str, _Group] = {}
        self._epochs: dict[str, int] = {}
        self._appended = 0
        self._record_time_us = 0
        self._journal = journal
        if journal is not None:
            self._restore(journal)

    def partitions(self, topic: str) -> int:
        return len(self._topic(topic))

    def consumer(
        self,
        group: str,
        topic: str,
        *,
        instance: str,
        side_inputs: Sequence[str] = (),
        on_assign: OnPartitions | None = None,
        on_revoke: OnPartitions | None = None,
    ) -> "MemoryConsumer":
        topics = (topic, *side_inputs)
        for name in side_inputs:
            if self.partitions(name) != self.partitions(topic):
                raise Misconfigured(f"{name} must have as many partitions as {topic}, whose side input it is")
        state = self._groups.setdefault(group, _Group())
        state.topics = topics
        member = MemoryConsumer(self, group, topics, instance, on_assign, on_revoke)
        older = state.members.get(instance)
        state.members[instance] = member
        if older is None:
            state.generation += 1
        return member

    def producer(self, transactional_id: str) -> "MemoryProducer":
        epoch = self._epochs.get(transactional_id, 0) + 1
        self._epochs[transactional_id] = epoch
        return MemoryProducer(self, transactional_id, epoch)

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]:
        log = self._log(partition)
        return iter(log.records[log.index(offset) :])

    def read_at(self, partition: TopicPartition, offsets: Sequence[int]) -> list[Record | None]:
        log = self._log(partition)
        found: list[Record | None] = []
        for offset in offsets:
            index = log.index(offset)
            here = index < len(log.records) and log.records[index].offset == offset
            found.append(log.records[index] if here else None)
        return found

    def end_offset(self, partition: TopicPartition) -> int:
        return self._log(partition).end

    def end_offsets(self, partitions: Iterable[TopicPartition], *, timeout_s: float | None = None) -> Offsets:
        return {partition: self._log(partition).end for partition in partitions}

    def begin_offsets(self, partitions: Iterable[TopicPartition], *, timeout_s: float | None = None) -> Offsets:
        return {partition: self._log(partition).start for partition in partitions}

    def group_members(self, group: str) -> list[str]:
        return sorted(self._groups[group].members) if group in self._groups else []

    def group_offsets(self, group: str, partitions: Iterable[TopicPartition]) -> Offsets:
        committed = self._groups[group].committed if group in self._groups else {}
        return {place: committed[place] for place in partitions if place in committed}

    def advance_record_time(self, us: int) -> None:
        """Records committed from now on get at least this record time; it never goes back."""
        self._record_time_us = max(self._record_time_us, us)

    @property
    def record_time_us(self) -> int:
        """The record time that the next committed record gets if nothing advances it."""
        return self._record_time_us

    def retain(self, topic: str, records_per_partition: int | None) -> None:
        """Keep at most so many records a partition (None: all). Offsets stay, and what a group has yet to read
        stays too."""
        self._topic(topic)
        if records_per_partition is None:
            self._retention.pop(topic, None)
            return
        self._retention[topic] = records_per_partition
        for number in range(self.partitions(topic)):
            self._apply_retention((topic, number))

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    # What producers and consumers of this module use.

    def _topic(self, topic: str) -> list[_Partition]:
        try:
            return self._logs[topic]
        except KeyError:
            raise Misconfigured(f"there is no topic {topic}; the topic registry names all that exist") from None

    def _log(self, partition: TopicPartition) -> _Partition:
        topic, number = partition
        logs = self._topic(topic)
        if not 0 <= number < len(logs):
            raise Misconfigured(f"{topic} has partitions 0 to {len(logs) - 1}, not {number}")
        return logs[number]

    def _place(self, record: Outgoing) -> TopicPartition:
        if record.partition is not None:
            self._log((record.topic, record.partition))
            return record.topic, record.partition
        count = self.partitions(record.topic)
        return record.topic, 0 if record.key is None else _partition_of(record.key, count)

    def _commit(self, outgoing: Sequence[tuple[TopicPartition, Outgoing]], commits: Commits) -> None:
        """Make a transaction visible: durable first, then in memory."""
        ends: dict[TopicPartition, int] = {}
        now_us = self._record_time_us
        records = []
        for place, record in outgoing:
            offset = ends[place] if place in ends else self._log(place).end
            ends[place] = offset + 1
            headers = record.headers
            if headers:
                record_time_us, headers = _own_record_time(headers)
                now_us = max(now_us, record_time_us)
            records.append(Record(place[0], place[1], offset, now_us, record.key, record.value, headers))
        frame = Frame(record_time_us=now_us, records=records, commits=commits)
        if self._journal is not None:
            self._journal.append(frame)
        self._apply(frame)
        for place in ends:
            self._apply_retention(place)

    def _apply(self, frame: Frame) -> None:
        self._record_time_us = max(self._record_time_us, frame.record_time_us)
        for record in frame.records:
            self._log((record.topic, record.partition)).append(record, self._appended)
            self._appended += 1
        for place, (start, end) in frame.bounds.items():
            log = self._log(place)
            log.start, log.end = max(log.start, start), max(log.end, end)
        for group, offsets in frame.commits.items():
            self._groups.setdefault(group, _Group()).committed.update(offsets)

    def _apply_retention(self, partition: TopicPartition, slack: float = 1.1) -> None:
        """Drop the head beyond the retention, a tenth late so that it is not done for each record."""
        most = self._retention.get(partition[0])
        log = self._log(partition)
        if most is not None and len(log.records) > most * slack:
            log.drop_before(min([log.end - most, *self._next_offsets(partition)]))

    def _next_offsets(self, partition: TopicPartition) -> list[int]:
        """What each group that reads the partition is to read next."""
        return [
            group.committed.get(partition, 0)
            for group in self._groups.values()
            if partition in group.committed or partition[0] in group.topics
        ]

    def _restore(self, journal: Journal) -> None:
        written = 0
        for frame in journal.frames():
            self._apply(frame)
            written += sum(map(_bytes_of, frame.records))
        for topic, logs in self._logs.items():
            for number, log in enumerate(logs):
                if self._next_offsets((topic, number)):  # else its reader may not have begun: all of it is unread
                    self._apply_retention((topic, number), slack=1.0)
                if log.newest is not None:
                    log.compact()
        live = sum(_bytes_of(record) for logs in self._logs.values() for log in logs for record in log.records)
        if written > 2 * live:
            journal.rewrite(self._snapshot())

    def _snapshot(self) -> Iterator[Frame]:
        """All that is live as frames, in the global order; the last one has the bounds and the groups' offsets."""
        pairs = [
            pair for logs in self._logs.values() for log in logs for pair in zip(log.order, log.records, strict=True)
        ]
        in_order = (record for _, record in sorted(pairs, key=lambda pair: pair[0]))
        while chunk := list(islice(in_order, _SNAPSHOT_RECORDS)):
            yield Frame(record_time_us=self._record_time_us, records=chunk)
        bounds = {
            (topic, number): (log.start, log.end)
            for topic, logs in self._logs.items()
            for number, log in enumerate(logs)
            if log.end
        }
        commits = {name: dict(group.committed) for name, group in self._groups.items()}
        yield Frame(record_time_us=self._record_time_us, records=[], commits=commits, bounds=bounds)


class MemoryConsumer:
    """A member of a group; see ``errata.ports.Consumer``."""

    def __init__(
        self,
        transport: MemoryTransport,
        group: str,
        topics: tuple[str, ...],
        instance: str,
        on_assign: OnPartitions | None,
        on_revoke: OnPartitions | None,
    ) -> None:
        self._transport = transport
        self._group_name = group
        self._topics = topics
        self._instance = instance
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._generation = -1
        self._numbers: set[int] = set()
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    def poll(self, most: int, timeout_s: float = 0.0) -> list[Record]:
        self._check_alive()
        self._rebalance()
        waiting: list[tuple[_Partition, int]] = []
        for place, position in self._positions.items():
            if place in self._paused:
                continue
            log = self._transport._log(place)
            if position < log.start:
                raise StateDamaged(f"offset_out_of_range: {place[0]}/{place[1]} begins after the group's offset")
            if position < log.end:
                waiting.append((log, log.index(position)))
        records = _first_in_order(waiting, most)
        self._positions.update({(record.topic, record.partition): record.offset + 1 for record in records})
        return records

    def assignment(self) -> set[TopicPartition]:
        return set(self._positions)

    def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        offsets = self._group.committed
        return {place: offsets[place] for place in partitions if place in offsets}

    def position(self, partition: TopicPartition) -> int:
        return self._positions[partition]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._positions:
            raise Misconfigured(f"{partition[0]} partition {partition[1]} is not assigned to this consumer")
        self._positions[partition] = offset

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self._paused.difference_update(partitions)

    def close(self) -> None:
        """Leave the group. The callbacks do not run: they do so in ``poll`` only."""
        group = self._group
        if group.members.get(self._instance) is self:
            del group.members[self._instance]
            group.generation += 1
        self._forget(set(self._numbers))

    @property
    def _group(self) -> _Group:
        return self._transport._groups[self._group_name]

    def _check_alive(self) -> None:
        current = self._group.members.get(self._instance)
        if current is self:
            return
        if current is not None:
            raise Fenced(f"a newer consumer of group {self._group_name} has taken over instance {self._instance}")
        raise RuntimeError(f"this consumer of group {self._group_name} is closed")

    def _rebalance(self) -> None:
        """Give up what another member shall have, then take what no member holds any more (cooperative)."""
        group = self._group
        if group.generation != self._generation:
            self._generation = group.generation
        target = self._target()
        lost = self._numbers - target
        if lost:
            places = self._places(lost)
            if self._on_revoke is not None:
                self._on_revoke(places)
            self._forget(lost)
        held = {number for member in group.members.values() if member is not self for number in member._numbers}
        gained = target - self._numbers - held
        if gained:
            places = self._places(gained)
            for place in sorted(places):
                self._positions[place] = group.committed.get(place, self._transport._log(place).start)
            if self._on_assign is not None:
                self._on_assign(places)
            self._numbers |= gained

    def _target(self) -> set[int]:
        members = sorted(self._group.members)
        mine = members.index(self._instance)
        return set(range(mine, self._transport.partitions(self._topics[0]), len(members)))

    def _places(self, numbers: Iterable[int]) -> set[TopicPartition]:
        return {(topic, number) for number in numbers for topic in self._topics}

    def _forget(self, numbers: set[int]) -> None:
        for place in self._places(numbers):
            self._positions.pop(place, None)
            self._paused.discard(place)
        self._numbers -= numbers

    def _may_commit(self) -> bool:
        """Whether the member is of the group's present generation."""
        group = self._group
        return group.members.get(self._instance) is self and self._generation == group.generation


class MemoryProducer:
    """A transactional producer; see ``errata.ports.Producer``."""

    def __init__(self, transport: MemoryTransport, transactional_id: str, epoch: int) -> None:
        self._transport = transport
        self._id = transactional_id
        self._epoch = epoch
        self._open = False
        self._records: list[tuple[TopicPartition, Outgoing]] = []
        self._offsets: list[tuple[MemoryConsumer, dict[TopicPartition, int]]] = []

    def begin(self) -> None:
        self._check_epoch()
        if self._open:
            raise RuntimeError("a transaction is open already; commit or abort it first")
        self._open = True

    def produce(self, record: Outgoing) -> None:
        self._check_open()
        self._records.append((self._transport._place(record), record))

    def send_offsets(self, offsets: Mapping[TopicPartition, int], consumer: Consumer) -> None:
        self._check_open()
        if not isinstance(consumer, MemoryConsumer):
            raise Misconfigured("offsets go into a transaction with a consumer of the same transport")
        if not consumer._may_commit():
            raise Aborted("the group has rebalanced since this batch was read")
        self._offsets.append((consumer, dict(offsets)))

    def commit(self) -> None:
        self._check_open()
        # Checked again: between sending and committing the partitions may have gone to another member.
        if not all(consumer._may_commit() for consumer, _ in self._offsets):
            raise Aborted("the group has rebalanced since this batch was read")
        commits: Commits = {}
        for consumer, offsets in self._offsets:
            commits.setdefault(consumer._group_name, {}).update(offsets)
        self._transport._commit(self._records, commits)
        self._clear()

    def abort(self) -> None:
        self._check_epoch()
        self._clear()

    def close(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._open = False
        self._records = []
        self._offsets = []

    def _check_epoch(self) -> None:
        if self._transport._epochs[self._id] != self._epoch:
            self._clear()
            raise Fenced(f"a newer producer has taken over {self._id}")

    def _check_open(self) -> None:
        self._check_epoch()
        if not self._open:
            raise RuntimeError("no transaction is open; begin one first")


def _new_partition(topic: Topic) -> _Partition:
    return _Partition(newest={} if topic.cleanup == "compact" else None)


def _first_in_order(waiting: Sequence[tuple[_Partition, int]], most: int) -> list[Record]:
    """The first ``most`` records, in the global order, of partitions that each begin at an index."""
    if sum(len(log.records) - first for log, first in waiting) > most:
        ends = _ends_of_the_first(waiting, most)
    else:
        ends = [len(log.records) for log, _ in waiting]
    if len(waiting) == 1:
        (log, first), (end,) = waiting[0], ends
        return log.records[first:end]
    pairs = [
        pair
        for (log, first), end in zip(waiting, ends, strict=True)
        for pair in zip(log.order[first:end], log.records[first:end], strict=True)
    ]
    pairs.sort(key=itemgetter(0))
    return [record for _, record in pairs]


def _ends_of_the_first(waiting: Sequence[tuple[_Partition, int]], most: int) -> list[int]:
    """Where the first ``most`` records end in each partition: found by halving the global order, not by merging."""
    low = 0
    high = max(log.order[-1] for log, first in waiting if first < len(log.order)) + 1
    while low < high:
        middle = (low + high) // 2
        if sum(bisect_left(log.order, middle, first) - first for log, first in waiting) < most:
            low = middle + 1
        else:
            high = middle
    return [bisect_left(log.order, low, first) for log, first in waiting]


def _own_record_time(headers: Headers) -> tuple[int, Headers]:
    """The record time a source states in a header (0: none), and the headers without it."""
    for name, value in headers:
        if name == RECORD_TIME_HEADER:
            return int(value), tuple([pair for pair in headers if pair[0] != RECORD_TIME_HEADER])
    return 0, headers


def _bytes_of(record: Record) -> int:
    return len(record.key or b"") + len(record.value or b"")
