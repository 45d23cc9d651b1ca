"""The keeper on the transport in memory: what it writes and when, who leads, which faults of the ledger it tells."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from errata.adapters.memory import RECORD_TIME_HEADER, MemoryTransport
from errata.adapters.prometheus import PrometheusMeter
from errata.contracts import PredictionEvent, Receipt
from errata.contracts.topics import ANOMALIES, ENRICHED, LEDGER, PREDICTIONS, STAGES, TOPICS
from errata.errors import Misconfigured, Unavailable
from errata.ports import Outgoing, Record
from errata.runtime.health import Health
from errata.runtime.receipts import receipt_record
from errata.runtime.telemetry import KeeperTelemetry
from errata_services.keeper import AUDIT_EVERY_S, Keeper, LedgerWatch, Schedule, beat

DETECTOR, ENRICHER, TAGGER, _ = STAGES
PARTITIONS = TOPICS[PREDICTIONS].partitions
START_US = 1_767_614_400_000_000


@dataclass
class Server:
    """What the database does for keepers: one holder at a time."""

    holder: "Lock | None" = None
    up: bool = True


@dataclass
class Lock:
    server: Server

    def acquire(self) -> bool:
        if not self.server.up:
            raise Unavailable("the database does not answer")
        self.server.holder = self.server.holder or self
        return self.server.holder is self

    def held(self) -> bool:
        return self.server.up and self.server.holder is self

    def release(self) -> None:
        if self.server.holder is self:
            self.server.holder = None

    close = release


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s

    def us(self) -> int:
        return START_US + int(self.now_s * 1e6)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Rig:
    """Keepers on one transport, with one clock that only their waiting moves."""

    transport: MemoryTransport = field(default_factory=lambda: MemoryTransport(TOPICS))
    server: Server = field(default_factory=Server)
    clock: Clock = field(default_factory=Clock)
    names: Iterator[int] = field(default_factory=count)

    def keeper(self, lock: Lock | None = None, transport: Any = None) -> "Process":
        meter = PrometheusMeter()
        health = Health(stage="keeper", instance="0", build="1", clock=self.clock)
        keeper = Keeper(
            transport or self.transport,
            lock or Lock(self.server),
            KeeperTelemetry(meter, version="1", clock=self.clock),
            health,
            tick_every_s=60,
            heartbeat_every_s=10,
            clock=self.clock,
            now_us=self.clock.us,
            wait=self.clock.wait,
            name=lambda: f"term{next(self.names)}",
        )
        return Process(keeper, meter, health, self.clock)

    def write(self, *records: Outgoing, by: str = "somebody") -> None:
        producer = self.transport.producer(by)
        producer.begin()
        for record in records:
            producer.produce(record)
        producer.commit()

    def records(self, topic: str) -> list[Record]:
        return [one for number in range(PARTITIONS) for one in self.transport.read_from((topic, number))]

    def beats(self, purpose: str) -> list[PredictionEvent]:
        events = [PredictionEvent.model_validate_json(one.value or b"") for one in self.records(PREDICTIONS)]
        return [one for one in events if one.purpose == purpose]


@dataclass
class Process:
    keeper: Keeper
    meter: PrometheusMeter
    health: Health
    clock: Clock

    def run(self, seconds: float) -> None:
        until_s = self.clock.now_s + seconds
        while self.clock.now_s < until_s:
            self.keeper.run_once(0.25)

    def value(self, name: str, **labels: str) -> float:
        text = self.meter.exposition()[1].decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def faults(self) -> dict[str, float]:
        names = ("gaps", "overlaps", "dispositions", "imbalance")
        return {name: self.value(f"errata_ledger_{name}_total") for name in names}


NONE = {"gaps": 0, "overlaps": 0, "dispositions": 0, "imbalance": 0}


@pytest.fixture
def rig() -> Rig:
    return Rig()


def receipt(
    stage: str, topic: str, start: int, end: int, *, out: int = 0, instance: str = "0", partition: int = 0
) -> Outgoing:
    part = {"topic": topic, "partition": partition, "from": start, "to": end, "delivered": end - start}
    said = {"stage": stage, "instance": instance, "build": "1", "inputs": [part], "out": out, "dlq": 0}
    return receipt_record(Receipt.model_validate(said))


# Ticks and heartbeats.


def test_a_beat_goes_into_every_partition_and_says_no_more_than_it_must() -> None:
    ticks = beat("tick", START_US, "n", 3)
    assert [(one.topic, one.key, one.partition) for one in ticks] == [(PREDICTIONS, None, n) for n in range(3)]
    said = [json.loads(one.value or b"") for one in ticks]
    assert all(set(one) == {"event_id", "time", "purpose"} for one in said)
    assert len({one["event_id"] for one in said}) == 3
    for one in (*ticks, *beat("heartbeat", START_US, "n", 3)):
        event = PredictionEvent.model_validate_json(one.value or b"")
        assert event.time.timestamp() * 1e6 == START_US
    assert {json.loads(one.value or b"")["purpose"] for one in beat("heartbeat", START_US, "n", 3)} == {"heartbeat"}


def test_ticks_and_heartbeats_come_at_their_intervals_each_with_an_id_of_its_own(rig: Rig) -> None:
    process = rig.keeper()
    process.run(130)
    ticks, heartbeats = rig.beats("tick"), rig.beats("heartbeat")
    assert len(ticks) == 3 * PARTITIONS  # at once, after 60 s and after 120
    assert len(heartbeats) == 13 * PARTITIONS
    assert {one.partition for one in rig.records(PREDICTIONS)} == set(range(PARTITIONS))
    ids = [one.event_id for one in (*ticks, *heartbeats)]
    assert len(set(ids)) == len(ids)
    assert process.value("errata_events_produced_total", topic=PREDICTIONS) == len(ids)
    assert process.value("errata_keeper_written_timestamp_seconds", kind="heartbeat") == pytest.approx(
        START_US / 1e6 + process.clock.now_s, abs=10.5
    )


def test_what_was_missed_is_not_made_up_for() -> None:
    schedule = Schedule(10.0)
    times = [now_s for now_s in (0.0, 5.0, 10.0, 47.0, 50.0, 52.0, 60.0, 62.0) if schedule.due(now_s)]
    assert times == [0.0, 10.0, 47.0, 52.0, 62.0]


# Who leads.


def test_a_second_keeper_waits_ready_and_takes_over_when_the_first_is_gone(rig: Rig) -> None:
    first, second = rig.keeper(), rig.keeper()
    first.run(1)
    second.run(20)
    assert (first.keeper.leads, second.keeper.leads) == (True, False)
    assert second.health.pages["/readyz"]()[0]
    assert second.value("errata_keeper_leader") == 0
    before = len(rig.records(PREDICTIONS))
    first.keeper.close()
    second.run(2)
    assert second.keeper.leads
    assert second.value("errata_keeper_leader") == 1
    assert len(rig.records(PREDICTIONS)) == before + 2 * PARTITIONS
    ids = [one.event_id for one in rig.beats("heartbeat")]
    assert len(set(ids)) == len(ids)


def test_a_leader_that_lost_its_lock_writes_nothing_more(rig: Rig) -> None:
    first, second = rig.keeper(), rig.keeper()
    first.run(1)
    rig.server.holder = None  # its session ended; it has not looked yet
    second.run(1)
    assert second.keeper.leads
    second.clock.now_s += 60  # a tick is due to both
    before = len(rig.records(PREDICTIONS))
    first.keeper.run_once()
    assert len(rig.records(PREDICTIONS)) == before
    assert not first.keeper.leads


def test_a_leader_that_is_deaf_to_its_lock_is_fenced_by_the_next(rig: Rig) -> None:
    """Negative control of the lock: one that always says yes leaves two leaders, and Kafka lets one of them write."""

    class AlwaysMine(Lock):
        def acquire(self) -> bool:
            return True

        held = acquire

    deaf, second = rig.keeper(AlwaysMine(rig.server)), rig.keeper()
    deaf.run(1)
    second.run(1)
    before = len(rig.records(PREDICTIONS))
    deaf.clock.now_s += 60
    deaf.keeper.run_once()
    assert len(rig.records(PREDICTIONS)) == before
    assert not deaf.keeper.leads


def test_without_the_database_nobody_leads_and_all_is_well_again_with_it(rig: Rig) -> None:
    rig.server.up = False
    process = rig.keeper()
    process.run(20)
    assert not process.keeper.leads
    well, said = process.health.pages["/readyz"]()
    assert not well
    assert "postgresql" in str(said)
    rig.server.up = True
    process.run(5)
    assert process.keeper.leads
    assert process.health.pages["/readyz"]()[0]


def test_trouble_with_kafka_passes_and_a_missing_right_does_not(rig: Rig) -> None:
    class Shaky:
        def __init__(self, error: Exception) -> None:
            self.error: Exception | None = error

        def __getattr__(self, name: str) -> Any:
            return getattr(rig.transport, name)

        def producer(self, name: str) -> Any:
            if self.error is not None:
                raise self.error
            return rig.transport.producer(name)

    shaky = Shaky(Unavailable("the broker does not answer"))
    process = rig.keeper(transport=shaky)
    process.run(10)
    assert not process.health.pages["/readyz"]()[0]
    shaky.error = None
    process.run(15)
    assert process.health.pages["/readyz"]()[0]
    assert rig.beats("heartbeat")
    with pytest.raises(Misconfigured):
        rig.keeper(Lock(Server()), Shaky(Misconfigured("no right"))).run(1)


# The ledger.


def chain(rig: Rig, steps: int, first: int = 0) -> None:
    """Right books: each step one record through all three stages, the detector's instances taking turns."""
    for at in range(first, first + steps):
        number = at % 3
        rig.write(
            receipt(DETECTOR, PREDICTIONS, 10 * at, 10 * at + 10, out=1, instance=str(at % 2)),
            Outgoing(ANOMALIES, None, b"{}", partition=number),
        )
        there = rig.transport.end_offset((ANOMALIES, number))
        rig.write(
            receipt(ENRICHER, ANOMALIES, there - 1, there, out=1, partition=number, instance=str(at % 2)),
            Outgoing(ENRICHED, None, b"{}", partition=number),
        )
        rig.write(receipt(TAGGER, ENRICHED, there - 1, there, partition=number))


