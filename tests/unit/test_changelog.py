"""State and offsets that do not belong together are refused at restore, each kind of damage by its name."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from errata.adapters.memory import MemoryTransport
from errata.contracts.topics import Topic
from errata.domain.array_codec import open_envelope, pack_arrays, pack_json, unpack_arrays, unpack_json
from errata.errors import HangingTransaction, StateDamaged
from errata.ports import Outgoing, Record, StateChange
from errata.runtime.changelog import (
    MAX_VALUE_BYTES,
    POSITION_KEY,
    TABLE_KEY,
    PartitionLog,
    Position,
    check_digest,
    check_position,
    entries_of,
    read_records,
    read_state,
)
from errata.runtime.receipts import Taken

TOPIC = "state"


def transport() -> MemoryTransport:
    return MemoryTransport({TOPIC: Topic(TOPIC, "a test", "key", 2, None, None, ("test",), ("test",))})


def write(log: MemoryTransport, records: list[Outgoing]) -> None:
    producer = log.producer("writer")
    producer.begin()
    for record in records:
        producer.produce(record)
    producer.commit()


def at(end: int, **what: object) -> Position:
    return replace(Position({"in": Taken(0, end, end)}), **what)  # type: ignore[arg-type]


def save(log: MemoryTransport, *batches: Mapping[bytes, bytes | None], partition: int = 0) -> PartitionLog:
    records, position = read_records(log, TOPIC, partition)
    changelog = PartitionLog(partition, records, position)
    for number, batch in enumerate(batches):
        changes = [StateChange(partition, key, value) for key, value in batch.items()]
        write(log, changelog.stage(TOPIC, changes, at(number + 1)))
        changelog.commit()
    return changelog


def value(number: int) -> bytes:
    return pack_json(1, number)


def test_newest_value_of_each_key_comes_back() -> None:
    log = transport()
    save(log, {b"a": value(1), b"b": value(2)}, {b"a": value(3)}, {b"b": None, b"c": value(4)})
    entries, position = read_state(log, TOPIC, 0)
    assert entries == {b"a": value(3), b"c": value(4)}
    assert position is not None
    assert position.inputs == {"in": Taken(0, 3, 3)}
    assert read_state(log, TOPIC, 1) == ({}, None)


def test_wire_form_is_as_published() -> None:
    log = transport()
    save(log, {b"a": value(7), TABLE_KEY: value(9)})
    wire = {record.key: record.value for record in log.read_from((TOPIC, 0))}
    assert wire[b"\x01a"] == b"\x01\x01\x01\x007"
    assert wire[b"\x00tab"] == value(9)
    _, position = unpack_json(wire[b"\x00pos"] or b"")
    assert position.keys() == {"in", "out", "dlq", "drop", "cfg", "wm", "dig", "part"}
    assert position["in"] == {"in": {"from": 0, "to": 1, "delivered": 1}}


def test_digest_does_not_depend_on_the_way_to_the_state() -> None:
    short, long = transport(), transport()
    one = save(short, {b"a": value(3), b"c": value(4)})
    other = save(
        long, {b"c": value(1)}, {b"a": value(1), b"b": value(2)}, {b"b": None, b"c": value(4)}, {b"a": value(3)}
    )
    assert one.digest == other.digest != 0


def test_rolled_back_changes_leave_no_trace() -> None:
    log = transport()
    changelog = save(log, {b"a": value(1)})
    before = changelog.digest
    changelog.stage(TOPIC, [StateChange(0, b"a", value(9)), StateChange(0, b"b", value(9))], at(9))
    changelog.rollback()
    assert changelog.digest == before
    write(log, changelog.stage(TOPIC, [StateChange(0, b"c", value(3))], at(2)))
    changelog.commit()
    assert read_state(log, TOPIC, 0)[0] == {b"a": value(1), b"c": value(3)}


@pytest.mark.parametrize("size", [MAX_VALUE_BYTES - 4, MAX_VALUE_BYTES - 3, 3 * MAX_VALUE_BYTES])
def test_large_value_is_split_and_put_together(size: int) -> None:
    log = transport()
    large = value(0)[:4] + b"x" * size
    save(log, {b"a#0": large, b"a": value(1)})
    assert all(len(record.value or b"") <= MAX_VALUE_BYTES for record in log.read_from((TOPIC, 0)))
    assert read_state(log, TOPIC, 0)[0] == {b"a#0": large, b"a": value(1)}


@pytest.mark.parametrize("after", [None, value(1), value(0)[:4] + b"y" * (MAX_VALUE_BYTES + 1)])
def test_parts_that_a_smaller_value_leaves_over_are_deleted(after: bytes | None) -> None:
    log = transport()
    save(log, {b"a": value(0)[:4] + b"x" * (4 * MAX_VALUE_BYTES)})
    save(log, {b"a": after})
    records, _ = read_records(log, TOPIC, 0)
    parts = [key for key in records if key[:1] == b"\x02"]
    assert len(parts) == (0 if after is None or len(after) < 100 else 2)
    assert read_state(log, TOPIC, 0)[0] == ({} if after is None else {b"a": after})


def test_value_without_an_envelope_is_found_when_it_is_written() -> None:
    with pytest.raises(ValueError, match="envelope"):
        save(transport(), {b"a": b"plain"})


Damage = Callable[[MemoryTransport], list[Outgoing]]
DAMAGES: dict[str, Damage] = {
    "a value changed": lambda log: [Outgoing(TOPIC, b"\x01a", value(99), partition=0)],
    "a key deleted": lambda log: [Outgoing(TOPIC, b"\x01a", None, partition=0)],
    "a foreign key": lambda log: [Outgoing(TOPIC, b"\x01z", value(1), partition=0)],
    "the position deleted": lambda log: [Outgoing(TOPIC, POSITION_KEY, None, partition=0)],
    "an older position": lambda log: [Outgoing(TOPIC, POSITION_KEY, at(1, digest=5).to_value(), partition=0)],
    "keys of another partition": lambda log: [
        Outgoing(TOPIC, record.key, record.value, partition=0) for record in log.read_from((TOPIC, 1))
    ],
    "a key of nobody": lambda log: [Outgoing(TOPIC, b"hello", b"world", partition=0)],
    "a rebuild that did not end": lambda log: [
        Outgoing(TOPIC, POSITION_KEY, at(2, rebuilding=True).to_value(), partition=0)
    ],
    "a table entry changed": lambda log: [Outgoing(TOPIC, TABLE_KEY, value(8), partition=0)],
}


REASONS = {
    "the position deleted": "position_missing",
    "keys of another partition": "wrong_partition",
    "a key of nobody": "foreign_key",
    "a rebuild that did not end": "rebuild_unfinished",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(damage: str) -> None:
    log = transport()
    save(log, {b"a": value(1), b"b": value(2), TABLE_KEY: value(3)}, {b"a": value(4)})
    save(log, {b"a": value(5)}, partition=1)
    read_state(log, TOPIC, 0)
    write(log, DAMAGES[damage](log))
    with pytest.raises(StateDamaged, match=rf"^{REASONS.get(damage, 'digest')}: state partition 0"):
        read_state(log, TOPIC, 0)


@pytest.mark.parametrize("bad", [b"", b"\x02\x01\x01\x00{}", pack_json(1, {}), pack_json(1, []), b"\x01\x01\x01\x00{"])
def test_position_that_cannot_be_read_is_named(bad: bytes) -> None:
    log = transport()
    write(log, [Outgoing(TOPIC, POSITION_KEY, bad, partition=0)])
    with pytest.raises(StateDamaged, match="position record cannot be read"):
        read_state(log, TOPIC, 0)


def check(position: Position | None, committed: Mapping[str, int], config_hash: str = "") -> None:
    offsets = {(topic, 0): offset for topic, offset in committed.items()}
    check_position(TOPIC, 0, position, offsets, inputs=("in", "side"), config_hash=config_hash)


def test_position_that_agrees_is_fine() -> None:
    check(None, {})
    check(at(5), {"in": 5})
    check(Position({"in": Taken(3, 5, 2), "side": Taken(1, 1, 0)}, config_hash="c"), {"in": 5, "side": 1}, "c")


@pytest.mark.parametrize(
    ("position", "committed", "reason"),
    [
        (None, {"in": 5}, "state_behind"),
        (at(4), {"in": 5}, "state_behind"),
        (at(5), {"in": 5, "side": 1}, "state_behind"),
        (at(5), {"in": 4}, "state_ahead"),
        (at(5), {}, "state_ahead"),
        (at(5, config_hash="old"), {"in": 5}, "config"),
    ],
)
def test_position_that_disagrees_is_refused_by_name(
    position: Position | None, committed: Mapping[str, int], reason: str
) -> None:
    with pytest.raises(StateDamaged, match=f"^{reason}: "):
        check(position, committed, "new")


def test_a_declared_migration_lets_state_of_another_configuration_go_on() -> None:
    offsets = {("in", 0): 5}
    made = at(5, config_hash="old")
    check_position(TOPIC, 0, made, offsets, inputs=("in",), config_hash="new", migrates={"old": "the same state"})
    with pytest.raises(StateDamaged, match=r"^config: "):
        check_position(TOPIC, 0, made, offsets, inputs=("in",), config_hash="new", migrates={"older": "it is not"})


def test_a_position_that_does_not_say_its_partition_is_read() -> None:
    assert b"part" not in at(3).to_value()
    check_digest(TOPIC, 1, {}, at(3))


def test_position_survives_its_wire_form() -> None:
    position = Position({"in": Taken(1, 5, 4)}, 3, 2, {"late": 1}, "abc", 1_700_000_000_000_000, 2**127 + 1, 3, True)
    assert Position.from_value(position.to_value()) == position


class Hanging(MemoryTransport):
    """A log in which a transaction does not end."""

    def read_from(self, *where: object, **how: object) -> Iterator[Record]:
        raise HangingTransaction("hanging_transaction: state partition 0 stands at 5, its end is 9")
        yield  # pragma: no cover


def test_a_transaction_that_does_not_end_stops_the_stage_by_its_name() -> None:
    log = Hanging({TOPIC: Topic(TOPIC, "a test", "key", 2, None, None, ("test",), ("test",))})
    with pytest.raises(StateDamaged, match=r"^hanging_transaction: state partition 0") as stopped:
        read_state(log, TOPIC, 0)
    assert (stopped.value.reason, stopped.value.exit_code) == ("hanging_transaction", 70)


def test_entries_hold_no_position_and_no_parts() -> None:
    assert entries_of({b"\x01a": value(1), TABLE_KEY: value(2)}) == {b"a": value(1), TABLE_KEY: value(2)}


def test_arrays_come_back_as_they_were() -> None:
    arrays = {
        "counts": np.arange(12, dtype=np.int64).reshape(3, 4).T,
        "big": np.array([1.5, np.nan, -np.inf], dtype=">f8"),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.int8),
        "one": np.array(7, np.uint64),
    }
    version, meta, back = unpack_arrays(pack_arrays(300, {"model": "é", "seq": 2**62}, arrays))
    assert (version, meta) == (300, {"model": "é", "seq": 2**62})
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].shape == array.shape
        assert back[name].dtype == array.dtype.newbyteorder("<")
        assert not back[name].flags.writeable  # a view of what is committed


def test_equal_arrays_have_equal_bytes() -> None:
    a, b = np.arange(3), np.arange(6).reshape(2, 3)
    assert pack_arrays(1, {"x": 1, "y": 2}, {"a": a, "b": b}) == pack_arrays(
        1, {"y": 2, "x": 1}, {"b": np.asfortranarray(b), "a": a.astype(">i8")}
    )


def test_arrays_of_objects_are_neither_written_nor_read() -> None:
    with pytest.raises(ValueError, match="holds object"):
        pack_arrays(1, {}, {"bad": np.array([{}], dtype=object)})
    forged = pack_arrays(1, {}, {"bad": np.arange(1)}).replace(b'"<i8"', b'"|O8"')
    with pytest.raises(ValueError, match="does not hold"):
        unpack_arrays(forged)


@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"separators": (",", ":")}])
def test_arrays_are_read_whatever_wrote_their_header(options: dict[str, Any]) -> None:
    def write(plain: object) -> bytes:
        assert isinstance(plain, dict)
        return json.dumps(dict(reversed(plain.items())), **options).encode()

    meta = {"seq": 7, "text": ',"meta":', "list": [1, None]}
    for arrays in ({"a": np.arange(4), "b": np.zeros((2, 0))}, {}):
        version, back, found = unpack_arrays(pack_arrays(3, meta, arrays, write))
        assert (version, back, found.keys()) == (3, meta, arrays.keys())
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ValueError, match="names its arrays and meta"):
        unpack_arrays(pack_arrays(3, meta, {}, lambda plain: b'{"meta":{}}'))


def test_arrays_cut_off_or_with_bytes_left_over_are_refused() -> None:
    whole = pack_arrays(1, {}, {"a": np.arange(4)})
    with pytest.raises(ValueError, match="cut off"):
        unpack_arrays(whole[:-1])
    with pytest.raises(ValueError, match="bytes follow"):
        unpack_arrays(whole + b"\0")
    with pytest.raises(ValueError, match="codec"):
        unpack_arrays(pack_json(1, {}))
    with pytest.raises(ValueError, match="envelope"):
        open_envelope(b"\x02\x03\x01\x00")
