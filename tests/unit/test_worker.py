"""The loop around a stage: one transaction a batch, nothing lost or doubled whatever fails where."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from errata.adapters.aead import Aead
from errata.adapters.journal import Journal
from errata.adapters.memory import MemoryConsumer, MemoryTransport
from errata.contracts import Receipt
from errata.contracts.topics import DAY_S, LEDGER, TOPICS, Topic
from errata.domain.array_codec import pack_json, unpack_json
from errata.errors import Aborted, Fenced, Misconfigured, RefusedSchema, StateDamaged, Unavailable
from errata.ports import DeadInput, Offsets, Outgoing, Record, StateChange, StepResult, TopicPartition
from errata.runtime.crash_points import POINTS, CrashPoint, CrashPoints
from errata.runtime.dead_letters import read_dead_letter, read_payload
from errata.runtime.health import Health
from errata.runtime.worker import Worker

STAGE = "counter"
DLQ = f"errata.{STAGE}.dlq"
KEYS = (b"a", b"b", b"c")


def topics() -> dict[str, Topic]:
    def topic(name: str, retention_s: int | None = DAY_S) -> Topic:
        return Topic(name, "a test", "key", 3, retention_s, None, ("test",), ("test",))

    named = [topic("in"), topic("side"), topic("out"), topic("state", None), topic(DLQ), TOPICS[LEDGER]]
    return {one.name: one for one in named}


class Counter:
    """Counts records by key; puts out key and count. Text in the values makes it fail in chosen ways."""

    name = STAGE
    input = "in"
    side_inputs: tuple[str, ...] = ("side",)
    state_topic: str | None = "state"

    def __init__(self) -> None:
        self.counts: dict[int, dict[str, int]] = {}
        self._kept: dict[int, dict[str, int]] = {}
        self.stepped: list[int] = []

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        self.counts[partition] = {key.decode(): unpack_json(value)[1] for key, value in entries.items()}
        self._kept[partition] = dict(self.counts[partition])

    def revoke(self, partition: int) -> None:
        del self.counts[partition], self._kept[partition]

    def prepare(self, batch: Sequence[Record]) -> Any:
        if any(record.value == b"down" for record in batch):
            raise Unavailable("the context is down")
        return None

    def step(self, batch: Sequence[Record], prepared: Any) -> StepResult:
        self.stepped.append(len(batch))
        result = StepResult()
        for record in batch:
            text = (record.value or b"").decode()
            if text == "refused":
                result.dead.append(DeadInput(record, RefusedSchema("/count", "a text where a number belongs")))
                continue
            if text == "boom":
                raise KeyError("a value that must not be told: s3cret")
            counts, key = self.counts[record.partition], (record.key or b"").decode()
            counts[key] = counts.get(key, 0) + 1
            size = 1_000_001 if text == "huge" else 0
            output = json.dumps([key, counts[key], record.offset, " " * size]).encode()
            result.outputs.append(Outgoing("out", record.key, output))
            result.changes.append(StateChange(record.partition, key.encode(), pack_json(1, counts[key])))
            result.max_event_time_us = max(result.max_event_time_us or 0, record.timestamp_us)
        return result

    def commit(self) -> None:
        self._kept = {partition: dict(counts) for partition, counts in self.counts.items()}

    def rollback(self) -> None:
        self.counts = {partition: dict(counts) for partition, counts in self._kept.items()}


def worker(transport: MemoryTransport, stage: Any = None, **how: Any) -> Worker:
    settings: dict[str, Any] = {"instance": "0", "build": "test", "cipher": Aead(b"k" * 32)} | how
    return Worker(stage or Counter(), transport, **settings)


def feed(transport: MemoryTransport, values: Sequence[str], topic: str = "in") -> None:
    producer = transport.producer("source")
    producer.begin()
    for number, value in enumerate(values):
        transport.advance_record_time(transport.record_time_us + 1_000_000)
        producer.produce(Outgoing(topic, KEYS[number % 3], value.encode(), (("h", b"1"),), number % 3))
    producer.commit()


def run(worker: Worker) -> int:
    total = 0
    while taken := worker.run_once():
        total += taken
    return total


def everything(transport: MemoryTransport, topic: str) -> list[Record]:
    return [r for n in range(transport.partitions(topic)) for r in transport.read_from((topic, n))]


def outputs(transport: MemoryTransport) -> list[tuple[int, bytes | None]]:
    return [(record.partition, record.value) for record in everything(transport, "out")]


def letters(transport: MemoryTransport) -> list[tuple[str, str, str, int, int]]:
    read = [read_dead_letter(record) for record in everything(transport, DLQ)]
    return [(one.class_, one.error, one.path, one.partition, one.offset) for one in read]


def receipts(transport: MemoryTransport) -> list[Receipt]:
    return [Receipt.model_validate_json(record.value or b"") for record in everything(transport, LEDGER)]


def assert_receipts_tile(transport: MemoryTransport) -> None:
    """Receipts of each input partition form a chain from 0 to the end, and count each record once."""
    chain: dict[TopicPartition, int] = {}
    for message in receipts(transport):
        for part in message.inputs:
            assert part.from_ == chain.get((part.topic, part.partition), 0)
            assert part.to - part.from_ == part.delivered
            chain[part.topic, part.partition] = part.to
    ends = {(t, n): transport.end_offset((t, n)) for t in ("in", "side") for n in range(3)}
    assert chain == {place: end for place, end in ends.items() if end}


def sequential(values: Sequence[str]) -> MemoryTransport:
    transport = MemoryTransport(topics())
    feed(transport, values)
    run(worker(transport))
    return transport


def counts_of(values: Sequence[str]) -> dict[int, dict[str, int]]:
    """What the state must be: counted here, without a stage."""
    counts: dict[int, dict[str, int]] = {0: {}, 1: {}, 2: {}}
    for number, value in enumerate(values):
        if value == "x":
            key = KEYS[number % 3].decode()
            counts[number % 3][key] = counts[number % 3].get(key, 0) + 1
    return counts


def test_batch_and_its_effects_are_one_transaction() -> None:
    transport = sequential(["x"] * 7)
    assert sorted(json.loads(value or b"")[:3] for _, value in outputs(transport)) == [
        *(["a", 1, 0], ["a", 2, 1], ["a", 3, 2]),
        *(["b", 1, 0], ["b", 2, 1]),
        *(["c", 1, 0], ["c", 2, 1]),
    ]
    (message,) = receipts(transport)
    assert (message.stage, message.instance, message.build) == (STAGE, "0", "test")
    assert (message.out, message.dlq) == (7, 0)
    assert [(part.partition, part.from_, part.to, part.delivered) for part in message.inputs] == [
        (0, 0, 3, 3),
        (1, 0, 2, 2),
        (2, 0, 2, 2),
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_outputs_do_not_depend_on_batches(batch_size: int) -> None:
    values = ["x", "refused", "boom", "x", "boom", "x", "x", "huge", "x"] * 5
    transport = MemoryTransport(topics())
    feed(transport, values)
    assert run(worker(transport, batch_size=batch_size)) == len(values)
    whole = sequential(values)
    assert outputs(transport) == outputs(whole)
    assert letters(transport) == letters(whole)
    assert [r.value for r in everything(transport, DLQ)] == [r.value for r in everything(whole, DLQ)]
    assert_receipts_tile(transport)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("nth", [1, 3])
def test_kill_at_any_point_loses_and_doubles_nothing(point: str, nth: int) -> None:
    values = ["x", "x", "refused", "x", "boom"] * 6
    transport = MemoryTransport(topics())
    feed(transport, values)
    with pytest.raises(CrashPoint):
        run(worker(transport, batch_size=4, crash=CrashPoints.raising(STAGE, point, nth)))
    resumed = Counter()
    run(worker(transport, resumed, batch_size=4))
    whole = sequential(values)
    assert outputs(transport) == outputs(whole)
    assert letters(transport) == letters(whole)
    assert resumed.counts == counts_of(values)
    assert_receipts_tile(transport)


CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from errata.adapters.journal import Journal
from errata.adapters.memory import MemoryTransport
from errata.runtime.crash_points import CrashPoints
from tests.unit.test_worker import run, topics, worker
transport = MemoryTransport(topics(), journal=Journal(Path(sys.argv[1])))
run(worker(transport, batch_size=4, crash=CrashPoints.from_environment(os.environ)))
"""


