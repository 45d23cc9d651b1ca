"""What the runtime tells of itself: each metric with its closed label sets is written here once.

The loop and the stages report through `Telemetry`, per batch and never per event. What stands behind it makes its
instruments from `METRICS`; dashboards, alert rules and docs are tested against the same table. Labels never hold ids,
error texts or anything else without bound; a value outside its set is counted under ``other``.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, Protocol, get_args

from errata.contracts import Receipt
from errata.contracts.anomalies import Level, RootClass, SeverityLevel
from errata.contracts.topics import LEDGER, STAGES, TOPICS, TRENDS_SERVICE, dead_letter_topic, state_topic
from errata.domain.ledger import FaultKind
from errata.errors import Aborted, Fenced, RefusalClass, Unavailable
from errata.ports import DeadInput, Outgoing

Outcome = Literal["ok", "filtered", "duplicate", "invalid", "error"]
AbortReason = Literal["void", "unavailable", "fenced", "error"]
RebalanceKind = Literal["assigned", "revoked", "lost"]
BreakerState = Literal["closed", "half_open", "open"]
Dependency = Literal["kafka", "redis", "postgresql"]
Store = Literal["redis", "postgresql", "sqlite", "memory"]
GivenUp = Literal["bound", "ttl"]
Mistimed = Literal["late", "clamped"]
CacheResult = Literal["hit", "miss", "evicted"]
Beat = Literal["tick", "heartbeat"]
Kind = Literal["counter", "gauge", "histogram"]

OTHER = "other"
MAX_MODELS = 200
BREAKER_VALUES: Mapping[BreakerState, int] = {"closed": 0, "half_open": 1, "open": 2}

_DETECTOR, _ENRICHER, _TAGGER, _WRITER = STAGES
KEEPER = "keeper"  # a process of the chain that is no stage of it
_OUR_FAULTS: frozenset[RefusalClass] = frozenset({"handler", "sink"})  # what came in was well formed

OUTCOMES: tuple[str, ...] = get_args(Outcome)
REFUSALS: tuple[str, ...] = get_args(RefusalClass)
REJECTIONS = tuple(name for name in REFUSALS if name not in _OUR_FAULTS)
LEVELS: tuple[str, ...] = get_args(Level)
ROOT_CLASSES: tuple[str, ...] = get_args(RootClass)
SEVERITIES: tuple[str, ...] = get_args(SeverityLevel)
DETECTORS = (
    "contract_violation",
    "missing_values",
    "bad_status",
    "invalid_output",
    "policy_violation",
    "latency_limit",
    "latency_shift",
    "distribution_shift",
    "confidence_shift",
    "error_rate",
)
USUAL_LEVELS = ("event", "window")  # of a detector that looks at one model; their series stand before the first finding
DEPENDENCIES: Mapping[str, tuple[str, ...]] = {
    _DETECTOR: ("kafka",),
    _ENRICHER: ("kafka", "redis"),
    _TAGGER: ("kafka",),
    _WRITER: ("kafka", "postgresql"),
    KEEPER: ("kafka", "postgresql"),
}
STORES: Mapping[str, tuple[str, ...]] = {_ENRICHER: ("redis", "memory"), _WRITER: ("postgresql", "sqlite")}

# Buckets in seconds: the list of OpenTelemetry's semantic conventions; longer where a backlog or a restore is measured.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
LONG_SECONDS = (*SECONDS, 30.0, 60.0, 300.0, 900.0, 3_600.0, 86_400.0)
RECORDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``labels`` come after ``stage``, which it has when ``by_stage``; only ``stages`` expose it."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    by_stage: bool = True
    stages: tuple[str, ...] = (*STAGES, TRENDS_SERVICE)

    @property
    def all_labels(self) -> tuple[str, ...]:
        return ("stage", *self.labels) if self.by_stage else self.labels


_KAFKA_STAGES = STAGES[:3]  # those whose results are records; the writer's are rows
_STORE_STAGES = (_ENRICHER, _WRITER)
_PROCESSES = (*STAGES, KEEPER)

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("errata_events_consumed_total", "counter", "Records taken in by committed batches.", ("topic",)),
        Metric("errata_events_processed_total", "counter",
               "Records of committed batches by what became of them; their sum is what was consumed.", ("outcome",)),
        Metric("errata_events_produced_total", "counter", "Records written by committed transactions.", ("topic",),
               stages=(*_KAFKA_STAGES, KEEPER)),
        Metric("errata_events_rejected_total", "counter",
               "Records refused for what they are; bugs and failing sinks are counted as dead letters only.",
               ("reason",)),
        Metric("errata_dead_letters_total", "counter", "Dead letters by their class.", ("reason",)),
        Metric("errata_events_rekeyed_total", "counter", "Records sent on to the partition of their model.",
               ("topic",)),
        Metric("errata_events_mistimed_total", "counter",
               "Late events, kept out of windows, and events ahead of their record time, taken at that.", ("reason",),
               stages=(_DETECTOR,)),
        Metric("errata_event_processing_seconds", "histogram", "From reading a batch to the end of its step.",
               buckets=SECONDS),
        Metric("errata_event_age_seconds", "histogram",
               "Age of a batch's newest event when the batch was committed, by the event's own time.",
               buckets=LONG_SECONDS),
        Metric("errata_commit_seconds", "histogram", "From the end of a batch's step to its commit.", buckets=SECONDS),
        Metric("errata_transactions_aborted_total", "counter", "Batches taken back, by why.", ("reason",)),
        Metric("errata_last_event_processed_timestamp_seconds", "gauge",
               "When the newest batch was committed; 0 before the first."),
        Metric("errata_heartbeat_timestamp_seconds", "gauge",
               "When the newest heartbeat was written that this stage has committed; 0 before the first."),
        Metric("errata_heartbeat_delay_seconds", "histogram",
               "From the writing of a heartbeat to its commit in the catalogue.", buckets=LONG_SECONDS,
               stages=(_WRITER,)),
        Metric("errata_consumer_lag_records", "gauge", "Offsets between the position and the end, of what is assigned.",
               ("topic",)),
        Metric("errata_inflight_events", "gauge", "Records of the batch in hand."),
        Metric("errata_batch_size_records", "histogram", "Records of a committed batch.", buckets=RECORDS),
        Metric("errata_rebalances_total", "counter", "Times that partitions came or went.", ("kind",)),
        Metric("errata_assigned_partitions", "gauge", "Partitions of the input that this process has."),
        Metric("errata_paused_partitions", "gauge", "Partitions that wait for a dependency."),
        Metric("errata_stalled_partitions", "gauge",
               "Partitions that stand still with records before them; all while the loop does not turn."),
        Metric("errata_breaker_state", "gauge", "0 closed, 1 half open, 2 open.", ("dependency",), stages=_PROCESSES),
        Metric("errata_breaker_open", "gauge", "Partitions that are not read because of too many dead letters.",
               ("topic",)),
        Metric("errata_state_changelog_bytes_total", "counter", "Bytes of keys and values written as state.",
               stages=_KAFKA_STAGES),
        Metric("errata_state_restore_seconds", "histogram", "Time to restore the state of one partition.",
               buckets=LONG_SECONDS, stages=_KAFKA_STAGES),
        Metric("errata_state_bytes", "gauge",
               "State of the partition that has most, as it counts against the limit.", stages=(_DETECTOR,)),
        Metric("errata_state_limit_bytes", "gauge", "What the state of a partition may have.", stages=(_DETECTOR,)),
        Metric("errata_state_evicted_total", "counter",
               "Models whose state was given up: over the limit, or without an event for 14 days.", ("reason",),
               stages=(_DETECTOR,)),
        Metric("errata_store_errors_total", "counter", "Failed calls to a store.", ("store",), stages=_STORE_STAGES),
        Metric("errata_enrichments_partial_total", "counter",
               "Anomalies that went on without context or rows that were not to be had.", stages=(_ENRICHER,)),
        Metric("errata_enrichments_filled_total", "counter",
               "Of those, that were put out once more, whole; a newer message of the case may come first.",
               stages=(_ENRICHER,)),
        Metric("errata_enrichments_open", "gauge", "Cases that lack context or rows that may still come.",
               stages=(_ENRICHER,)),
        Metric("errata_cache_operations_total", "counter", "Look-ups of the local context cache.", ("result",),
               stages=(_ENRICHER,)),
        Metric("errata_catalog_write_seconds", "histogram", "Time of one transaction of the catalogue.", ("store",),
               SECONDS, stages=(_WRITER,)),
        Metric("errata_build_info", "gauge", "Always 1; what runs is in the labels.", ("version", "revision"),
               stages=(*_PROCESSES, TRENDS_SERVICE)),
        Metric("errata_config_info", "gauge", "Always 1; a hash of the configuration is in the label.",
               ("config_hash",), stages=(*_PROCESSES, TRENDS_SERVICE)),
        Metric("errata_detections_total", "counter", "Findings before they become episodes.",
               ("model", "detector", "level"), by_stage=False, stages=(_DETECTOR,)),
        Metric("errata_cases_opened_total", "counter", "Cases opened.", ("model", "root_class"), by_stage=False,
               stages=(_WRITER,)),
        Metric("errata_cases_open", "gauge", "Cases that are open in the catalogue.", ("root_class",), by_stage=False,
               stages=(_WRITER,)),
        Metric("errata_case_dedup_total", "counter", "Records that changed nothing: their case was known as such.",
               by_stage=False, stages=(_WRITER,)),
        Metric("errata_trend_cases_opened_total", "counter", "Cases opened that were counted into windows.",
               ("model", "severity"), by_stage=False, stages=(TRENDS_SERVICE,)),
        Metric("errata_trend_findings_total", "counter", "Findings that were counted into windows.",
               ("model", "detector"), by_stage=False, stages=(TRENDS_SERVICE,)),
        Metric("errata_keeper_leader", "gauge", "1 while this keeper leads, 0 while it waits.", stages=(KEEPER,)),
        Metric("errata_keeper_written_timestamp_seconds", "gauge",
               "When the newest tick and heartbeat were written; 0 before the first.", ("kind",), stages=(KEEPER,)),
        Metric("errata_ledger_audited_timestamp_seconds", "gauge",
               "When the ledger was last audited to its end; 0 before the first time.", stages=(KEEPER,)),
        Metric("errata_ledger_receipts_total", "counter", "Receipts audited.", ("stage",), by_stage=False,
               stages=(KEEPER,)),
        *(Metric(name, "counter", f"{meaning}, of all receipts that are kept.", ("stage", "topic"), by_stage=False,
                 stages=(KEEPER,)) for name, meaning in (
            ("errata_ledger_gaps_total", "Offsets that no receipt accounts for: something was lost"),
            ("errata_ledger_overlaps_total", "Offsets with two receipts: something was done twice"),
            ("errata_ledger_dispositions_total", "Receipts that account for more than they took in"),
            ("errata_ledger_imbalance_total", "Times that what a stage put out was not what the next one took in"),
        )),
        Metric("errata_ledger_fault_timestamp_seconds", "gauge",
               "Record time of the newest receipt that is at fault; 0: none.", ("kind", "stage", "topic"),
               by_stage=False, stages=(KEEPER,)),
    )
}  # fmt: skip


def consumed_topics(stage: str) -> tuple[str, ...]:
    """The streams a stage takes in; its broadcast tables are not counted as events."""
    return tuple(sorted(topic.name for topic in TOPICS.values() if stage in topic.consumers and topic.retention_s))


def produced_topics(stage: str) -> tuple[str, ...]:
    written = {topic.name for topic in TOPICS.values() if stage in topic.producers}
    return tuple(sorted(written | {LEDGER, dead_letter_topic(stage), state_topic(stage)} & set(TOPICS)))


def label_values(metric: str, label: str, stage: str) -> tuple[str, ...] | None:
    """The closed set of a label in a stage without ``other``; None for one that is bounded in another way.

    Those are ``model``, of which the first `MAX_MODELS` are told apart, and the labels of the two info metrics.
    """
    if metric.startswith(_LEDGER_METRICS):
        return _LEDGER_LABELS[label]
    if metric == "errata_keeper_written_timestamp_seconds":
        return get_args(Beat)
    if label == "topic":
        return produced_topics(stage) if metric == "errata_events_produced_total" else consumed_topics(stage)
    closed: Mapping[str, tuple[str, ...]] = {
        "outcome": OUTCOMES,
        "kind": get_args(RebalanceKind),
        "dependency": DEPENDENCIES.get(stage, ()),
        "store": STORES.get(stage, ()),
        "result": get_args(CacheResult),
        "detector": DETECTORS,
        "level": LEVELS,
        "root_class": ROOT_CLASSES,
        "severity": SEVERITIES,
    }
    if label == "reason":
        return _REASONS[metric]
    return closed.get(label)


_LEDGER_METRICS = "errata_ledger_"
_LEDGER_LABELS: Mapping[str, tuple[str, ...]] = {
    "kind": get_args(FaultKind),
    "stage": _KAFKA_STAGES,
    "topic": tuple(sorted({topic for stage in _KAFKA_STAGES for topic in consumed_topics(stage)})),
}
_FAULTS: Mapping[FaultKind, str] = {
    "gap": "errata_ledger_gaps_total",
    "overlap": "errata_ledger_overlaps_total",
    "disposition": "errata_ledger_dispositions_total",
    "imbalance": "errata_ledger_imbalance_total",
}
_REASONS: Mapping[str, tuple[str, ...]] = {
    "errata_events_rejected_total": REJECTIONS,
    "errata_dead_letters_total": REFUSALS,
    "errata_transactions_aborted_total": get_args(AbortReason),
    "errata_state_evicted_total": get_args(GivenUp),
    "errata_events_mistimed_total": get_args(Mistimed),
}


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one committed batch came to, in counts. ``dead`` by refusal class, ``dropped`` by the stage's own reason.

    ``newest_event_s`` is the highest event time, seconds since 1970; None when no event of the batch had one.
    """

    consumed: Mapping[str, int]
    processing_s: float
    commit_s: float
    produced: Mapping[str, int]
    dead: Mapping[str, int]
    dropped: Mapping[str, int]
    changelog_bytes: int = 0
    newest_event_s: float | None = None

    @property
    def records(self) -> int:
        return sum(self.consumed.values())

    @property
    def rejected(self) -> dict[str, int]:
        return {reason: n for reason, n in self.dead.items() if reason not in _OUR_FAULTS}

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """Each record once: what is neither dead nor dropped is ``ok``."""
        dead, dropped, invalid = sum(self.dead.values()), sum(self.dropped.values()), sum(self.rejected.values())
        duplicate = self.dropped.get("duplicate", 0)
        return {
            "ok": max(0, self.records - dead - dropped),
            "filtered": dropped - duplicate,
            "duplicate": duplicate,
            "invalid": invalid,
            "error": dead - invalid,
        }


