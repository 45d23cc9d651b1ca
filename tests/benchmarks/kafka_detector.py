"""The detector's process as it is shipped, until it has committed so many records; prints what it took.

The service is put together by ``errata_services.processes``, from the environment, as ``errata run`` does. With
``at_least_once`` only its producer is another: `AtLeastOnce`.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":  # run as a file: the package "tests" is not on the path
    sys.path[:0] = [str(Path(__file__).parents[2])]

from confluent_kafka import Producer, TopicPartition

from errata.adapters.allocator import bound_heap
from errata.adapters.kafka import KafkaConsumer, KafkaTransport
from errata.contracts.topics import STAGES
from errata.ports import Consumer, Offsets, Outgoing
from errata.runtime.service import calm_collector
from errata.settings import ServiceSettings, read_service_settings
from errata_services import processes
from errata_services.anomaly_detector import CONFIG_HASH
from errata_services.bootstrap import service_parts

POLL_S = 0.25  # as the service's own loop
GUARANTEES = ("exactly_once", "at_least_once")


class AtLeastOnceProducer:
    """``errata.ports.Producer`` without transactions: an idempotent producer, its queue flushed, then the offsets.

    The client's properties are those of the transactional producer, but for the id.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._prefix = settings.topic_prefix
        self._client = Producer(
            {
                "bootstrap.servers": settings.bootstrap or "",
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 0,
                "retry.backoff.ms": 20,
                "compression.type": "zstd",
                "partitioner": "murmur2_random",
                "message.max.bytes": 1_040_000,
                "delivery.report.only.error": True,
                "on_delivery": self._failed,
            }
        )
        self._offsets: list[TopicPartition] = []
        self._consumer: KafkaConsumer | None = None

    def _failed(self, error: Any, message: Any) -> None:
        raise SystemExit(f"a record was not delivered: {error}")

    def begin(self) -> None:
        self._client.poll(0)

    def produce(self, record: Outgoing) -> None:
        partition = -1 if record.partition is None else record.partition
        headers: Any = list(record.headers)
        self._client.produce(self._prefix + record.topic, record.value, record.key, partition, headers=headers)

    def send_offsets(self, offsets: Offsets, consumer: Consumer) -> None:
        self._consumer = cast(KafkaConsumer, consumer)
        self._offsets = [
            TopicPartition(self._prefix + topic, number, offset) for (topic, number), offset in sorted(offsets.items())
        ]

    def commit(self) -> None:
        self._client.flush()
        assert self._consumer is not None
        self._consumer._client.commit(offsets=self._offsets, asynchronous=False)

    def abort(self) -> None:
        raise SystemExit("a batch failed, and there is no transaction to abort")

    def close(self) -> None:
        self._client.flush()


class AtLeastOnce:
    """A transport whose producers have no transactions; all else is that of ``inner``."""

    def __init__(self, inner: KafkaTransport, settings: ServiceSettings) -> None:
        self._inner = inner
        self._settings = settings

    def producer(self, transactional_id: str) -> AtLeastOnceProducer:
        return AtLeastOnceProducer(self._settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def main(guarantee: str, events: int) -> None:
    bound_heap()  # as `run_service`
    settings = read_service_settings()
    name = STAGES[0]
    with service_parts(name, settings, CONFIG_HASH) as parts:
        if guarantee == "at_least_once":
            parts.transport = cast(KafkaTransport, AtLeastOnce(parts.transport, settings))
        loop, on_tick = processes.LOOPS[name](settings, parts)
        calm_collector()
        cpu_s, start_s, taken, batches = 0.0, 0.0, 0, 0
        while taken < events:
            on_tick()
            asked_s, asked_cpu_s = time.perf_counter(), time.process_time()
            took = loop.run_once(POLL_S)
            if took:
                start_s, cpu_s = start_s or asked_s, cpu_s or asked_cpu_s
                taken += took
                batches += 1
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - start_s
        print(json.dumps({"events": taken, "cpu_s": cpu_s, "wall_s": wall_s, "batches": batches}), flush=True)
        loop.close()


def _checked(arguments: Iterable[str]) -> tuple[str, int]:
    guarantee, events = arguments
    if guarantee not in GUARANTEES:
        raise SystemExit(f"{guarantee}: must be one of {', '.join(GUARANTEES)}")
    return guarantee, int(events)


if __name__ == "__main__":
    main(*_checked(sys.argv[1:]))
