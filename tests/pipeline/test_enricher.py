import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from tests.pipeline.enricher_bench import CONTRACT, FOUND_US, Bench, change, event, failure, kinds, read
from tests.unit.anomaly_builder import CASE_ID, ONSET, ref

from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.memory import MemoryTransport
from errata.contracts import ChangeEvent, EnrichedAnomaly, RowRef
from errata.contracts.strict import rfc3339, to_us
from errata.contracts.topics import ANOMALIES, CHANGES, ENRICHED, OUTCOMES, PREDICTIONS, TOPICS
from errata.domain.diagnosis.context import MOST_CHANGES, wanted_changes
from errata.errors import Unavailable
from errata.ports import ChangesFound, ContextIncomplete, Offsets, Outgoing, Record, TopicPartition
from errata.runtime.worker import Worker
from errata_services.enricher import rebuild_context


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

    def between(self, wanted: Sequence[tuple[str, str, int, int, int]], most: int | None = None) -> list[ChangesFound]:
        self._check()
        return super().between(wanted, most)

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


def test_changes_of_before_the_start_are_brought_in_whoever_read_them() -> None:
    bench = Bench()
    bench.publish(CHANGES, b"{", change(20), partition=7, at_us=FOUND_US - 1)
    bench._new_changes()  # another process has read them before
    assert kinds(bench.enrich(failure())) == ["deploy"]


class Asked(MemoryTransport):
    """A log that counts what of its changes is asked for."""

    def __init__(self) -> None:
        super().__init__(TOPICS)
        self.ends, self.reads = 0, list[tuple[int, int]]()

    def end_offsets(self, partitions: Iterable[TopicPartition], *, timeout_s: float | None = None) -> Offsets:
        self.ends += 1
        return super().end_offsets(partitions, timeout_s=timeout_s)

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]:
        if partition[0] == CHANGES:
            self.reads.append((partition[1], offset))
        return super().read_from(partition, offset, timeout_s=timeout_s)


def test_a_change_that_another_member_is_to_read_is_brought_in_before_the_look_up() -> None:
    transport = Asked()
    bench = Bench(transport=transport)
    assert kinds(read(ask(bench))[0]) == ["changes"]
    bench.publish(CHANGES, change(20), partition=7, at_us=FOUND_US - 1)  # and nobody reads it
    assert kinds(read(ask(bench))[0]) == ["deploy"]
    bench.publish(CHANGES, change(10, change_id="late"), partition=7, at_us=FOUND_US)
    assert kinds(read(ask(bench))[0]) == ["deploy"]
    assert transport.reads == [(7, 0), (7, 1)]


def test_a_batch_asks_once_where_the_changes_end_and_without_findings_never() -> None:
    transport = Asked()
    bench = Bench(transport=transport)
    bench.enricher.prepare([])
    transport.ends = 0
    bench.publish(CHANGES, change(20), change(30, change_id="c2", kind="flag"), at_us=FOUND_US - 1)
    batch = bench._new_changes()
    transport.reads.clear()
    bench.enricher.prepare(batch)
    assert (transport.ends, transport.reads) == (0, [])
    assert [kinds(found) for found in read(bench.step(*[failure()] * 50).outputs)] == [["flag", "deploy"]] * 50
    assert transport.ends == 1
    assert transport.reads == [(partition, 2 if partition == 0 else 0) for partition in range(12)]  # those of the bench


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
    return [(one.change_id, one.to) for one in found.changes]


def test_the_store_orders_by_time_and_id_and_takes_a_change_once() -> None:
    seen = [(change(5, change_id="b"), 1), (change(5, change_id="a"), 2), (change(9, change_id="c"), 3)]
    assert stored(*seen, *seen) == stored(*reversed(seen)) == [("c", None), ("a", None), ("b", None)]


def test_of_one_change_id_the_record_seen_first_stays_in_whatever_order_they_come() -> None:
    one, two = (change(5, to="v2"), 1), (change(7, to="v3"), 2)
    assert stored(one, two) == stored(two, one) == [("c1", "v2")]


class Slow(MemoryTransport):
    """A log whose ``broken`` partitions cannot be read by offset; each such read takes ``takes_s``."""

    def __init__(self) -> None:
        super().__init__(TOPICS)
        self.now_s, self.takes_s = 0.0, 0.0
        self.broken: set[int] = set()
        self.reads: list[tuple[TopicPartition, list[int]]] = []

    def read_at(self, partition: TopicPartition, offsets: Sequence[int]) -> list[Record | None]:
        self.reads.append((partition, list(offsets)))
        self.now_s += self.takes_s
        if partition[1] in self.broken:
            raise Unavailable("the broker does not answer")
        return super().read_at(partition, offsets)