def batch_report(
    message: Receipt,
    *,
    written: Iterable[Outgoing],
    dead: Sequence[DeadInput],
    state_topic: str | None,
    processing_s: float,
    commit_s: float,
) -> BatchReport:
    """The report of a transaction from its receipt and everything it wrote: results, letters and bookkeeping."""
    consumed: dict[str, int] = {}
    for part in message.inputs:
        consumed[part.topic] = consumed.get(part.topic, 0) + part.delivered
    produced: dict[str, int] = {}
    changelog_bytes = 0
    for record in written:
        produced[record.topic] = produced.get(record.topic, 0) + 1
        if record.topic == state_topic:
            changelog_bytes += len(record.key or b"") + len(record.value or b"")
    newest = message.max_event_time
    return BatchReport(
        consumed,
        processing_s,
        commit_s,
        produced,
        dead_by_class(one.refusal.refusal_class for one in dead),
        message.dropped,
        changelog_bytes,
        None if newest is None else newest.timestamp(),
    )


def dead_by_class(classes: Iterable[RefusalClass]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in classes:
        counts[name] = counts.get(name, 0) + 1
    return counts


def abort_reason(error: BaseException) -> AbortReason:
    """Why a batch was taken back."""
    if isinstance(error, Aborted):
        return "void"
    if isinstance(error, Fenced):
        return "fenced"
    return "unavailable" if isinstance(error, Unavailable) else "error"


class Telemetry(Protocol):
    """Where one stage of one process reports to. No call raises, blocks or depends on anything outside the process.

    Times are in seconds; a time stamp is seconds since 1970. ``model`` is the text of the record key: ``fraud``, or
    ``acme/fraud`` for a tenant of its own.
    """

    def reading(self, records: int) -> None:
        """A batch of this many records is in hand; 0: none."""

    def batch(self, report: BatchReport) -> None:
        """A batch was committed."""

    def aborted(self, reason: AbortReason) -> None: ...

    def rekeyed(self, topic: str, records: int) -> None: ...

    def mistimed(self, events_by_reason: Mapping[Mistimed, int]) -> None:
        """Events whose time asked for a rule of its own; they are judged and counted."""

    def rebalanced(self, kind: RebalanceKind, partitions: int) -> None:
        """Partitions came or went; ``partitions`` is how many of the input there are now."""

    def paused(self, partitions: int) -> None: ...

    def stalled(self, partitions: int) -> None: ...

    def lag(self, records_by_topic: Mapping[str, int]) -> None:
        """The lag of all assigned partitions; a topic that is not named has none."""

    def breaker(self, dependency: Dependency, state: BreakerState) -> None: ...

    def poisoned(self, partitions_by_topic: Mapping[str, int]) -> None:
        """All assigned partitions that are not read because of too many dead letters; a topic not named has none."""

    def heartbeat(self, event_time_s: float) -> None:
        """A heartbeat that was written then is committed; one that is older than the newest does not turn it back."""

    def evicted(self, slots_by_reason: Mapping[GivenUp, int]) -> None:
        """Slots were given up, by why."""

    def state_held(self, held_bytes: int, limit_bytes: int) -> None:
        """The state of the partition that has most, and what one may have."""

    def restored(self, seconds: float) -> None: ...

    def store_failed(self, store: Store) -> None: ...

    def cached(self, result: CacheResult, lookups: int) -> None: ...

    def enriched(self, partial: int, filled: int, lacking: int) -> None:
        """So many more went on without context, so many more were filled in, and so many are to be filled in now."""

    def catalogue_written(self, store: Store, seconds: float) -> None: ...

    def known_models(self, models: Iterable[str]) -> None:
        """Models that may have findings: their series begin at 0, so that the first finding shows as a rise."""

    def detected(self, findings: Mapping[tuple[str, str, str], int]) -> None:
        """Numbers of findings by (model, detector, level)."""

    def cases_opened(self, cases: Mapping[tuple[str, str], int]) -> None:
        """Numbers of new cases by (model, root_class)."""

    def cases_open(self, by_root_class: Mapping[str, int]) -> None:
        """All open cases; a class that is not named has none."""

    def trends(self, cases: Mapping[tuple[str, str], int], findings: Mapping[tuple[str, str], int]) -> None:
        """What was counted into windows: cases opened by (model, severity), findings by (model, detector)."""

    def deduplicated(self, records: int) -> None: ...


class NoTelemetry:
    """For runs nobody watches: takes every report and keeps nothing."""

    def reading(self, records: int) -> None: ...

    def batch(self, report: BatchReport) -> None: ...

    def aborted(self, reason: AbortReason) -> None: ...

    def rekeyed(self, topic: str, records: int) -> None: ...

    def mistimed(self, events_by_reason: Mapping[Mistimed, int]) -> None: ...

    def rebalanced(self, kind: RebalanceKind, partitions: int) -> None: ...

    def paused(self, partitions: int) -> None: ...

    def stalled(self, partitions: int) -> None: ...

    def lag(self, records_by_topic: Mapping[str, int]) -> None: ...

    def breaker(self, dependency: Dependency, state: BreakerState) -> None: ...

    def poisoned(self, partitions_by_topic: Mapping[str, int]) -> None: ...

    def heartbeat(self, event_time_s: float) -> None: ...

    def evicted(self, slots_by_reason: Mapping[GivenUp, int]) -> None: ...

    def state_held(self, held_bytes: int, limit_bytes: int) -> None: ...

    def restored(self, seconds: float) -> None: ...

    def store_failed(self, store: Store) -> None: ...

    def cached(self, result: CacheResult, lookups: int) -> None: ...

    def enriched(self, partial: int, filled: int, lacking: int) -> None: ...

    def catalogue_written(self, store: Store, seconds: float) -> None: ...

    def known_models(self, models: Iterable[str]) -> None: ...

    def detected(self, findings: Mapping[tuple[str, str, str], int]) -> None: ...

    def cases_opened(self, cases: Mapping[tuple[str, str], int]) -> None: ...

    def cases_open(self, by_root_class: Mapping[str, int]) -> None: ...

    def trends(self, cases: Mapping[tuple[str, str], int], findings: Mapping[tuple[str, str], int]) -> None: ...

    def deduplicated(self, records: int) -> None: ...


Instrument = Callable[[float], None]


class Meter(Protocol):
    """Makes the instruments of a metrics system."""

    def instrument(self, metric: Metric, values: Sequence[str]) -> Instrument:
        """The one time series of these label values, begun at 0. Its function adds to a counter, sets a gauge,
        observes in a histogram. The same series again gives the same instrument."""


class StageTelemetry:
    """Telemetry of one stage on a meter. All series of closed label sets exist from the start."""

    def __init__(
        self,
        meter: Meter,
        stage: str,
        *,
        version: str,
        revision: str = "unknown",
        config_hash: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` gives seconds since 1970."""
        self._meter, self._stage, self._clock = meter, stage, clock
        self._metrics = {metric.name: metric for metric in METRICS.values() if stage in metric.stages}
        self._instruments: dict[tuple[str, ...], Instrument] = {}
        self._models: set[str] = set()
        self._newest_heartbeat_s = 0.0
        for metric in self._metrics.values():
            self._begin(metric)
        self._instrument("errata_build_info", version, revision)(1)
        self._instrument("errata_config_info", config_hash)(1)

    def reading(self, records: int) -> None:
        self._to("errata_inflight_events", records)

    def batch(self, report: BatchReport) -> None:
        now_s = self._clock()
        self._count("errata_events_consumed_total", report.consumed)
        self._count("errata_events_processed_total", report.outcomes)
        self._count("errata_events_produced_total", report.produced)
        self._count("errata_events_rejected_total", report.rejected)
        self._count("errata_dead_letters_total", report.dead)
        self._to("errata_event_processing_seconds", report.processing_s)
        self._to("errata_commit_seconds", report.commit_s)
        self._to("errata_batch_size_records", report.records)
        self._to("errata_last_event_processed_timestamp_seconds", now_s)
        if report.newest_event_s is not None:
            self._to("errata_event_age_seconds", max(0.0, now_s - report.newest_event_s))
        if report.changelog_bytes:
            self._to("errata_state_changelog_bytes_total", report.changelog_bytes)
        self._to("errata_inflight_events", 0)

    def aborted(self, reason: AbortReason) -> None:
        self._to("errata_transactions_aborted_total", 1, reason)
        self._to("errata_inflight_events", 0)

    def rekeyed(self, topic: str, records: int) -> None:
        self._to("errata_events_rekeyed_total", records, topic)

    def mistimed(self, events_by_reason: Mapping[Mistimed, int]) -> None:
        for reason, n in events_by_reason.items():
            if n:
                self._to("errata_events_mistimed_total", n, reason)

    def rebalanced(self, kind: RebalanceKind, partitions: int) -> None:
        self._to("errata_rebalances_total", 1, kind)
        self._to("errata_assigned_partitions", partitions)

    def paused(self, partitions: int) -> None:
        self._to("errata_paused_partitions", partitions)

    def stalled(self, partitions: int) -> None:
        self._to("errata_stalled_partitions", partitions)

    def lag(self, records_by_topic: Mapping[str, int]) -> None:
        self._set_all("errata_consumer_lag_records", "topic", records_by_topic)

    def breaker(self, dependency: Dependency, state: BreakerState) -> None:
        self._to("errata_breaker_state", BREAKER_VALUES[state], dependency)

    def poisoned(self, partitions_by_topic: Mapping[str, int]) -> None:
        self._set_all("errata_breaker_open", "topic", partitions_by_topic)

    def heartbeat(self, event_time_s: float) -> None:
        self._newest_heartbeat_s = max(event_time_s, self._newest_heartbeat_s)
        self._to("errata_heartbeat_timestamp_seconds", self._newest_heartbeat_s)
        self._to("errata_heartbeat_delay_seconds", max(0.0, self._clock() - event_time_s))

    def evicted(self, slots_by_reason: Mapping[GivenUp, int]) -> None:
        for reason, n in slots_by_reason.items():
            self._to("errata_state_evicted_total", n, reason)

    def state_held(self, held_bytes: int, limit_bytes: int) -> None:
        self._to("errata_state_bytes", held_bytes)
        self._to("errata_state_limit_bytes", limit_bytes)

    def restored(self, seconds: float) -> None:
        self._to("errata_state_restore_seconds", seconds)

    def store_failed(self, store: Store) -> None:
        self._to("errata_store_errors_total", 1, store)

    def cached(self, result: CacheResult, lookups: int) -> None:
        self._to("errata_cache_operations_total", lookups, result)

    def enriched(self, partial: int, filled: int, lacking: int) -> None:
        self._to("errata_enrichments_partial_total", partial)
        self._to("errata_enrichments_filled_total", filled)
        self._to("errata_enrichments_open", lacking)

    def catalogue_written(self, store: Store, seconds: float) -> None:
        self._to("errata_catalog_write_seconds", seconds, store)

    def known_models(self, models: Iterable[str]) -> None:
        for name in sorted(models):
            self._model(name)

    def detected(self, findings: Mapping[tuple[str, str, str], int]) -> None:
        for (model, detector, level), n in findings.items():
            self._to("errata_detections_total", n, self._model(model), detector, level)

    def cases_opened(self, cases: Mapping[tuple[str, str], int]) -> None:
        for (model, root_class), n in cases.items():
            self._to("errata_cases_opened_total", n, self._model(model), root_class)

    def cases_open(self, by_root_class: Mapping[str, int]) -> None:
        self._set_all("errata_cases_open", "root_class", by_root_class)

    def trends(self, cases: Mapping[tuple[str, str], int], findings: Mapping[tuple[str, str], int]) -> None:
        for (model, severity), n in cases.items():
            self._to("errata_trend_cases_opened_total", n, self._model(model), severity)
        for (model, detector), n in findings.items():
            self._to("errata_trend_findings_total", n, self._model(model), detector)

    def deduplicated(self, records: int) -> None:
        self._to("errata_case_dedup_total", records)

    # Series and their label values.

    def _begin(self, metric: Metric) -> None:
        """Make every series of closed label sets, and those of models under ``other``."""
        if metric.name in _INFOS:
            return
        sets = [
            (OTHER,) if label == "model" else (*(label_values(metric.name, label, self._stage) or ()), OTHER)
            for label in metric.labels
        ]
        for values in product(*sets):
            self._instrument(metric.name, *values)

    def _model(self, name: str) -> str:
        """The label value for a model; its series begin when it is first named."""
        if name in self._models:
            return name
        if len(self._models) >= MAX_MODELS or name == OTHER or not _printable(name):
            return OTHER
        self._models.add(name)
        for metric in self._metrics.values():
            if metric.labels[:1] == ("model",):
                for values in _USUAL[metric.name]:
                    self._instrument(metric.name, name, *values)
        return name

    def _count(self, metric: str, numbers: Mapping[str, int] | Mapping[Outcome, int]) -> None:
        for label, n in numbers.items():
            if n:
                self._to(metric, n, label)

    def _set_all(self, metric: str, label: str, numbers: Mapping[str, int]) -> None:
        known = label_values(metric, label, self._stage) or ()
        for value in known:
            self._to(metric, numbers.get(value, 0), value)
        self._to(metric, sum(n for value, n in numbers.items() if value not in known), OTHER)

    def _to(self, metric: str, amount: float, *values: str) -> None:
        """Report to a series; label values outside their sets become ``other``, a metric of other stages nothing."""
        found = self._instruments.get((metric, *values))
        if found is None:
            if metric not in self._metrics:
                return
            found = self._instrument(metric, *self._closed(self._metrics[metric], values))
        found(amount)

    def _closed(self, metric: Metric, values: Sequence[str]) -> list[str]:
        closed = []
        for label, value in zip(metric.labels, values, strict=True):
            known = self._models if label == "model" else label_values(metric.name, label, self._stage) or ()
            closed.append(value if value in known else OTHER)
        return closed

    def _instrument(self, name: str, *values: str) -> Instrument:
        key = (name, *values)
        if key not in self._instruments:
            metric = self._metrics[name]
            self._instruments[key] = self._meter.instrument(
                metric, (self._stage, *values) if metric.by_stage else values
            )
        return self._instruments[key]


class KeeperTelemetry(StageTelemetry):
    """Telemetry of the keeper: who leads, what it writes, what the ledger says."""

    def __init__(self, meter: Meter, *, version: str, clock: Callable[[], float] = time.time) -> None:
        super().__init__(meter, KEEPER, version=version, clock=clock)
        self._newest_fault_s: dict[tuple[str, ...], float] = {}

    def leads(self, leader: bool) -> None:
        self._to("errata_keeper_leader", float(leader))

    def beat(self, kind: Beat, topic: str, records: int, time_s: float) -> None:
        """Ticks or heartbeats of this time were written, one into each partition."""
        self._to("errata_events_produced_total", records, topic)
        self._to("errata_keeper_written_timestamp_seconds", time_s, kind)

    def audited(self, receipts_by_stage: Mapping[str, int]) -> None:
        for stage, n in receipts_by_stage.items():
            self._to("errata_ledger_receipts_total", n, stage)

    def audited_to_the_end(self, time_s: float) -> None:
        self._to("errata_ledger_audited_timestamp_seconds", time_s)

    def fault(self, kind: FaultKind, stage: str, topic: str, time_s: float) -> None:
        """One more fault in the ledger; ``time_s``: when it was written there."""
        self._to(_FAULTS[kind], 1, stage, topic)
        newest_s = max(time_s, self._newest_fault_s.get((kind, stage, topic), 0.0))
        self._newest_fault_s[kind, stage, topic] = newest_s
        self._to("errata_ledger_fault_timestamp_seconds", newest_s, kind, stage, topic)


_INFOS = ("errata_build_info", "errata_config_info")
_MAX_NAME = 200  # characters; a longer name of a model is no name
_USUAL: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "errata_detections_total": tuple(product(DETECTORS, USUAL_LEVELS)),
    "errata_cases_opened_total": tuple((name,) for name in ROOT_CLASSES),
    "errata_trend_cases_opened_total": tuple((name,) for name in SEVERITIES),
    "errata_trend_findings_total": tuple((name,) for name in DETECTORS),
}


def _printable(name: str) -> bool:
    """Whether a name can be a label value: what cannot be encoded would break every scrape of the process."""
    return 0 < len(name) <= _MAX_NAME and name.isprintable()
