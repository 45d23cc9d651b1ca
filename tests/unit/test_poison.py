"""The breaker: exact limits, nothing lost or doubled where it stops, closed again by a person alone."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from tests.unit.test_worker import DLQ, STAGE, assert_receipts_tile, everything, feed, letters, outputs, topics, worker

from errata.adapters.memory import MemoryTransport
from errata.domain.poison import BUG_MOST, BUG_WINDOW_S, MAX_FINGERPRINTS, MOST, RUN, WINDOW, BugCount, PlaceCount, Trip
from errata.errors import BrokenStage, RefusedSchema, Unavailable
from errata.ports import Outgoing
from errata.runtime.crash_points import CrashPoint, CrashPoints
from errata.runtime.dead_letters import fingerprint
from errata.runtime.health import Health, not_ready
from errata.runtime.poison import PoisonGuard
from errata.runtime.telemetry import NoTelemetry
from errata.runtime.worker import Worker

IN_A_ROW = f"{RUN} dead letters in a row"
CROWDED = f"more than {MOST} dead letters among {WINDOW:,} records"


# The limits.


def fed(*parts: tuple[int, list[int]]) -> tuple[PlaceCount, Trip | None]:
    count, trip = PlaceCount(), None
    for delivered, dead in parts:
        count, trip = count.after(delivered, dead)
    return count, trip


def test_99_in_a_row_pass_and_100_do_not() -> None:
    assert fed((99, [*range(99)]))[1] is None
    assert fed((100, [*range(100)]))[1] == Trip(99, IN_A_ROW)
    assert fed((5_000, [*range(17, 5_000)]))[1] == Trip(116, IN_A_ROW)
    assert fed((99, [*range(99)]), (1, [0]))[1] == Trip(0, IN_A_ROW)
    assert fed((99, [*range(99)]), (1, []), (99, [*range(99)]))[1] != Trip(0, IN_A_ROW)


@pytest.mark.parametrize("batch", [1, 7, 99, 100, 101])
def test_a_row_goes_on_over_batches(batch: int) -> None:
    count, taken = PlaceCount(), 0
    while True:
        count, trip = count.after(batch, range(batch))
        if trip is not None:
            assert taken + trip.index + 1 == RUN
            return
        taken += batch


def test_100_among_10_000_pass_and_101_do_not() -> None:
    spread = [*range(0, 10_000, 100)]  # 100 of them
    assert fed((10_000, spread))[1] is None
    assert fed((10_000, [*spread, 9_999]))[1] == Trip(9_999, CROWDED)
    assert fed((10_001, [*spread, 10_000]))[1] is None  # by then the first is out of sight
    assert fed((1_000, [n for n in range(1_000) if n % 5 == 0]))[1] == Trip(500, CROWDED)


def test_steady_one_percent_is_borne_and_more_is_not() -> None:
    borne, worn = PlaceCount(), PlaceCount()
    for _ in range(50):
        borne, trip = borne.after(1_000, range(0, 1_000, 100))
        assert trip is None
    tripped = []
    for _ in range(15):
        worn, trip = worn.after(1_000, range(0, 1_000, 90))
        tripped.append(trip is not None)
    assert tripped[:8] == [False] * 8
    assert any(tripped)


def test_memory_is_bounded() -> None:
    count, _ = fed((200_000, [*range(0, 200_000, 2)]))
    assert len(count.newest) == MOST
    bugs = BugCount()
    for n in range(3 * MAX_FINGERPRINTS):
        bugs.note(str(n), 0.0)
    assert len(bugs._seen) == MAX_FINGERPRINTS


def test_bug_ten_times_a_minute_is_borne_and_eleven_not() -> None:
    bugs = BugCount()
    assert not any(bugs.note("a", float(n)) for n in range(BUG_MOST))
    assert not any(bugs.note("b", float(n)) for n in range(BUG_MOST))
    assert bugs.note("a", BUG_WINDOW_S)
    assert not bugs.note("a", BUG_WINDOW_S + 1.5)  # the two oldest are over a minute ago


# The worker.


class Told(NoTelemetry):
    def __init__(self) -> None:
        self.open: dict[str, int] = {}

    def poisoned(self, partitions_by_topic: Mapping[str, int]) -> None:
        self.open = dict(partitions_by_topic)


class Watched:
    """A worker with a breaker, and what it tells."""

    def __init__(self, transport: MemoryTransport, **how: Any) -> None:
        self.transport, self.told, self.now_s = transport, Told(), 0.0
        self.health = Health(stage=STAGE, instance="0", build="test")
        self.guard = PoisonGuard(STAGE, self.told, self.health)
        self.worker: Worker = worker(
            transport, guard=self.guard, health=self.health, telemetry=self.told, clock=lambda: self.now_s, **how
        )

    def run(self) -> int:
        total = 0
        while taken := self.worker.run_once():
            total += taken
        return total

    @property
    def reasons(self) -> list[str]:
        return not_ready(self.health.facts)


def poison(transport: MemoryTransport, bad: int, good: int, text: str = "refused") -> None:
    """So many bad records in partition 1, then good ones there; all the same number of good ones in 0 and 2."""
    producer = transport.producer("source")
    producer.begin()
    for n in range(bad + good):
        producer.produce(Outgoing("in", b"b", text.encode() if n < bad else b"x", partition=1))
        for number, key in ((0, b"a"), (2, b"c")):
            producer.produce(Outgoing("in", key, b"x", partition=number))
    producer.commit()


def by_key(transport: MemoryTransport) -> Counter[str]:
    return Counter(json.loads(value or b"")[0] for _, value in outputs(transport))


@pytest.mark.parametrize("batch_size", [1, 64, 5_000])
def test_all_poison_stops_its_partition_at_the_100th_and_no_other(batch_size: int) -> None:
    transport = MemoryTransport(topics())
    poison(transport, 150, 50)
    watched = Watched(transport, batch_size=batch_size)
    assert watched.run() == RUN + 2 * 200
    assert len(letters(transport)) == RUN
    assert by_key(transport) == {"a": 200, "c": 200}
    assert watched.guard.stopped == {("in", 1)}
    assert watched.told.open == {"in": 1}
    assert watched.reasons == [
        f"in partition 1 is not read any more: {IN_A_ROW} (breaker open; SIGUSR1 or a restart closes it)"
    ]
    status = watched.health.status()
    assert status["ready"] is False
    assert status["stopped_partitions"] == [{"topic": "in", "partition": 1, "reason": IN_A_ROW}]
    assert [part["partition"] for part in status["partitions"] if part["paused"]] == [1]
    assert watched.worker.positions["in", 1] == RUN


@pytest.mark.parametrize("batch_size", [7, 5_000])
def test_asked_back_it_reads_on_where_it_stopped(batch_size: int) -> None:
    transport = MemoryTransport(topics())
    poison(transport, 150, 50)
    watched = Watched(transport, batch_size=batch_size)
    watched.run()
    watched.guard.ask_back()
    assert watched.run() == 100  # 50 bad ones are fewer than 100: it goes on
    assert (watched.guard.stopped, watched.told.open, watched.reasons) == (set(), {}, [])
    assert sorted(one[4] for one in letters(transport)) == [*range(150)]
    assert by_key(transport) == {"a": 200, "b": 50, "c": 200}
    assert_receipts_tile(transport)


def test_asked_back_while_it_is_still_bad_it_stops_again() -> None:
    transport = MemoryTransport(topics())
    poison(transport, 500, 0)
    watched = Watched(transport)
    for n in (1, 2, 3):
        watched.run()
        assert len(letters(transport)) == n * RUN
        assert watched.guard.stopped == {("in", 1)}
        watched.guard.ask_back()


def test_restart_reads_on_and_nothing_is_lost_or_doubled() -> None:
    transport = MemoryTransport(topics())
    poison(transport, 150, 50)
    first = Watched(transport)
    first.run()
    first.worker.close()
    again = Watched(transport)
    again.run()
    assert again.guard.stopped == set()
    assert sorted(one[4] for one in letters(transport)) == [*range(150)]
    assert_receipts_tile(transport)


def test_more_than_one_percent_stops_too() -> None:
    transport = MemoryTransport(topics())
    producer = transport.producer("source")
    producer.begin()
    for n in range(3_000):
        producer.produce(Outgoing("in", b"b", b"refused" if n % 10 == 0 else b"x", partition=1))
    producer.commit()
    watched = Watched(transport)
    assert watched.run() == 1_001
    assert len(letters(transport)) == MOST + 1
    assert watched.guard.stopped == {("in", 1)}
    assert CROWDED in watched.reasons[0]


def test_stopped_partition_stays_stopped_over_a_rebalance() -> None:
    transport = MemoryTransport(topics())
    poison(transport, 150, 0)
    watched = Watched(transport)
    watched.run()
    other = worker(transport, instance="1")  # takes partition 1, with no breaker, and gives it back
    watched.worker.run_once()
    other.run_once()
    assert watched.told.open == {}  # what is another's is not ours to tell
    other.close()
    poison(transport, 5, 0)
    watched.run()
    assert ("in", 1) in watched.guard.stopped
    assert watched.told.open == {"in": 1}
    assert transport.end_offset(("in", 1)) > watched.worker.positions["in", 1]


def test_without_a_breaker_all_of_it_becomes_dead_letters() -> None:
    """The control: the limits are the breaker's alone."""
    transport = MemoryTransport(topics())
    poison(transport, 150, 50)
    run = worker(transport)
    while run.run_once():
        pass
    assert len(letters(transport)) == 150


