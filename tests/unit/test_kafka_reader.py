"""What a reader takes from its client."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from errata.adapters.kafka import reader
from errata.adapters.kafka.connection import Connection
from errata.adapters.kafka.failures import Diagnosis
from errata.adapters.kafka.reader import TRANSACTIONS, Readers, _Idle, _Wait
from errata.errors import HangingTransaction, Misconfigured, Unavailable


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
    diagnosis, servers = Diagnosis(), "broker:9092"

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


@dataclass
class Brokers:
    """What a client is told of the topics; ``lacking`` is one that has a replica out of sync."""

    up: bool = True
    lacking: str = ""

    def list_topics(self, topic: str, timeout: float) -> Any:
        if not self.up:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        isrs: Sequence[int] = [1, 2] if topic == self.lacking else [1, 2, 3]
        partition = SimpleNamespace(isrs=isrs, replicas=[1, 2, 3])
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions={0: partition})})


@dataclass
class Waiting:
    """A read of 9 records that has come to the fifth, of transactions that hang after 25 s."""

    monkeypatch: pytest.MonkeyPatch
    brokers: Brokers = field(default_factory=Brokers)
    now_s: float = 0.0
    reached: int = 5

    def __post_init__(self) -> None:
        self.monkeypatch.setattr(reader, "monotonic", lambda: self.now_s)
        client, connection = cast(Consumer, self.brokers), cast(Connection, Prefixed())
        self.wait = _Wait(connection, client, ("state", 1), 9, 25.0, 60.0)

    def until(self, now_s: float) -> None:
        while self.now_s < now_s:
            self.now_s += 1.0
            self.wait.note(False, self.reached)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(monkeypatch)


def test_a_transaction_that_sound_brokers_do_not_end_hangs(waiting: Waiting) -> None:
    waiting.until(26)
    with pytest.raises(HangingTransaction, match=r"^hanging_transaction: state partition 1 stands at 5, its end is 9"):
        waiting.until(27)


@pytest.mark.parametrize(
    ("brokers", "said"),
    [
        (Brokers(lacking="x.state"), "1 of 1 partitions of x.state lack replicas in sync"),
        (Brokers(lacking=TRANSACTIONS), f"1 of 1 partitions of {TRANSACTIONS} lack replicas in sync"),
        (Brokers(up=False), "no answer from Kafka at broker:9092"),
    ],
)
def test_a_transaction_that_the_brokers_cannot_end_is_an_outage(
    monkeypatch: pytest.MonkeyPatch, brokers: Brokers, said: str
) -> None:
    """Else a stage that starts while nodes are away would stop for good, and wait for a person."""
    waiting = Waiting(monkeypatch, brokers)
    with pytest.raises(Unavailable, match=said) as error:
        waiting.until(27)
    assert not isinstance(error.value, HangingTransaction)


def test_brokers_that_are_just_back_have_their_time_to_end_a_transaction(waiting: Waiting) -> None:
    waiting.brokers.up = False
    waiting.until(24)
    waiting.brokers.up = True
    waiting.until(48)
    with pytest.raises(HangingTransaction):
        waiting.until(53)


def test_a_read_that_nobody_answers_names_the_brokers(waiting: Waiting) -> None:
    waiting.reached = -1
    with pytest.raises(Unavailable, match="reading state partition 1: no answer from Kafka at broker:9092"):
        waiting.until(27)


def test_a_read_that_moves_does_not_hang_and_has_an_end(waiting: Waiting) -> None:
    waiting.now_s = 30
    waiting.wait.note(True, -1)
    waiting.until(50)
    waiting.wait.note(True, -1)
    with pytest.raises(Unavailable, match="reading state partition 1 to 9 took longer than 60 s"):
        waiting.until(61)
