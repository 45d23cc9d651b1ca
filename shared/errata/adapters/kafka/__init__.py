"""Kafka through librdkafka: the transport of the services, and the topics they need."""

from errata.adapters.kafka.admin import (
    GROUP_INPUTS,
    TopicChange,
    apply_topics,
    check_topics,
    plan_topics,
)
from errata.adapters.kafka.transport import KafkaConsumer, KafkaProducer, KafkaTransport

__all__ = [
    "GROUP_INPUTS",
    "KafkaConsumer",
    "KafkaProducer",
    "KafkaTransport",
    "TopicChange",
    "apply_topics",
    "check_topics",
    "plan_topics",
]
