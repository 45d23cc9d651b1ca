"""A member of a consumer group: classic protocol, cooperative-sticky, static membership."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from errata.adapters.kafka.config import transaction_timeout_ms
from errata.adapters.kafka.connection import BEGINS_HERE, Connection, OfOneProcess, close_in_time, earliest_offsets
from errata.adapters.kafka.failures import PASSING, failure
from errata.adapters.kafka.instances import fence
from errata.errors import ErrataError, Fenced, Misconfigured, Unavailable
from errata.ports import Headers, Offsets, OnPartitions, Record, Records
from errata.ports import TopicPartition as Place

LEAVE_TIMEOUT_S = 3.0
LEAVE_POLL_S = 0.02
PIECE = 500  # messages that are alive at once: more would leave no cache for what they hold


MissingOffsets = Literal["refuse", "earliest"]


class KafkaConsumer(OfOneProcess):
    """See ``errata.ports.Consumer``. After an error of `poll` the member can only be closed.

    It subscribes to ``topic`` alone. The same-numbered partitions of ``side_inputs`` are added by hand when partitions
    come and taken off when they go, since no assignor gives one member the same numbers of two topics.
    """

    def __init__(
        self,
        connection: Connection,
        group: str,
        topic: str,
        *,
        instance: str,
        side_inputs: Sequence[str],
        on_assign: OnPartitions | None,
        on_revoke: OnPartitions | None,
        missing_offsets: MissingOffsets,
        leaves: Callable[[], bool],
        more: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._connection = connection
        self._group = group
        self._instance = instance
        self._topics = (topic, *side_inputs)
        self._bare = {connection.full(name): name for name in self._topics}
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._missing_offsets = missing_offsets
        self._leaves = leaves
        # Twice what a predecessor's open transaction may last: until it ends, nobody is told the group's offsets.
        self._committed_timeout_s = 2 * transaction_timeout_ms(connection.properties) / 1_000
        self._held: set[Place] = set()
        self._paused: set[Place] = set()
        self._starts: Offsets = {}
        self._given_up: set[Place] = set()  # within this poll
        self._assigning = self._closed = self._failed = False
        self._client: Consumer = connection.consumer(
            "consumer", {**more, "group.id": connection.full(group), "group.instance.id": instance}
        )
        self._client.subscribe(
            [connection.full(topic)], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    def poll(self, most: int, timeout_s: float = 0.0) -> Sequence[Record]:
        self._check()
        if self._failed:
            raise Unavailable(f"group {self._group}: this member failed before; start the process again")
        try:
            return self._poll(most, timeout_s)
        except BaseException:
            # Records may have been taken from the client and not handed out: going on would skip them.
            self._failed = True
            raise

    def assignment(self) -> set[Place]:
        return set(self._held)

    def committed(self, partitions: Iterable[Place]) -> Offsets:
        found = self._group_offsets(partitions)
        return {place: offset for place, (offset, mark) in found.items() if mark != BEGINS_HERE}

    def _group_offsets(self, partitions: Iterable[Place]) -> dict[Place, tuple[int, str | None]]:
        """What the group has, with what whoever set it wrote beside it."""
        self._check()
        asked = [self._connection.at(place) for place in sorted(partitions)]
        if not asked:
            return {}
        try:
            found = self._client.committed(asked, timeout=self._committed_timeout_s)
        except KafkaException as error:
            raise self._connection.answered(self._client, error, f"offsets of group {self._group}") from None
        for partition in found:
            if partition.error is not None:
                raise self._failure(partition.error, f"offsets of group {self._group}")
        return {self._place(one): (one.offset, one.metadata) for one in found if one.offset >= 0}

    def position(self, partition: Place) -> int:
        self._check()
        self._check_held(partition)
        if self._assigning:  # not yet read
            return self._starts[partition]
        offset = self._client.position([self._connection.at(partition)])[0].offset
        return offset if offset >= 0 else self._starts[partition]

    def seek(self, partition: Place, offset: int) -> None:
        self._check()
        self._check_held(partition)
        self._starts[partition] = offset
        if self._assigning:  # not yet read; it will begin here
            return
        try:
            self._client.seek(self._connection.at(partition, offset))
        except KafkaException as error:
            doing = f"seek of {partition[0]} partition {partition[1]}"
            raise self._connection.answered(self._client, error, doing) from None

    def pause(self, partitions: Iterable[Place]) -> None:
        self._check()
        places = set(partitions) & self._held
        self._paused |= places
        if not self._assigning:
            self._client.pause([self._connection.at(place) for place in sorted(places)])

    def resume(self, partitions: Iterable[Place]) -> None:
        self._check()
        places = set(partitions) & self._paused
        self._paused -= places
        if not self._assigning:
            self._client.resume([self._connection.at(place) for place in sorted(places)])

    def close(self) -> None:
        """End the member; callbacks do not run.

        Its partitions wait for ``session.timeout.ms`` for the same instance to come back, as a restart does. With the
        transport's ``leave_on_close`` the group passes them on at once: for a process that is not to come back.
        """
        self.check_process()
        if self._closed:
            return
        self._closed = True
        if self._leaves() and not self._failed:
            self._leave()
        with suppress(KafkaException, RuntimeError):
            self._client.poll(0)  # closing a client with an assignment that nobody has taken may never end
        close_in_time(self._client, f"group {self._group}")
        self._held = set()

    def group_metadata(self) -> Any:
        """Which member of which generation this is: what lets the group refuse offsets of a member it replaced."""
        self._check()
        return self._client.consumer_group_metadata()

    # One poll.

    def _poll(self, most: int, timeout_s: float) -> Sequence[Record]:
        client = self._client
        self._given_up.clear()
        first = client.poll(timeout_s)
        if first is None:
            return []
        self._given_up.clear()  # before the first record came: nothing of it is in this batch
        records = self._records([first])
        asked = got = 1
        while got == asked and len(records) < most:
            asked = min(PIECE, most - len(records))
            messages = client.consume(asked, 0)
            got = len(messages)
            records.extend(self._records(messages))
            del messages  # the next are made where these were
        return self._still_ours(records) if self._given_up else records

    def _records(self, messages: list[Any]) -> Records:
        if any(map(Message.error, messages)):  # an error is true; not to be compared with None, which it fails at
            messages = self._without_errors(messages)
        return records_of(messages, self._bare)

    def _without_errors(self, messages: Sequence[Any]) -> list[Any]:
        for message in messages:
            error: KafkaError | None = message.error()
            if error is None or (error.code() in PASSING and not error.fatal()):
                continue
            topic = self._bare.get(message.topic() or "")
            doing = f"{topic} partition {message.partition()}" if topic else f"group {self._group}"
            raise self._failure(error, doing)
        return [message for message in messages if message.error() is None]

    def _failure(self, error: KafkaError, doing: str) -> ErrataError:
        found = failure(error, doing)
        return self.fence(doing) if isinstance(found, Fenced) else found

    def fence(self, doing: str) -> ErrataError:
        """What it means that this member is fenced, or its process's producer; see ``instances.fence``."""
        own = self._client.memberid() or ""
        return fence(self._connection, self._group, self._instance, own_member=own, doing=doing)

    def _still_ours(self, records: Sequence[Record]) -> Sequence[Record]:
        """Without records of partitions that went while the batch was read: their next member reads them."""
        for place in self._given_up & self._held:  # went and came back: from its start again
            self.seek(place, self._starts[place])
        return [record for record in records if (record.topic, record.partition) not in self._given_up]

    # Partitions that come and go; librdkafka calls these in `poll` and `close` only.

    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        places = self._places(partitions)
        if self._closed or not places:
            client.incremental_assign([])
            return
        try:
            self._assigning = True
            self._starts.update(self._start_offsets(places))
            self._held |= places
            if self._on_assign is not None:
                self._on_assign(places)
        finally:
            self._assigning = False
        client.incremental_assign([self._connection.at(place, self._starts[place]) for place in sorted(places)])
        self._client.pause([self._connection.at(place) for place in sorted(places & self._paused)])

    def _revoked(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        places = self._places(partitions) & self._held
        if places and self._on_revoke is not None and not self._closed:
            self._on_revoke(places)
        # A partition that goes while it is paused may come back paused, and nobody would know.
        client.resume([self._connection.at(place) for place in sorted(places & self._paused)])
        self._held -= places
        self._paused -= places
        self._given_up |= places
        client.incremental_unassign([self._connection.at(place) for place in sorted(places)])

    def _start_offsets(self, places: set[Place]) -> Offsets:
        starts = {place: offset for place, (offset, _) in self._group_offsets(places).items()}
        missing = sorted(places - starts.keys())
        if missing and self._missing_offsets == "refuse":
            topic, number = missing[0]
            raise Misconfigured(
                f"group {self._group} has no offset for {topic} partition {number}; run errata topics apply"
            )
        return starts | earliest_offsets(self._connection, self._connection.admin(), missing) if missing else starts

    def _places(self, partitions: Iterable[TopicPartition]) -> set[Place]:
        return {(topic, partition.partition) for partition in partitions for topic in self._topics}

    def _place(self, partition: TopicPartition) -> Place:
        return self._bare[partition.topic], partition.partition

    def _leave(self) -> None:
        """Unsubscribe: a static member then tells the group that it goes, which closing it does not."""
        deadline_s = monotonic() + LEAVE_TIMEOUT_S
        try:
            self._client.unsubscribe()
            while self._client.memberid() and monotonic() < deadline_s:
                self._client.poll(LEAVE_POLL_S)
        except (KafkaException, RuntimeError):
            pass  # the session runs out instead

    def _check(self) -> None:
        self.check_process()
        if self._closed:
            raise RuntimeError(f"this consumer of group {self._group} is closed")

    def _check_held(self, partition: Place) -> None:
        if partition not in self._held:
            raise Misconfigured(f"{partition[0]} partition {partition[1]} is not assigned to this consumer")


_FIELDS: tuple[Callable[[Any], Any], ...] = (
    Message.topic, Message.partition, Message.offset, Message.timestamp, Message.key, Message.value, Message.headers,
)  # fmt: skip


def records_of(messages: Sequence[Message], bare: Mapping[str, str]) -> Records:
    """Messages without errors as records. A hot path: field by field, each in one call for all."""
    topics, partitions, offsets, times, keys, values, given = (list(map(field, messages)) for field in _FIELDS)
    n = len(messages)
    of_one = n > 0 and topics.count(topics[0]) == n
    return Records((
        [bare[topics[0]]] * n if of_one else [bare[topic] for topic in topics],
        partitions,
        offsets,
        [time_ms * 1_000 for _, time_ms in times],
        keys,
        values,
        [_headers(one) if one else () for one in given] if any(given) else [()] * n,
    ))  # fmt: skip


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> Headers:
    return tuple([(name, value or b"") for name, value in headers])
