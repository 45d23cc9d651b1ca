"""Ticks as a keeper writes them, into each partition of the input: what they close, and what they leave alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.detectors.streams import (
    MINUTE_US,
    MODEL,
    SECOND_US,
    START_US,
    Event,
    clean,
    each,
    records,
    stage,
    step,
    tick,
)
from tests.detectors.streams import transport as log_with_tables
from tests.pipeline.chain_builder import dumps

from errata.adapters.decode_msgspec import LineRouter, MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts import Anomaly, Receipt
from errata.contracts.topics import ANOMALIES, LEDGER, PREDICTIONS, STAGES, model_key, state_topic
from errata.domain.columns import Tick
from errata.domain.detection import state as at
from errata.domain.detection.engine import WINDOW_AGE_US, Engine, _Run
from errata.domain.partitioner import partition_of
from errata.ports import Outgoing
from errata.runtime.worker import Worker
from errata_services.anomaly_detector import AnomalyDetector

DETECTOR = STAGES[0]
HOME = partition_of(model_key("default", MODEL), 12)
AWAY = (HOME + 1) % 12


def faulty(n: int) -> list[Event]:
    """Amounts from elsewhere: seen by the whole window only, so nothing fires until it is closed."""
    return each(clean(n), range(n), lambda event: event["features"].update(amount=990.0))


class Chain:
    """A detector on a transport in memory, whose record time a test moves."""

    def __init__(self, log: MemoryTransport | None = None) -> None:
        self.log = log or log_with_tables()
        self.start()

    def start(self) -> None:
        """A new process: what it knows comes from the changelog."""
        self.detector = AnomalyDetector(self.log, MsgspecDecoder(b"0" * 32), rekeys=True)
        self.worker = Worker(self.detector, self.log, instance="0", build="1", cipher=None)

    def publish(self, events: Sequence[Event], at_us: int) -> None:
        router = LineRouter()
        lines = [(router.route(dumps(event)), dumps(event)) for event in events]
        self._write(at_us, [Outgoing(route.topic, route.key, line) for route, line in lines])

    def ticks(self, at_us: int, partitions: Sequence[int] = range(12)) -> None:
        """One into each partition, without a key."""
        self._write(at_us, [Outgoing(PREDICTIONS, None, dumps(tick(at_us)), partition=number) for number in partitions])

    def _write(self, at_us: int, outgoing: Sequence[Outgoing]) -> None:
        self.log.advance_record_time(at_us)
        producer = self.log.producer("publisher")
        producer.begin()
        for record in outgoing:
            producer.produce(record)
        producer.commit()
        producer.close()

    def drain(self) -> None:
        while self.worker.run_once():
            pass

    def said(self) -> list[Anomaly]:
        return [Anomaly.model_validate_json(value) for value in self._values(ANOMALIES)]

    def receipts(self) -> list[Receipt]:
        return [Receipt.model_validate_json(value) for value in self._values(LEDGER)]

    def _values(self, topic: str) -> list[bytes]:
        places = [(topic, number) for number in range(self.log.partitions(topic))]
        return [record.value or b"" for place in places for record in self.log.read_from(place)]

    def changelog(self) -> dict[tuple[int, bytes], bytes | None]:
        """What a new process would restore, by partition and key, without the digests and positions."""
        topic = state_topic(DETECTOR)
        return {
            (number, record.key or b""): record.value
            for number in range(self.log.partitions(topic))
            for record in self.log.read_from((topic, number))
        }

    @property
    def fixed(self) -> Any:
        return self.detector.state.fixed[self.detector.state.by_key["default", MODEL, "live"]]


def test_a_model_that_falls_silent_is_judged_by_a_tick_after_a_quarter_of_an_hour_and_over_restarts() -> None:
    chain = Chain()
    chain.publish(faulty(120), START_US)
    for minute in range(1, 15):
        chain.ticks(START_US + minute * MINUTE_US)
        chain.drain()
    assert chain.said() == []
    chain.start()  # the process is gone; a new one restores the open window
    chain.ticks(START_US + 15 * MINUTE_US - 1)
    chain.drain()
    assert (chain.said(), int(chain.fixed[at.FILL])) == ([], 120)
    chain.ticks(START_US + 15 * MINUTE_US)
    chain.drain()
    opened = chain.said()
    assert [(one.detector.id, one.subject, one.episode.state) for one in opened[:1]] == [
        ("distribution_shift", "amount", "open")
    ]
    assert all(one.window is None or one.window.n == 120 for one in opened)
    assert (int(chain.fixed[at.FILL]), int(chain.fixed[at.WINDOWS])) == (0, 1)
    before = chain.fixed.copy()
    chain.start()
    chain.ticks(START_US + 16 * MINUTE_US)
    chain.drain()
    assert (chain.fixed == before).all(), "the closed window is closed for the next process, too"
    assert len(chain.said()) == len(opened)


def test_without_ticks_the_silent_model_is_never_judged() -> None:
    """The control."""
    chain = Chain()
    chain.publish(faulty(120), START_US)
    chain.log.advance_record_time(START_US + 60 * MINUTE_US)
    chain.drain()
    assert (chain.said(), int(chain.fixed[at.FILL])) == ([], 120)


def test_ticks_are_processed_and_nothing_else() -> None:
    """No output, no dead letter, no drop, and no state but the position of each partition."""
    chain = Chain()
    chain.publish(clean(50), START_US)
    chain.drain()
    before = chain.changelog()
    for minute in (1, 16, 60):  # below a hundred events a window stays open for a day
        chain.ticks(START_US + minute * MINUTE_US)
        chain.drain()
    after = chain.changelog()
    changed = {key for (_, key), value in after.items() if before.get((_, key)) != value}
    assert not [key for key in changed if key.startswith(b'["slot"') or key.startswith(b"ids")]
    ticked = chain.receipts()[1:]
    assert sum(part.delivered for one in ticked for part in one.inputs) == 36
    assert {(one.out, one.dlq, len(one.dropped)) for one in ticked} == {(0, 0, 0)}


def test_a_tick_is_of_its_partition() -> None:
    chain = Chain()
    chain.publish(faulty(120), START_US)
    chain.ticks(START_US + 60 * MINUTE_US, [number for number in range(12) if number != HOME])
    chain.drain()
    assert (chain.said(), int(chain.fixed[at.FILL])) == ([], 120)
    chain.ticks(START_US + 60 * MINUTE_US, [HOME])
    chain.drain()
    assert chain.said() != []


def test_a_tick_does_not_move_what_a_backfill_opened() -> None:
    chain = Chain()
    chain.publish(each(faulty(120), range(120), lambda event: event.update(purpose="backfill")), START_US)
    chain.ticks(START_US + 48 * 60 * MINUTE_US)
    chain.drain()
    assert chain.said() == []
    (slot,) = chain.detector.slots
    assert chain.detector.state.fixed[slot.index][at.FILL] == 120


def test_what_a_tick_says_of_the_time_is_not_believed_but_when_it_came() -> None:
    """Record time is now; the time in a tick is the keeper's clock."""
    chain = Chain()
    chain.publish(faulty(120), START_US)
    said = tick(START_US + 60 * MINUTE_US)
    chain._write(START_US + MINUTE_US, [Outgoing(PREDICTIONS, None, dumps(said), partition=HOME)])
    chain.drain()
    assert int(chain.fixed[at.FILL]) == 120


