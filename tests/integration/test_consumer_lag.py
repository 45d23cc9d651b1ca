"""The lag we tell, on a real broker: of transactions in the input, of a batch in hand, and 0 at the end."""

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from errata.adapters.kafka import KafkaTransport
from errata.adapters.kafka_statistics import partition_lags, topic_lags
from errata.ports import Consumer, Outgoing

pytestmark = pytest.mark.servers

PLACE = ("t", 0)
RECORDS = 100
TIMEOUT_S = 30.0


def until(consumer: Consumer, seen: list[dict[str, Any]], good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first good statistics that come from now on; nothing is read meanwhile."""
    seen.clear()
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert consumer.poll(1, 0.1) == []
        for statistics in seen:
            if good(statistics):
                return statistics
    raise AssertionError(f"no such statistics in {TIMEOUT_S} s; the last: {seen[-1:]}")


def read(consumer: Consumer, records: int) -> int:
    """Read this many; the next offset."""
    deadline_s = time.monotonic() + TIMEOUT_S
    last = -1
    while records and time.monotonic() < deadline_s:
        for record in consumer.poll(records, 0.1):
            last, records = record.offset, records - 1
    assert records == 0
    return last + 1


def test_lag_falls_to_0_behind_a_transaction_marker(kafka_address: str) -> None:
    prefix = f"lag-{uuid4().hex[:8]}."
    admin = AdminClient({"bootstrap.servers": kafka_address})
    admin.create_topics([NewTopic(prefix + "t", 1, 1)])[prefix + "t"].result(TIMEOUT_S)
    seen: list[dict[str, Any]] = []
    transport = KafkaTransport(
        {"bootstrap.servers": kafka_address, "statistics.interval.ms": "100"},
        topic_prefix=prefix,
        missing_offsets="earliest",
        on_stats=seen.append,
    )
    try:
        producer = transport.producer("p")
        producer.begin()
        for number in range(RECORDS):
            producer.produce(Outgoing("t", b"k", b"%d" % number, partition=0))
        producer.commit()
        consumer = transport.consumer("g", "t", instance="0")

        position = read(consumer, 40)
        consumer.pause([PLACE])
        behind = until(consumer, seen, lambda found: bool(partition_lags(found, {PLACE: position})))
        assert partition_lags(behind, {PLACE: position}) == {PLACE: RECORDS + 1 - position}

        consumer.resume([PLACE])
        assert read(consumer, RECORDS - position) == RECORDS
        done = until(consumer, seen, lambda found: partition_lags(found, {PLACE: RECORDS}) == {PLACE: 0})
        its_own = done["topics"]["t"]["partitions"]["0"]
        assert its_own["ls_offset"] - RECORDS == 1, "there is no marker behind the records"
        assert its_own["consumer_lag"] != 0, "librdkafka's own figure would do"

        consumer.seek(PLACE, 70)  # as after a batch that failed
        consumer.pause([PLACE])
        failed = until(consumer, seen, lambda found: partition_lags(found, {PLACE: 70}) != {PLACE: 0})
        assert topic_lags(partition_lags(failed, {PLACE: 70}) or {}) == {"t": RECORDS + 1 - 70}
    finally:
        transport.close()
