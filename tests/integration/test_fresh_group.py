"""A group that begins where its topic's head is gone starts; one that has lost its changelog does not."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from tests.unit.test_worker import Counter, topics

from errata.adapters.aead import Aead
from errata.adapters.kafka import KafkaTransport, apply_topics
from errata.contracts import Receipt
from errata.contracts.topics import LEDGER
from errata.errors import ErrataError, StateDamaged
from errata.ports import Outgoing
from errata.runtime.worker import Worker

pytestmark = pytest.mark.servers

WAIT_S = 60.0
GROUP = f"errata.{Counter.name}"
GROUPS = {GROUP: ("in", "side")}


class Cluster:
    """Topics of their own on a broker, and the group of one stage with state."""

    def __init__(self, address: str) -> None:
        self.properties = {"bootstrap.servers": address}
        self.prefix = f"fresh-{uuid4().hex[:8]}."
        self.names = {f"{self.prefix}{name}" for name in topics()}
        self.admin = AdminClient(dict(self.properties))
        apply_topics(self.properties, self.prefix, topics=topics(), groups={})

    def publish(self, topic: str, *values: str) -> None:
        with self.connected() as transport:
            producer = transport.producer(f"source-{uuid4().hex}")
            producer.begin()
            for value in values:
                producer.produce(Outgoing(topic, b"k", value.encode(), partition=1))
            producer.commit()

    def lose_head(self, topic: str, offset: int) -> None:
        """What retention does to old records."""
        place = TopicPartition(f"{self.prefix}{topic}", 1, offset)
        self.admin.delete_records([place])[place].result(timeout=20)

    def give_offsets(self) -> None:
        """Asked again where a broker that has just started, or has just deleted a topic, is not ready for it."""

        def given() -> bool:
            try:
                apply_topics(self.properties, self.prefix, topics=topics(), groups=GROUPS)
            except ErrataError:
                return False
            return len(self.admin.list_topics(timeout=10).topics.keys() & self.names) == len(self.names)

        until(given)

    @contextmanager
    def connected(self) -> Iterator[KafkaTransport]:
        transport = KafkaTransport(self.properties, topic_prefix=self.prefix, leave_on_close=True)
        try:
            yield transport
        finally:
            transport.close()

    def counted(self, records: int) -> dict[int, dict[str, int]]:
        """What a member counts that takes this many records."""
        with self.connected() as transport:
            stage = Counter()
            member = Worker(stage, transport, instance="0", build="test", cipher=Aead(b"k" * 32))
            taken = 0

            def took_them() -> bool:
                nonlocal taken
                taken += member.run_once(0.1)
                return taken >= records and len(stage.counts) == 3

            until(took_them)
            assert taken == records
            counts = {partition: dict(found) for partition, found in stage.counts.items()}
            member.close()
            return counts

    def receipts(self) -> list[Receipt]:
        with self.connected() as transport:
            places = [(LEDGER, number) for number in range(transport.partitions(LEDGER))]
            records = [record for place in places for record in transport.read_from(place)]
        return [Receipt.model_validate_json(record.value or b"") for record in records]


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it does not get there"


@pytest.fixture
def cluster(kafka_address: str) -> Cluster:
    return Cluster(kafka_address)


def test_a_fresh_group_starts_on_topics_whose_first_records_are_gone(cluster: Cluster) -> None:
    cluster.publish("in", "a", "b", "c")
    cluster.publish("side", "x", "y")
    cluster.lose_head("in", 2)
    cluster.lose_head("side", 3)  # all, and the marker
    cluster.give_offsets()
    assert cluster.counted(1) == {0: {}, 1: {"k": 1}, 2: {}}
    (part,) = cluster.receipts()[0].inputs
    assert (part.topic, part.from_, part.to, part.delivered) == ("in", 2, 3, 1)
    cluster.publish("in", "d")
    assert cluster.counted(1)[1] == {"k": 2}  # and again, with state; the side input still only has its beginning
    cluster.publish("side", "z")
    assert cluster.counted(1)[1] == {"k": 3}


def test_a_lost_changelog_is_refused_also_where_all_that_was_read_is_gone(cluster: Cluster) -> None:
    cluster.publish("in", "a", "b", "c")
    cluster.give_offsets()
    assert cluster.counted(3)[1] == {"k": 3}
    cluster.lose_head("in", 3)  # the group stands at the earliest offset there is
    name = f"{cluster.prefix}state"
    cluster.admin.delete_topics([name])[name].result(timeout=20)
    until(lambda: name not in cluster.admin.list_topics(timeout=10).topics)
    cluster.give_offsets()
    with pytest.raises(StateDamaged, match=r"^state_behind: state partition 1: in is committed to 3, the state to 0"):
        cluster.counted(0)


def test_an_offset_without_the_mark_is_one_that_was_committed(cluster: Cluster) -> None:
    """Negative control: it is the mark that tells them apart."""
    cluster.publish("in", "a", "b", "c")
    cluster.lose_head("in", 2)
    cluster.give_offsets()
    with cluster.connected() as transport:
        member = transport.consumer(GROUP, "in", instance="0", side_inputs=("side",))
        until(lambda: not member.poll(1, 0.1) and bool(member.assignment()))
        assert member.committed(member.assignment()) == {}
        producer = transport.producer("somebody")
        producer.begin()
        producer.send_offsets({("in", 1): 2}, member)
        producer.commit()
        assert member.committed(member.assignment()) == {("in", 1): 2}
    with pytest.raises(StateDamaged, match=r"^state_behind: "):
        cluster.counted(1)
