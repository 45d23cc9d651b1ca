import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.anomaly_builder import CASE_ID, ONSET, anomaly, finding, ref

from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.memory import MemoryTransport
from errata.contracts import Anomaly, ChangeEvent, Contract, EnrichedAnomaly
from errata.contracts.strict import rfc3339, to_us
from errata.contracts.topics import ANOMALIES, CHANGES, ENRICHED, OUTCOMES, PREDICTIONS, TOPICS
from errata.errors import Unavailable
from errata.ports import Outgoing, Record, StepResult
from errata_services.enricher import Enricher

KEY = b"k" * 32
FEATURES = {
    "AGEP": {"type": "number", "policy": "drop"},
    "SCHL": {"type": "category"},
    "ZIP": {"type": "text", "policy": "hash"},
}
CONTRACT = Contract.model_validate({"model": "employment", "features": FEATURES})
FOUND_US = to_us(ONSET) + 600_000_000  # record time of the finding


class Bench:
    """An enricher on a transport and a context store of its own."""

    def __init__(self, contract: Contract | None = CONTRACT, store: Any = None) -> None:
        self.transport = MemoryTransport(TOPICS)
        self.store = store if store is not None else MemoryContextStore()
        self.asked: list[tuple[str, str]] = []
        self.contract = contract
        self.enricher = Enricher(self.store, self.transport, self._contract_of, KEY)
        self._seen = dict.fromkeys(range(self.transport.partitions(CHANGES)), 0)

    def _contract_of(self, tenant: str, model: str) -> Contract | None:
        self.asked.append((tenant, model))
        return self.contract

    def publish(self, topic: str, *values: object, partition: int = 0, at_us: int | None = None) -> None:
        if at_us is not None:
            self.transport.advance_record_time(at_us)
        producer = self.transport.producer("publisher")
        producer.begin()
        for value in values:
            raw = value if isinstance(value, bytes) else json.dumps(value).encode()
            producer.produce(Outgoing(topic, b"employment", raw, partition=partition))
        producer.commit()
        producer.close()

    def step(self, *values: Anomaly | bytes | None) -> StepResult:
        batch = self._new_changes() + [
            Record(ANOMALIES, 0, at, FOUND_US, b"", value.to_json() if isinstance(value, Anomaly) else value)
            for at, value in enumerate(values)
        ]
        return self.enricher.step(batch, self.enricher.prepare(batch))

    def _new_changes(self) -> list[Record]:
        new = [record for p, offset in self._seen.items() for record in self.transport.read_from((CHANGES, p), offset)]
        for record in new:
            self._seen[record.partition] = record.offset + 1
        return new

    def enrich(self, found: Anomaly) -> EnrichedAnomaly:
        return read(self.step(found).outputs)[0]


def read(outputs: Sequence[Outgoing]) -> list[EnrichedAnomaly]:
    return [EnrichedAnomaly.model_validate_json(output.value or b"") for output in outputs]


def change(minutes_before: float, **fields: Any) -> dict[str, Any]:
    time = rfc3339(ONSET - timedelta(minutes=minutes_before))
    return {"change_id": "c1", "kind": "deploy", "subject": "employment", "time": time, **fields}


def event(event_id: str, **fields: Any) -> dict[str, Any]:
    plain = {"event_id": event_id, "time": rfc3339(ONSET), "model": {"name": "employment"}, "prediction": "1"}
    return {**plain, **fields}


def failure(**fields: Any) -> Anomaly:
    return anomaly(finding("error_rate", "outcome", "rate"), time=ONSET + timedelta(minutes=10), **fields)


def kinds(found: EnrichedAnomaly) -> list[str]:
    return [entry.name for entry in found.context]


def test_a_deploy_before_onset_stands_on_the_anomaly() -> None:
    bench = Bench()
    bench.publish(CHANGES, change(20, **{"from": "v1", "to": "v2", "actor": "ci"}), partition=7, at_us=FOUND_US - 1)
    (entry,) = bench.enrich(failure()).context
    assert (entry.name, entry.source, entry.freshness_s, entry.missing) == ("deploy", CHANGES, 1200, None)
    assert entry.observed_at == ONSET - timedelta(minutes=20)
    assert entry.value == {"change_id": "c1", "from": "v1", "to": "v2", "actor": "ci", "minutes_before_onset": 20}


@pytest.mark.parametrize(
    "decoy",
    [
        change(-0.001),
        change(3 * 24 * 60),
        change(24 * 60 + 0.001),
        change(20, subject="other"),
        change(20, tenant="acme"),
    ],
    ids=["after it", "three days earlier", "just over a day earlier", "other model", "other tenant"],
)
def test_a_decoy_does_not(decoy: dict[str, Any]) -> None:
    bench = Bench()
    bench.publish(CHANGES, decoy, at_us=FOUND_US - 1)
    (entry,) = bench.enrich(failure()).context
    assert (entry.name, entry.value, entry.missing) == ("changes", [], None)


