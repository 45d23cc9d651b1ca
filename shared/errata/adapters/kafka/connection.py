"""What all clients of one transport share: how to connect, how names are written, and why brokers do not answer."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from time import monotonic, sleep
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ClusterMetadata, OffsetSpec  # type: ignore[attr-defined]  # exported all the same
from confluent_kafka.cimpl import ISOLATION_LEVEL_READ_UNCOMMITTED

from errata.adapters.kafka import config
from errata.adapters.kafka.failures import MOVED, Diagnosis, bad_property, error_of, failure
from errata.errors import ErrataError, Misconfigured, Unavailable
from errata.ports import TopicPartition as Place

ANSWER_TIMEOUT_S = 10.0
ANSWER_SLICE_S = 2.5
ELECTION_POLL_S = 0.1
CLOSE_TIMEOUT_S = 15.0
BEGINS_HERE = "errata: begins here"  # kept beside an offset that a group was given before any member committed one
STATISTICS_INTERVAL_MS = "2000"

Answer = TypeVar("Answer")
OnStats = Callable[[dict[str, Any]], None]
OnDelivery = Callable[[KafkaError | None, Message], None]
_LOG = logging.getLogger("errata.kafka")


@dataclass(slots=True)
class Connection:
    """The user's properties and the prefix of all names. Holds no client, so it may cross a fork."""

    properties: Mapping[str, str]
    prefix: str = ""
    on_stats: OnStats | None = None
    diagnosis: Diagnosis = field(default_factory=Diagnosis)

    @property
    def servers(self) -> str:
        return self.properties.get(config.BOOTSTRAP, "")

    def full(self, name: str) -> str:
        """A topic, group or transactional id as the broker knows it."""
        return self.prefix + name

    def at(self, place: Place, offset: int | None = None) -> TopicPartition:
        topic, number = place
        if offset is None:
            return TopicPartition(self.prefix + topic, number)
        return TopicPartition(self.prefix + topic, number, offset)

    def session_timeout_s(self) -> float:
        return int(config.client_properties("consumer", self.properties)["session.timeout.ms"]) / 1_000

    def consumer(self, kind: config.Kind, more: Mapping[str, str]) -> Consumer:
        made: Consumer = self._made(Consumer, kind, more)
        return made

    def producer(self, transactional_id: str, on_delivery: OnDelivery) -> Producer:
        # Reports of what was delivered would only be thrown away: the commit answers for all of them.
        more = {
            "transactional.id": self.full(transactional_id),
            "delivery.report.only.error": True,
            "on_delivery": on_delivery,
        }
        made: Producer = self._made(Producer, "producer", more)
        return made

    def admin(self) -> AdminClient:
        made: AdminClient = self._made(AdminClient, "admin", {})
        return made

    def _made(self, client: type[Any], kind: config.Kind, more: Mapping[str, Any]) -> Any:
        properties: dict[str, Any] = {**config.client_properties(kind, self.properties), **more}
        callbacks: dict[str, Any] = {"error_cb": self.diagnosis.note, "logger": _LOG}
        if kind in ("consumer", "producer") and self.on_stats is not None:
            properties.setdefault("statistics.interval.ms", STATISTICS_INTERVAL_MS)
            callbacks["stats_cb"] = self._tell_stats
        try:
            return client({**properties, **callbacks})
        except KafkaException as error:
            raise bad_property(error, properties) from None

    def _tell_stats(self, text: str) -> None:
        """librdkafka's statistics as it gives them, but with the topics' names as the stages know them."""
        found: dict[str, Any] = json.loads(text)
        topics = found.get("topics", {})
        found["topics"] = {name.removeprefix(self.prefix): content for name, content in topics.items()}
        if self.on_stats is not None:
            self.on_stats(found)

    def answered(self, client: AdminClient | Consumer | Producer, error: KafkaException, doing: str) -> ErrataError:
        """The error of a request: of one that nobody answered, why that may be."""
        with suppress(KafkaException):  # a fatal error of a producer comes out of every poll; `error` says it too
            client.poll(0)  # serves the error callback, which knows the reason
        reason = error_of(error)
        if reason.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
            return self.diagnosis.unreachable(doing, self.servers)
        return failure(reason, doing)


class OfOneProcess:
    """librdkafka's threads do not survive a fork: a client used in a child would wait for ever, or lose records."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"a Kafka client of process {self._pid} is used in process {os.getpid()}; make it after the fork"
            )


class KeptAdmin(OfOneProcess):
    """The admin client of a transport, made when it is first needed, and anew after one that got no answer.

    One that asks while all brokers are fenced, as a single node is that was frozen, finds none for good (librdkafka's
    issue 5301).
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._client: AdminClient | None = None

    def ask(self, question: Callable[[AdminClient], Answer]) -> Answer:
        try:
            return question(self.client())
        except Unavailable:
            self._client = None
            raise

    def client(self) -> AdminClient:
        if self._client is None:
            super().__init__()  # the process is that of the client
            self._client = self._connection.admin()
        self.check_process()
        return self._client

    def close(self) -> None:
        self._client = None


