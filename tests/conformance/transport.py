"""What every transport promises, as tests. A transport's own test file subclasses the suite and makes the transport.

No test asks which transport it runs on. Records may come late, so reading happens in bounded loops; that something
never comes is shown by a marker that was committed after it to the same partition.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from errata.contracts.topics import DAY_S, Topic
from errata.domain.partitioner import partition_of
from errata.errors import Aborted, Fenced
from errata.ports import Consumer, OnPartitions, Outgoing, Producer, Record, TopicPartition, Transport

PARTITIONS = 4
ROUNDS, WAIT_S = 100, 0.1
KEYS = [f"key-{number}".encode() for number in range(12)]


@dataclass
class World:
    """A transport with two topics of its own, and the few moves the tests are made of."""

    transport: Transport
    topic: str
    side: str
    group: str = field(default_factory=lambda: f"group-{uuid4().hex}")

    def consumer(
        self,
        instance: str = "0",
        *,
        side_inputs: Sequence[str] = (),
        on_assign: OnPartitions | None = None,
        on_revoke: OnPartitions | None = None,
    ) -> Consumer:
        return self.transport.consumer(
            self.group,
            self.topic,
            instance=instance,
            side_inputs=side_inputs,
            on_assign=on_assign,
            on_revoke=on_revoke,
        )

    def producer(self, name: str | None = None) -> Producer:
        return self.transport.producer(name or f"producer-{uuid4().hex}")

    def write(self, *values: str, partition: int = 0, topic: str | None = None) -> None:
        """Each value a transaction of its own."""
        producer = self.producer()
        for value in values:
            producer.begin()
            producer.produce(Outgoing(topic or self.topic, b"k", value.encode(), partition=partition))
            producer.commit()
        producer.close()

    def commit_offset(self, consumer: Consumer, offset: int, partition: int = 0) -> None:
        producer = self.producer()
        producer.begin()
        producer.send_offsets({(self.topic, partition): offset}, consumer)
        producer.commit()

    def visible(self, partition: int = 0) -> list[str]:
        """What is committed, up to a marker written now."""
        self.write("marker", partition=partition)
        values = texts(self.transport.read_from((self.topic, partition)))
        assert values[-1] == "marker"
        return [value for value in values if value != "marker"]


def topics_of_a_test() -> tuple[str, str, dict[str, Topic]]:
    names = f"test-{uuid4().hex}", f"test-{uuid4().hex}-side"
    made = {name: Topic(name, "a test", "key", PARTITIONS, DAY_S, None, ("test",), ("test",)) for name in names}
    return names[0], names[1], made


def texts(records: Iterator[Record] | Sequence[Record]) -> list[str]:
    return [(record.value or b"").decode() for record in records]


def drain(consumer: Consumer, most: int) -> list[Record]:
    """Poll until ``most`` records came, or no more come within the bound."""
    records: list[Record] = []
    for _ in range(ROUNDS):
        records += consumer.poll(most - len(records), WAIT_S)
        if len(records) >= most:
            break
    return records


def drain_until(consumer: Consumer, last: str) -> list[str]:
    """All values up to and without ``last``."""
    values: list[str] = []
    for _ in range(ROUNDS):
        values += texts(consumer.poll(100, WAIT_S))
        if last in values:
            return values[: values.index(last)]
    raise AssertionError(f"{last} never came; {len(values)} other records did")


class TransportSuite(ABC):
    """The promises of ``errata.ports.Transport``, one a test."""

    @abstractmethod
    def make(self, topics: Mapping[str, Topic]) -> Transport:
        """A transport on which these topics exist and are empty."""

    def start(self) -> World:
        topic, side, made = topics_of_a_test()
        return World(self.make(made), topic, side)

    @pytest.fixture
    def world(self) -> Iterator[World]:
        world = self.start()
        yield world
        world.transport.close()

    def test_committed_output_is_visible_in_order(self, world: World) -> None:
        producer = world.producer()
        producer.begin()
        for value in ("a", "b", "c"):
            producer.produce(Outgoing(world.topic, b"k", value.encode(), (("h", b"1"),), 2))
        producer.commit()
        records = list(world.transport.read_from((world.topic, 2)))
        assert texts(records) == ["a", "b", "c"]
        assert {(record.topic, record.partition, record.key, record.headers) for record in records} == {
            (world.topic, 2, b"k", (("h", b"1"),))
        }

    def test_aborted_output_stays_invisible(self, world: World) -> None:
        producer = world.producer()
        producer.begin()
        producer.produce(Outgoing(world.topic, b"k", b"aborted", partition=0))
        producer.abort()
        producer.begin()
        producer.produce(Outgoing(world.topic, b"k", b"kept", partition=0))
        producer.commit()
        world.write("last")
        assert drain_until(world.consumer(), "last") == ["kept"]
        assert world.visible() == ["kept", "last"]

    def test_ends_of_several_partitions_are_at_or_behind_all_that_was_written(self, world: World) -> None:
        world.write("a", "b", partition=1)
        world.write("c", partition=3)
        places = [(world.topic, number) for number in range(PARTITIONS)]
        ends = world.transport.end_offsets(places, timeout_s=10.0)
        assert ends.keys() == set(places)
        assert all(world.transport.end_offset(place) >= end for place, end in ends.items())  # marks may follow
        assert [end > 0 for end in ends.values()] == [False, True, False, True]
        for place, end in ends.items():
            assert all(record.offset < end for record in world.transport.read_from(place, timeout_s=10.0))
        assert world.transport.end_offsets([]) == {}
        assert world.transport.begin_offsets(places, timeout_s=10.0) == dict.fromkeys(places, 0)

    def test_open_output_is_invisible(self, world: World) -> None:
        world.write("before")
        producer = world.producer()
        producer.begin()
        producer.produce(Outgoing(world.topic, b"k", b"open", partition=0))
        consumer = world.consumer()
        assert texts(drain(consumer, 1)) == ["before"]
        assert consumer.poll(10, WAIT_S) == []
        reading = world.transport.read_from((world.topic, 0))
        assert texts([next(reading)]) == ["before"]  # what comes next may wait for the transaction's end
        producer.commit()
        assert texts(drain(consumer, 1)) == ["open"]

    def test_offsets_move_only_with_the_transaction(self, world: World) -> None:
        world.write("a", "b", "c")
        consumer, place = world.consumer(), (world.topic, 0)
        second = drain(consumer, 3)[1].offset
        producer = world.producer()
        producer.begin()
        producer.send_offsets({place: second}, consumer)
        producer.abort()
        assert consumer.committed([place]) == {}
        producer.begin()
        producer.send_offsets({place: second}, consumer)
        producer.commit()
        assert consumer.committed([place]) == {place: second}

    def test_reading_alone_commits_nothing(self, world: World) -> None:
        world.write("a")
        consumer = world.consumer()
        assert texts(drain(consumer, 1)) == ["a"]
        consumer.close()
        assert texts(drain(world.consumer(), 1)) == ["a"]

    def test_zombie_producer_is_fenced(self, world: World) -> None:
        zombie = world.producer("same")
        zombie.begin()
        zombie.produce(Outgoing(world.topic, b"k", b"zombie", partition=0))
        newer = world.producer("same")
        with pytest.raises(Fenced):
            zombie.commit()
        newer.begin()
        newer.produce(Outgoing(world.topic, b"k", b"newer", partition=0))
        newer.commit()
        assert world.visible() == ["newer"]

    def test_replaced_member_cannot_commit(self, world: World) -> None:
        world.write("a", "b")
        older, place = world.consumer("same"), (world.topic, 0)
        records = drain(older, 2)
        newer = world.consumer("same")
        drain(newer, 2)
        with pytest.raises(Aborted):
            world.commit_offset(older, records[1].offset)
        assert newer.committed([place]) == {}

    def test_replaced_member_is_fenced(self, world: World) -> None:
        world.write("a")
        older = world.consumer("same")
        drain(older, 1)
        newer = world.consumer("same")
        drain(newer, 1)
        with pytest.raises(Fenced):
            drain(older, 1)
        assert len(newer.assignment()) == PARTITIONS

    def test_order_of_a_key_is_kept(self, world: World) -> None:
        producer = world.producer()
        written: dict[bytes, list[int]] = {key: [] for key in KEYS}
        for number in range(60):
            key = KEYS[number * 7 % len(KEYS)]
            producer.begin()
            producer.produce(Outgoing(world.topic, key, str(number).encode()))
            producer.commit()
            written[key].append(number)
        read: dict[bytes, list[int]] = {key: [] for key in KEYS}
        for record in drain(world.consumer(), 60):
            read[record.key or b""].append(int(record.value or b""))
        assert read == written

    def test_members_share_the_partitions(self, world: World) -> None:
        for partition in range(PARTITIONS):
            world.write("a", "b", partition=partition)
        members = [world.consumer("0"), world.consumer("1")]
        seen: list[tuple[int, int]] = []
        for _ in range(ROUNDS):
            for member in members:
                seen += [(record.partition, record.offset) for record in member.poll(100, WAIT_S)]
            if all(member.assignment() for member in members) and len(set(seen)) == 2 * PARTITIONS:
                break
        first, second = (member.assignment() for member in members)
        assert first
        assert second
        assert not first & second
        assert first | second == {(world.topic, number) for number in range(PARTITIONS)}
        assert len(set(seen)) == 2 * PARTITIONS

    def test_each_record_reaches_one_member(self, world: World) -> None:
        members = [world.consumer("0"), world.consumer("1")]
        for _ in range(ROUNDS):
            for member in members:
                member.poll(1, WAIT_S)
            if sum(len(member.assignment()) for member in members) >= PARTITIONS and members[1].assignment():
                break
        for partition in range(PARTITIONS):
            world.write("a", partition=partition)
        seen: list[int] = []
        for _ in range(ROUNDS):
            for member in members:
                seen += [record.partition for record in member.poll(100, WAIT_S)]
            if len(seen) >= PARTITIONS:
                break
        assert sorted(seen) == list(range(PARTITIONS))

    def test_partitions_of_a_member_that_leaves_pass_on(self, world: World) -> None:
        leaving, staying = world.consumer("0"), world.consumer("1")
        for _ in range(ROUNDS):
            leaving.poll(1, WAIT_S)
            staying.poll(1, WAIT_S)
            if leaving.assignment() and staying.assignment():
                break
        leaving.close()
        for _ in range(ROUNDS):
            staying.poll(1, WAIT_S)
            if len(staying.assignment()) == PARTITIONS:
                break
        assert staying.assignment() == {(world.topic, number) for number in range(PARTITIONS)}

    def test_side_input_comes_along(self, world: World) -> None:
        world.write("main", partition=3)
        world.write("side", partition=3, topic=world.side)
        consumer = world.consumer(side_inputs=[world.side])
        assert sorted(texts(drain(consumer, 2))) == ["main", "side"]
        assert consumer.assignment() == {
            (topic, number) for topic in (world.topic, world.side) for number in range(PARTITIONS)
        }

    def test_callbacks_run_in_poll_only(self, world: World) -> None:
        told: set[TopicPartition] = set()
        consumer = world.consumer(on_assign=told.update)
        assert told == set()
        for _ in range(ROUNDS):
            consumer.poll(1, WAIT_S)
            if told:
                break
        assert told == {(world.topic, number) for number in range(PARTITIONS)}

    def test_restart_goes_on_at_the_committed_offset(self, world: World) -> None:
        world.write("a", "b", "c")
        consumer = world.consumer()
        world.commit_offset(consumer, drain(consumer, 3)[1].offset)
        consumer.close()
        assert texts(drain(world.consumer(), 2)) == ["b", "c"]

    def test_seek_reads_again(self, world: World) -> None:
        world.write("a", "b")
        consumer = world.consumer()
        records = drain(consumer, 2)
        consumer.seek((world.topic, 0), records[0].offset)
        assert texts(drain(consumer, 2)) == ["a", "b"]
        assert consumer.position((world.topic, 0)) > records[1].offset

    def test_paused_partition_waits(self, world: World) -> None:
        world.write("first")
        consumer, place = world.consumer(), (world.topic, 0)
        assert texts(drain(consumer, 1)) == ["first"]
        consumer.pause([place])
        world.write("held")
        world.write("other", partition=1)
        assert texts(drain(consumer, 1)) == ["other"]
        consumer.resume([place])
        assert texts(drain(consumer, 1)) == ["held"]

    def test_records_can_be_read_by_place(self, world: World) -> None:
        world.write("a", "b", "c")
        place = (world.topic, 0)
        offsets = [record.offset for record in world.transport.read_from(place)]
        found = world.transport.read_at(place, [offsets[2], offsets[0], offsets[2] + 1_000])
        assert [record and record.value for record in found] == [b"c", b"a", None]
        assert [record and record.offset for record in found] == [offsets[2], offsets[0], None]

    def test_log_can_be_read_from_an_offset(self, world: World) -> None:
        world.write("a", "b", "c")
        place = (world.topic, 0)
        second = list(world.transport.read_from(place))[1].offset
        assert texts(world.transport.read_from(place, second)) == ["b", "c"]
        assert world.transport.end_offset(place) > second + 1
        assert texts(world.transport.read_from(place, world.transport.end_offset(place))) == []

    def test_record_times_never_go_back(self, world: World) -> None:
        world.write(*(str(number) for number in range(20)))
        times_us = [record.timestamp_us for record in world.transport.read_from((world.topic, 0))]
        assert len(times_us) == 20
        assert times_us == sorted(times_us)

    def test_key_decides_the_partition_as_in_java(self, world: World) -> None:
        producer = world.producer()
        producer.begin()
        for key in KEYS * 2:
            producer.produce(Outgoing(world.topic, key, b"x"))
        producer.commit()
        places = {(record.key or b"", record.partition) for record in drain(world.consumer(), 2 * len(KEYS))}
        assert places == {(key, partition_of(key, PARTITIONS)) for key in KEYS}


def names_of_the_suite() -> list[str]:
    return sorted(name for name in vars(TransportSuite) if name.startswith("test_"))