def test_the_edges_of_the_look_back_are_inside() -> None:
    bench = Bench()
    bench.publish(CHANGES, change(0), change(24 * 60, change_id="c2", kind="flag"), at_us=FOUND_US - 1)
    assert kinds(bench.enrich(failure())) == ["flag", "deploy"]


def test_what_was_seen_after_the_finding_stays_out_so_that_a_replay_says_the_same() -> None:
    bench = Bench()
    bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    first = bench.step(failure()).outputs
    bench.publish(CHANGES, change(10, change_id="late"), at_us=FOUND_US)
    assert bench.step(failure()).outputs == first
    assert kinds(read(first)[0]) == ["deploy"]


def test_each_batch_reads_on_where_the_last_one_ended() -> None:
    bench = Bench()
    assert kinds(bench.enrich(failure())) == ["changes"]
    bench.publish(CHANGES, change(20), partition=11, at_us=FOUND_US - 1)
    assert kinds(bench.enrich(failure())) == ["deploy"]


class Down(MemoryContextStore):
    """A store that answers only while ``up``."""

    up = False

    def add(self, changes: Sequence[tuple[ChangeEvent, int]]) -> None:
        self._check()
        super().add(changes)

    def between(self, wanted: Sequence[tuple[str, str, int, int, int]]) -> list[list[ChangeEvent]]:
        self._check()
        return super().between(wanted)

    def _check(self) -> None:
        if not self.up:
            raise Unavailable("the context store does not answer")


def test_a_store_that_is_down_costs_the_context_and_not_the_event() -> None:
    store = Down()
    bench = Bench(store=store)
    bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    (entry,) = bench.enrich(failure()).context
    assert (entry.name, entry.source, entry.missing, entry.value) == ("changes", "context", "unavailable", None)
    store.up = True
    assert kinds(bench.enrich(failure())) == ["deploy"]


def test_an_empty_store_is_rebuilt_when_partitions_are_assigned() -> None:
    bench = Bench()
    bench.publish(CHANGES, b"{", change(20), partition=7, at_us=FOUND_US - 1)
    bench._new_changes()  # another process has read them before
    assert kinds(bench.enrich(failure())) == ["changes"]
    for partition in range(bench.transport.partitions(CHANGES)):
        bench.enricher.restore(partition, {})
    assert kinds(bench.enrich(failure())) == ["deploy"]


def test_rows_are_read_back_and_redacted() -> None:
    bench = Bench()
    features = {"AGEP": 44, "SCHL": "21", "ZIP": "12345", "new": 7}
    bench.publish(PREDICTIONS, event("a", features=features, latency_ms=3.0, outcome={"value": "0"}), event("b"))
    found = bench.enrich(failure(exemplars=[ref(0, "a")], controls=[ref(1, "b"), ref(9, "c")]))
    exemplar, control, gone = found.rows
    assert (exemplar.role, exemplar.observed, exemplar.expected) == ("exemplar", "1", "0")
    assert exemplar.raw_ref == "errata.predictions.v1/0/0"
    assert exemplar.values["latency_ms"] == 3.0
    assert set(exemplar.values["features"]) == {"SCHL", "ZIP"}
    assert exemplar.values["features"]["ZIP"].startswith("hmac:")
    assert (control.role, control.observed, control.expected, control.missing) == ("control", "1", None, None)
    assert (gone.role, gone.missing, gone.values, gone.raw_ref) == (
        "control", "out_of_retention", {}, "errata.predictions.v1/0/9",
    )  # fmt: skip
    assert bench.asked == [("default", "employment")]


def test_an_outcome_that_carries_its_prediction_is_a_row_too() -> None:
    bench = Bench()
    said = {"outcome_id": "o", "model": {"name": "employment"}, "observed_time": rfc3339(ONSET)}
    bench.publish(OUTCOMES, {**said, "predicted": "1", "value": "0", "confidence": 0.9, "segments": {"SCHL": "21"}})
    (row,) = bench.enrich(failure(exemplars=[ref(0, "", topic=OUTCOMES)])).rows
    assert (row.observed, row.expected, row.missing) == ("1", "0", None)
    assert row.values == {"prediction": "1", "confidence": 0.9, "segments": {"SCHL": "21"}}


