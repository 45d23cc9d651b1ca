"""A stage's state as records of a compacted topic, written in the transaction that changed it.

Keys are ``0x01`` and the state key. A value above 256 KiB stands in parts under ``0x02``, the state key, ``#`` and the
number of the part, and its own key says how many there are. Beside them each partition has a position record (key
``0x00 pos``): where the inputs stood, and a digest of all other records. So state that does not belong to the group's
committed offsets, or is not whole, is found at restore. The digest is meant against accidents, not against attackers.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256

from errata.contracts import canonical
from errata.domain.array_codec import CODEC_PARTS, envelope_of, open_envelope, pack_json, seal_envelope, unpack_json
from errata.domain.state_schemas import Schema
from errata.errors import HangingTransaction, StateDamaged
from errata.ports import Offsets, Outgoing, StateChange, Transport
from errata.runtime.receipts import Taken

POSITION_KEY = b"\x00pos"
TABLE_KEY = b"\x00tab"
MAX_VALUE_BYTES = 256 * 1024

_STATE, _PART = b"\x01", b"\x02"
_DIGEST_KEY = b"errata changelog"
_POSITION = Schema("position record", 1)
_PARTS_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Position:
    """Where a partition stood after its last transaction.

    ``inputs`` maps a topic to (from, to, delivered) of that transaction; ``out``, ``dlq`` and ``dropped`` are counts of
    the whole transaction, ``watermark_us`` the highest event time so far. ``partition`` says whose it is (None: it was
    written before positions said so). ``rebuilding``: `errata state rebuild` has begun to write and not ended.
    """

    inputs: Mapping[str, Taken]
    out: int = 0
    dlq: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    config_hash: str = ""
    watermark_us: int | None = None
    digest: int = 0
    partition: int | None = None
    rebuilding: bool = False

    def to_value(self) -> bytes:
        inputs = {t: {"from": x.start, "to": x.end, "delivered": x.delivered} for t, x in self.inputs.items()}
        return pack_json(
            _POSITION.version,
            {
                "in": inputs,
                "out": self.out,
                "dlq": self.dlq,
                "drop": dict(self.dropped),
                "cfg": self.config_hash,
                "wm": self.watermark_us,
                "dig": f"{self.digest:032x}",
                **({} if self.partition is None else {"part": self.partition}),
                **({"rebuilding": True} if self.rebuilding else {}),
            },
        )

    @classmethod
    def from_value(cls, value: bytes) -> "Position":
        found = _POSITION.read(*unpack_json(value))
        return cls(
            inputs={topic: Taken(x["from"], x["to"], x["delivered"]) for topic, x in found["in"].items()},
            out=found["out"],
            dlq=found["dlq"],
            dropped=found["drop"],
            config_hash=found["cfg"],
            watermark_us=found["wm"],
            digest=int(found["dig"], 16),
            partition=found.get("part"),
            rebuilding=found.get("rebuilding", False),
        )


class PartitionLog:
    """What the changelog of one partition holds, by hash: enough to write the next transaction's records.

    `stage` is called once a transaction, then `commit` or `rollback`.
    """

    def __init__(
        self,
        partition: int,
        records: Mapping[bytes, bytes],
        position: Position | None,
        hashes: dict[bytes, int] | None = None,
    ) -> None:
        """``hashes``: of the records, by key, where they are known."""
        self.position = position
        self._partition = partition
        self._hashes = hashes_of(records) if hashes is None else hashes
        self._digest = _xor(self._hashes.values())
        self._parts = _in_parts({key[1:]: _parts_of(value) for key, value in records.items() if key[:1] == _STATE})
        self._pending: tuple[dict[bytes, int | None], dict[bytes, int], int, Position] | None = None

    @property
    def digest(self) -> int:
        return self._digest

    def stage(self, topic: str, changes: Iterable[StateChange], position: Position) -> list[Outgoing]:
        """The records of this partition's changes and of its position; one record a key, the last change wins."""
        hashes: dict[bytes, int | None] = {}
        parts: dict[bytes, int] = {}
        outgoing: list[Outgoing] = []
        digest = self._digest
        for key, value in {change.key: change.value for change in changes}.items():
            before = self._parts.get(key, 0)
            records, parts[key] = _records_of(key, value, before)
            for wire_key, wire_value in records:
                fresh = None if wire_value is None else _hash(wire_key, wire_value)
                digest ^= self._hashes.get(wire_key, 0) ^ (fresh or 0)
                hashes[wire_key] = fresh
                outgoing.append(Outgoing(topic, wire_key, wire_value, partition=self._partition))
        position = replace(position, digest=digest, partition=self._partition)
        self._pending = (hashes, parts, digest, position)
        return [*outgoing, Outgoing(topic, POSITION_KEY, position.to_value(), partition=self._partition)]

    def commit(self) -> None:
        if self._pending is None:
            return
        hashes, parts, self._digest, self.position = self._pending
        for key, fresh in hashes.items():
            if fresh is None:
                self._hashes.pop(key, None)
            else:
                self._hashes[key] = fresh
        self._parts = _in_parts(self._parts | parts)
        self._pending = None

    def rollback(self) -> None:
        self._pending = None


