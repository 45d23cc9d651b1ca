"""A damaged changelog on real Kafka: each kind is refused by its name before anything is put out."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from tests.detectors.streams import MODEL, clean, contract, each, reference
from typer.testing import CliRunner

from errata.adapters.aead import Aead
from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.kafka import KafkaTransport, apply_topics
from errata.contracts.topics import ANOMALIES, CONTRACTS, PREDICTIONS, REFERENCES, STAGES, TOPICS, Topic, state_topic
from errata.domain.array_codec import pack_arrays, unpack_arrays
from errata.errors import StateDamaged
from errata.ports import Offsets, Outgoing, Record, StateChange
from errata.runtime.changelog import POSITION_KEY, PartitionLog, Position, entries_of, hashes_of, read_records
from errata.runtime.worker import Worker
from errata_services.anomaly_detector import CONFIG_HASH, SLOT, AnomalyDetector
from errata_services.bootstrap import derived_key, publish_tables
from errata_services.cli.root import app

pytestmark = pytest.mark.servers

SECRET = "a key of thirty-two characters and more"
STATE, GROUP, WAIT_S = state_topic(STAGES[0]), f"errata.{STAGES[0]}", 60.0
OTHER = "other"
Wire = list[tuple[bytes, bytes | None]]


@dataclass
class Good:
    """A run that ended well: its changelog by partition, and events that wait for the next."""

    environment: dict[str, str]
    transport: KafkaTransport
    first: int  # the partition of one model
    second: int  # and of the other
    changelog: dict[int, list[Record]]

    def wire(self, number: int) -> Wire:
        return [(record.key or b"", record.value) for record in self.changelog[number]]

    def said(self) -> int:
        return sum(self.transport.end_offset((ANOMALIES, n)) for n in range(self.transport.partitions(ANOMALIES)))

    def worker(self, topic: str = STATE, kind: type[Worker] = Worker) -> Worker:
        stage = AnomalyDetector(self.transport, MsgspecDecoder(derived_key(SECRET, b"redaction")), rekeys=True)
        stage.state_topic = topic
        return kind(
            stage, self.transport, instance="0", build="t", cipher=Aead(b"k" * 32), batch_size=100,
            config_hash=CONFIG_HASH,
        )  # fmt: skip


def lines(name: str, n: int, seed: int, faults: bool) -> list[Outgoing]:
    made = []
    for model in (MODEL, OTHER):
        events = clean(n, seed, model=model, name=f"{name}-{model}")
        events = each(events, range(n) if faults else (), lambda event: event["features"].update(amount=None))
        made += [Outgoing(PREDICTIONS, model.encode(), msgspec.json.encode(event)) for event in events]
    return made


def publish(transport: KafkaTransport, records: Sequence[Outgoing]) -> None:
    producer = transport.producer(f"publisher-{uuid4().hex}")
    producer.begin()
    for record in records:
        producer.produce(record)
    producer.commit()
    producer.close()


def drain(member: Worker, done: Callable[[int], bool]) -> int:
    """Run a member until ``done`` says so of the records it took; how many those are."""
    taken, deadline_s = 0, time.monotonic() + WAIT_S
    while not done(taken):
        taken += member.run_once(0.1)
        assert time.monotonic() < deadline_s, "it does not get there"
    return taken


@pytest.fixture(scope="module")
def good(kafka_address: str) -> Iterator[Good]:
    prefix = f"damage-{uuid4().hex[:8]}."
    properties = {"bootstrap.servers": kafka_address, "session.timeout.ms": "6000"}
    own = {name: Topic(name, "a test", "key", 12, None, None, ("t",), ("t",)) for name in DAMAGED}
    apply_topics(properties, prefix, topics={**TOPICS, **own})
    transport = KafkaTransport(properties, topic_prefix=prefix, leave_on_close=True)
    for model in (MODEL, OTHER):
        publish_tables(transport, {CONTRACTS: contract(model), REFERENCES: reference(model)}, f"t-{uuid4().hex}")
    made = Good(
        {
            "ERRATA_KAFKA__BOOTSTRAP_SERVERS": kafka_address,
            "ERRATA_KAFKA__SESSION_TIMEOUT_MS": "6000",
            "ERRATA_TOPIC_PREFIX": prefix,
            "ERRATA_KEY": SECRET,
            "ERRATA_HTTP_PORT": "0",
        },
        transport, -1, -1, {},
    )  # fmt: skip
    publish(transport, lines("good", 300, 1, faults=False))
    member = made.worker()
    assert drain(member, lambda taken: taken == 600) == 600
    member.close()
    made.changelog = {n: list(transport.read_from((STATE, n))) for n in range(12)}
    made.first, made.second = (number for number, records in made.changelog.items() if records)
    publish(transport, lines("waiting", 300, 2, faults=True))
    for topic, damage in DAMAGED.items():
        damaged = {number: made.wire(number) for number in (made.first, made.second)} | damage(made)
        records = [Outgoing(topic, key, value, partition=n) for n, wire in damaged.items() for key, value in wire]
        publish(transport, records)
    yield made
    transport.close()


# -- what may happen to a changelog -----------------------------------------------------------------------------------


def positions(wire: Wire) -> list[int]:
    return [place for place, (key, _) in enumerate(wire) if key == POSITION_KEY]


def truncated_head(good: Good) -> dict[int, Wire]:
    """All of the first transaction is gone, an id block of it among that."""
    wire = good.wire(good.first)
    keys = {key for key, _ in wire} - {POSITION_KEY}
    return {good.first: [pair for pair in wire if pair[0] != min(keys)]}


def missing_tail(good: Good) -> dict[int, Wire]:
    wire = good.wire(good.first)
    return {good.first: wire[: positions(wire)[-2] + 1]}


def swapped(good: Good) -> dict[int, Wire]:
    return {good.first: good.wire(good.second), good.second: good.wire(good.first)}


def foreign(good: Good) -> dict[int, Wire]:
    return {good.first: [*good.wire(good.first), (b"somebody's key", b"somebody's value")]}


def flipped(good: Good) -> dict[int, Wire]:
    wire = good.wire(good.first)
    place = max(place for place, (key, _) in enumerate(wire) if SLOT in key)
    key, value = wire[place]
    wire[place] = (key, (value or b"")[:-5] + bytes([(value or b"")[-5] ^ 1]) + (value or b"")[-4:])
    return {good.first: wire}


def lost_position(good: Good) -> dict[int, Wire]:
    return {good.first: [pair for pair in good.wire(good.first) if pair[0] != POSITION_KEY]}


def repeated_position(good: Good) -> dict[int, Wire]:
    wire = good.wire(good.first)
    return {good.first: [*wire, wire[positions(wire)[0]]]}


def rewritten(good: Good, version: int | None = None, **position: Any) -> dict[int, Wire]:
    """Whole in itself, and not what this stage may go on from."""
    records, found = read_records(good.transport, STATE, good.first)
    entries = entries_of(records)
    for key, value in list(entries.items()):
        if version is not None and key.startswith(SLOT):
            _, meta, arrays = unpack_arrays(value)
            entries[key] = pack_arrays(version, meta, arrays)
    changes = [StateChange(good.first, key, value) for key, value in entries.items()]
    log = PartitionLog(good.first, {}, None)
    made = log.stage("", changes, replace(found or Position({}), **position))
    return {good.first: [(one.key or b"", one.value) for one in made]}


def ahead(good: Good) -> dict[int, Wire]:
    _, found = read_records(good.transport, STATE, good.first)
    assert found is not None
    taken = found.inputs[PREDICTIONS]
    return rewritten(good, inputs={**found.inputs, PREDICTIONS: replace(taken, end=taken.end + 7)})


def half_rebuilt(good: Good) -> dict[int, Wire]:
    return {good.first: [*good.wire(good.first), (POSITION_KEY, Position({}, rebuilding=True).to_value())]}


DAMAGED: dict[str, Callable[[Good], dict[int, Wire]]] = {
    "digest.head": truncated_head,
    "digest.flipped": flipped,
    "digest.repeated": repeated_position,
    "state_behind.tail": missing_tail,
    "state_behind.all": lambda good: {good.first: []},
    "wrong_partition.swapped": swapped,
    "foreign_key.foreign": foreign,
    "schema_older.v0": lambda good: rewritten(good, 0),
    "schema_newer.v9": lambda good: rewritten(good, 9),
    "position_missing.lost": lost_position,
    "config.other": lambda good: rewritten(good, config_hash="of another release"),
    "state_ahead.rewound": ahead,
    "rebuild_unfinished.half": half_rebuilt,
}


def refusal(good: Good, topic: str, kind: type[Worker] = Worker) -> str:
    """Why a member stops that restores from a topic."""
    member = good.worker(topic, kind)
    try:
        with pytest.raises(StateDamaged) as refused:
            drain(member, lambda taken: False)
    finally:
        member.close()
    return str(refused.value)


@pytest.mark.parametrize("topic", DAMAGED)
def test_damage_stops_the_stage_by_its_name_and_nothing_comes_out(good: Good, topic: str) -> None:
    before = good.said()
    reason, _, what = refusal(good, topic).partition(": ")
    assert reason == topic.partition(".")[0]
    assert f"{topic} partition {min(good.first, good.second) if 'swapped' in topic else good.first}" in what
    assert good.said() == before
    assert StateDamaged.exit_code == 70


def test_a_service_ends_with_70_until_its_state_is_rebuilt(good: Good, tmp_path: Path) -> None:
    """As a whole process; then the rebuild, which waits for the member to leave, and the service again."""
    key, value = next((key, value) for key, value in flipped(good)[good.first] if SLOT in key)
    publish(good.transport, [Outgoing(STATE, key, (value or b"") + b"\0", partition=good.first)])
    before = good.said()
    log = tmp_path / "log"
    assert service(good, log).wait(WAIT_S) == 70
    assert "digest: " in log.read_text()
    assert good.said() == before
    code, said = invoke(good, "state", "show", "--json")
    assert (code, '"fault":"digest"' in said) == (1, True)
    assert good.transport.group_members(GROUP) == ["0"]  # its session goes on for a while
    deadline_s = time.monotonic() + WAIT_S
    refused = ""
    while True:
        code, said = invoke(good, "state", "rebuild", "--yes")
        if code == 0:
            break
        refused = said
        assert time.monotonic() < deadline_s, said
    assert "runs (instance 0): stop it first" in refused
    assert "600 records read again" in said
    assert invoke(good, "state", "show", "--json")[0] == 0
    assert good.said() == before
    again = service(good, log)
    try:
        while good.said() == before:
            assert again.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s + WAIT_S
            time.sleep(0.1)
    finally:
        again.terminate()
        again.wait(WAIT_S)


class Careless(Worker):
    """The control: takes state as it comes."""

    def _checked(
        self, topic: str, number: int, committed: Offsets
    ) -> tuple[dict[bytes, bytes], Position | None, dict[bytes, int]]:
        records, position = read_records(self._transport, topic, number)
        return records, position, hashes_of(records)


def test_without_the_checks_damaged_state_is_gone_on_from(good: Good) -> None:
    before = good.said()
    publish(good.transport, lines("control", 300, 3, faults=True))
    member = good.worker("digest.flipped", Careless)
    drain(member, lambda taken: good.said() > before)
    member.close()


def service(good: Good, log: Path) -> "subprocess.Popen[bytes]":
    bare = {name: value for name, value in os.environ.items() if not name.startswith("ERRATA_")}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "errata_services.cli", "run", STAGES[0]],
            env={**bare, **good.environment}, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip


def invoke(good: Good, *words: str) -> tuple[int, str]:
    result = CliRunner(env=good.environment).invoke(app, [*words])
    return result.exit_code, f"{result.output} {result.exception or ''}"