def reader(*, broken: set[int] | None = None, takes_s: float = 0.0) -> tuple[Slow, Bench]:
    transport = Slow()
    bench = Bench(transport=transport, clock_s=lambda: transport.now_s)
    for partition in range(12):
        bench.publish(PREDICTIONS, event("a"), event("b"), event("c"), partition=partition)
    transport.broken, transport.takes_s = broken or set(), takes_s
    return transport, bench


def test_rows_of_a_batch_are_read_by_one_read_a_partition() -> None:
    transport, bench = reader()
    found = [
        failure(exemplars=[ref(2, "c"), ref(0, "a")], controls=[ref(1, "b", partition=3)]),
        failure(exemplars=[ref(0, "a"), ref(1, "b")]),
    ]
    rows = [row.missing for one in read(bench.step(*found).outputs) for row in one.rows]
    assert transport.reads == [((PREDICTIONS, 0), [0, 1, 2]), ((PREDICTIONS, 3), [1])]
    assert rows == [None] * 5


def test_a_read_that_fails_costs_its_rows_and_no_others() -> None:
    _, bench = reader(broken={3})
    (found,) = read(bench.step(failure(exemplars=[ref(0, "a", partition=3), ref(0, "a"), ref(9, "z")])).outputs)
    assert [row.missing for row in found.rows] == ["unavailable", None, "out_of_retention"]
    assert found.rows[0].values == {}


def test_rows_of_a_batch_have_a_bounded_time() -> None:
    transport, bench = reader(broken=set(range(12)), takes_s=2.0)
    (found,) = read(bench.step(failure(exemplars=[ref(0, "a", partition=at) for at in range(12)])).outputs)
    assert len(transport.reads) == 3  # begun at 0, 2 and 4 s of 5
    assert [row.missing for row in found.rows] == ["unavailable"] * 12
    transport.broken = set()
    (found,) = read(bench.step(failure(exemplars=[ref(0, "a")])).outputs)
    assert found.rows[0].missing is None


@pytest.mark.parametrize(
    "hostile",
    [ref(0, "a", topic="errata.anomaly-detector.state"), ref(0, "a", topic="nothing"), ref(0, "a", partition=12)],
    ids=["another topic", "no topic", "no partition"],
)
def test_a_reference_that_names_no_row_is_not_followed(hostile: RowRef) -> None:
    transport, bench = reader()
    (row,) = bench.enrich(failure(exemplars=[hostile])).rows
    assert (row.missing, row.values, transport.reads) == ("unreadable", {}, [])


def test_rebuilding_fills_a_store_from_the_topic_and_tells_how_far_it_is() -> None:
    bench = Bench()
    bench.publish(CHANGES, b"{", change(20), at_us=FOUND_US - 2)
    bench.publish(CHANGES, *(change(at, change_id=f"c{at}") for at in range(30, 35)), partition=7, at_us=FOUND_US - 1)
    store, told = MemoryContextStore(), list[tuple[int, int]]()
    assert rebuild_context(bench.transport, store, lambda done, total: told.append((done, total))) == 6
    (found,) = store.between([wanted_changes(failure())])
    assert [one.change_id for one in found.changes] == ["c34", "c33", "c32", "c31", "c30", "c1"]
    assert told == sorted(told)
    assert told[-1] == (7, 7)


class Lost(Down):
    """A store that answers, but has lost its content until it is filled."""

    up = True

    def __init__(self) -> None:
        super().__init__()
        self.lost, self.fills = True, 0

    def fill(self, batches: Iterable[Sequence[tuple[ChangeEvent, int]]]) -> int:
        self.fills += 1
        count = super().fill(batches)
        self.lost = False
        return count

    def between(self, wanted: Sequence[tuple[str, str, int, int, int]], most: int | None = None) -> list[ChangesFound]:
        if self.lost:
            raise ContextIncomplete("emptied")
        return super().between(wanted, most)


def test_a_store_that_lost_its_content_is_filled_before_it_is_believed() -> None:
    store = Lost()
    bench = Bench(store=store)
    bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    bench._new_changes()  # read by another member
    assert kinds(bench.enrich(failure())) == ["deploy"]
    assert kinds(bench.enrich(failure())) == ["deploy"]
    assert store.fills == 1


def test_what_other_members_could_not_store_is_brought_in_after_an_outage() -> None:
    store = Down()
    bench = Bench(store=store)
    bench.enrich(failure())
    bench.publish(CHANGES, change(20), partition=7, at_us=FOUND_US - 1)
    bench._new_changes()  # read by another member, which then was killed
    store.up = True
    assert kinds(bench.enrich(failure())) == ["deploy"]