def test_batch_that_is_taken_back_does_not_count() -> None:
    transport = MemoryTransport(topics())
    poison(transport, RUN - 1, 0)
    feed(transport, ["x", "down", "x"])
    watched = Watched(transport)
    for _ in range(3):
        with pytest.raises(Unavailable):
            watched.worker.run_once()
    assert watched.guard.stopped == set()
    assert watched.guard._counts == {}


@pytest.mark.parametrize("point", ["AFTER_STEP", "MID_PRODUCE", "AFTER_PRODUCE", "AFTER_OFFSETS", "AFTER_COMMIT"])
def test_killed_in_the_batch_that_trips(point: str) -> None:
    transport = MemoryTransport(topics())
    poison(transport, 150, 50)
    with pytest.raises(CrashPoint):
        Watched(transport, crash=CrashPoints.raising(STAGE, point)).run()
    watched = Watched(transport)
    watched.run()
    watched.guard.ask_back()
    watched.run()
    assert sorted(one[4] for one in letters(transport)) == [*range(150)]
    assert by_key(transport) == {"a": 200, "b": 50, "c": 200}
    assert_receipts_tile(transport)


def test_same_bug_eleven_times_a_minute_ends_the_stage_behind_its_commit() -> None:
    transport = MemoryTransport(topics())
    poison(transport, 50, 0, "boom")
    watched = Watched(transport)
    with pytest.raises(BrokenStage) as told:
        watched.run()
    assert told.value.exit_code == 70
    found = letters(transport)
    assert len(found) == BUG_MOST + 1
    (record, *_) = everything(transport, DLQ)
    mark = dict(record.headers)["errata.dlq.fingerprint"].decode()
    assert f"fingerprint {mark} " in str(told.value)
    assert "s3cret" not in str(told.value)
    assert watched.worker.positions["in", 1] == BUG_MOST + 1
    again = Watched(transport)  # a person has started it anew: it goes on behind what is committed
    with pytest.raises(BrokenStage):
        again.run()
    assert [one[4] for one in letters(transport)] == [*range(2 * (BUG_MOST + 1))]


def test_same_bug_now_and_then_is_borne() -> None:
    transport = MemoryTransport(topics())
    poison(transport, 50, 0, "boom")
    watched = Watched(transport)
    while watched.worker.run_once():
        watched.now_s += BUG_WINDOW_S / 9
    assert len(letters(transport)) == 50


def test_refusals_are_no_bugs() -> None:
    assert fingerprint(RefusedSchema("/a", "x")) != fingerprint(RefusedSchema("/b", "x"))
    transport = MemoryTransport(topics())
    poison(transport, RUN - 1, 1)
    watched = Watched(transport)
    watched.run()
    assert (len(letters(transport)), watched.guard.stopped) == (RUN - 1, set())
