"""A hundred streams, each judged quietly and once more under kills, joins and odd batches: the same bytes come out.

Outputs are compared key by key, for two members write side by side; state entry by entry, and dead letters whole.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any

import pytest
from tests.detectors.streams import MODEL, SECOND_US, START_US, Event, clean, contract, each, outcome, reference, tick
from tests.pipeline.chain_builder import packaged_tagger

from errata.adapters.aead import Aead
from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import RECORD_TIME_HEADER, MemoryTransport
from errata.contracts import Anomaly, Receipt
from errata.contracts.cloudevents import IS_HEARTBEAT
from errata.contracts.strict import instant
from errata.contracts.topics import (
    ANOMALIES,
    CHANGES,
    CONTRACTS,
    ENRICHED,
    LEDGER,
    OUTCOMES,
    PREDICTIONS,
    REFERENCES,
    STAGES,
    TAGGED,
    TOPICS,
    dead_letter_topic,
    model_key,
    state_topic,
)
from errata.domain.partitioner import partition_of
from errata.errors import Fenced
from errata.ports import Outgoing, Record, StepResult
from errata.runtime.changelog import TABLE_KEY, read_state
from errata.runtime.crash_points import POINTS, CrashPoint, CrashPoints
from errata.runtime.worker import Worker
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import publish_tables
from errata_services.enricher import Enricher
from errata_services.tagger import Tagger

pytestmark = pytest.mark.whole

SEEDS = 100
KEY = b"0" * 32
MODELS = (MODEL, "other", "rates")  # one in each partition
PARTITIONS = 3
FEW = {
    name: replace(topic, partitions=min(topic.partitions, PARTITIONS)) for name, topic in TOPICS.items()
}  # a restart costs as much for each, whatever is in it
BATCH_SIZES = (11, 25, 60, 150)
DETECTOR, ENRICHER, TAGGER, _ = STAGES


# -- streams ----------------------------------------------------------------------------------------------------------


def put(**fields: Any) -> Callable[[Event], None]:
    return lambda event: event.update(fields)


def feature(**values: Any) -> Callable[[Event], None]:
    return lambda event: event["features"].update(values)


def flip(event: Event) -> None:
    event["outcome"]["value"] = "no" if event["prediction"] == "yes" else "yes"


FAULTS: tuple[Callable[[Event], None], ...] = (
    feature(amount=None), feature(age=500), feature(colour="violet"), feature(age="old"), put(latency_ms=900.0),
    put(status={"code": "timeout"}), put(prediction="perhaps"), put(prediction="never"), flip,
    put(scores={"yes": 0.5, "no": 0.5}),
)  # fmt: skip
POISON = (b"not json", b'{"event_id": "x"}', b"\xff", b"", b'{"event_id": 5, "time": "2026-01-05T12:00:00Z"}')


def stream(seed: int) -> list[Outgoing]:
    """Events of three models with faults in each, among them duplicates, labels, poison, ticks and heartbeats.

    Every tenth is long enough for windows to fill."""
    draw = Random(seed)
    n = 700 if seed % 20 == 0 else 80
    made: list[Outgoing] = []
    of_models = [iter(_faulty(draw, model, n, seed * 3 + i)) for i, model in enumerate(MODELS)]
    for number in range(len(MODELS) * n):
        event = next(of_models[number % len(MODELS)])
        at_us = START_US + number * SECOND_US // 3
        made.append(_sent(event, at_us))
        lot = draw.random()
        if lot < 0.03:
            made.append(made[draw.randrange(len(made))])
        elif lot < 0.05:
            made.append(Outgoing(PREDICTIONS, b"loans", draw.choice(POISON), _at(at_us)))
        elif lot < 0.10:
            made.append(_sent(outcome(number, draw.random() < 0.3, model=draw.choice(MODELS)), at_us))
        elif lot < 0.11:
            raw = json.dumps(tick(at_us, name=str(number))).encode()
            made.append(Outgoing(PREDICTIONS, None, raw, _at(at_us), draw.randrange(PARTITIONS)))
        elif lot < 0.12:
            beat = {"event_id": f"beat-{number}", "time": instant(at_us).isoformat(), "purpose": "heartbeat",
                    "model": {"name": "keeper"}, "prediction": 1}  # fmt: skip
            made.append(Outgoing(PREDICTIONS, None, json.dumps(beat).encode(), _at(at_us), draw.randrange(PARTITIONS)))
    return made


def _faulty(draw: Random, model: str, n: int, seed: int) -> list[Event]:
    events = clean(n, seed, model=model, name=f"{model}-")
    for _ in range(2):
        start = draw.randrange(n)
        rows = range(start, min(n, start + draw.randrange(5, 80)), draw.choice((1, 1, 2, 5)))
        events = each(events, rows, draw.choice(FAULTS))
    return events


def _at(us: int) -> tuple[tuple[str, bytes], ...]:
    return ((RECORD_TIME_HEADER, str(us).encode()),)


def _sent(event: Event, at_us: int) -> Outgoing:
    topic = OUTCOMES if "outcome_id" in event else PREDICTIONS
    return Outgoing(topic, model_key("default", event["model"]["name"]), json.dumps(event).encode(), _at(at_us))


# -- runs -------------------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """All that came of a run that must not depend on how it went."""

    outputs: dict[tuple[bytes, int], list[tuple[bytes, Any]]] = field(default_factory=lambda: defaultdict(list))
    state: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    letters: list[Record] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


MakeStage = Callable[[MemoryTransport], Any]


def log_with(records: Sequence[Outgoing]) -> MemoryTransport:
    transport = MemoryTransport(FEW)
    for model in MODELS:
        publish_tables(transport, {CONTRACTS: contract(model), REFERENCES: reference(model)})
    producer = transport.producer("source")
    producer.begin()
    for record in records:
        producer.produce(record)
    producer.commit()
    return transport


def start(transport: MemoryTransport, make: MakeStage, instance: str, draw: Random | None) -> Worker:
    """A member. With ``draw`` its batches are of any size, and it dies at some point unless it ends before."""
    stage = make(transport)
    crash, size = None, 5_000
    if draw is not None:
        crash = CrashPoints.raising(stage.name, draw.choice(POINTS), draw.randrange(1, 5))
        size = draw.choice(BATCH_SIZES)
    cipher = Aead(b"k" * 32)
    return Worker(stage, transport, instance=instance, build="t", cipher=cipher, batch_size=size, crash=crash)


def drive(transport: MemoryTransport, make: MakeStage, draw: Random | None = None) -> Counter[str]:
    """All that is there through members of one group; what was done to them."""
    members = {"0": start(transport, make, "0", draw)}
    done: Counter[str] = Counter()
    idle = 0
    while idle < 3:
        if draw is not None and idle == 0:
            disturb(transport, make, draw, members, done)
        taken = 0
        for instance, worker in list(members.items()):
            try:
                taken += worker.run_once()
            except CrashPoint:
                done["kills"] += 1
                members[instance] = start(transport, make, instance, draw)
                taken += 1
        idle = 0 if taken else idle + 1
    return done


def disturb(
    transport: MemoryTransport, make: MakeStage, draw: Random, members: dict[str, Worker], done: Counter[str]
) -> None:
    lot = draw.random()
    if lot < 0.15 and len(members) < 3:
        free = next(name for name in ("0", "1", "2") if name not in members)
        members[free] = start(transport, make, free, draw)
        done["joins"] += 1
    elif lot < 0.30 and len(members) > 1:
        members.pop(draw.choice(sorted(members))).close()
        done["leaves"] += 1
    elif lot < 0.40:
        instance = draw.choice(sorted(members))
        older, members[instance] = members[instance], start(transport, make, instance, draw)
        with pytest.raises(Fenced):
            older.run_once()
        done["takeovers"] += 1


def made_of(transport: MemoryTransport, stage: str, output: str) -> Made:
    made = Made()
    for record in records_of(transport, output):
        made.outputs[record.key or b"", record.partition].append((record.value or b"", record.headers))
    if stage == DETECTOR:
        for number in range(transport.partitions(state_topic(stage))):
            entries, _ = read_state(transport, state_topic(stage), number)
            entries.pop(TABLE_KEY, None)  # at which offsets of its batch a table took effect
            made.state[number] = entries
    letters = records_of(transport, dead_letter_topic(stage))
    made.letters = [record._replace(offset=0, timestamp_us=0) for record in letters]
    for record in records_of(transport, LEDGER):
        receipt = Receipt.model_validate_json(record.value or b"")
        if receipt.stage == stage:
            made.dropped.update(receipt.dropped)
    return made


def records_of(transport: MemoryTransport, topic: str) -> list[Record]:
    return [record for n in range(transport.partitions(topic)) for record in transport.read_from((topic, n))]


def differences(one: Made, other: Made) -> list[str]:
    """Which parts differ. Letters are sealed anew by each run, so theirs are compared without the payload."""
    bare = [[record._replace(value=None) for record in made.letters] for made in (one, other)]
    return [
        name
        for name, same in (
            ("outputs", one.outputs == other.outputs),
            ("state", one.state == other.state),
            ("letters", bare[0] == bare[1]),
            ("dropped", one.dropped == other.dropped),
        )
        if not same
    ]


def detector(kind: type[AnomalyDetector] = AnomalyDetector) -> MakeStage:
    return lambda transport: kind(transport, MsgspecDecoder(KEY))


def judged(seed: int, draw: Random | None, kind: type[AnomalyDetector] = AnomalyDetector) -> tuple[Made, Counter[str]]:
    transport = log_with(stream(seed))
    done = drive(transport, detector(kind), draw)
    return made_of(transport, DETECTOR, ANOMALIES), done


# -- the detector -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tens", range(0, SEEDS, 10))
def test_the_detector_gives_the_same_bytes_whatever_happens(tens: int) -> None:
    done: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for seed in range(tens, tens + 10):
        quiet, _ = judged(seed, None)
        disturbed, happened = judged(seed, Random(f"disturb {seed}"))
        assert differences(quiet, disturbed) == [], f"seed {seed}"
        done += happened
        found.update(_detectors(quiet))
    assert done["kills"] >= 10
    assert done["joins"] + done["leaves"] + done["takeovers"] >= 10
    assert len(found) >= 5, found  # the streams hold what there is to find


def _detectors(made: Made) -> list[str]:
    return [
        Anomaly.model_validate_json(value).detector.id
        for outputs in made.outputs.values()
        for value, headers in outputs
        if IS_HEARTBEAT not in headers
    ]


class Cutting(AnomalyDetector):
    """Depends on how its records are cut into batches: the counts of open windows go with each batch."""

    def step(self, batch: Sequence[Record], prepared: None) -> StepResult:
        self.state.counts[:] = 0
        return super().step(batch, prepared)


def test_control_a_stage_that_depends_on_batches_is_found() -> None:
    seed = 0
    quiet, _ = judged(seed, None, Cutting)
    disturbed, _ = judged(seed, Random(f"disturb {seed}"), Cutting)
    assert {"outputs", "state"} <= set(differences(quiet, disturbed))


# -- enricher and tagger ----------------------------------------------------------------------------------------------


@cache
def anomalies(seed: int) -> tuple[MemoryTransport, list[Record]]:
    """A log with findings of a stream and changes before them, and the findings with what the enricher reads beside."""
    transport = log_with(stream(seed))
    producer = transport.producer("changes")
    producer.begin()
    for number, model in enumerate(MODELS * 2):
        at = instant(START_US + number * 10 * SECOND_US).isoformat()
        change = {"change_id": f"c{number}", "kind": "deploy", "subject": model, "time": at, "from": "1", "to": "2"}
        producer.produce(Outgoing(CHANGES, model.encode(), json.dumps(change).encode()))
    producer.commit()
    drive(transport, detector())
    return transport, records_of(transport, ANOMALIES)


def enriched(seed: int, draw: Random | None = None) -> list[Outgoing]:
    """What the enricher makes of the findings by the context that it recorded for all at once, cut in any way."""
    transport, records = anomalies(seed)
    enricher = Enricher(MemoryContextStore(), transport, lambda tenant, model: contract(model), KEY)
    prepared = enricher.prepare(records)
    outputs: list[Outgoing] = []
    first = 0
    while first < len(records):
        end = len(records) if draw is None else first + draw.randrange(1, 20)
        part = replace(prepared, read=prepared.read[first:end], changes=prepared.changes[first:end])
        outputs += enricher.step(records[first:end], part).outputs
        first = end
    return outputs


def tagged(given: Sequence[Outgoing], draw: Random | None) -> tuple[Made, Counter[str]]:
    transport = MemoryTransport(FEW)
    producer = transport.producer("enricher")
    producer.begin()
    for record in given:
        producer.produce(record)
    producer.commit()
    done = drive(transport, lambda _: packaged_tagger(), draw)
    return made_of(transport, TAGGER, TAGGED), done


@pytest.mark.parametrize("tens", range(0, SEEDS, 25))
def test_enricher_and_tagger_give_the_same_bytes_whatever_happens(tens: int) -> None:
    done: Counter[str] = Counter()
    cases = 0
    for seed in range(tens, tens + 25):
        draw = Random(f"disturb {seed}")
        given = enriched(seed)
        assert enriched(seed, draw) == given, f"seed {seed}"
        assert {one.topic for one in given} <= {ENRICHED}
        quiet, _ = tagged(given, None)
        disturbed, happened = tagged(given, draw)
        assert differences(quiet, disturbed) == [], f"seed {seed}"
        done += happened
        cases += sum(map(len, quiet.outputs.values()))
    assert done["kills"] >= 5
    assert cases > 100


class CuttingTagger(Tagger):
    """Leaves out the last of each batch."""

    def step(self, batch: Sequence[Record], prepared: object) -> StepResult:
        return super().step(batch[:-1], prepared)


def test_control_a_tagger_that_depends_on_batches_is_found() -> None:
    results = []
    for draw in (None, Random("disturb")):
        transport = MemoryTransport(FEW)
        producer = transport.producer("enricher")
        producer.begin()
        for record in enriched(0):
            producer.produce(record)
        producer.commit()
        drive(transport, lambda _: CuttingTagger(), draw)
        results.append(made_of(transport, TAGGER, TAGGED))
    assert differences(*results) == ["outputs"]


def test_a_stream_is_named_by_its_seed() -> None:
    assert stream(3) == stream(3)
    assert stream(3) != stream(4)
    assert {partition_of(model.encode(), PARTITIONS) for model in MODELS} == set(range(PARTITIONS))
