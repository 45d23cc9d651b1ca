"""Lines of files as records: each once, in one transaction with the position, at the record time of the stream."""

from io import BytesIO
from typing import Any

import pytest

from errata.adapters.decode_msgspec import LineRouter
from errata.adapters.memory import MemoryTransport
from errata.contracts import canonical
from errata.contracts.strict import instant_us
from errata.contracts.topics import CHANGES, OUTCOMES, PREDICTIONS, TOPICS
from errata.ports import Record
from errata.runtime.crash_points import CrashPoint, CrashPoints
from errata_services.intake.files import MAX_LINE_BYTES, FileSource, lines_of

NOW_US = instant_us("2026-02-01T00:00:00Z")


def event(number: int, at: str = "2026-01-05T12:00:00Z", **fields: Any) -> bytes:
    return canonical({"event_id": f"e{number}", "time": at, "model": {"name": "m"}, "prediction": 1} | fields) + b"\n"


@pytest.fixture
def transport() -> MemoryTransport:
    return MemoryTransport(TOPICS)


def source(transport: MemoryTransport, name: str | None = "f", crash: CrashPoints | None = None) -> FileSource:
    return FileSource(transport, LineRouter(), name=name, now_us=NOW_US, crash=crash or CrashPoints.off())


def records(transport: MemoryTransport, topic: str = PREDICTIONS) -> list[Record]:
    return [r for n in range(transport.partitions(topic)) for r in transport.read_from((topic, n))]


def values(transport: MemoryTransport, topic: str = PREDICTIONS) -> list[bytes]:
    return [record.value or b"" for record in records(transport, topic)]


def read(transport: MemoryTransport, content: bytes, size: int = 2, name: str = "f") -> int:
    """Publish what is new of a file; the number of lines published."""
    reader, stream = source(transport, name), BytesIO(content)
    reader.skip_known(stream)
    return sum(reader.publish(lines) for lines in lines_of(stream, size))


def test_a_line_goes_to_the_topic_of_its_id(transport: MemoryTransport) -> None:
    outcome = canonical({"outcome_id": "o", "model": {"name": "m"}, "observed_time": "2026-01-05T12:00:00Z"})
    change = canonical({"change_id": "c", "subject": "m", "time": "2026-01-05T12:00:00Z"})
    assert source(transport).publish([event(1), b"  \n", outcome + b"\r\n", change, b"nonsense\n", b"\n"]) == 4
    assert values(transport, OUTCOMES) == [outcome]
    assert values(transport, CHANGES) == [change]
    assert set(values(transport)) == {b"nonsense", event(1).strip()}
    assert {record.key for record in records(transport)} == {b"m", None}
    assert [record.key for record in records(transport, CHANGES)] == [b"m"]


def test_record_time_is_the_highest_event_time_so_far(transport: MemoryTransport) -> None:
    times = ["2026-01-05T12:00:02Z", "2026-01-05T12:00:01Z", "2026-01-05T12:00:03Z"]
    source(transport).publish([event(i, at) for i, at in enumerate(times)])
    assert [record.timestamp_us for record in records(transport)] == [
        instant_us(at) for at in (times[0], times[0], times[2])
    ]


@pytest.mark.parametrize("ahead", ["2090-01-01T00:00:00Z", "2026-02-02T00:00:00.000001Z", "9999-12-31T23:59:59Z"])
def test_an_event_of_the_future_does_not_move_the_clock(ahead: str, transport: MemoryTransport) -> None:
    source(transport).publish([event(1), event(2, ahead), event(3)])
    assert {record.timestamp_us for record in records(transport)} == {instant_us("2026-01-05T12:00:00Z")}


def test_a_clock_that_is_a_little_ahead_is_held_at_ours(transport: MemoryTransport) -> None:
    source(transport).publish([event(1, "2026-02-01T00:00:09Z")])
    assert [record.timestamp_us for record in records(transport)] == [NOW_US]