def test_right_books_have_no_fault_while_they_are_written(rig: Rig) -> None:
    process = rig.keeper()
    for at in range(0, 40, 4):
        chain(rig, 4, at)
        process.run(AUDIT_EVERY_S)
    process.run(60)
    assert process.faults() == NONE
    assert process.value("errata_ledger_receipts_total") == 120
    assert process.value("errata_ledger_audited_timestamp_seconds") > START_US / 1e6 + process.clock.now_s - 10
    assert process.value("errata_ledger_fault_timestamp_seconds") == 0


LOST = Outgoing(ANOMALIES, None, b"{}", partition=5)  # that no receipt put out
PLANTED: dict[str, tuple[Sequence[Outgoing], dict[str, float]]] = {
    "a gap": ([receipt(DETECTOR, PREDICTIONS, 60, 70)], {"gaps": 1}),
    "an overlap": ([receipt(DETECTOR, PREDICTIONS, 35, 40)], {"overlaps": 1}),
    "shifted": ([receipt(DETECTOR, PREDICTIONS, 35, 41)], {"overlaps": 1}),
    "doubled": ([receipt(TAGGER, ENRICHED, 0, 1)], {"overlaps": 1, "imbalance": 1}),
    "put out and not written": ([receipt(DETECTOR, PREDICTIONS, 40, 50, out=2)], {"imbalance": 1}),
    "waits and is nobody's": ([receipt(ENRICHER, ANOMALIES, 0, 1, partition=9)], {"imbalance": 1}),
}


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_planted_fault_is_found_and_named(rig: Rig, name: str) -> None:
    records, wanted = PLANTED[name]
    process = rig.keeper()
    chain(rig, 4)
    process.run(30)
    rig.write(*records)
    process.run(40)
    assert process.faults() == NONE | wanted
    process.run(60)
    assert process.faults() == NONE | wanted, "a fault is counted once"


