"""Input topics of a test's own, and what was published to them."""

import json
import time
from typing import Any
from uuid import uuid4

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from errata.contracts.topics import CHANGES, OUTCOMES, PARTITIONS, PREDICTIONS

READ_TIMEOUT_S = 30.0


def make_topics(address: str) -> str:
    """The input topics with a prefix that no other test has; the prefix."""
    prefix = f"publishers-{uuid4().hex[:12]}."
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    topics = [NewTopic(prefix + topic, PARTITIONS, 1) for topic in (PREDICTIONS, OUTCOMES, CHANGES)]
    for made in admin.create_topics(topics).values():
        made.result(timeout=20)
    return prefix


def records(address: str, topic: str) -> list[Message]:
    """All that is in a topic now; in order within a partition."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "unused", "log_level": 0})
    partitions = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
    deadline_s = time.monotonic() + READ_TIMEOUT_S
    due = sum(_end(consumer, partition, deadline_s) for partition in partitions)
    consumer.assign(partitions)
    found: list[Message] = []
    while len(found) < due:
        assert time.monotonic() < deadline_s, f"{len(found)} of {due} records read"
        for message in consumer.consume(1_000, 0.2):
            assert message.error() is None, message.error()
            found.append(message)
    consumer.close()
    return found


def _end(consumer: Consumer, partition: TopicPartition, deadline_s: float) -> int:
    """The next offset; a partition made a moment ago has no leader yet."""
    while True:
        try:
            return int(consumer.get_watermark_offsets(partition, timeout=20)[1])
        except KafkaException:
            if time.monotonic() > deadline_s:
                raise


def values(address: str, topic: str) -> list[Any]:
    return [json.loads(message.value() or b"") for message in records(address, topic)]
