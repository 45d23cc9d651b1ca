"""Messages of the client become records field by field."""

from confluent_kafka import Message

from errata.adapters.kafka.consumer import records_of
from errata.ports import Record

BARE = {"mine.a": "a", "mine.b": "b"}


def message(topic: str, offset: int, headers: list[tuple[str, str | bytes | None]] | None = None) -> Message:
    value = None if offset == 0 else b"v%d" % offset
    return Message(topic=topic, partition=3, offset=offset, key=b"k", value=value, headers=headers, timestamp=(1, 5))


def record(topic: str, offset: int, *headers: tuple[str, bytes]) -> Record:
    return Record(topic, 3, offset, 5_000, b"k", None if offset == 0 else b"v%d" % offset, headers)


def test_messages_of_one_topic() -> None:
    assert list(records_of([message("mine.a", 0), message("mine.a", 1)], BARE)) == [record("a", 0), record("a", 1)]


def test_messages_of_two_topics_keep_theirs() -> None:
    given = [message("mine.a", 1), message("mine.b", 1), message("mine.a", 2)]
    assert list(records_of(given, BARE)) == [record("a", 1), record("b", 1), record("a", 2)]


def test_headers_stay_with_their_message_and_null_ones_are_empty() -> None:
    given = [message("mine.a", 1), message("mine.a", 2, [("n", b"1"), ("none", None)]), message("mine.a", 3, [])]
    assert list(records_of(given, BARE)) == [record("a", 1), record("a", 2, ("n", b"1"), ("none", b"")), record("a", 3)]


def test_no_messages_are_no_records() -> None:
    assert list(records_of([], BARE)) == []
