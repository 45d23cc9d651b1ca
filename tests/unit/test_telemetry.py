"""Telemetry: closed label sets begun at 0, nothing outside them, and the arithmetic of a batch's report."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from errata.adapters.kafka_statistics import partition_lags, topic_lags
from errata.adapters.prometheus import PrometheusMeter
from errata.contracts import Receipt, ReceiptInput
from errata.contracts.topics import ANOMALIES, CONTRACTS, LEDGER, OUTCOMES, PREDICTIONS, STAGES, dead_letter_topic
from errata.domain.detection.engine import DETECTORS as ENGINE_DETECTORS
from errata.domain.detection.engine import LABEL_DETECTORS
from errata.errors import Aborted, Fenced, Refused, RefusedDecode, Unavailable
from errata.ports import DeadInput, Outgoing, Record
from errata.runtime.dead_letters import HandlerFailure
from errata.runtime.telemetry import (
    DETECTORS,
    MAX_MODELS,
    METRICS,
    OTHER,
    ROOT_CLASSES,
    BatchReport,
    NoTelemetry,
    StageTelemetry,
    Telemetry,
    abort_reason,
    batch_report,
    consumed_topics,
    label_values,
    produced_topics,
)

DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
NOW_S = 1_000_000.0
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Process:
    """Telemetry of one stage, read back the way Prometheus reads it."""

    def __init__(self, stage: str = DETECTOR, meter: PrometheusMeter | None = None) -> None:
        self.meter = meter or PrometheusMeter()
        self.stage = stage
        self.told = StageTelemetry(
            self.meter, stage, version="1.2.3", revision="abc", config_hash="cafe", clock=lambda: NOW_S
        )

    @property
    def text(self) -> str:
        return self.meter.exposition()[1].decode()

    @property
    def series(self) -> Series:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name.startswith("errata_")
        }

    def value(self, name: str, **labels: str) -> float:
        metric = METRICS.get(name) or METRICS[name.rpartition("_")[0]]
        return self.series[name, frozenset((labels | ({"stage": self.stage} if metric.by_stage else {})).items())]


def report(consumed: Mapping[str, int] | None = None, **given: object) -> BatchReport:
    values: dict[str, object] = {
        "consumed": consumed if consumed is not None else {PREDICTIONS: 10},
        "processing_s": 0.02,
        "commit_s": 0.2,
        "produced": {},
        "dead": {},
        "dropped": {},
    }
    return BatchReport(**(values | given))  # type: ignore[arg-type]  # built from names


def outgoing(topic: str, key: bytes | None = None, value: bytes | None = None) -> Outgoing:
    return Outgoing(topic, key, value)


def dead(refusal: Refused, offset: int = 0) -> DeadInput:
    return DeadInput(Record(PREDICTIONS, 0, offset, 0, None, b"x"), refusal)


def everything(told: Telemetry, text: str) -> None:
    """Each call of the port once, with a label value nobody knows wherever one can be given."""
    told.reading(3)
    told.batch(report({text: 3}, produced={text: 3}, dead={text: 1}, dropped={text: 1}, newest_event_s=1.0))
    told.aborted(text)  # type: ignore[arg-type]
    told.rekeyed(text, 1)
    told.mistimed({text: 1})  # type: ignore[dict-item]
    told.rebalanced(text, 1)  # type: ignore[arg-type]
    told.paused(1)
    told.stalled(1)
    told.lag({text: 1})
    told.breaker(text, "open")  # type: ignore[arg-type]
    told.poisoned({text: 1})
    told.heartbeat(1.0)
    told.restored(1.0)
    told.store_failed(text)  # type: ignore[arg-type]
    told.cached(text, 1)  # type: ignore[arg-type]
    told.enriched(1, 1, 1)
    told.catalogue_written(text, 1.0)  # type: ignore[arg-type]
    told.known_models([text])
    told.detected({(text, text, text): 1})
    told.cases_opened({(text, text): 1})
    told.cases_open({text: 1})
    told.trends({(text, text): 1}, {(text, text): 1})
    told.deduplicated(1)


# The table.


def test_the_names_of_detectors_are_those_of_the_engine() -> None:
    engine = [one.id for one in ENGINE_DETECTORS] + [one.id for one in LABEL_DETECTORS]
    assert sorted(DETECTORS) == sorted(engine)


def test_streams_are_counted_and_tables_are_not() -> None:
    assert consumed_topics(DETECTOR) == (OUTCOMES, PREDICTIONS)
    assert CONTRACTS not in consumed_topics(ENRICHER)
    assert {ANOMALIES, LEDGER, dead_letter_topic(DETECTOR)} <= set(produced_topics(DETECTOR))
    assert ANOMALIES not in produced_topics(TAGGER)


def test_every_label_is_closed_but_the_model_and_those_of_the_infos() -> None:
    open_labels = {
        (metric.name, label)
        for metric in METRICS.values()
        for stage in metric.stages
        for label in metric.labels
        if not label_values(metric.name, label, stage)
    }
    assert open_labels == {
        ("errata_detections_total", "model"),
        ("errata_cases_opened_total", "model"),
        ("errata_trend_cases_opened_total", "model"),
        ("errata_trend_findings_total", "model"),
        ("errata_build_info", "version"),
        ("errata_build_info", "revision"),
        ("errata_config_info", "config_hash"),
    }


# Series.


@pytest.mark.parametrize("stage", STAGES)
def test_every_series_of_closed_sets_stands_at_0_from_the_start(stage: str) -> None:
    process = Process(stage)
    series = process.series
    for metric in METRICS.values():
        if stage not in metric.stages:
            assert metric.name not in process.text, "a metric this stage never writes"
            continue
        if metric.name.endswith("_info"):
            continue
        name = metric.name if metric.kind != "histogram" else metric.name + "_count"
        mine = {labels: value for (found, labels), value in series.items() if found == name}
        assert mine, name
        assert set(mine.values()) == {0.0}, name
        for label in metric.labels:
            values = {dict(labels)[label] for labels in mine}
            assert values == {*(label_values(metric.name, label, stage) or ()), OTHER}, (name, label)


@pytest.mark.parametrize("stage", STAGES)
def test_an_unknown_label_value_is_other_and_makes_no_series(stage: str) -> None:
    process = Process(stage)
    before = set(process.series)
    everything(process.told, "nobody\nknows ☃")
    after = process.series
    assert set(after) == before
    assert process.value("errata_events_consumed_total", topic=OTHER) == 3
    assert process.value("errata_events_rejected_total", reason=OTHER) == 1
    assert process.value("errata_consumer_lag_records", topic=OTHER) == 1
    assert process.value("errata_breaker_state", dependency=OTHER) == 2
    assert process.value("errata_rebalances_total", kind=OTHER) == 1


def test_a_known_label_value_is_not_other() -> None:
    process = Process()
    process.told.rekeyed(PREDICTIONS, 5)
    assert process.value("errata_events_rekeyed_total", topic=PREDICTIONS) == 5
    assert process.value("errata_events_rekeyed_total", topic=OTHER) == 0


def test_two_stages_share_a_process_and_two_processes_share_nothing() -> None:
    detector = Process()
    tagger = Process(TAGGER, detector.meter)
    apart = Process()
    detector.told.reading(3)
    tagger.told.reading(4)
    assert (detector.value("errata_inflight_events"), tagger.value("errata_inflight_events")) == (3, 4)
    assert apart.value("errata_inflight_events") == 0


def test_no_created_samples_and_the_process_tells_its_start() -> None:
    text = Process().text
    assert "_created" not in text
    assert "process_start_time_seconds" in text


def test_build_and_configuration_are_labels_of_a_1() -> None:
    process = Process()
    assert process.value("errata_build_info", version="1.2.3", revision="abc") == 1
    assert process.value("errata_config_info", config_hash="cafe") == 1


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    kind, body = PrometheusMeter().exposition("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert PrometheusMeter().exposition()[0].startswith("text/plain")


# Models.


def test_the_first_models_have_their_names_and_the_rest_are_other() -> None:
    process = Process()
    process.told.known_models(f"m-{number:03}" for number in reversed(range(MAX_MODELS - 1)))
    process.told.detected({("late-but-in", "error_rate", "window"): 2})
    process.told.detected({("too-many", "error_rate", "window"): 3, ("m-000", "error_rate", "window"): 1})
    found: dict[str, float] = {}
    for (name, pairs), value in process.series.items():
        if name == "errata_detections_total":
            model = dict(pairs)["model"]
            found[model] = found.get(model, 0) + value
    assert {model: n for model, n in found.items() if n} == {"late-but-in": 2, OTHER: 3, "m-000": 1}
    assert len(found) == MAX_MODELS + 1


def test_a_model_begins_at_0_when_it_is_known_so_that_its_first_finding_is_a_rise() -> None:
    process = Process()
    process.told.known_models(["fraud"])
    begun = [dict(pairs) | {"n": value} for (_, pairs), value in process.series.items() if ("model", "fraud") in pairs]
    assert sorted((one["detector"], one["level"], one["n"]) for one in begun) == sorted(
        (detector, level, 0.0) for detector in DETECTORS for level in ("event", "window")
    )


@pytest.mark.parametrize("name", ["", "x" * 201, "a\ud800b", "line\nbreak", OTHER])
def test_a_name_that_is_no_label_value_is_other_and_breaks_no_scrape(name: str) -> None:
    process = Process()
    process.told.detected({(name, "error_rate", "window"): 1})
    assert process.value("errata_detections_total", model=OTHER, detector="error_rate", level="window") == 1


def test_cases_by_model_and_class() -> None:
    process = Process(WRITER)
    process.told.cases_opened({("fraud", "data"): 2, ("fraud", "nonsense"): 1})
    process.told.cases_open({"data": 7})
    process.told.deduplicated(4)
    assert process.value("errata_cases_opened_total", model="fraud", root_class="data") == 2
    assert process.value("errata_cases_opened_total", model="fraud", root_class=OTHER) == 1
    assert [process.value("errata_cases_open", root_class=name) for name in ("data", "model")] == [7, 0]
    process.told.cases_open({"model": 1})
    assert [process.value("errata_cases_open", root_class=name) for name in ("data", "model")] == [0, 1]
    assert process.value("errata_case_dedup_total") == 4
    assert set(ROOT_CLASSES) == {"data", "model", "deployment", "infrastructure", "integration", "unknown"}


# Batches.


def receipt(dropped: dict[str, int] | None = None) -> Receipt:
    return Receipt(
        stage=DETECTOR,
        instance="0",
        build="b",
        inputs=[
            ReceiptInput(topic=PREDICTIONS, partition=0, from_=0, to=6, delivered=6),
            ReceiptInput(topic=PREDICTIONS, partition=1, from_=0, to=3, delivered=2),
            ReceiptInput(topic=OUTCOMES, partition=0, from_=5, to=7, delivered=2),
        ],
        out=2,
        dlq=3,
        dropped=dropped or {},
        max_event_time=datetime.fromtimestamp(NOW_S - 3, UTC),
    )


def made(message: Receipt, letters: Sequence[DeadInput]) -> BatchReport:
    written = [
        outgoing(ANOMALIES, b"k", b"v"),
        outgoing(ANOMALIES, b"k", b"v"),
        outgoing("state", b"key", b"value"),
        outgoing("state", b"gone"),
        outgoing(LEDGER, b"k", b"v"),
    ]
    return batch_report(message, written=written, dead=letters, state_topic="state", processing_s=0.02, commit_s=0.2)


def test_a_report_is_made_of_the_receipt_and_what_was_written() -> None:
    letters = [dead(RefusedDecode("", "x")), dead(Refused("", "x")), dead(HandlerFailure(ValueError()))]
    found = made(receipt({"duplicate": 2, "heartbeat": 1}), letters)
    assert found.consumed == {PREDICTIONS: 8, OUTCOMES: 2}
    assert found.produced == {ANOMALIES: 2, "state": 2, LEDGER: 1}
    assert found.changelog_bytes == len(b"key" + b"value" + b"gone")
    assert found.newest_event_s == NOW_S - 3
    assert found.dead == {"decode": 1, "schema": 1, "handler": 1}
    assert found.rejected == {"decode": 1, "schema": 1}
    assert found.outcomes == {"ok": 4, "filtered": 1, "duplicate": 2, "invalid": 2, "error": 1}
    assert sum(found.outcomes.values()) == found.records == 10


def test_a_batch_is_counted_where_it_belongs() -> None:
    process = Process()
    process.told.reading(10)
    assert process.value("errata_inflight_events") == 10
    process.told.batch(made(receipt({"duplicate": 2}), [dead(HandlerFailure(ValueError()))]))
    assert process.value("errata_inflight_events") == 0
    assert process.value("errata_events_consumed_total", topic=PREDICTIONS) == 8
    assert process.value("errata_events_consumed_total", topic=OUTCOMES) == 2
    assert process.value("errata_events_processed_total", outcome="ok") == 7
    assert process.value("errata_events_processed_total", outcome="duplicate") == 2
    assert process.value("errata_events_processed_total", outcome="error") == 1
    assert process.value("errata_events_produced_total", topic=ANOMALIES) == 2
    assert process.value("errata_dead_letters_total", reason="handler") == 1
    assert sum(process.value("errata_events_rejected_total", reason=name) for name in ("decode", "schema")) == 0
    assert process.value("errata_state_changelog_bytes_total") == 12
    assert process.value("errata_last_event_processed_timestamp_seconds") == NOW_S
    assert process.value("errata_event_age_seconds_sum") == 3
    assert process.value("errata_event_processing_seconds_sum") == 0.02
    assert process.value("errata_commit_seconds_sum") == 0.2
    assert process.value("errata_batch_size_records_sum") == 10
    assert process.series["errata_commit_seconds_bucket", frozenset({("stage", DETECTOR), ("le", "0.25")})] == 1
    assert process.series["errata_commit_seconds_bucket", frozenset({("stage", DETECTOR), ("le", "0.1")})] == 0


def test_an_event_from_the_future_has_age_0_and_one_without_a_time_none() -> None:
    process = Process()
    process.told.batch(report(newest_event_s=NOW_S + 60))
    process.told.batch(report(newest_event_s=None))
    assert (process.value("errata_event_age_seconds_count"), process.value("errata_event_age_seconds_sum")) == (1, 0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Aborted("x"), "void"),
        (Fenced("x"), "fenced"),
        (Unavailable("x"), "unavailable"),
        (RuntimeError("x"), "error"),
    ],
)
def test_why_a_batch_was_taken_back(error: Exception, reason: str) -> None:
    process = Process()
    process.told.reading(5)
    process.told.aborted(abort_reason(error))
    assert process.value("errata_transactions_aborted_total", reason=reason) == 1
    assert process.value("errata_inflight_events") == 0


def test_gauges_follow_what_is_told() -> None:
    process = Process(ENRICHER)
    process.told.rebalanced("assigned", 6)
    process.told.rebalanced("revoked", 4)
    process.told.paused(2)
    process.told.breaker("redis", "half_open")
    process.told.poisoned({ANOMALIES: 2})
    process.told.heartbeat(50.0)
    process.told.heartbeat(40.0)
    process.told.lag({ANOMALIES: 9})
    assert process.value("errata_assigned_partitions") == 4
    assert process.value("errata_rebalances_total", kind="revoked") == 1
    assert process.value("errata_paused_partitions") == 2
    assert process.value("errata_breaker_state", dependency="redis") == 1
    assert process.value("errata_breaker_open", topic=ANOMALIES) == 2
    process.told.poisoned({})
    assert process.value("errata_breaker_open", topic=ANOMALIES) == 0
    assert process.value("errata_heartbeat_timestamp_seconds") == 50
    assert process.value("errata_consumer_lag_records", topic=ANOMALIES) == 9
    process.told.lag({})
    assert process.value("errata_consumer_lag_records", topic=ANOMALIES) == 0


def test_the_writer_measures_each_heartbeat_and_the_newest_stays() -> None:
    detector, writer = Process(), Process(WRITER)
    for written_s in (NOW_S - 60, NOW_S - 90, NOW_S + 5):  # the last by a clock ahead of ours
        detector.told.heartbeat(written_s)
        writer.told.heartbeat(written_s)
    assert writer.value("errata_heartbeat_timestamp_seconds") == NOW_S + 5
    assert writer.value("errata_heartbeat_delay_seconds_count") == 3
    assert writer.value("errata_heartbeat_delay_seconds_sum") == 150
    assert "errata_heartbeat_delay_seconds" not in detector.text


def test_mistimed_events_are_counted_by_why() -> None:
    process = Process()
    process.told.mistimed({"late": 3, "clamped": 0})
    assert process.value("errata_events_mistimed_total", reason="late") == 3
    assert process.value("errata_events_mistimed_total", reason="clamped") == 0


def test_stores_caches_and_restores() -> None:
    enricher, writer = Process(ENRICHER), Process(WRITER)
    enricher.told.store_failed("redis")
    enricher.told.cached("hit", 3)
    enricher.told.restored(12.0)
    writer.told.catalogue_written("postgresql", 0.5)
    assert enricher.value("errata_store_errors_total", store="redis") == 1
    assert enricher.value("errata_cache_operations_total", result="hit") == 3
    assert enricher.value("errata_state_restore_seconds_sum") == 12
    assert writer.value("errata_catalog_write_seconds_sum", store="postgresql") == 0.5


def test_without_telemetry_every_report_is_taken_and_nothing_kept() -> None:
    everything(NoTelemetry(), "x")


# Lag.


def statistics(**fields: int) -> dict[str, object]:
    return {"type": "consumer", "topics": {"t": {"partitions": {"0": {"consumer_lag": -1, **fields}, "-1": {}}}}}


@pytest.mark.parametrize(
    ("fields", "position", "lag"),
    [
        ({"ls_offset": 100, "app_offset": 40, "next_offset": 90, "fetchq_cnt": 50}, 40, 60),
        ({"ls_offset": 101, "app_offset": 40, "next_offset": 101, "fetchq_cnt": 0}, 40, 61),  # thrown away by a pause
        ({"ls_offset": 101, "app_offset": -1001, "next_offset": 101, "fetchq_cnt": 55}, 50, 51),  # sought back
        ({"ls_offset": 101, "app_offset": 101, "next_offset": 101, "fetchq_cnt": 0}, 100, 0),  # a marker at the end
        ({"ls_offset": 100, "app_offset": -1001, "next_offset": 100, "fetchq_cnt": 0}, 100, 0),  # nothing came yet
        ({"ls_offset": 5, "app_offset": 4, "next_offset": 4, "fetchq_cnt": 0}, 9, 0),  # an old answer of the broker
    ],
)
def test_lag_is_counted_from_the_position_and_no_marker_is_owed(
    fields: dict[str, int], position: int, lag: int
) -> None:
    assert partition_lags(statistics(**fields), {("t", 0): position}) == {("t", 0): lag}


def test_a_partition_nobody_knows_the_end_of_is_left_out() -> None:
    assert partition_lags(statistics(ls_offset=-1001), {("t", 0): 4}) == {}
    assert partition_lags(statistics(ls_offset=9), {("t", 3): 4, ("u", 0): 1}) == {}
    assert partition_lags({"type": "consumer"}, {("t", 0): 4}) == {}


def test_a_producer_knows_no_lag() -> None:
    assert partition_lags(statistics(ls_offset=9) | {"type": "producer"}, {("t", 0): 4}) is None


def test_lags_of_a_topic_are_summed() -> None:
    assert topic_lags({("t", 0): 4, ("t", 1): 5, ("u", 0): 1}) == {"t": 9, "u": 1}
