"""The boundaries of errata. Each docstring states what an implementation guarantees; one suite tests them all."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import compress, islice
from operator import ne
from typing import Any, NamedTuple, Protocol, cast, overload

from errata.contracts import ChangeEvent, FailureCase, TaggedCase
from errata.domain.catalogue.lifecycle import Move, Revision
from errata.domain.catalogue.queries import CaseCounts, CaseQuery
from errata.domain.columns import Batch, Layout
from errata.errors import RefusalClass, Refused, Unavailable

Headers = tuple[tuple[str, bytes], ...]
TopicPartition = tuple[str, int]
Offsets = dict[TopicPartition, int]


class Record(NamedTuple):
    """One record as read. ``timestamp_us`` is the record time (LogAppendTime), microseconds since 1970.

    A tuple, since batches of them are taken apart field by field; see `Records`.
    """

    topic: str
    partition: int
    offset: int
    timestamp_us: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


Columns = tuple[
    Sequence[str], Sequence[int], Sequence[int], Sequence[int],
    Sequence[bytes | None], Sequence[bytes | None], Sequence[Headers],
]  # fmt: skip
"""The fields of some records, in the order of `Record`."""


class Records(Sequence[Record]):
    """Records field by field, as a client reads them and a decoder wants them; one is made when it is asked for.

    >>> records = Records((("a", "a"), (0, 0), (7, 8), (1, 1), (None, None), (b"x", b"y"), ((), ())))
    >>> records[1].value, [record.offset for record in records[:1]], len(records)
    (b'y', [7], 2)
    """

    __slots__ = ("columns",)

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def extend(self, more: "Records") -> None:
        """Put others behind these, whose columns must be lists.

        >>> records = Records((["a"], [0], [7], [1], [None], [b"x"], [()]))
        >>> records.extend(records[:])
        >>> [record.offset for record in records]
        [7, 7]
        """
        for mine, theirs in zip(self.columns, more.columns, strict=True):
            cast(list[Any], mine).extend(theirs)

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[Record]:
        return map(Record._make, zip(*self.columns, strict=True))

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> "Records": ...
    def __getitem__(self, at: int | slice) -> "Record | Records":
        fields = tuple(column[at] for column in self.columns)
        return Records(cast(Columns, fields)) if isinstance(at, slice) else Record(*cast(Any, fields))


def columns_of(records: Sequence[Record]) -> Columns:
    """The fields of records, however they are held."""
    if isinstance(records, Records):
        return records.columns
    return cast(Columns, tuple(zip(*records, strict=True)) if records else ((),) * len(Record._fields))


def runs_of(records: Sequence[Record]) -> Iterator[tuple[TopicPartition, int, int]]:
    """Neighbours of one topic and partition: their place, where they begin and where they end. A client hands out
    hundreds of one place in a row, so this costs a tenth of looking at each.

    >>> rows = Records((("a", "a", "b"), (0, 0, 0), (7, 8, 1), (1, 1, 1), (None,) * 3, (b"x",) * 3, ((),) * 3))
    >>> list(runs_of(rows))
    [(('a', 0), 0, 2), (('b', 0), 2, 3)]
    """
    topics, partitions, *_ = columns_of(records)
    n = len(topics)
    ends = set(compress(range(1, n), map(ne, partitions, islice(partitions, 1, None))))
    if n and topics.count(topics[0]) < n:
        ends.update(compress(range(1, n), map(ne, topics, islice(topics, 1, None))))
    start = 0
    for end in [*sorted(ends), n] if n else []:
        yield (topics[start], partitions[start]), start, end
        start = end


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to write. Without ``partition`` the key decides (murmur2, as Java's default does)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Consumer(Protocol):
    """A member of a consumer group.

    Reads committed records only, in offset order within a partition. What it has read and what the group has
    committed are two things: only a producer's transaction moves the committed offsets.
    """

    def poll(self, most: int, timeout_s: float = 0.0) -> Sequence[Record]:
        """What is there, at most ``most`` records; never waits to fill. Rebalance callbacks run in here only."""

    def assignment(self) -> set[TopicPartition]: ...

    def committed(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """The group's committed next offsets; a partition nobody committed is absent, also one that was only given an
        offset to begin at."""

    def position(self, partition: TopicPartition) -> int: ...

    def seek(self, partition: TopicPartition, offset: int) -> None: ...

    def pause(self, partitions: Iterable[TopicPartition]) -> None: ...

    def resume(self, partitions: Iterable[TopicPartition]) -> None: ...

    def close(self) -> None: ...


class Producer(Protocol):
    """A transactional producer. Making one fences its predecessor of the same id and aborts what that left open.

    Records and offsets of a transaction become visible together at ``commit``, or never. A fenced producer raises
    ``Fenced``; a void transaction raises ``Aborted``.
    """

    def begin(self) -> None: ...

    def produce(self, record: Outgoing) -> None: ...

    def send_offsets(self, offsets: Offsets, consumer: Consumer) -> None:
        """Put the group's next offsets into the transaction. A member of an older generation raises ``Aborted``."""

    def commit(self) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


