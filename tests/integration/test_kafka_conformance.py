"""Kafka keeps the promises of every transport: the same suite as in memory, on a real broker."""

from collections.abc import Mapping

import pytest
from tests.conformance.transport import TransportSuite

from errata.adapters.kafka import KafkaTransport, apply_topics
from errata.contracts.topics import Topic

pytestmark = pytest.mark.servers


class TestKafka(TransportSuite):
    @pytest.fixture(autouse=True)
    def _broker(self, kafka_address: str) -> None:
        self.address = kafka_address

    def make(self, topics: Mapping[str, Topic]) -> KafkaTransport:
        # A member hears of others with its heartbeat: more often than in production, for the sake of time.
        properties = {"bootstrap.servers": self.address, "heartbeat.interval.ms": "500"}
        apply_topics(properties, topics=topics, groups={})
        # Groups of the suite have no offsets, and their members that leave are not to come back.
        return KafkaTransport(properties, missing_offsets="earliest", leave_on_close=True)
