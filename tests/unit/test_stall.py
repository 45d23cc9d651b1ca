"""The stall watch: what counts as standing still, when it is told, when it ends the process, and what it lets be."""

import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from tests.unit.test_health import PLACE, Clock, at_work

from errata.errors import Misconfigured, Unavailable
from errata.ports import Offsets, Record, TopicPartition
from errata.runtime.health import Health
from errata.runtime.stall import Limits, StallWatch, Waiting, stacks
from errata.runtime.telemetry import NoTelemetry
from errata.settings import ServiceSettings

OTHER = (PLACE[0], 4)
LIMITS = Limits()


class Ends:
    """A log with committed records at some offsets; what lies between is marks of transactions."""

    def __init__(self) -> None:
        self.records: dict[TopicPartition, list[int]] = {}
        self.ends: Offsets = {}
        self.answers = True
        self.asked: list[str] = []
        self.closed = threading.Event()

    def holds(self, place: TopicPartition, *offsets: int, end: int | None = None) -> None:
        self.records[place] = list(offsets)
        self.ends[place] = end if end is not None else max(offsets, default=-1) + 1

    def end_offsets(self, partitions: list[TopicPartition], *, timeout_s: float | None = None) -> Offsets:
        assert timeout_s is not None
        assert timeout_s <= LIMITS.answer_s
        self.asked.append("ends")
        if not self.answers:
            raise Unavailable("no broker answers")
        return {place: self.ends.get(place, 0) for place in partitions}

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]:
        self.asked.append("record")
        if not self.answers:
            raise Unavailable("no broker answers")
        found = [at for at in self.records.get(partition, []) if at >= offset]
        return iter([Record(*partition, at, 0, None, b"") for at in found])

    def close(self) -> None:
        self.closed.set()


class Told(NoTelemetry):
    def __init__(self) -> None:
        self.partitions: list[int] = []

    def stalled(self, partitions: int) -> None:
        self.partitions.append(partitions)


class Watched:
    """A process under watch with a clock of its own. ``turn`` is false when its loop hangs."""

    def __init__(self) -> None:
        self.clock, self.log, self.told = Clock(), Ends(), Told()
        self.health = at_work(Health(stage="tagger", instance="0", build="1", clock=self.clock))
        self.codes: list[int] = []
        self.watch = StallWatch(self.health, self.told, self.log, clock=self.clock, end=self.codes.append)

    def live(self, seconds: float, *, turn: bool = True) -> float | None:
        """Let time go by with a look every few seconds, as the thread has them; when it ended the process."""
        begun_s = self.clock.now_s
        while self.clock.now_s < begun_s + seconds:
            self.clock.now_s += LIMITS.every_s
            if turn:
                self.health.tick()
            self.watch.look()
            if self.codes:
                return self.clock.now_s - begun_s
        return None

    @property
    def stalled(self) -> int:
        return self.told.partitions[-1]


@pytest.fixture
def process() -> Watched:
    return Watched()


def test_a_stall_is_found_within_60_s_and_ended_so_that_another_process_goes_on_within_120_s() -> None:
    found_s = LIMITS.every_s + LIMITS.tell_s + LIMITS.every_s + 2 * LIMITS.answer_s / 4
    assert found_s <= 60
    # Beside a look there are two requests to the log, and behind it the last words, a supervisor's pause, a start.
    assert 2 * LIMITS.every_s + LIMITS.end_s + 2 * LIMITS.answer_s + 5 <= 120
    assert LIMITS.alarm_s + LIMITS.every_s <= 100, "what no thread of ours sees ends as early"
    assert Limits.of(ServiceSettings(_env_file=None).stall_s) == LIMITS


# What is found.


def test_a_partition_that_stays_before_a_record_is_told_and_then_the_process_is_ended(process: Watched) -> None:
    process.log.holds(PLACE, 5)
    with capture_logs() as logs:
        assert process.live(50) is None
        assert process.stalled == 0
        assert process.live(5) is None
        assert process.stalled == 1
        assert [line["event"] for line in logs] == ["stands still"]
        assert logs[0]["partitions"] == [f"{PLACE[0]}/{PLACE[1]}"]
        assert any("test_stall.py" in place for frames in logs[0]["stacks"].values() for place in frames)
        assert process.live(60) == 45
    assert process.codes == [75]
    assert [line["event"] for line in logs] == ["stands still", "stood still for too long; start it again"]
    assert logs[-1]["exit_code"] == 75


def test_one_partition_that_stands_still_is_found_while_others_go_on(process: Watched) -> None:
    process.health.assigned({PLACE: 5, OTHER: 0})
    process.log.holds(PLACE, 5)
    process.log.holds(OTHER, *range(200))
    for at in range(1, 12):
        process.health.committed({OTHER: at})
        process.live(5)
    assert process.stalled == 1
    for at in range(12, 22):
        process.health.committed({OTHER: at})
        assert process.live(5) == (5 if at == 20 else None)
        if process.codes:
            break
    assert process.codes == [75]


def test_a_loop_that_hangs_is_found_though_nothing_waits_and_the_log_does_not_answer(process: Watched) -> None:
    process.log.answers = False
    assert process.live(45, turn=False) is None
    assert process.stalled == 1
    assert process.live(60, turn=False) == 45
    assert process.codes == [75]


def test_a_loop_that_hangs_before_it_has_partitions_is_found(process: Watched) -> None:
    process.health.assigned({})
    process.live(45, turn=False)
    assert process.stalled == 1
    process.live(60, turn=False)
    assert process.codes == [75]