OnPartitions = Callable[[set[TopicPartition]], None]


class Transport(Protocol):
    """A log of topics and partitions with groups and transactions."""

    def partitions(self, topic: str) -> int: ...

    def consumer(
        self,
        group: str,
        topic: str,
        *,
        instance: str,
        side_inputs: Sequence[str] = (),
        on_assign: OnPartitions | None = None,
        on_revoke: OnPartitions | None = None,
    ) -> Consumer:
        """Join ``group`` on ``topic``; the same-numbered partitions of ``side_inputs`` come along."""

    def producer(self, transactional_id: str) -> Producer: ...

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]:
        """All committed records from ``offset`` to the end as it is now, outside any group.

        ``timeout_s``: for all of them; one that is not read by then raises ``Unavailable``."""

    def read_at(self, partition: TopicPartition, offsets: Sequence[int]) -> list[Record | None]:
        """The committed records at these offsets; None for one that is gone or was never there."""

    def end_offset(self, partition: TopicPartition) -> int: ...

    def end_offsets(self, partitions: Iterable[TopicPartition], *, timeout_s: float | None = None) -> Offsets:
        """The ends of partitions by one request; at or behind every record that was written before."""

    def begin_offsets(self, partitions: Iterable[TopicPartition], *, timeout_s: float | None = None) -> Offsets:
        """The first offsets that are kept, by one request; 0 where nothing has expired."""

    def close(self) -> None: ...


class GroupsTransport(Transport, Protocol):
    """A transport that also tells of groups without joining them."""

    def group_members(self, group: str) -> list[str]:
        """The instances that are in a group now; none for a group that is not there."""

    def group_offsets(self, group: str, partitions: Iterable[TopicPartition]) -> Offsets:
        """As ``Consumer.committed``, of a group that may be stopped."""


class Decoder(Protocol):
    """Records of predictions and outcomes to columns and refusals; accepts and refuses what the contract does.

    ``layouts`` maps the record key to the layout of its model; a model it does not know gets an empty layout (no
    features counted). Rows of all models of the batch come back in one set of columns, in receipt order.
    """

    def decode(self, records: Sequence[Record], layouts: Mapping[bytes, Layout]) -> Batch: ...


@dataclass(frozen=True, slots=True)
class Route:
    """Where a published line belongs. ``time_us``: the time it happened, None when it says none that can be read."""

    topic: str
    key: bytes | None
    time_us: int | None


class Router(Protocol):
    """Tells of one JSON line whether it is a prediction, an outcome or a change, and whose.

    Judges nothing: a line that cannot be read is routed to predictions without a key, where the detector refuses it.
    """

    def route(self, line: bytes) -> Route: ...


@dataclass(frozen=True, slots=True)
class StateChange:
    """A record of the changelog: ``value`` None deletes the key."""

    partition: int
    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class DeadInput:
    """An input the step refused, and why."""

    record: Record
    refusal: Refused