def test_what_is_not_the_row_it_should_be_is_not_shown() -> None:
    bench = Bench()
    bench.publish(PREDICTIONS, event("another"), b"not JSON", event("own", prediction_id="p"))
    found = bench.enrich(failure(exemplars=[ref(0, "a"), ref(1, "b"), ref(2, "p")]))
    assert [row.missing for row in found.rows] == ["unreadable", "unreadable", None]
    assert found.rows[0].values == {}


def test_a_contract_that_allows_no_evidence_gets_none() -> None:
    bench = Bench(contract=CONTRACT.model_copy(update={"evidence": "none"}))
    bench.publish(PREDICTIONS, event("a", features={"SCHL": "21"}, outcome={"value": "0"}))
    (row,) = bench.enrich(failure(exemplars=[ref(0, "a")])).rows
    assert (row.values, row.observed, row.expected, row.missing) == ({}, None, None, "withheld_by_contract")


def test_large_rows_do_not_make_a_record_nobody_can_write() -> None:
    bench = Bench()
    large = {f"f{at}": "x" * 40 for at in range(1999)}
    bench.publish(PREDICTIONS, *(event(f"e{at}", features={"SCHL": "21", **large}) for at in range(16)))
    result = bench.step(failure(exemplars=[ref(at, f"e{at}") for at in range(16)]))
    assert {row.missing for row in read(result.outputs)[0].rows} == {"too_large"}
    assert len(result.outputs[0].value or b"") < 1_000_000


def test_the_output_is_keyed_by_case_and_keeps_every_field() -> None:
    found = failure(evidence={"events": 10}, slice="SEX=1")
    result = Bench().step(found)
    (output,) = result.outputs
    assert (output.topic, output.key) == (ENRICHED, CASE_ID.encode())
    before = json.loads(found.to_json())
    after = json.loads(output.value or b"")
    assert {name: after[name] for name in before} == before
    assert result.max_event_time_us == to_us(found.episode.last_seen)


def test_a_record_that_is_no_anomaly_is_dead_and_takes_nothing_along() -> None:
    body = json.loads(failure().to_json())
    del body["episode"]["id"]
    result = Bench().step(b"{", failure(), json.dumps(body).encode(), None)
    said = [(one.record.offset, one.refusal.refusal_class, one.refusal.path) for one in result.dead]
    assert said == [(0, "decode", ""), (2, "schema", "/episode/id"), (3, "decode", "")]
    assert len(result.outputs) == 1


def test_a_record_that_is_no_change_is_dead_once_and_shows_no_value() -> None:
    bench = Bench()
    bench.publish(CHANGES, {**change(20), "kind": "s3cret"}, change(20), at_us=FOUND_US - 1)
    result = bench.step(failure())
    (dead,) = result.dead
    assert (dead.record.topic, dead.record.offset, dead.refusal.path) == (CHANGES, 0, "/kind")
    assert "s3cret" not in str(dead.refusal)
    assert kinds(read(result.outputs)[0]) == ["deploy"]


def test_how_records_are_cut_into_batches_changes_nothing() -> None:
    anomalies = [
        failure(model={"name": name}, exemplars=[ref(at, f"e{at}")])
        for at, name in enumerate(("employment", "other", "employment"))
    ]

    def outputs(size: int) -> list[Outgoing]:
        bench = Bench()
        bench.publish(PREDICTIONS, *(event(f"e{at}", features={"ZIP": str(at)}) for at in range(3)))
        bench.publish(CHANGES, change(20), change(30, subject="other"), at_us=FOUND_US - 1)
        found: list[Outgoing] = []
        for start in range(0, len(anomalies), size):
            found += bench.step(*anomalies[start : start + size]).outputs
            bench.enricher.commit()
        return found

    assert outputs(1) == outputs(2) == outputs(3)


def stored(*seen: tuple[dict[str, Any], int]) -> list[tuple[str, str | None]]:
    store = MemoryContextStore()
    for said, at_us in seen:
        store.add([(ChangeEvent.model_validate_json(json.dumps(said)), at_us)])
    onset_us = to_us(ONSET)
    (found,) = store.between([("default", "employment", onset_us - 86_400_000_000, onset_us, 10)])
    return [(one.change_id, one.to) for one in found]


def test_the_store_orders_by_time_and_id_and_takes_a_change_once() -> None:
    seen = [(change(5, change_id="b"), 1), (change(5, change_id="a"), 2), (change(9, change_id="c"), 3)]
    assert stored(*seen, *seen) == stored(*reversed(seen)) == [("c", None), ("a", None), ("b", None)]


def test_of_one_change_id_the_record_seen_first_stays_in_whatever_order_they_come() -> None:
    one, two = (change(5, to="v2"), 1), (change(7, to="v3"), 2)
    assert stored(one, two) == stored(two, one) == [("c1", "v2")]