def test_a_keeper_that_starts_over_finds_the_same_faults_with_their_own_times(rig: Rig) -> None:
    at_us = START_US - 5_000_000
    chain(rig, 4)
    (gap,), _ = PLANTED["a gap"]
    rig.write(replace(gap, headers=((RECORD_TIME_HEADER, str(at_us).encode()),)))
    first = rig.keeper()
    first.run(30)
    told_s = first.value("errata_ledger_fault_timestamp_seconds")
    first.keeper.close()
    second = rig.keeper()
    second.run(500)
    assert second.faults() == first.faults() == NONE | {"gaps": 1}
    assert second.value("errata_ledger_fault_timestamp_seconds", kind="gap", stage=DETECTOR) == told_s == at_us / 1e6


def test_a_leader_that_leads_again_counts_nothing_twice(rig: Rig) -> None:
    chain(rig, 4)
    rig.write(*PLANTED["an overlap"][0])
    process = rig.keeper()
    process.run(30)
    rig.server.holder = Lock(rig.server)
    process.run(5)
    assert not process.keeper.leads
    rig.server.holder = None
    process.run(30)
    assert process.keeper.leads
    assert process.faults() == NONE | {"overlaps": 1}


def test_a_long_ledger_is_read_in_slices_between_which_heartbeats_go_on(rig: Rig) -> None:
    chain(rig, 50)
    watch = LedgerWatch(rig.transport, slice_=7)
    turns = 0
    while not watch.turn(float(turns), START_US)[1]:
        turns += 1
    assert turns >= 150 // 7
    assert sum(watch.booked.values()) == 150


def test_a_receipt_that_cannot_be_read_is_a_gap_and_stops_nobody(rig: Rig) -> None:
    process = rig.keeper()
    rig.write(receipt(DETECTOR, PREDICTIONS, 0, 10), Outgoing(LEDGER, b"anomaly-detector/0", b"nope"))
    rig.write(receipt(DETECTOR, PREDICTIONS, 20, 30))
    process.run(30)
    assert process.faults() == NONE | {"gaps": 1}