@dataclass(slots=True)
class StepResult:
    """What a step made of a batch. Every record of the batch has one disposition: processed, dead or dropped."""

    outputs: list[Outgoing] = field(default_factory=list)
    rekeyed: list[Outgoing] = field(default_factory=list)  # inputs sent to their place; also in ``dropped``
    changes: list[StateChange] = field(default_factory=list)
    notes: list[Outgoing] = field(default_factory=list)  # for the stage itself; no other takes them in
    dead: list[DeadInput] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    max_event_time_us: int | None = None
    newest_heartbeat_us: int | None = None  # of the heartbeats among ``outputs``


class Stage(Protocol):
    """A pure step over a batch. The worker around it does all the reading, writing and committing.

    ``step`` sees no clock, no randomness and no I/O beyond what ``prepare`` fetched, and its outputs do not depend
    on how the records are cut into batches. After each ``step`` the worker calls either ``commit`` or ``rollback``;
    ``rollback`` brings the state back to the last commit. A stage with a method ``due() -> bool`` has work of its own:
    when it says so, between batches, ``prepare`` and ``step`` are called with no records.
    """

    name: str
    input: str
    side_inputs: tuple[str, ...]

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        """Take over a partition with its state as the changelog has it (newest value per key, no tombstones)."""

    def revoke(self, partition: int) -> None:
        """Give a partition up and drop its state."""

    def prepare(self, batch: Sequence[Record]) -> Any:
        """Fetch from outside what the step needs, before the transaction opens. May raise ``Unavailable``."""

    def step(self, batch: Sequence[Record], prepared: Any) -> StepResult: ...

    def commit(self) -> None: ...

    def rollback(self) -> None: ...


class TableStage(Protocol):
    """What is made of records: state by key, and results that are absolute. All calls come from one thread."""

    def restore(self, entries: Mapping[int, Mapping[bytes, bytes]]) -> None:
        """Take over these partitions, and no others, with the state that each of them has."""

    def position(self, partition: int) -> int | None:
        """The next offset by the state; None when there is none."""

    def take(self, record: Record) -> Sequence[StateChange]:
        """State changes of a record, to be written in this order. What it refuses it turns into a dead letter."""

    def results(self) -> Sequence[Outgoing]:
        """What there is to publish since the last call."""

    def assigned(self, positions: Mapping[int, int]) -> None:
        """The partitions are restored, and reading goes on at these offsets."""

    def lost(self) -> None:
        """A rebalance has begun: nothing is taken until it has ended."""

    def committed(self, positions: Mapping[int, int]) -> None:
        """State, results and then these offsets are written."""

    def lag(self, records: Mapping[int, int]) -> None:
        """Records that wait in each partition."""


class TableWorker(Protocol):
    """A member of a group that runs by itself: ``run_once`` waits, and raises what ended it."""

    @property
    def turned_s(self) -> float:
        """When its loop last turned, monotonic, in seconds."""

    def run_once(self, timeout_s: float = 0.0) -> int: ...

    def close(self) -> None: ...


class ContextIncomplete(Unavailable):
    """The context store answers, but has lost what it held or never held it: fill it."""


class ChangesFound(NamedTuple):
    """Changes by time and id, and how many older ones there are that were not asked for.

    ``left_out`` is exact; of a subject with thousands of changes a store may count the records that told them."""

    changes: list[ChangeEvent]
    left_out: int = 0


class ContextStore(Protocol):
    """Changes by subject and time. Holds nothing that cannot be rebuilt from ``errata.changes.v1``."""

    def add(self, changes: Sequence[tuple[ChangeEvent, int]]) -> None:
        """Keep changes with their record times in microseconds; the same change twice is one."""

    def fill(self, batches: Iterable[Sequence[tuple[ChangeEvent, int]]]) -> int:
        """Add all changes of ``errata.changes.v1``, after which the store counts as complete; how many there were."""

    def between(self, wanted: Sequence[tuple[str, str, int, int, int]], most: int | None = None) -> list[ChangesFound]:
        """For each (tenant, subject, from_us, to_us, seen_before_us): changes with from <= time <= to whose record
        time is before ``seen_before_us``, by time and id; of more than ``most`` the last. Raises ``Unavailable``, and
        `ContextIncomplete` rather than say of lost changes that there were none."""


