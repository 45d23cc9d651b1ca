"""Heartbeats: through every stage in their own partition, accounted for, and nothing is changed by them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.detectors.streams import (
    SECOND_US,
    START_US,
    Event,
    clean,
    contract,
    each,
    records,
    reference,
    stage,
    step,
    tick,
    transport,
)
from tests.pipeline.case_builder import blank_catalogue
from tests.pipeline.chain_builder import batches, cases_of, chain, chain_parts, dumps
from tests.pipeline.enricher_bench import Bench, failure
from tests.unit.anomaly_builder import CASE_ID, enriched_anomaly, finding

from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryProducer, MemoryTransport
from errata.adapters.prometheus import PrometheusMeter
from errata.adapters.sql import SqlCatalogue
from errata.contracts import ChangeEvent, EnrichedAnomaly, Heartbeat, Receipt, canonical
from errata.contracts.cloudevents import HEARTBEAT, IS_HEARTBEAT, heartbeat_event
from errata.contracts.strict import instant
from errata.contracts.topics import ANOMALIES, ENRICHED, LEDGER, PREDICTIONS, STAGES, TAGGED, TOPICS
from errata.domain.catalogue.queries import CaseQuery
from errata.domain.detection import state as at
from errata.errors import Refused
from errata.ports import ChangesFound, Outgoing, Record, StepResult, Transport
from errata.runtime.heartbeats import read_record
from errata.runtime.telemetry import StageTelemetry
from errata.runtime.worker import Worker
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import CATALOGUE_FILE, Parts
from errata_services.catalog_writer import CatalogWriterWorker
from errata_services.cli.ledger import read_audit
from errata_services.tagger import Tagger

DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
BEHIND = (ANOMALIES, ENRICHED, TAGGED)


def beat(at_us: int, name: str = "", **fields: Any) -> Event:
    """As a keeper writes it: an event of no model of ours, judged by nobody."""
    plain = {"event_id": f"beat-{name or at_us}", "time": instant(at_us).isoformat(), "purpose": "heartbeat"}
    return {**plain, "model": {"name": "errata"}, "prediction": "alive", **fields}


def keyless(record: Record, partition: int | None = None) -> Record:
    return record._replace(key=None, partition=record.partition if partition is None else partition)


def failing(n: int = 700) -> list[Event]:
    """A model whose amounts go missing: a case opens."""
    return each(clean(n), range(200, 400), lambda event: event["features"].update(amount=None))


def interleaved(events: Sequence[Event], every: int = 50) -> list[Event]:
    mixed: list[Event] = []
    for i, event in enumerate(events):
        mixed += [event, *([beat(START_US + i * SECOND_US)] if i % every == 0 else [])]
    return mixed


def beats_of(outputs: Sequence[Outgoing]) -> list[Heartbeat]:
    return [Heartbeat.model_validate_json(out.value or b"") for out in outputs if IS_HEARTBEAT in out.headers]


def events_seen(detector: AnomalyDetector) -> list[int]:
    return [int(detector.state.fixed[slot.index][at.EVENTS]) for slot in detector.slots]


# -- the detector -----------------------------------------------------------------------------------------------------


def test_a_heartbeat_becomes_a_message_in_the_partition_it_came_from() -> None:
    (record,) = records([beat(START_US, "7")])
    detector = stage(models=())
    detector.restore(5, {})
    result = step(detector, [keyless(record, 5)])
    (out,) = result.outputs
    assert (out.topic, out.key, out.partition) == (ANOMALIES, None, 5)
    assert Heartbeat.model_validate_json(out.value or b"") == Heartbeat(
        heartbeat_id="beat-7", time=instant(START_US), partition=5
    )
    assert dict(out.headers)["ce_type"] == HEARTBEAT.encode()
    assert (result.dropped, result.dead, result.changes, result.rekeyed) == ({}, [], [], [])
    assert (result.max_event_time_us, result.newest_heartbeat_us) == (None, START_US)


@pytest.mark.parametrize("size", [7, 333])
def test_heartbeats_stand_among_the_findings_in_receipt_order_however_batches_are_cut(size: int) -> None:
    stream = records(interleaved(failing()))
    whole = [(out.key, out.value) for out in step(stage(), stream).outputs]
    cut, detector = list[tuple[bytes | None, bytes | None]](), stage()
    for start in range(0, len(stream), size):
        cut += [(out.key, out.value) for out in step(detector, stream[start : start + size]).outputs]
        detector.commit()
    assert cut == whole
    kinds = [key is None for key, _ in whole]
    assert any(kinds)
    assert not all(kinds)
    first_finding = kinds.index(False)
    assert 0 < first_finding < len(kinds) - 1 - kinds[::-1].index(True), "findings stand between heartbeats"


def test_state_and_findings_are_those_of_the_stream_without_heartbeats() -> None:
    events = failing()
    with_beats, without = stage(), stage()
    one, two = step(with_beats, records(interleaved(events))), step(without, records(events))
    assert beats_of(one.outputs)
    assert events_seen(with_beats) == events_seen(without) == [700]
    assert (with_beats.state.fixed == without.state.fixed).all()
    assert (with_beats.state.cells == without.state.cells).all()
    opened = [
        [json.loads(out.value or b"")["episode"]["id"] for out in result.outputs if out.key is not None]
        for result in (one, two)
    ]
    assert opened[0] == opened[1] != []


def test_ticks_and_heartbeats_are_exempt_from_being_sent_to_a_place() -> None:
    """By partition, without a key; the control is an event of a model, which is sent on."""
    detector = AnomalyDetector(transport(()), MsgspecDecoder(b"0" * 32), rekeys=True)
    detector.restore(3, {})
    stream = records([tick(START_US), beat(START_US), *clean(1)])
    result = step(detector, [keyless(record, 3) for record in stream])
    assert len(beats_of(result.outputs)) == 1
    assert (len(result.rekeyed), result.dropped) == (1, {"rekeyed": 1})


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [({"time": "2030-01-05T12:00:00Z"}, "clock"), ({"time": "yesterday"}, "schema"), ({"event_id": 5}, "schema")],
)
def test_a_heartbeat_that_is_none_is_a_dead_letter(fields: Event, refusal: str) -> None:
    result = step(stage(), [_raw(beat(START_US, **fields))])
    assert result.outputs == []
    assert [dead.refusal.refusal_class for dead in result.dead] == [refusal]


def _raw(event: Event) -> Record:
    return Record(PREDICTIONS, 0, 0, START_US, None, json.dumps(event).encode())


def test_a_heartbeat_of_a_known_model_is_passed_on_too() -> None:
    """Whoever publishes one, with whatever key: it is no event of the model."""
    mine = each(clean(3), (1,), lambda event: event.update(purpose="heartbeat"))
    detector = stage()
    result = step(detector, records(mine))
    assert [one.heartbeat_id for one in beats_of(result.outputs)] == ["e-1"]
    assert events_seen(detector) == [2]


# -- the stages behind it ---------------------------------------------------------------------------------------------


def heartbeat(at_us: int = START_US, partition: int = 4) -> Heartbeat:
    return Heartbeat(heartbeat_id="b", time=instant(at_us), partition=partition)


def passed(topic: str, value: bytes | None, partition: int = 4) -> Record:
    return Record(topic, partition, 0, START_US, None, value, heartbeat_event(heartbeat(), DETECTOR))


def test_a_stage_reads_a_heartbeat_by_its_header_and_refuses_one_that_is_broken() -> None:
    good = read_record(EnrichedAnomaly, passed(ENRICHED, heartbeat().to_json()))
    assert good == heartbeat()
    for broken in (b"{}", None, b"\xff"):
        assert isinstance(read_record(EnrichedAnomaly, passed(ENRICHED, broken)), Refused)
    unmarked = passed(ENRICHED, heartbeat().to_json())._replace(headers=())
    assert isinstance(read_record(EnrichedAnomaly, unmarked), Refused), "the header tells it, not its form"


class Untouched(MemoryContextStore):
    """A context store that counts what it is asked for."""

    asked = 0

    def add(self, changes: Sequence[tuple[ChangeEvent, int]]) -> None:
        self.asked += 1
        super().add(changes)

    def between(self, wanted: Sequence[tuple[str, str, int, int, int]], most: int | None = None) -> list[ChangesFound]:
        self.asked += 1
        return super().between(wanted, most)


def test_the_enricher_passes_heartbeats_on_and_looks_nothing_up() -> None:
    store = Untouched()
    bench = Bench(store=store)
    bench.enricher.prepare([])
    store.asked = 0
    batch = [passed(ANOMALIES, heartbeat().to_json())]
    result = bench.enricher.step(batch, bench.enricher.prepare(batch))
    assert [(out.topic, out.key, out.partition) for out in result.outputs] == [(ENRICHED, None, 4)]
    assert (store.asked, bench.asked, result.max_event_time_us) == (0, [], None)
    bench.enrich(failure())
    assert store.asked > 0, "the control: an anomaly is looked up"


def test_the_tagger_passes_heartbeats_on_between_cases() -> None:
    swapped = enriched_anomaly(finding("error_rate", "outcome", "rate"))
    case = Record(ENRICHED, 4, 1, START_US, b"k", swapped.to_json())
    result = Tagger().step([passed(ENRICHED, heartbeat().to_json()), case], None)
    assert [(out.topic, out.key, out.partition) for out in result.outputs] == [
        (TAGGED, None, 4),
        (TAGGED, CASE_ID.encode(), None),
    ]
    assert result.newest_heartbeat_us == START_US


# -- the whole chain --------------------------------------------------------------------------------------------------


def run(folder: Path, events: Sequence[Event]) -> tuple[Any, dict[str, Any]]:
    """Cases without the coordinates that heartbeats shift, and all that is to be accounted for."""
    with chain_parts(folder, contract(), reference()) as parts:
        summary = chain(parts).feed(batches(map(dumps, events), 200))
        audit, whole = read_audit(parts.transport)
        accounts = {one.stage: (one.delivered, one.out, one.dlq, one.dropped) for one in audit.accounts}
        beats = {topic: _beats(parts.transport, topic) for topic in BEHIND}
        cases = [case.model_dump(mode="json") for case in cases_of(parts)]
        return cases, {
            "faults": audit.faults, "whole": whole, "accounts": accounts, "beats": beats, "summary": summary,
            "rows": _rows(parts),
            "positions": parts.catalogue.claim(f"errata.{WRITER}", "asker", _places(parts, TAGGED)),
            "ends": {place: parts.transport.end_offset(place) for place in _places(parts, TAGGED)},
        }  # fmt: skip


def _places(parts: Parts, topic: str) -> list[tuple[str, int]]:
    return [(topic, number) for number in range(parts.transport.partitions(topic))]


def _beats(log: Transport, topic: str) -> list[tuple[int, bytes]]:
    return [
        (number, record.value or b"")
        for number in range(log.partitions(topic))
        for record in log.read_from((topic, number))
        if IS_HEARTBEAT in record.headers
    ]


def _rows(parts: Parts) -> int:
    return sum(len(parts.catalogue.revisions(case.case_id)) for case in cases_of(parts))


COORDINATES = {"offset", "raw_ref", "partition"}


def without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_places(inner) for name, inner in value.items() if name not in COORDINATES}
    return [without_places(inner) for inner in value] if isinstance(value, list) else value


def test_heartbeats_pass_the_whole_chain_and_the_catalogue_is_as_without_them(tmp_path: Path) -> None:
    events = failing()
    plain, before = run(tmp_path / "without", events)
    cases, found = run(tmp_path / "with", interleaved(events))
    assert plain != []
    assert canonical(without_places(cases)) == canonical(without_places(plain))
    assert found["rows"] == before["rows"]
    assert (found["faults"], found["whole"]) == ([], True)
    beats = 700 // 50
    assert {len(found["beats"][topic]) for topic in BEHIND} == {beats}
    assert found["beats"][ANOMALIES] == found["beats"][ENRICHED] == found["beats"][TAGGED]
    for stage_name in (DETECTOR, ENRICHER, TAGGER):
        one, other = found["accounts"][stage_name], before["accounts"][stage_name]
        assert (one[0] - other[0], one[1] - other[1], one[2:]) == (beats, beats, (0, 0))
    assert found["positions"] == found["ends"], "the catalogue's position is behind the heartbeats"
    assert (found["summary"].dropped, found["summary"].dead) == ({}, [])


# -- controls: heartbeats that get lost -------------------------------------------------------------------------------


class Swallowing(MemoryTransport):
    """Loses each heartbeat that is written to one topic."""

    topic = ENRICHED

    def producer(self, transactional_id: str) -> MemoryProducer:
        made = super().producer(transactional_id)
        produce = made.produce

        def lossy(record: Outgoing) -> None:
            if not (record.topic == self.topic and IS_HEARTBEAT in record.headers):
                produce(record)

        made.produce = lossy  # type: ignore[method-assign]
        return made


@pytest.mark.parametrize(
    ("kind", "faults"), [(MemoryTransport, []), (Swallowing, [("imbalance", TAGGER, ENRICHED, 4)])]
)
def test_a_stage_whose_heartbeats_get_lost_shows_in_the_ledger(
    kind: type[MemoryTransport], faults: list[tuple[str, str, str, int]], tmp_path: Path
) -> None:
    with chain_parts(tmp_path) as parts:
        lossy = kind(TOPICS)
        own = Parts(
            lossy, parts.catalogue, parts.cipher, parts.redaction_key, parts.decoder, parts.plain, parts.router,
            parts.context,
        )  # fmt: skip
        chain(own).feed([[dumps(beat(START_US, str(i))) for i in range(4)]])
        audit, _ = read_audit(lossy)
    assert [(one.kind, one.stage, one.topic, one.records) for one in audit.faults] == faults


class Deaf(Tagger):
    """Takes heartbeats in and passes none on."""

    def step(self, batch: Sequence[Record], prepared: object) -> StepResult:
        return super().step([record for record in batch if IS_HEARTBEAT not in record.headers], prepared)


def publish(log: MemoryTransport, topic: str, *messages: Heartbeat) -> None:
    producer = log.producer("publisher")
    producer.begin()
    for message in messages:
        producer.produce(
            Outgoing(topic, None, message.to_json(), heartbeat_event(message, DETECTOR), message.partition)
        )
    producer.commit()
    producer.close()


class Watched:
    """A stage's metrics under a clock that stands still, a minute after the first heartbeat."""

    def __init__(self, name: str) -> None:
        self.meter = PrometheusMeter()
        self.telemetry = StageTelemetry(self.meter, name, version="1", clock=lambda: START_US / 1e6 + 60)
        self._name = name

    def value(self, series: str) -> float:
        lines = self.meter.exposition()[1].decode().splitlines()
        wanted = f'{series}{{stage="{self._name}"}} '
        return next(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))


