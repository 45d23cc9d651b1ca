"""A service with a guarantee broken on purpose, as a process: ``broken_service.py KIND SERVICE``.

``outside``: offsets are committed outside of the transaction, before it. ``after``: they are committed after it.
``forgetful``: state is not written to its changelog. ``letters``: dead letters are written outside of the transaction.
``drops``: what the database does not take is given up. ``slow``: restoring takes long. ``leaky``: memory is kept.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from threading import Event
from uuid import uuid4

from errata.adapters.kafka import KafkaProducer, KafkaTransport
from errata.adapters.sql import SqlCatalogue
from errata.contracts import TaggedCase
from errata.errors import Unavailable
from errata.ports import Consumer, CrashHook, Offsets, Outgoing, Record, SinkDeadLetter, StateChange, never_crash
from errata.runtime.backoff import Backoff
from errata.runtime.service import Loop, serve, stop_on_signals
from errata.settings import ServiceSettings, read_service_settings
from errata_services import processes
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import ServiceParts, service_parts
from errata_services.catalog_writer import CatalogWriterWorker


class OffsetsOutside(KafkaProducer):
    def send_offsets(self, offsets: Offsets, consumer: Consumer) -> None:
        from confluent_kafka import TopicPartition

        client = consumer._client  # type: ignore[attr-defined]
        places = [TopicPartition(self._connection.full(topic), number, at) for (topic, number), at in offsets.items()]
        client.commit(offsets=places, asynchronous=False)


class OffsetsAfter(OffsetsOutside):
    """The offsets of a transaction follow when the loop turns the next time."""

    _late: tuple[Offsets, Consumer] | None = None

    def send_offsets(self, offsets: Offsets, consumer: Consumer) -> None:
        self._late = (dict(offsets), consumer)

    def send_late(self) -> None:
        if self._late is not None:
            super().send_offsets(*self._late)
            self._late = None


class LettersOutside(KafkaProducer):
    """Dead letters are there at once, whatever becomes of the transaction that they belong to."""

    letters: KafkaProducer

    def produce(self, record: Outgoing) -> None:
        if not record.topic.endswith(".dlq"):
            super().produce(record)
            return
        if not hasattr(self, "letters"):
            self.letters = KafkaProducer(self._connection, f"letters-{uuid4().hex}", self._partitions_of)
        self.letters.begin()
        self.letters.produce(record)
        self.letters.commit()


PRODUCERS = {"outside": OffsetsOutside, "after": OffsetsAfter, "letters": LettersOutside}


class OutsideTransport(KafkaTransport):
    kind: type[KafkaProducer] = OffsetsOutside

    def producer(self, transactional_id: str) -> KafkaProducer:
        self.made = self.kind(self._connection, transactional_id, self.partitions)
        return self.made

    def tick(self) -> None:
        if isinstance(self.made, OffsetsAfter):
            self.made.send_late()


class Dropping(SqlCatalogue):
    """What the database does not take is given up, and reading goes on."""

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
        try:
            return super().apply(cases, positions, group, owner, dead=dead, crash=crash)
        except Unavailable:
            return 0

    def open_cases(self) -> dict[str, int]:
        try:
            return super().open_cases()
        except Unavailable:  # else the writer would rest until the database is back
            return {}


class SlowDetector(AnomalyDetector):
    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        if partition == 0:
            Event().wait(SLOW_S)
        super().restore(partition, entries)


class ForgetfulDetector(AnomalyDetector):
    state_topic = None  # type: ignore[assignment]

    def _changes(self, batch: Sequence[Record], taken: Mapping[int, int]) -> list[StateChange]:
        return []


SLOW_S = 8.0
LEAKED_BYTES = 256 * 1024  # each time that the loop turns
DETECTORS = {"forgetful": ForgetfulDetector, "slow": SlowDetector}


def dropping_writer(settings: ServiceSettings, parts: ServiceParts) -> Loop:
    assert settings.database_url is not None
    catalogue = Dropping(settings.database_url.get_secret_value(), service=processes.WRITER)
    parts.stack.callback(catalogue.close)
    return CatalogWriterWorker(
        parts.transport, catalogue, settings.instance, settings.batch_size,
        backoff=Backoff(random.random), telemetry=parts.telemetry, health=parts.health,
    )  # fmt: skip


def main(kind: str, name: str) -> None:
    settings, stopping = read_service_settings(), Event()
    stop_on_signals(stopping)
    with service_parts(name, settings) as parts:
        if kind in PRODUCERS:
            transport = OutsideTransport(settings.kafka, topic_prefix=settings.topic_prefix)
            transport.kind = PRODUCERS[kind]
            parts.transport = transport
            loop, _ = processes.LOOPS[name](settings, parts)
            on_tick = transport.tick
        elif kind == "drops":
            loop, on_tick = dropping_writer(settings, parts), parts.health.tick
        elif kind == "leaky":
            kept: list[bytearray] = []
            loop, _ = processes.LOOPS[name](settings, parts)
            on_tick = lambda: kept.append(bytearray(b"x" * LEAKED_BYTES))  # noqa: E731
        else:
            stage = DETECTORS[kind](parts.transport, parts.decoder, rekeys=True)
            loop, on_tick = processes._worker(stage, settings, parts), parts.health.tick
        serve(loop, stopping, on_tick)


if __name__ == "__main__":
    main(*sys.argv[1:])