class Hanging(Slow):
    """A log whose changes cannot be read to their end: a transaction in them does not end."""

    tries = 0

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]:
        if partition[0] == CHANGES:
            self.tries += 1
            self.now_s += self.takes_s
            if self.takes_s:
                raise Unavailable("hanging_transaction")
        return super().read_from(partition, offset)


def test_a_topic_of_changes_that_cannot_be_read_takes_a_tenth_of_the_time_at_most() -> None:
    transport = Hanging()
    bench = Bench(transport=transport, clock_s=lambda: transport.now_s)
    bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    bench._new_changes()
    bench.enricher.restore(0, {})
    transport.tries, transport.takes_s = 0, 15.0
    for second in range(300):
        transport.now_s += 1
        assert [entry.missing for entry in read(ask(bench))[0].context] == ["unavailable"], second
    assert transport.tries <= 300 // 10 / 15 + 2
    transport.takes_s = 0
    transport.now_s += 150
    assert kinds(read(ask(bench))[0]) == ["deploy"]


def ask(bench: Bench) -> list[Outgoing]:
    """What an anomaly comes to, without the changes that came with it."""
    batch = [Record(ANOMALIES, 0, 0, FOUND_US, b"", failure().to_json())]
    return bench.enricher.step(batch, bench.enricher.prepare(batch)).outputs


class Long(Slow):
    """A log of changes that takes ``takes_s`` for each thousand of them, within the time it is given."""

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]:
        until_s = None if timeout_s is None else self.now_s + timeout_s
        for number, record in enumerate(super().read_from(partition, offset)):
            if partition[0] == CHANGES and number % 1_000 == 0:
                self.now_s += self.takes_s
                if until_s is not None and self.now_s > until_s:
                    raise Unavailable("took longer")
            yield record


def test_many_changes_at_once_are_gaps_until_they_are_read_and_each_try_goes_on_where_the_last_ended() -> None:
    transport = Long()
    bench = Bench(transport=transport, clock_s=lambda: transport.now_s)
    assert kinds(read(ask(bench))[0]) == ["changes"]
    transport.takes_s = 0.9
    many = [change(1 + at / 1_000, change_id=f"c{at}", subject="other") for at in range(3_000)]
    bench.publish(CHANGES, *many, change(20), partition=3, at_us=FOUND_US - 1)
    told: list[str] = []
    while not told or told[-1] != "deploy":
        assert len(told) < 9
        started_s = transport.now_s
        (entry,) = read(ask(bench))[0].context
        told.append(entry.missing or entry.name)
        assert transport.now_s - started_s < 4
    assert told == ["unavailable", "deploy"]


def test_a_case_carries_the_changes_nearest_before_its_onset_and_how_many_others_there_were() -> None:
    bench = Bench()
    many = [change(1 + at, change_id=f"c{at:03}") for at in range(MOST_CHANGES + 80)]
    bench.publish(CHANGES, *many, change(-1, change_id="after"), change(25 * 60, change_id="older"), at_us=FOUND_US - 1)
    *entries, rest = bench.enrich(failure()).context
    near = [f"c{at:03}" for at in reversed(range(MOST_CHANGES))]
    assert [entry.value["change_id"] for entry in entries] == near
    assert (rest.name, rest.value, rest.missing) == ("changes", {"left_out": 80}, None)
    bench = Bench()
    bench.publish(CHANGES, *many[:MOST_CHANGES], at_us=FOUND_US - 1)
    assert kinds(bench.enrich(failure())) == ["deploy"] * MOST_CHANGES


def test_an_empty_batch_brings_in_what_is_missing() -> None:
    store = Down()
    bench = Bench(store=store)
    bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    bench.step()
    store.up = True
    bench.enricher.prepare([])
    assert [one.change_id for one in store.between([wanted_changes(failure())])[0].changes] == ["c1"]


def test_the_worker_goes_on_while_the_store_is_down() -> None:
    store = Down()
    bench = Bench(store=store)
    bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    bench.publish(ANOMALIES, json.loads(failure().to_json()), at_us=FOUND_US)
    worker = Worker(bench.enricher, bench.transport, instance="0", build="test", cipher=None)
    while worker.run_once():
        pass
    outputs = [r for p in range(bench.transport.partitions(ENRICHED)) for r in bench.transport.read_from((ENRICHED, p))]
    (entry,) = EnrichedAnomaly.model_validate_json(outputs[0].value or b"").context
    assert (len(outputs), entry.missing) == (1, "unavailable")
    worker.close()