def test_every_five_minutes_each_partition_gets_a_tick(transport: MemoryTransport) -> None:
    times = ["2026-01-05T12:00:00Z", "2026-01-05T12:04:59Z", "2026-01-05T12:05:00Z", "2026-01-05T12:05:01Z"]
    source(transport).publish([event(i, at) for i, at in enumerate(times)])
    ticks = [value for value in values(transport) if b'"tick"' in value]
    assert len(ticks) == transport.partitions(PREDICTIONS)
    assert set(ticks) == {canonical({"event_id": f"tick-{instant_us(times[2])}", "time": times[2], "purpose": "tick"})}
    assert len(values(transport)) == len(ticks) + 4


def test_the_clock_goes_on_in_the_next_run(transport: MemoryTransport) -> None:
    read(transport, event(1, "2026-01-05T12:00:00Z"))
    read(transport, event(2, "2026-01-05T11:00:00Z"), name="another")
    assert {record.timestamp_us for record in records(transport)} == {instant_us("2026-01-05T12:00:00Z")}


def test_a_file_is_read_on_from_where_it_was_left(transport: MemoryTransport) -> None:
    first, second = event(1) + event(2), event(3)
    assert read(transport, first) == 2
    assert read(transport, first) == 0
    assert read(transport, first + second) == 1
    assert len(values(transport)) == 3


def test_another_file_under_the_same_name_is_read_from_its_start(transport: MemoryTransport) -> None:
    read(transport, event(1) + event(2))
    assert read(transport, event(3) + event(4) + event(5)) == 3
    assert read(transport, event(3)) == 1  # shorter than before


def test_a_pipe_has_no_position(transport: MemoryTransport) -> None:
    for _ in range(2):
        assert source(transport, name=None).publish([event(1)]) == 1
    assert len(values(transport)) == 2


@pytest.mark.parametrize("point", ["AFTER_STEP", "MID_PRODUCE", "AFTER_PRODUCE", "AFTER_COMMIT"])
@pytest.mark.parametrize("nth", [1, 2])
def test_lines_and_position_are_one_transaction(point: str, nth: int, transport: MemoryTransport) -> None:
    content = b"".join(event(i) for i in (1, 2, 3))
    reader = source(transport, crash=CrashPoints.raising("intake", point, nth))
    with pytest.raises(CrashPoint):
        _ = [reader.publish(lines) for lines in lines_of(BytesIO(content), 2)]
    committed = nth if point == "AFTER_COMMIT" else nth - 1
    published = min(2 * committed, 3)
    assert len(values(transport)) == published
    assert read(transport, content) == 3 - published
    assert values(transport) == [event(i).strip() for i in (1, 2, 3)]


def test_lines_come_in_batches_of_at_most_so_many() -> None:
    assert list(lines_of(BytesIO(b"a\nb\n\nc"), 2)) == [[b"a\n", b"b\n"], [b"\n", b"c"]]
    assert list(lines_of(BytesIO(b""), 2)) == []


@pytest.mark.parametrize("length", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 3 * MAX_LINE_BYTES])
def test_what_is_beyond_the_limit_is_cut_and_never_read_again(length: int, transport: MemoryTransport) -> None:
    content = b"x" * length + b"\n" + event(1)
    assert [len(line) for line in next(lines_of(BytesIO(content), 9))] == [
        min(length + 1, MAX_LINE_BYTES),
        len(event(1)),
    ]
    assert read(transport, content) == 2
    assert read(transport, content) == 0
    assert read(transport, content + event(2)) == 1


def test_a_crash_behind_a_line_that_was_cut_reads_no_line_twice(transport: MemoryTransport) -> None:
    content = b"x" * (2 * MAX_LINE_BYTES) + b"\n" + event(1)
    reader = source(transport, crash=CrashPoints.raising("intake", "AFTER_COMMIT"))
    with pytest.raises(CrashPoint):
        reader.publish(next(lines_of(BytesIO(content), 1)))
    assert read(transport, content) == 1
