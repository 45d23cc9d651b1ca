"""A service with a guarantee broken on purpose, as a process: ``broken_service.py KIND SERVICE``.

``outside``: offsets are committed outside of the transaction. ``forgetful``: state is not written to its changelog.
"""

import sys
from collections.abc import Mapping, Sequence
from threading import Event

from errata.adapters.kafka import KafkaProducer, KafkaTransport
from errata.ports import Consumer, Offsets, Record, StateChange
from errata.runtime.service import serve, stop_on_signals
from errata.settings import read_service_settings
from errata_services import processes
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import service_parts


class OffsetsOutside(KafkaProducer):
    def send_offsets(self, offsets: Offsets, consumer: Consumer) -> None:
        from confluent_kafka import TopicPartition

        client = consumer._client  # type: ignore[attr-defined]
        places = [TopicPartition(self._connection.full(topic), number, at) for (topic, number), at in offsets.items()]
        client.commit(offsets=places, asynchronous=False)


class OutsideTransport(KafkaTransport):
    def producer(self, transactional_id: str) -> KafkaProducer:
        return OffsetsOutside(self._connection, transactional_id, self.partitions)


class ForgetfulDetector(AnomalyDetector):
    state_topic = None  # type: ignore[assignment]

    def _changes(self, batch: Sequence[Record], taken: Mapping[int, int]) -> list[StateChange]:
        return []


def main(kind: str, name: str) -> None:
    settings, stopping = read_service_settings(), Event()
    stop_on_signals(stopping)
    with service_parts(name, settings) as parts:
        if kind == "outside":
            parts.transport = OutsideTransport(settings.kafka, topic_prefix=settings.topic_prefix)
            loop, on_tick = processes.LOOPS[name](settings, parts)
        else:
            stage = ForgetfulDetector(parts.transport, parts.decoder, rekeys=True)
            loop, on_tick = processes._worker(stage, settings, parts), parts.health.tick
        serve(loop, stopping, on_tick)


if __name__ == "__main__":
    main(*sys.argv[1:])