@pytest.mark.whole
@pytest.mark.parametrize("point", POINTS)
def test_killed_process_goes_on_from_its_journal(point: str, tmp_path: Path) -> None:
    values = ["x", "x", "refused", "x", "boom"] * 4
    path = tmp_path / "journal.bin"
    transport = MemoryTransport(topics(), journal=Journal(path))
    feed(transport, values)
    transport.close()
    command = [sys.executable, "-c", CHILD, str(path), str(Path(__file__).parents[2])]
    killed = subprocess.run(command, check=False, env=os.environ | {"ERRATA_CRASH": f"{STAGE}:{point}:2"})
    assert killed.returncode == -signal.SIGKILL
    resumed = MemoryTransport(topics(), journal=Journal(path))
    assert 0 < len(receipts(resumed)) <= 2
    run(worker(resumed, batch_size=4))
    whole = sequential(values)
    assert outputs(resumed) == outputs(whole)
    assert letters(resumed) == letters(whole)
    assert_receipts_tile(resumed)
    resumed.close()


class OffsetsFirst(Worker):
    """The weaker mode of the negative control: commits its offsets in a transaction of their own, first."""

    def _transact(self, judged: Any) -> tuple[Receipt, list[Outgoing]]:
        self._producer.begin()
        offsets: Offsets = {(record.topic, record.partition): record.offset + 1 for record in judged.records}
        self._producer.send_offsets(offsets, self._consumer)
        self._producer.commit()
        return super()._transact(judged)