def read_records(transport: Transport, topic: str, partition: int) -> tuple[dict[bytes, bytes], Position | None]:
    """The newest record of each key, tombstones and the position record taken out; the position beside them."""
    records: dict[bytes, bytes] = {}
    try:
        for record in transport.read_from((topic, partition)):
            key = record.key or b""
            if record.value is None:
                records.pop(key, None)
            else:
                records[key] = record.value
    except HangingTransaction as error:
        raise StateDamaged(str(error)) from error
    value = records.pop(POSITION_KEY, None)
    if value is None:
        return records, None
    try:
        return records, Position.from_value(value)
    except StateDamaged as error:
        raise located(error, topic, partition) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(topic, partition, "position", "its position record cannot be read") from error


def entries_of(records: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """State keys and values: parts put together, the leading byte gone. The table entry keeps its own key."""
    entries: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key == TABLE_KEY:
            entries[key] = value
        elif key[:1] == _STATE:
            entries[key[1:]] = _join(key[1:], value, records)
    return entries


def read_state(transport: Transport, topic: str, partition: int) -> tuple[dict[bytes, bytes], Position | None]:
    """State entries and position of a partition. Raises ``StateDamaged`` when they are not whole (``digest``)."""
    records, position = read_records(transport, topic, partition)
    check_digest(topic, partition, records, position)
    return entries_of(records), position


def check_digest(
    topic: str, partition: int, records: Mapping[bytes, bytes], position: Position | None
) -> dict[bytes, int]:
    """The hashes of the records, by key. Raises ``StateDamaged`` unless they are exactly those the position record was
    written with.

    Reasons: ``position_missing``, ``rebuild_unfinished``, ``wrong_partition``, ``foreign_key`` (of nobody that writes
    changelogs), else ``digest``.
    """
    if position is None and records:
        raise _damaged(topic, partition, "position_missing", "it has records, and no position record")
    if position is not None and position.rebuilding:
        raise StateDamaged(
            f"rebuild_unfinished: {topic} partition {partition}: errata state rebuild was ended before its last"
            " transaction; run it again"
        )
    if position is not None and position.partition not in (None, partition):
        raise _damaged(topic, partition, "wrong_partition", f"its records are those of partition {position.partition}")
    if any(key != TABLE_KEY and key[:1] not in (_STATE, _PART) for key in records):
        raise _damaged(topic, partition, "foreign_key", "it holds a record that no stage wrote")
    wanted = position.digest if position else 0
    hashes = hashes_of(records)
    if _xor(hashes.values()) != wanted:
        raise _damaged(topic, partition, "digest", "its records are not those that were committed together")
    return hashes


def hashes_of(records: Mapping[bytes, bytes]) -> dict[bytes, int]:
    return {key: _hash(key, value) for key, value in records.items()}


def check_position(
    topic: str,
    partition: int,
    position: Position | None,
    committed: Offsets,
    *,
    inputs: Sequence[str],
    config_hash: str = "",
    migrates: Container[str] = (),
) -> None:
    """Compare where the state stood with what the group has committed, for each input topic.

    Raises ``StateDamaged`` with reason ``state_behind`` (the changelog lacks a transaction), ``state_ahead`` (the group
    was rewound) or ``config`` (the state was made by detectors of another configuration, and not of one among
    ``migrates``, which this one goes on from). Nothing on either side is a
    fresh start: ``committed`` is without offsets that a group was only given to begin at, wherever its log begins.
    """
    for name in inputs:
        at = position.inputs[name].end if position and name in position.inputs else 0
        group_at = committed.get((name, partition), 0)
        if position is None and group_at == 0:
            continue
        if at < group_at:
            raise _damaged(topic, partition, "state_behind", f"{name} is committed to {group_at}, the state to {at}")
        if at > group_at:
            raise _damaged(topic, partition, "state_ahead", f"{name} is committed to {group_at}, the state to {at}")
    made_by = position.config_hash if position else ""
    if config_hash and made_by and made_by != config_hash and made_by not in migrates:
        raise _damaged(topic, partition, "config", "its state was made under another configuration")


def config_hash(config: object) -> str:
    """SHA-256 of plain configuration data in canonical JSON."""
    return sha256(canonical(config)).hexdigest()


def located(error: StateDamaged, topic: str, partition: int) -> StateDamaged:
    """The same, saying where: whoever found it knows its reason, and not the place."""
    _, _, what = str(error).partition(": ")
    return StateDamaged(f"{error.reason}: {topic} partition {partition}: {what}")


def unreadable(topic: str, partition: int) -> StateDamaged:
    return _damaged(topic, partition, "unreadable", "a record is not what this stage writes")


def _damaged(topic: str, partition: int, reason: str, what: str) -> StateDamaged:
    remedy = "stop the stage and run errata state rebuild, or restore a backup"
    return StateDamaged(f"{reason}: {topic} partition {partition}: {what}; {remedy}")


def _records_of(key: bytes, value: bytes | None, before: int) -> tuple[list[tuple[bytes, bytes | None]], int]:
    """The records that bring ``key`` from ``before`` parts to ``value``, and its new number of parts."""
    wire_key = key if key == TABLE_KEY else _STATE + key
    pieces = _split(value)
    records: list[tuple[bytes, bytes | None]] = []
    if value is None or not pieces:
        records.append((wire_key, value))
    else:
        records.append((wire_key, _manifest(len(pieces), value)))
    records += [(_part_key(key, number), piece) for number, piece in enumerate(pieces)]
    records += [(_part_key(key, number), None) for number in range(len(pieces), before)]
    return records, len(pieces)


def _split(value: bytes | None) -> list[bytes]:
    if value is None:
        return []
    open_envelope(value)  # a stage that writes no envelope is found when it writes, not when it is restored
    if len(value) <= MAX_VALUE_BYTES:
        return []
    return [value[start : start + MAX_VALUE_BYTES] for start in range(0, len(value), MAX_VALUE_BYTES)]


def _part_key(key: bytes, number: int) -> bytes:
    return _PART + key + b"#" + str(number).encode()


def _manifest(parts: int, value: bytes) -> bytes:
    return seal_envelope(CODEC_PARTS, _PARTS_SCHEMA, canonical({"parts": parts, "bytes": len(value)}))


def _parts_of(value: bytes) -> int:
    codec, _ = envelope_of(value)
    return int(json.loads(open_envelope(value)[2])["parts"]) if codec == CODEC_PARTS else 0


def _in_parts(parts: Mapping[bytes, int]) -> dict[bytes, int]:
    """Of the keys, those whose values stand in parts, which hardly any does: there are thousands of keys."""
    return {key: n for key, n in parts.items() if n}


def _join(key: bytes, value: bytes, records: Mapping[bytes, bytes]) -> bytes:
    parts = _parts_of(value)
    return b"".join(records[_part_key(key, number)] for number in range(parts)) if parts else value


def _hash(key: bytes, value: bytes) -> int:
    digest = blake2b(len(key).to_bytes(4, "little"), digest_size=16, key=_DIGEST_KEY)
    digest.update(key)
    digest.update(value)
    return int.from_bytes(digest.digest(), "little")


def _xor(values: Iterable[int]) -> int:
    total = 0
    for value in values:
        total ^= value
    return total