def close_in_time(client: Consumer | Producer, name: str, within_s: float = CLOSE_TIMEOUT_S) -> None:
    """Close a client, or leave it: one whose broker died waits for ever, for its own thread or the end of an abort."""

    def close() -> None:
        # A producer aborts by itself and fails where we did before; without an answer the binding raises SystemError.
        with suppress(KafkaException, RuntimeError, SystemError):
            client.close()

    closing = Thread(target=close, name="errata-kafka-close", daemon=True)
    closing.start()
    closing.join(within_s)
    if closing.is_alive():
        _LOG.warning("%s: the client did not close in %g s; it is left", name, within_s)


def earliest_offsets(
    connection: Connection, admin: AdminClient, places: list[Place], timeout_s: float = ANSWER_TIMEOUT_S
) -> dict[Place, int]:
    """The first offset of each partition that is still in the log."""
    return _offsets(connection, admin, places, OffsetSpec.earliest(), timeout_s)  # type: ignore[no-untyped-call]


def latest_offsets(
    connection: Connection, admin: AdminClient, places: list[Place], timeout_s: float = ANSWER_TIMEOUT_S
) -> dict[Place, int]:
    """The end of each partition, with what open transactions have written.

    Uncommitted on purpose: offsets may be committed while the marker of the same transaction is not yet visible here.
    """
    return _offsets(connection, admin, places, OffsetSpec.latest(), timeout_s)  # type: ignore[no-untyped-call]


def _offsets(
    connection: Connection, admin: AdminClient, places: list[Place], spec: OffsetSpec, timeout_s: float
) -> dict[Place, int]:
    """In slices, since after one of them another broker may lead; of little time one is half."""
    deadline_s = monotonic() + timeout_s
    found: dict[Place, int] = {}
    while missing := [place for place in places if place not in found]:
        asked = {connection.at(place): spec for place in missing}
        futures: Mapping[TopicPartition, Future[Any]] = admin.list_offsets(
            asked,
            isolation_level_value=ISOLATION_LEVEL_READ_UNCOMMITTED,
            request_timeout=max(ELECTION_POLL_S, min(ANSWER_SLICE_S, (deadline_s - monotonic()) / 2)),
        )
        moved: set[str] = set()
        for partition, future in futures.items():
            place = partition.topic.removeprefix(connection.prefix), partition.partition
            try:
                found[place] = _told(future)
            except KafkaException as error:
                if error_of(error).code() not in MOVED or monotonic() > deadline_s:
                    doing = f"offsets of {place[0]} partition {place[1]}"
                    raise connection.answered(admin, error, doing) from None
                moved.add(partition.topic)
        for topic in sorted(moved):  # once, however many of its partitions it is
            _ask_for_leader(admin, topic, max(ELECTION_POLL_S, min(ANSWER_SLICE_S, deadline_s - monotonic())))
    return found


def _told(future: Future[Any]) -> int:
    """The offset that a broker answered with.

    Of a leader that is dead or silent librdkafka (2.16) has no error but its mark for "no offset", -1001. Taken for an
    offset it would be an empty partition: a restore would read nothing of it.
    """
    offset = int(future.result().offset)
    if offset < 0:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return offset


def _ask_for_leader(admin: AdminClient, topic: str, timeout_s: float) -> None:
    """An admin client keeps the leaders it once knew, whatever the brokers answer, until it is told to ask."""
    sleep(ELECTION_POLL_S)
    with suppress(KafkaException):
        admin.list_topics(topic, timeout=timeout_s)


def partition_counts(connection: Connection, found: ClusterMetadata) -> dict[str, int]:
    """The topics under the prefix, and how many partitions each has."""
    return {
        name.removeprefix(connection.prefix): len(topic.partitions)
        for name, topic in found.topics.items()
        if name.startswith(connection.prefix) and topic.error is None
    }


def metadata(connection: Connection, admin: AdminClient) -> ClusterMetadata:
    """All brokers and topics; to ask for all creates none. In slices, so that a wrong password is told at once."""
    deadline_s = monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            return admin.list_topics(timeout=ANSWER_SLICE_S)
        except KafkaException as error:
            why = connection.answered(admin, error, "topics")
            if isinstance(why, Misconfigured) or monotonic() > deadline_s:
                raise why from None
