"""What the runtime tells of itself: each metric with its closed label sets is written here once.

The loop and the stages report through `Telemetry`, per batch and never per event. What stands behind it makes its
metrics from `METRICS`; dashboards, alert rules and docs are tested against the same table. Labels never hold ids,
error texts or anything else without bound; a value outside its set is counted under ``other``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from errata.contracts import Receipt
from errata.contracts.anomalies import Level, RootClass
from errata.contracts.topics import LEDGER, STAGES, TOPICS, dead_letter_topic, state_topic
from errata.errors import Aborted, Fenced, RefusalClass, Unavailable
from errata.ports import DeadInput, Outgoing

Outcome = Literal["ok", "filtered", "duplicate", "invalid", "error"]
AbortReason = Literal["void", "unavailable", "fenced", "error"]
RebalanceKind = Literal["assigned", "revoked", "lost"]
BreakerState = Literal["closed", "half_open", "open"]
Dependency = Literal["kafka", "redis", "postgresql"]
Store = Literal["redis", "postgresql", "sqlite", "memory"]
CacheResult = Literal["hit", "miss", "evicted"]
Kind = Literal["counter", "gauge", "histogram"]

OTHER = "other"
MAX_MODELS = 200
BREAKER_VALUES: Mapping[BreakerState, int] = {"closed": 0, "half_open": 1, "open": 2}

_DETECTOR, _ENRICHER, _TAGGER, _WRITER = STAGES
_OUR_FAULTS: frozenset[RefusalClass] = frozenset({"handler", "sink"})  # what came in was well formed

OUTCOMES: tuple[str, ...] = get_args(Outcome)
REFUSALS: tuple[str, ...] = get_args(RefusalClass)
REJECTIONS = tuple(name for name in REFUSALS if name not in _OUR_FAULTS)
LEVELS: tuple[str, ...] = get_args(Level)
ROOT_CLASSES: tuple[str, ...] = get_args(RootClass)
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
    stages: tuple[str, ...] = STAGES

    @property
    def all_labels(self) -> tuple[str, ...]:
        return ("stage", *self.labels) if self.by_stage else self.labels


_KAFKA_STAGES = STAGES[:3]  # those whose results are records; the writer's are rows
_STORE_STAGES = (_ENRICHER, _WRITER)

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("errata_events_consumed_total", "counter", "Records taken in by committed batches.", ("topic",)),
        Metric("errata_events_processed_total", "counter",
               "Records of committed batches by what became of them; their sum is what was consumed.", ("outcome",)),
        Metric("errata_events_produced_total", "counter", "Records written by committed transactions.", ("topic",),
               stages=_KAFKA_STAGES),
        Metric("errata_events_rejected_total", "counter",
               "Records refused for what they are; bugs and failing sinks are counted as dead letters only.",
               ("reason",)),
        Metric("errata_dead_letters_total", "counter", "Dead letters by their class.", ("reason",)),
        Metric("errata_events_rekeyed_total", "counter", "Records sent on to the partition of their model.",
               ("topic",)),
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
               "Event time of the newest heartbeat event seen; 0 before the first."),
        Metric("errata_consumer_lag_records", "gauge", "Offsets between the position and the end, of what is assigned.",
               ("topic",)),
        Metric("errata_inflight_events", "gauge", "Records of the batch in hand."),
        Metric("errata_batch_size_records", "histogram", "Records of a committed batch.", buckets=RECORDS),
        Metric("errata_rebalances_total", "counter", "Times that partitions came or went.", ("kind",)),
        Metric("errata_assigned_partitions", "gauge", "Partitions of the input that this process has."),
        Metric("errata_paused_partitions", "gauge", "Partitions that wait for a dependency."),
        Metric("errata_breaker_state", "gauge", "0 closed, 1 half open, 2 open.", ("dependency",)),
        Metric("errata_state_changelog_bytes_total", "counter", "Bytes of keys and values written as state.",
               stages=_KAFKA_STAGES),
        Metric("errata_state_restore_seconds", "histogram", "Time to restore the state of one partition.",
               buckets=LONG_SECONDS, stages=_KAFKA_STAGES),
        Metric("errata_store_errors_total", "counter", "Failed calls to a store.", ("store",), stages=_STORE_STAGES),
        Metric("errata_cache_operations_total", "counter", "Look-ups of the local context cache.", ("result",),
               stages=(_ENRICHER,)),
        Metric("errata_catalog_write_seconds", "histogram", "Time of one transaction of the catalogue.", ("store",),
               SECONDS, stages=(_WRITER,)),
        Metric("errata_build_info", "gauge", "Always 1; what runs is in the labels.", ("version", "revision")),
        Metric("errata_config_info", "gauge", "Always 1; a hash of the configuration is in the label.",
               ("config_hash",)),
        Metric("errata_detections_total", "counter", "Findings before they become episodes.",
               ("model", "detector", "level"), by_stage=False, stages=(_DETECTOR,)),
        Metric("errata_cases_opened_total", "counter", "Cases opened.", ("model", "root_class"), by_stage=False,
               stages=(_WRITER,)),
        Metric("errata_cases_open", "gauge", "Cases that are open in the catalogue.", ("root_class",), by_stage=False,
               stages=(_WRITER,)),
        Metric("errata_case_dedup_total", "counter", "Records that changed nothing: their case was known as such.",
               by_stage=False, stages=(_WRITER,)),
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
    }
    if label == "reason":
        return _REASONS[metric]
    return closed.get(label)


_REASONS: Mapping[str, tuple[str, ...]] = {
    "errata_events_rejected_total": REJECTIONS,
    "errata_dead_letters_total": REFUSALS,
    "errata_transactions_aborted_total": get_args(AbortReason),
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

    def rebalanced(self, kind: RebalanceKind, partitions: int) -> None:
        """Partitions came or went; ``partitions`` is how many of the input there are now."""

    def paused(self, partitions: int) -> None: ...

    def lag(self, records_by_topic: Mapping[str, int]) -> None:
        """The lag of all assigned partitions; a topic that is not named has none."""

    def breaker(self, dependency: Dependency, state: BreakerState) -> None: ...

    def heartbeat(self, event_time_s: float) -> None:
        """A heartbeat event came by; older ones than the newest change nothing."""

    def restored(self, seconds: float) -> None: ...

    def store_failed(self, store: Store) -> None: ...

    def cached(self, result: CacheResult, lookups: int) -> None: ...

    def catalogue_written(self, store: Store, seconds: float) -> None: ...

    def known_models(self, models: Iterable[str]) -> None:
        """Models that may have findings: their series begin at 0, so that the first finding shows as a rise."""

    def detected(self, findings: Mapping[tuple[str, str, str], int]) -> None:
        """Numbers of findings by (model, detector, level)."""

    def cases_opened(self, cases: Mapping[tuple[str, str], int]) -> None:
        """Numbers of new cases by (model, root_class)."""

    def cases_open(self, by_root_class: Mapping[str, int]) -> None:
        """All open cases; a class that is not named has none."""

    def deduplicated(self, records: int) -> None: ...


class NoTelemetry:
    """For runs nobody watches: takes every report and keeps nothing."""

    def reading(self, records: int) -> None: ...

    def batch(self, report: BatchReport) -> None: ...

    def aborted(self, reason: AbortReason) -> None: ...

    def rekeyed(self, topic: str, records: int) -> None: ...

    def rebalanced(self, kind: RebalanceKind, partitions: int) -> None: ...

    def paused(self, partitions: int) -> None: ...

    def lag(self, records_by_topic: Mapping[str, int]) -> None: ...

    def breaker(self, dependency: Dependency, state: BreakerState) -> None: ...

    def heartbeat(self, event_time_s: float) -> None: ...

    def restored(self, seconds: float) -> None: ...

    def store_failed(self, store: Store) -> None: ...

    def cached(self, result: CacheResult, lookups: int) -> None: ...

    def catalogue_written(self, store: Store, seconds: float) -> None: ...

    def known_models(self, models: Iterable[str]) -> None: ...

    def detected(self, findings: Mapping[tuple[str, str, str], int]) -> None: ...

    def cases_opened(self, cases: Mapping[tuple[str, str], int]) -> None: ...

    def cases_open(self, by_root_class: Mapping[str, int]) -> None: ...

    def deduplicated(self, records: int) -> None: ...
