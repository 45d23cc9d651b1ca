"""The in-process transport keeps the promises of every transport, and its own."""

from collections.abc import Mapping

import pytest
from tests.conformance.transport import TransportSuite, texts

from errata.adapters.memory import RECORD_TIME_HEADER, MemoryTransport
from errata.contracts.topics import DAY_S, Topic
from errata.errors import Aborted, Misconfigured, StateDamaged
from errata.ports import Headers, Outgoing

LOG = ("log", 0)


class TestMemory(TransportSuite):
    def make(self, topics: Mapping[str, Topic]) -> MemoryTransport:
        return MemoryTransport(topics)


def one_topic(*, compacted: bool = False) -> MemoryTransport:
    topic = Topic("log", "a test", "key", 2, None if compacted else DAY_S, None, ("test",), ("test",))
    return MemoryTransport({"log": topic})


def write(
    transport: MemoryTransport, *values: str, partition: int = 0, key: bytes = b"k", headers: Headers = ()
) -> None:
    producer = transport.producer("writer")
    producer.begin()
    for value in values:
        producer.produce(Outgoing("log", key, value.encode(), headers, partition))
    producer.commit()


def test_offsets_have_no_holes() -> None:
    transport = one_topic()
    write(transport, "a")
    producer = transport.producer("writer")
    producer.begin()
    producer.produce(Outgoing("log", b"k", b"aborted", partition=0))
    producer.abort()
    write(transport, "b")
    assert [record.offset for record in transport.read_from(LOG)] == [0, 1]
    assert transport.end_offset(LOG) == 2


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_consumer_reads_all_partitions_in_the_order_they_were_appended(most: int) -> None:
    transport = one_topic()
    for number in range(9):
        write(transport, str(number), partition=number % 2 if number < 6 else 0)
    consumer = transport.consumer("group", "log", instance="0")
    read: list[str] = []
    while records := consumer.poll(most):
        read += texts(records)
    assert read == [str(number) for number in range(9)]


def test_member_of_an_older_generation_cannot_commit() -> None:
    transport = one_topic()
    write(transport, "a")
    older = transport.consumer("group", "log", instance="0")
    older.poll(1)
    producer = transport.producer("p")
    producer.begin()
    producer.send_offsets({LOG: 1}, older)
    transport.consumer("group", "log", instance="1")
    with pytest.raises(Aborted, match="rebalanced"):
        producer.commit()
    producer.abort()
    assert older.committed([LOG]) == {}
    older.poll(1)
    producer.begin()
    producer.send_offsets({LOG: 1}, older)
    producer.commit()
    assert older.committed([LOG]) == {LOG: 1}


def test_partition_passes_on_only_after_its_holder_gave_it_up() -> None:
    transport = one_topic()
    given_up: set[tuple[str, int]] = set()
    first = transport.consumer("group", "log", instance="0", on_revoke=given_up.update)
    first.poll(1)
    second = transport.consumer("group", "log", instance="1")
    second.poll(1)
    assert second.assignment() == set()
    first.poll(1)
    second.poll(1)
    assert given_up == {("log", 1)}
    assert second.assignment() == {("log", 1)}


def test_record_time_is_what_was_advanced_to() -> None:
    transport = one_topic()
    transport.advance_record_time(5)
    write(transport, "a")
    transport.advance_record_time(3)
    write(transport, "b")
    transport.advance_record_time(9)
    write(transport, "c")
    assert [record.timestamp_us for record in transport.read_from(LOG)] == [5, 5, 9]


def test_record_keeps_the_time_its_source_states_and_loses_the_header() -> None:
    transport = one_topic()
    for us in (7, 4, 12):
        write(transport, "x", headers=((RECORD_TIME_HEADER, str(us).encode()), ("kept", b"1")))
    records = list(transport.read_from(LOG))
    assert [record.timestamp_us for record in records] == [7, 7, 12]
    assert {record.headers for record in records} == {(("kept", b"1"),)}
    assert transport.record_time_us == 12


def test_retention_drops_the_head_and_keeps_the_offsets() -> None:
    transport = one_topic()
    write(transport, *"abcdef")
    transport.retain("log", 2)
    assert [(record.offset, record.value) for record in transport.read_from(LOG)] == [(4, b"e"), (5, b"f")]
    assert transport.read_at(LOG, [3, 4])[0] is None
    assert texts(transport.consumer("late", "log", instance="0").poll(10)) == ["e", "f"]


def test_retention_keeps_what_a_group_has_yet_to_read() -> None:
    transport = one_topic()
    write(transport, *"abcdef")
    consumer = transport.consumer("group", "log", instance="0")
    consumer.poll(1)
    producer = transport.producer("p")
    producer.begin()
    producer.send_offsets({LOG: 1}, consumer)
    producer.commit()
    transport.retain("log", 2)
    assert [record.offset for record in transport.read_from(LOG)] == [1, 2, 3, 4, 5]
    assert texts(consumer.poll(10)) == ["b", "c", "d", "e", "f"]


def test_reading_what_is_gone_is_an_error_and_not_a_gap() -> None:
    transport = one_topic()
    write(transport, *"abcdef")
    consumer = transport.consumer("group", "log", instance="0")
    consumer.poll(6)
    producer = transport.producer("p")
    producer.begin()
    producer.send_offsets({LOG: 6}, consumer)
    producer.commit()
    transport.retain("log", 2)
    consumer.seek(LOG, 1)
    with pytest.raises(StateDamaged, match="offset_out_of_range"):
        consumer.poll(1)


def test_compacted_topic_keeps_the_newest_of_each_key_and_stays_bounded() -> None:
    transport = one_topic(compacted=True)
    for number in range(3_000):
        write(transport, str(number), key=f"key-{number % 3}".encode())
    records = list(transport.read_from(LOG))
    newest = {record.key: record.value for record in records}
    assert newest == {b"key-0": b"2997", b"key-1": b"2998", b"key-2": b"2999"}
    assert len(records) < 1_100
    assert transport.end_offset(LOG) == 3_000
    kept = [records[-1].offset, records[0].offset]
    assert [record and record.offset for record in transport.read_at(LOG, kept)] == kept


@pytest.mark.parametrize(
    ("outgoing", "message"),
    [
        (Outgoing("nowhere", None, b""), "no topic nowhere"),
        (Outgoing("log", None, b"", partition=2), "partitions 0 to 1"),
    ],
)
def test_writing_to_no_partition_is_named(outgoing: Outgoing, message: str) -> None:
    producer = one_topic().producer("p")
    producer.begin()
    with pytest.raises(Misconfigured, match=message):
        producer.produce(outgoing)