@pytest.mark.parametrize(("kind", "newest"), [(Tagger, START_US + 5 * SECOND_US), (Deaf, 0)])
def test_a_stage_shows_the_newest_heartbeat_it_has_passed_on(kind: Callable[[], Tagger], newest: int) -> None:
    """The control: of one that takes them and passes none on, the metric stands still."""
    log, watched = MemoryTransport(TOPICS), Watched(TAGGER)
    worker = Worker(kind(), log, instance="0", build="1", cipher=None, telemetry=watched.telemetry)
    publish(log, ENRICHED, heartbeat(START_US + 5 * SECOND_US), heartbeat(START_US, 7))
    assert worker.run_once() == 2
    assert watched.value("errata_heartbeat_timestamp_seconds") == newest / 1e6
    assert len(_beats(log, TAGGED)) == (2 if newest else 0)
    worker.close()


def test_the_writer_ends_heartbeats_and_measures_their_way(tmp_path: Path) -> None:
    file = tmp_path / CATALOGUE_FILE
    file.write_bytes(blank_catalogue())
    log, watched = MemoryTransport(TOPICS), Watched(WRITER)
    catalogue = SqlCatalogue.of_file(file)
    writer = CatalogWriterWorker(log, catalogue, "w", telemetry=watched.telemetry)
    publish(log, TAGGED, heartbeat(), heartbeat(START_US + 40 * SECOND_US, 7))
    assert writer.run_once() == 2
    assert {place[1]: offset for place, offset in writer.positions.items() if offset} == {4: 1, 7: 1}
    assert watched.value("errata_heartbeat_timestamp_seconds") == START_US / 1e6 + 40
    assert watched.value("errata_heartbeat_delay_seconds_count") == 2
    assert watched.value("errata_heartbeat_delay_seconds_sum") == 60 + 20
    assert (writer.dead, writer.cases_changed) == (0, 0)
    assert catalogue.cases(CaseQuery(limit=5)) == []
    writer.close()
    catalogue.close()


def test_receipts_count_heartbeats_as_processed_and_put_out() -> None:
    log = MemoryTransport(TOPICS)
    worker = Worker(Tagger(), log, instance="0", build="1", cipher=None)
    publish(log, ENRICHED, heartbeat(), heartbeat(partition=7))
    worker.run_once()
    (receipt,) = [
        Receipt.model_validate_json(record.value or b"")
        for number in range(log.partitions(LEDGER))
        for record in log.read_from((LEDGER, number))
    ]
    assert (receipt.out, receipt.dlq, receipt.dropped) == (2, 0, {})
    assert sum(part.delivered for part in receipt.inputs) == 2
    assert receipt.max_event_time is None
    worker.close()