def test_control_a_loop_that_commits_offsets_first_is_found_out() -> None:
    class Stateless(Counter):
        state_topic = None

        def step(self, batch: Sequence[Record], prepared: Any) -> StepResult:
            result = super().step(batch, prepared)
            result.changes = []
            return result

    transport = MemoryTransport(topics())
    feed(transport, ["x"] * 9)
    crash = CrashPoints.raising(STAGE, "AFTER_PRODUCE")
    weak = OffsetsFirst(Stateless(), transport, instance="0", build="t", cipher=None, batch_size=4, crash=crash)
    with pytest.raises(CrashPoint):
        run(weak)
    run(worker(transport, Stateless()))
    assert len(outputs(transport)) == 5
    with pytest.raises(AssertionError):
        assert_receipts_tile(transport)


def test_dead_letter_has_its_reason_and_its_payload_and_tells_no_value() -> None:
    transport = sequential(["x", "boom", "refused"])
    assert letters(transport) == [
        ("handler", "KeyError", "", 1, 0),
        ("schema", "RefusedSchema", "/count", 2, 0),
    ]
    handler, schema = everything(transport, DLQ)
    payload = read_payload(handler, Aead(b"k" * 32))
    assert payload is not None
    assert payload.kept == b"boom"
    assert (handler.key, handler.partition, schema.partition) == (b"b", 1, 2)
    assert not any(b"s3cret" in content for record in (handler, schema) for _, content in record.headers)
    letter = read_dead_letter(handler)
    assert letter.first_failed == letter.ts
    assert letter.ts.timestamp() == 3.0  # record time of the batch the source wrote


def test_poison_is_found_in_few_steps() -> None:
    transport = MemoryTransport(topics())
    feed(transport, ["x"] * 300 + ["boom"] + ["x"] * 211)
    stage = Counter()
    run(worker(transport, stage))
    assert len(outputs(transport)) == 511
    assert [letter[0] for letter in letters(transport)] == ["handler"]
    assert len(stage.stepped) < 30


def test_output_too_large_makes_a_dead_letter_and_not_a_lost_event() -> None:
    transport = sequential(["x", "huge", "x"])
    assert letters(transport) == [("oversize", "OversizeOutput", "", 1, 0)]
    assert len(outputs(transport)) == 2


def test_outage_keeps_the_batch_for_later() -> None:
    transport = MemoryTransport(topics())
    feed(transport, ["x", "x"])
    stage = Counter()
    down = True

    def prepare(batch: Sequence[Record]) -> None:
        if down:
            raise Unavailable("the context is down")

    stage.prepare = prepare  # type: ignore[method-assign]
    loop = worker(transport, stage)
    with pytest.raises(Unavailable, match="context"):
        loop.run_once()
    assert outputs(transport) == []
    down = False
    assert run(loop) == 2
    assert_receipts_tile(transport)


class Voids(MemoryTransport):
    """Voids the next ``left`` transactions, as a rebalance does."""

    left = 0

    def _commit(self, *what: Any) -> None:
        if self.left > 0:
            self.left -= 1
            raise Aborted("void")
        super()._commit(*what)


@pytest.mark.parametrize("voids", [1, 4])
def test_void_transaction_is_tried_again_from_the_start_of_the_batch(voids: int) -> None:
    transport = Voids(topics())
    feed(transport, ["x"] * 5)
    stage = Counter()
    loop = worker(transport, stage)
    transport.left = voids
    assert loop.run_once() == 5
    assert outputs(transport) == outputs(sequential(["x"] * 5))
    assert stage.stepped == [5] * (voids + 1)


def test_fifth_void_transaction_in_a_row_stops_the_stage() -> None:
    transport = Voids(topics())
    feed(transport, ["x"] * 5)
    loop = worker(transport)
    transport.left = 5
    with pytest.raises(Unavailable, match="in a row"):
        loop.run_once()
    assert outputs(transport) == []
    assert run(loop) == 5


