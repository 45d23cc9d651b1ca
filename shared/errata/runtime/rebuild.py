"""What a changelog holds, and writing it anew from the input: for people, while the stage does not run.

A rebuild reads the input of the last days again, up to where the group stands, drops what comes out, and writes what
the stage then knows. A small state is written in one transaction with its position: before it the old one stands, after
it the new. A larger one needs several. The first then marks the partition, and until the last has taken the mark away
the stage refuses it (``rebuild_unfinished``): what a rebuild that was killed left behind can never be started on.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from errata.domain.array_codec import CODEC_ARRAYS, open_envelope, unpack_arrays
from errata.domain.detection import state as at
from errata.errors import ErrataError, Misconfigured, Refused, StateDamaged
from errata.ports import GroupsTransport, Offsets, Outgoing, Record, Stage, StateChange, StepResult, Transport
from errata.runtime.changelog import POSITION_KEY, PartitionLog, Position, check_digest, entries_of, read_records
from errata.runtime.receipts import Taken

BATCH = 5_000
CHUNK_BYTES, CHUNK_RECORDS = 8 << 20, 5_000  # of one transaction of a rebuild: it ends well within its time-out
READING_S = 6 * 3_600.0
WEEK_US = 7 * 86_400_000_000
NEWEST = 1_000  # offsets in which the newest record is looked for: behind it there may be marks of transactions


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A model as the changelog knows it. Times in microseconds since 1970, None when never."""

    tenant: str
    model: str
    purpose: str
    events: int
    outcomes: int
    last_seen_us: int | None
    open_episode: str | None


@dataclass(frozen=True, slots=True)
class HeldPartition:
    """One partition of a changelog. ``fault``: why a restore would refuse it, as far as the changelog itself tells."""

    partition: int
    position: Mapping[str, int]
    watermark_us: int | None
    fault: str | None
    records: int
    bytes: int
    slots: Sequence[HeldSlot]


def held(transport: Transport, topic: str, partition: int) -> HeldPartition | None:
    """What a partition of a changelog holds; None when it is empty."""
    position: Position | None = None
    fault = None
    try:
        records, position = read_records(transport, topic, partition)
        check_digest(topic, partition, records, position)
    except StateDamaged as error:
        records, fault = {}, error.reason
        for key, value in _newest(transport, topic, partition).items():
            records[key] = value
    if not records and position is None:
        return None
    return HeldPartition(
        partition,
        {name: taken.end for name, taken in position.inputs.items()} if position else {},
        position.watermark_us if position else None,
        fault,
        len(records),
        sum(len(key) + len(value) for key, value in records.items()),
        _slots(records),
    )


def _slots(records: Mapping[bytes, bytes]) -> list[HeldSlot]:
    try:
        values = [unpack_arrays(value) for value in entries_of(records).values() if _is_arrays(value)]
        return sorted(
            (_slot(meta, arrays) for _, meta, arrays in values if "slot" in meta),
            key=lambda slot: (slot.tenant, slot.model, slot.purpose),
        )
    except (ValueError, LookupError, TypeError):
        return []  # the fault is told by its reason


def _is_arrays(value: bytes) -> bool:
    return open_envelope(value)[0] == CODEC_ARRAYS


