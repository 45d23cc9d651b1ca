"""``errata.ports.Transport`` on Kafka."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from errata.adapters.kafka import config
from errata.adapters.kafka.connection import (
    ANSWER_TIMEOUT_S,
    Connection,
    KeptAdmin,
    OnStats,
    earliest_offsets,
    latest_offsets,
    metadata,
    partition_counts,
)
from errata.adapters.kafka.consumer import KafkaConsumer, MissingOffsets
from errata.adapters.kafka.groups import group_members, group_offsets
from errata.adapters.kafka.producer import KafkaProducer
from errata.adapters.kafka.reader import RESTORE_TIMEOUT_S, Readers
from errata.errors import Misconfigured
from errata.ports import Offsets, OnPartitions, Record
from errata.ports import TopicPartition as Place

__all__ = ["KafkaConsumer", "KafkaProducer", "KafkaTransport"]


class KafkaTransport:
    """Kafka's topics, groups and transactions; see ``errata.ports.Transport``.

    ``properties`` are librdkafka's and hold for all clients; what the guarantees rest on may not be among them.
    ``topic_prefix`` stands before topics, groups and transactional ids at the broker; records come back without it.
    A group without an offset for a partition is refused, so that none begins by chance; "earliest" is for tests and
    tools. ``leave_on_close`` makes members that close tell their group, which then passes their partitions on at once;
    without it a restart within ``session.timeout.ms`` gets its partitions back with no rebalance. It may be set until
    the consumer closes. ``members`` are properties of group members alone; those of the user win. ``on_stats`` gets
    librdkafka's statistics, consumer lag among them, within `poll`.

    Clients are made when they are first needed, and refuse to be used in another process than that which made them.
    """

    def __init__(
        self,
        properties: Mapping[str, str],
        *,
        topic_prefix: str = "",
        missing_offsets: MissingOffsets = "refuse",
        leave_on_close: bool = False,
        members: Mapping[str, str] | None = None,
        on_stats: OnStats | None = None,
    ) -> None:
        kinds: tuple[config.Kind, ...] = ("consumer", "reader", "picker", "producer", "admin")
        for kind in kinds:  # faults are told here, not when the client is first needed
            config.client_properties(kind, properties)
        self.leave_on_close = leave_on_close
        self._connection = Connection(dict(properties), topic_prefix, on_stats)
        self._missing_offsets = missing_offsets
        self._members = {name: value for name, value in (members or {}).items() if name not in properties}
        self._admin = KeptAdmin(self._connection)
        self._readers: Readers | None = None
        self._counts: dict[str, int] = {}
        self._consumers: list[KafkaConsumer] = []
        self._producers: list[KafkaProducer] = []

    def partitions(self, topic: str) -> int:
        if topic not in self._counts:
            found = self._admin.ask(partial(metadata, self._connection))
            self._counts = partition_counts(self._connection, found)
        try:
            return self._counts[topic]
        except KeyError:
            raise Misconfigured(f"there is no topic {topic} on the cluster; run errata topics apply") from None

    def consumer(
        self,
        group: str,
        topic: str,
        *,
        instance: str,
        side_inputs: Sequence[str] = (),
        on_assign: OnPartitions | None = None,
        on_revoke: OnPartitions | None = None,
    ) -> KafkaConsumer:
        wanted = self.partitions(topic)
        for name in side_inputs:
            if self.partitions(name) != wanted:
                raise Misconfigured(f"{name} must have as many partitions as {topic}, whose side input it is")
        member = KafkaConsumer(
            self._connection,
            group,
            topic,
            instance=instance,
            side_inputs=side_inputs,
            on_assign=on_assign,
            on_revoke=on_revoke,
            missing_offsets=self._missing_offsets,
            leaves=lambda: self.leave_on_close,
            more=self._members,
        )
        self._consumers.append(member)
        return member

    def producer(self, transactional_id: str) -> KafkaProducer:
        made = KafkaProducer(self._connection, transactional_id, self.partitions)
        self._producers.append(made)
        return made

    def read_from(self, partition: Place, offset: int = 0, *, timeout_s: float | None = None) -> Iterator[Record]:
        self._check_place(partition)
        return self._reading().read_from(partition, offset, RESTORE_TIMEOUT_S if timeout_s is None else timeout_s)

    def read_at(self, partition: Place, offsets: Sequence[int]) -> list[Record | None]:
        self._check_place(partition)
        return self._reading().read_at(partition, offsets)

    def end_offset(self, partition: Place) -> int:
        return self.end_offsets([partition])[partition]

    def end_offsets(self, partitions: Iterable[Place], *, timeout_s: float | None = None) -> Offsets:
        places = list(partitions)
        for place in places:
            self._check_place(place)
        within_s = ANSWER_TIMEOUT_S if timeout_s is None else timeout_s
        return self._admin.ask(lambda admin: latest_offsets(self._connection, admin, places, within_s))

    def begin_offsets(self, partitions: Iterable[Place], *, timeout_s: float | None = None) -> Offsets:
        places = list(partitions)
        for place in places:
            self._check_place(place)
        within_s = ANSWER_TIMEOUT_S if timeout_s is None else timeout_s
        return self._admin.ask(lambda admin: earliest_offsets(self._connection, admin, places, within_s))

    def group_members(self, group: str) -> list[str]:
        return self._admin.ask(lambda admin: group_members(self._connection, admin, group))

    def group_offsets(self, group: str, partitions: Iterable[Place]) -> Offsets:
        return group_offsets(self._connection, group, partitions)

    def close(self) -> None:
        """Close every client made here that is still open."""
        for member in self._consumers:
            member.close()
        for producer in self._producers:
            producer.close()
        if self._readers is not None:
            self._readers.close()
        self._admin.close()
        self._consumers, self._producers, self._readers = [], [], None

    def _check_place(self, partition: Place) -> None:
        topic, number = partition
        count = self.partitions(topic)
        if not 0 <= number < count:
            raise Misconfigured(f"{topic} has partitions 0 to {count - 1}, not {number}")

    def _reading(self) -> Readers:
        if self._readers is None:
            self._readers = Readers(self._connection, self._admin)
        return self._readers