def test_newer_worker_of_the_same_instance_wins() -> None:
    transport = MemoryTransport(topics())
    feed(transport, ["x"] * 6)
    older = worker(transport, batch_size=3)
    assert older.run_once() == 3
    newer = worker(transport)
    with pytest.raises(Fenced):
        older.run_once()
    assert run(newer) == 3
    assert outputs(transport) == outputs(sequential(["x"] * 6))


def test_workers_share_the_partitions_and_hand_their_state_over() -> None:
    transport = MemoryTransport(topics())
    feed(transport, ["x"] * 6)
    first_stage, second_stage = Counter(), Counter()
    healths = [Health(stage=STAGE, instance=instance, build="test") for instance in ("0", "1")]
    first = worker(transport, first_stage, health=healths[0])
    run(first)
    second = worker(transport, second_stage, instance="1", health=healths[1])
    for _ in range(3):
        first.run_once()
        second.run_once()
    shown = [{one["partition"] for one in health.status()["partitions"]} for health in healths]
    assert shown == [first_stage.counts.keys(), second_stage.counts.keys()]
    assert first_stage.counts.keys() | second_stage.counts.keys() == {0, 1, 2}
    assert not first_stage.counts.keys() & second_stage.counts.keys()
    feed(transport, ["x"] * 6)
    run(first)
    run(second)
    first.close()
    run(second)
    assert second_stage.counts == {0: {"a": 4}, 1: {"b": 4}, 2: {"c": 4}}
    assert_receipts_tile_by_partition(transport)


def assert_receipts_tile_by_partition(transport: MemoryTransport) -> None:
    """Two members write to ledger partitions of their own, so parts are put in order by offset first."""
    parts = sorted((p.topic, p.partition, p.from_, p.to) for message in receipts(transport) for p in message.inputs)
    ends: dict[tuple[str, int], int] = {}
    for topic, partition, start, end in parts:
        assert start == ends.get((topic, partition), 0)
        ends[topic, partition] = end
    assert ends == {("in", number): 4 for number in range(3)}


def test_side_input_is_in_the_same_transaction() -> None:
    transport = MemoryTransport(topics())
    feed(transport, ["x"] * 3)
    feed(transport, ["y"] * 3, topic="side")
    stage = Counter()
    assert run(worker(transport, stage)) == 6
    assert stage.counts == {0: {"a": 2}, 1: {"b": 2}, 2: {"c": 2}}
    assert_receipts_tile(transport)


def test_offsets_without_their_state_stop_the_stage() -> None:
    transport = sequential(["x"] * 3)
    consumer = transport.consumer("errata.counter", "in", instance="0", side_inputs=["side"])
    consumer.poll(0)
    move(transport, consumer, {("in", 1): 0})
    with pytest.raises(StateDamaged, match="state_ahead: state partition 1"):
        worker(transport).run_once()


def test_state_of_another_configuration_stops_the_stage() -> None:
    transport = MemoryTransport(topics())
    feed(transport, ["x"])
    run(worker(transport, config_hash="one"))
    with pytest.raises(StateDamaged, match="config"):
        worker(transport, config_hash="two").run_once()


def move(transport: MemoryTransport, consumer: MemoryConsumer, offsets: Offsets) -> None:
    producer = transport.producer("rewinder")
    producer.begin()
    producer.send_offsets(offsets, consumer)
    producer.commit()


def test_stage_that_names_no_state_topic_cannot_change_state() -> None:
    transport = MemoryTransport(topics())
    feed(transport, ["x"])
    stage = Counter()
    stage.state_topic = None
    with pytest.raises(Misconfigured, match="state_topic"):
        worker(transport, stage).run_once()


def test_progress_is_told_after_the_commit() -> None:
    transport = MemoryTransport(topics())
    feed(transport, ["x"] * 4)
    told: list[tuple[int, int]] = []
    run(
        worker(transport, batch_size=2, on_progress=lambda message: told.append((message.out, len(outputs(transport)))))
    )
    assert told == [(2, 2), (2, 4)]


@pytest.mark.parametrize(
    "text", ["counter", "counter:AFTER_STEP", "counter:AFTER_STEP:0", "counter:AFTER_STEP:x", ":A:1"]
)
def test_crash_variable_that_reads_wrong_is_named(text: str) -> None:
    with pytest.raises(Misconfigured, match="ERRATA_CRASH must read"):
        CrashPoints.from_environment({"ERRATA_CRASH": text})


def test_crash_points_are_off_without_the_variable() -> None:
    crash = CrashPoints.from_environment({})
    for point in POINTS:
        crash.at(STAGE, point)