def _slot(meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> HeldSlot:
    tenant, model, purpose = meta["slot"]
    current = meta["episodes"]["current"]
    seen_us = meta.get("seen_us", at.UNSEEN_US)
    return HeldSlot(
        tenant,
        model,
        purpose,
        int(arrays["fixed"][at.EVENTS]),
        int(arrays["fixed"][at.OUTCOMES]),
        None if seen_us == at.UNSEEN_US else seen_us,
        None if current is None else str(current["id"]),
    )


def _newest(transport: Transport, topic: str, partition: int) -> dict[bytes, bytes]:
    """The newest record of each key as it lies there, whatever state it is in."""
    found: dict[bytes, bytes] = {}
    for record in transport.read_from((topic, partition)):
        if record.value is None:
            found.pop(record.key or b"", None)
        else:
            found[record.key or b""] = record.value
    return found


@dataclass(slots=True)
class Rebuilt:
    """What the rebuild of a partition came to; ``skipped``: records that break the stage's step."""

    partition: int
    records: int = 0
    skipped: int = 0
    entries: dict[bytes, bytes] = field(default_factory=dict)
    watermark_us: int | None = None
    transactions: int = 0


MakeStage = Callable[[], Stage]
OnRecords = Callable[[int], None]


def rebuilder(
    make_stage: MakeStage, transport: Transport, config_hash: str, window_us: int = WEEK_US
) -> Callable[[int, Offsets], None]:
    """Makes the state of one partition anew from the last days before where its group stands."""

    def rebuild(number: int, committed: Offsets) -> None:
        stage = make_stage()
        own = {place: offset for place, offset in committed.items() if place[1] == number}
        since_us = newest_us(transport, (stage.input, *stage.side_inputs), own) - window_us
        rebuild_partition(make_stage, transport, number, own, since_us, config_hash=config_hash)

    return rebuild


def refuse_running(transport: GroupsTransport, group: str) -> None:
    members = transport.group_members(group)
    if members:
        raise Misconfigured(
            f"group {group} runs (instance {', '.join(members)}): stop it first; one that was killed leaves within"
            " its session time-out"
        )


def newest_us(transport: Transport, topics: Sequence[str], ends: Offsets) -> int:
    """The record time of the newest record that the group has read, microseconds since 1970; 0 without any."""
    newest = 0
    for topic in topics:
        for number in range(transport.partitions(topic)):
            end = ends.get((topic, number), 0)
            for record in transport.read_from((topic, number), max(0, end - NEWEST)) if end else ():
                if record.offset >= end:
                    break
                newest = max(newest, record.timestamp_us)
    return newest


def rebuild_partition(
    make_stage: MakeStage,
    transport: Transport,
    number: int,
    committed: Offsets,
    since_us: int,
    *,
    config_hash: str,
    on_records: OnRecords = lambda records: None,
    on_transaction: Callable[[int], None] = lambda done: None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Rebuilt:
    """Write the state of one partition anew, from the records before ``committed`` that came since ``since_us``.

    ``on_transaction`` is called before each transaction's commit, with how many came before.
    """
    stage = make_stage()
    topic: str | None = getattr(stage, "state_topic", None)
    if topic is None:
        raise Misconfigured(f"stage {stage.name} keeps no state")
    topics = (stage.input, *stage.side_inputs)
    rebuilt = Rebuilt(number)
    stage.restore(number, {})
    records = _records(transport, topics, number, committed, since_us)
    while batch := list(islice(records, BATCH)):
        _replay(stage, batch, rebuilt)
        rebuilt.records += len(batch)
        on_records(len(batch))
    ends = {name: committed.get((name, number), 0) for name in topics}
    position = Position(
        {name: Taken(end, end, 0) for name, end in ends.items() if end},
        config_hash=config_hash,
        watermark_us=rebuilt.watermark_us,
    )
    changes = [StateChange(number, key, value) for key, value in sorted(rebuilt.entries.items())]
    fresh = PartitionLog(number, {}, None).stage(topic, changes, position)
    written = {record.key for record in fresh}
    old = [key for key in _newest(transport, topic, number) if key not in written]
    gone = [Outgoing(topic, key, None, partition=number) for key in old]
    if not any(ends.values()):  # the group has read nothing: it begins with nothing
        fresh, gone = [], [*gone, Outgoing(topic, POSITION_KEY, None, partition=number)]
    _write(stage.name, transport, topic, number, [*gone, *fresh], rebuilt, on_transaction, chunk_bytes)
    return rebuilt


def _records(
    transport: Transport, topics: Sequence[str], number: int, committed: Offsets, since_us: int
) -> Iterator[Record]:
    """Records of the stage's inputs by record time; of equal times in the order of the topics."""
    return heapq.merge(
        *(_known(transport, (topic, number), committed.get((topic, number), 0), since_us) for topic in topics),
        key=lambda record: record.timestamp_us,
    )


def _known(transport: Transport, place: tuple[str, int], end: int, since_us: int) -> Iterator[Record]:
    if not end:
        return
    for record in transport.read_from(place, timeout_s=READING_S):
        if record.offset >= end:
            return
        if record.timestamp_us >= since_us:
            yield record


def _replay(stage: Stage, batch: Sequence[Record], rebuilt: Rebuilt) -> None:
    """Step a batch. A record that breaks the step became a dead letter in its time, and is left out here too."""
    try:
        result = stage.step(batch, stage.prepare(batch))
    except Exception as error:
        stage.rollback()
        if isinstance(error, ErrataError) and not isinstance(error, Refused):
            raise
        if len(batch) == 1:
            rebuilt.skipped += 1
            return
        middle = len(batch) // 2
        _replay(stage, batch[:middle], rebuilt)
        _replay(stage, batch[middle:], rebuilt)
    else:
        stage.commit()
        _book(result, rebuilt)


def _book(result: StepResult, rebuilt: Rebuilt) -> None:
    for change in result.changes:
        if change.value is None:
            rebuilt.entries.pop(change.key, None)
        else:
            rebuilt.entries[change.key] = change.value
    times = [us for us in (rebuilt.watermark_us, result.max_event_time_us) if us is not None]
    rebuilt.watermark_us = max(times, default=None)


def _write(
    name: str,
    transport: Transport,
    topic: str,
    number: int,
    records: Sequence[Outgoing],
    rebuilt: Rebuilt,
    on_transaction: Callable[[int], None],
    chunk_bytes: int,
) -> None:
    chunks = _chunks(records, chunk_bytes)
    if len(chunks) > 1:
        mark = Outgoing(topic, POSITION_KEY, Position({}, rebuilding=True).to_value(), partition=number)
        chunks[0].insert(0, mark)
    producer = transport.producer(f"errata.{name}-rebuild-{number}")  # of two rebuilds at once the newer goes on
    try:
        for chunk in chunks:
            producer.begin()
            for record in chunk:
                producer.produce(record)
            on_transaction(rebuilt.transactions)
            producer.commit()
            rebuilt.transactions += 1
    finally:
        producer.close()


def _chunks(records: Sequence[Outgoing], chunk_bytes: int) -> list[list[Outgoing]]:
    """In their order, so that the position comes last."""
    chunks: list[list[Outgoing]] = [[]]
    held_bytes = 0
    for record in records:
        size = len(record.key or b"") + len(record.value or b"")
        if chunks[-1] and (held_bytes + size > chunk_bytes or len(chunks[-1]) >= CHUNK_RECORDS):
            chunks.append([])
            held_bytes = 0
        chunks[-1].append(record)
        held_bytes += size
    return chunks