class Cipher(Protocol):
    """Authenticated encryption with one key. ``open`` raises ``ValueError`` for what was not sealed with it."""

    def seal(self, plain: bytes, context: bytes) -> bytes: ...

    def open(self, sealed: bytes, context: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SinkDeadLetter:
    """A record the catalogue could not take. ``payload`` is sealed, or None without a cipher."""

    topic: str
    partition: int
    offset: int
    timestamp_us: int
    refusal_class: RefusalClass
    path: str
    message: str
    payload: bytes | None = None


class LeaderLock(Protocol):
    """One holder among all processes that ask for it. Whoever dies, or whose session with the server ends, holds it no
    more, and another gets it within seconds."""

    def acquire(self) -> bool:
        """Whether this process has it now; never waits for another to let go. Raises ``Unavailable`` while the server
        does not answer, and ``Misconfigured``."""

    def held(self) -> bool:
        """Whether the server still knows this process as the holder. Never raises: without an answer it is lost."""

    def release(self) -> None:
        """Let go, if it is held."""

    def close(self) -> None: ...


CrashHook = Callable[[str], None]


def never_crash(point: str) -> None:
    """The crash hook of every run in which no crash point is armed."""


class Catalogue(Protocol):
    """The cases, their revisions, and the positions up to which topics are in them: one database, one truth.

    A database that does not answer raises ``Unavailable``; one of another schema raises ``Misconfigured``.
    """

    def migrate(self) -> None:
        """Create the database or bring it to this version's schema; nothing happens when it is there already."""

    def claim(self, group: str, owner: str, partitions: Iterable[TopicPartition]) -> Offsets:
        """Make ``owner`` the only writer of these partitions' positions, and return them (0: nothing written yet).

        The owner before it is fenced: its next ``apply`` raises ``Fenced``.
        """

    def apply(
        self,
        cases: Sequence[TaggedCase],
        positions: Offsets,
        group: str,
        owner: str,
        *,
        dead: Sequence[SinkDeadLetter] = (),
        crash: CrashHook = never_crash,
    ) -> int:
        """Write cases, dead letters and next offsets in ONE transaction; returns the number of new revisions.

        Of a case the newer ``episode.seq`` wins, and each newer seq with changed content makes one revision, however
        the records are cut into batches; a replayed record changes nothing. ``status`` and people's fields are never
        touched. ``crash`` is called with ``AFTER_ROWS`` and ``AFTER_POSITION`` inside the transaction and with
        ``AFTER_DB_COMMIT`` behind it. Raises ``Fenced`` when ``owner`` does not hold the positions, and ``Refused``
        when a value cannot be stored; then nothing of the call is written.
        """

    def cases(self, query: CaseQuery) -> list[FailureCase]:
        """The cases that match, newest first."""

    def case(self, reference: str) -> FailureCase:
        """One case by ``case_id``, by its first eight characters or more, or by short id (case does not matter).

        Raises ``NotFound`` with the nearest known id."""

    def revisions(self, reference: str) -> list[Revision]:
        """All revisions of a case, oldest first; their fold is the case."""

    def move(
        self, reference: str, move: Move, *, actor: str, at: datetime, rejection: str | None = None, note: str = ""
    ) -> FailureCase:
        """Move a case along its life cycle as one revision. Raises ``IllegalMove`` naming the allowed moves."""

    def counts(self) -> CaseCounts: ...

    def open_cases(self) -> dict[str, int]:
        """How many cases are open, their episode not closed, by root class; a class without any is absent."""

    def dead_letters(self, limit: int = 100) -> list[SinkDeadLetter]:
        """The records the catalogue could not take, by place."""

    def close(self) -> None: ...