def test_it_fires_again_after_a_stall_that_mended_itself(process: Watched) -> None:
    process.log.holds(PLACE, 5, 6)
    with capture_logs() as logs:
        for at in (6, 7):
            process.live(60)
            assert process.stalled == 1
            process.health.committed({PLACE: at})
            process.live(5)
            assert process.stalled == 0
    assert [line["event"] for line in logs] == ["stands still", "moves again"] * 2
    assert not process.codes


# What is let be.


def test_an_idle_partition_is_let_be_whatever_marks_of_transactions_lie_behind_it(process: Watched) -> None:
    process.health.assigned({PLACE: 5, OTHER: 0})
    process.log.holds(PLACE, 3, 4, end=9)
    assert process.live(3_600) is None
    assert set(process.told.partitions) == {0}
    assert process.log.asked.count("record") == 1, "what was seen once is not read again"


def test_a_record_that_comes_after_an_idle_hour_has_its_time(process: Watched) -> None:
    process.log.holds(PLACE, 4)
    process.live(3_600)
    process.log.holds(PLACE, 4, 5)
    assert process.live(45) is None
    assert set(process.told.partitions) == {0}
    process.live(60)
    assert process.codes == [75]


def test_a_stage_that_is_slow_but_moves_is_let_be(process: Watched) -> None:
    process.log.holds(PLACE, *range(1_000))
    for at in range(5, 45):
        process.health.committed({PLACE: at})
        process.live(40)
    assert set(process.told.partitions) == {0}


def test_what_waits_for_a_dependency_is_let_be_and_its_time_begins_afterwards(process: Watched) -> None:
    process.log.holds(PLACE, 5)
    process.live(30)
    process.health.paused(frozenset({PLACE}))
    process.live(3_600)
    process.health.paused(frozenset())
    assert process.live(45) is None
    assert set(process.told.partitions) == {0}
    process.live(60)
    assert process.codes == [75]


def test_what_is_not_read_because_of_its_dead_letters_is_let_be(process: Watched) -> None:
    process.log.holds(PLACE, 5)
    process.health.poisoned({PLACE: "100 dead letters in a row"})
    process.live(3_600)
    assert set(process.told.partitions) == {0}


def test_an_outage_of_the_brokers_ends_no_process_however_long_it_is(process: Watched) -> None:
    process.log.holds(PLACE, 5)
    process.live(30)
    process.log.answers = False
    process.live(3_600)
    assert set(process.told.partitions) == {0}
    process.log.answers = True
    assert process.live(45) is None


def test_a_restore_is_let_be_as_long_as_it_may_take(process: Watched) -> None:
    process.log.holds(PLACE, 5)
    with process.health.restoring(1):
        process.live(60, turn=False)
        assert set(process.told.partitions) == {0}
        assert process.live(120, turn=False) == 90, "a restore that hangs is ended, too"


def test_who_stops_is_let_be(process: Watched) -> None:
    process.log.holds(PLACE, 5)
    process.health.draining()
    assert process.live(3_600, turn=False) is None
    assert process.log.asked == []


def test_a_partition_that_went_away_is_forgotten(process: Watched) -> None:
    process.log.holds(PLACE, 5)
    process.live(40)
    process.health.assigned({})
    process.live(10)
    process.health.assigned({PLACE: 5})
    assert process.live(40) is None
    assert set(process.told.partitions) == {0}


def test_what_moves_is_not_asked_about() -> None:
    log = Ends()
    waiting = Waiting(log, 1.0)
    for at in range(10):
        log.holds(PLACE, at)
        assert waiting.among({PLACE: at}) == set()
    assert log.asked == []
    assert waiting.among({PLACE: 9}) == {PLACE}


def test_without_the_record_that_another_client_reads_marks_would_be_taken_for_a_stall(process: Watched) -> None:
    """Negative control of the idle partition: its end alone says that something waits."""
    process.log.holds(PLACE, 3, 4, end=9)
    assert process.log.end_offsets([PLACE], timeout_s=1)[PLACE] > 5


# The thread.


def in_thread(process: Watched, limits: Limits) -> StallWatch:
    return StallWatch(process.health, process.told, process.log, limits, clock=process.clock, end=process.codes.append)


def test_the_thread_looks_until_it_is_left_and_closes_its_log(process: Watched) -> None:
    looked = threading.Event()
    process.told.stalled = lambda partitions: looked.set()  # type: ignore[method-assign]
    with in_thread(process, Limits(every_s=0.01)):
        assert looked.wait(10)
        assert not process.log.closed.is_set()
    assert process.log.closed.is_set()


def test_a_fault_of_the_watch_itself_is_logged_and_it_goes_on(process: Watched) -> None:
    looks = threading.Semaphore(0)

    def broken(partitions: int) -> None:
        looks.release()
        raise Misconfigured("text of the fault")

    process.told.stalled = broken  # type: ignore[method-assign]
    with capture_logs() as logs, in_thread(process, Limits(every_s=0.01)):
        for _ in range(3):
            assert looks.acquire(timeout=10)
    assert {line["event"] for line in logs} == {"the stall watch failed at a look"}
    assert process.log.closed.is_set()


def test_stacks_name_every_thread_and_hold_no_values() -> None:
    gate, here = threading.Event(), threading.Event()

    def hangs(secret: str) -> None:
        here.set()
        gate.wait()

    thread = threading.Thread(target=hangs, args=["s3cr3t"], name="one-that-hangs")
    thread.start()
    assert here.wait(10)
    found = {name: frames for name, frames in stacks().items() if name.startswith("one-that-hangs")}
    gate.set()
    thread.join()
    (frames,) = found.values()
    assert any("test_stall.py" in frame and frame.endswith(" hangs") for frame in frames)
    assert "s3cr3t" not in str(found)