# -- which ticks are looked at ----------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize("seed", range(3))
def test_ticks_close_the_same_windows_however_the_batches_are_cut(seed: int) -> None:
    """A tick may follow, in its batch, the events that make its window full enough, or old enough."""
    draw = np.random.default_rng(seed)
    stream: list[tuple[int, Event]] = []
    now_us = START_US
    for n, event in enumerate(clean(420, seed=seed + 1)):
        now_us += int(draw.choice([SECOND_US, 20 * SECOND_US, 6 * MINUTE_US], p=[0.9, 0.08, 0.02]))
        event["time"] = clean(1, start_us=now_us)[0]["time"]
        stream.append((now_us, event))
        if draw.random() < 0.08:
            stream.append((now_us, tick(now_us, f"{seed}-{n}")))
    ids = {id(event): at_us for at_us, event in stream}
    made = records([event for _, event in stream], lambda event: ids[id(event)])
    ends = []
    for size in (4, 5_000):
        detector = stage()
        for start in range(0, len(made), size):
            step(detector, made[start : start + size])
            detector.commit()
        slot = detector.slots[0]
        ends.append((detector.state.fixed[slot.index].tolist(), slot.sample, slot.controls))
    assert ends[0] == ends[1]
    assert ends[0][0][at.WINDOWS] > 0


def test_a_tick_that_closes_nothing_is_not_looked_at() -> None:
    detector = stage()
    step(detector, records(clean(99)))
    detector.commit()
    empty = MsgspecDecoder(b"0" * 32).decode([], {})
    none, no_rows = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    opened_us = int(detector.state.fixed[0][at.START_RECORD_US])

    def looked_at(age_us: int, partition: int = 0) -> int:
        empty.ticks = [Tick(0, partition, opened_us + age_us)]
        run = _Run(Engine(detector.state), empty, none, none, no_rows, no_rows)
        return len(list(run._effective_ticks()))

    day_us = 24 * 60 * MINUTE_US
    assert [looked_at(age) for age in (0, WINDOW_AGE_US, day_us - 1, day_us)] == [0, 0, 0, 1]
    assert looked_at(day_us, partition=1) == 0
    detector.state.fixed[0][at.FILL] = 100
    assert [looked_at(age) for age in (WINDOW_AGE_US - 1, WINDOW_AGE_US)] == [0, 1]


@pytest.mark.parametrize("before", [90, 0])
def test_a_tick_closes_a_window_that_its_own_batch_made_full_enough_or_old_enough(before: int) -> None:
    """90 events wait, and 20 more come in a batch with the tick; or all of them do."""
    events, late_us = clean(110), START_US + 16 * MINUTE_US
    received = {event["event_id"]: START_US if at < 90 else late_us for at, event in enumerate(events)}
    made = records([*events, tick(late_us)], lambda event: received.get(event["event_id"], late_us))
    detector = stage()
    if before:
        step(detector, made[:before])
        detector.commit()
    step(detector, made[before:])
    assert detector.state.fixed[0][[at.FILL, at.WINDOWS]].tolist() == [0, 1]
