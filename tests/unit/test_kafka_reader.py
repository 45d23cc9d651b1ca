"""What a reader takes from its client."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from errata.adapters.kafka.connection import Connection
from errata.adapters.kafka.reader import Readers, _Idle
from errata.errors import Misconfigured


@dataclass
class Said:
    """A message of a client: a record, or with ``code`` an event."""

    number: int | None
    at: int
    code: int | None = None
    name: str | None = "x.state"

    def error(self) -> KafkaError | None:
        return None if self.code is None else KafkaError(self.code)

    def topic(self) -> str | None:
        return self.name

    def partition(self) -> int | None:
        return self.number

    def offset(self) -> int:
        return self.at


@dataclass
class Client:
    said: list[Said] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def list_topics(self, topic: str, timeout: float) -> None:
        self.asked.append(topic)
        if topic == "x.away":
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def poll(self, _: float) -> Said | None:
        return self.said.pop(0) if self.said else None

    def consume(self, _: int, __: float) -> list[Said]:
        rest, self.said = self.said, []
        return rest


class Prefixed:
    def full(self, topic: str) -> str:
        return f"x.{topic}"


def some(*said: Said) -> tuple[list[Any], int]:
    readers = object.__new__(Readers)
    readers._connection = cast(Connection, Prefixed())
    records, reached = readers._some(cast(Consumer, Client([*said])), ("state", 1))
    return list(records), reached


def test_a_client_is_told_once_to_ask_for_a_topic_that_is_new_to_it() -> None:
    """By itself it would look once a second, and a restart reads three topics."""
    readers = object.__new__(Readers)
    readers._connection = cast(Connection, Prefixed())
    client = Client()
    one = _Idle(cast(Consumer, client), set())
    for topic in ("state", "contracts", "away", "state", "away"):
        readers._introduce(one, topic)  # that nobody answers is for the reading to say
    assert client.asked == ["x.state", "x.contracts", "x.away"]


EOF = KafkaError._PARTITION_EOF


def test_the_end_of_a_partition_is_where_its_client_says() -> None:
    assert some(Said(1, 7, EOF)) == ([], 7)


@pytest.mark.parametrize("other", [Said(0, 900, EOF), Said(1, 900, EOF, "x.contracts")])
def test_the_end_of_what_was_read_before_is_not_the_end_of_this(other: Said) -> None:
    """Else a state would look empty, and be said to have lost all that was committed."""
    assert some(other) == ([], -1)
    assert some(other, Said(1, 7, EOF)) == ([], 7)


def test_a_record_of_what_was_read_before_is_passed_by() -> None:
    assert some(Said(0, 3)) == ([], -1)


def test_an_error_of_nothing_in_particular_is_told() -> None:
    with pytest.raises(Misconfigured):
        some(Said(None, -1, KafkaError.TOPIC_AUTHORIZATION_FAILED, None))
