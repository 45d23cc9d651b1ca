"""The topic registry: each fact about a topic is written here once; schemas, docs and tests follow it."""

from dataclasses import dataclass
from typing import Literal

from errata.contracts.anomalies import Anomaly, EnrichedAnomaly, TaggedCase
from errata.contracts.base import Message
from errata.contracts.events import ChangeEvent, MetricPoint, Outcome, PredictionEvent
from errata.contracts.heartbeats import Heartbeat
from errata.contracts.models import Contract, Reference
from errata.contracts.runtime import DeadLetter, Receipt, Resolution
from errata.contracts.trends import Trend

DAY_S = 86_400
PARTITIONS = 12

PREDICTIONS = "errata.predictions.v1"
OUTCOMES = "errata.outcomes.v1"
CHANGES = "errata.changes.v1"
METRICS = "errata.metrics.v1"
CONTRACTS = "errata.contracts.v1"
REFERENCES = "errata.references.v1"
ANOMALIES = "errata.anomalies.v1"
ENRICHED = "errata.enriched.v1"
TAGGED = "errata.tagged.v1"
TRENDS = "errata.trends.v1"
LEDGER = "errata.ledger"
RESOLUTIONS = "errata.dlq.resolutions"
INTAKE_POSITIONS = "errata.intake.state"
ENRICH_TODO = "errata.enrich.todo"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. ``retention_s`` None means compacted; ``message`` None means opaque bytes (state).

    ``others``: messages that come in between, told apart by the header ``ce_type``."""

    name: str
    meaning: str
    key: str
    partitions: int
    retention_s: int | None
    message: type[Message] | None
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    dead_letters: str | None = None
    timestamps: Literal["LogAppendTime"] = "LogAppendTime"
    others: tuple[type[Message], ...] = ()

    @property
    def cleanup(self) -> Literal["compact", "delete"]:
        return "compact" if self.retention_s is None else "delete"


STAGES = ("anomaly-detector", "enricher", "tagger", "catalog-writer")


def dead_letter_topic(stage: str) -> str:
    return f"errata.{stage}.dlq"


def state_topic(stage: str) -> str:
    return f"errata.{stage}.state"


_DETECTOR, _ENRICHER, _TAGGER, _WRITER = STAGES
TRENDS_SERVICE = "trends"  # beside the chain: nothing of it waits for this one

TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic(PREDICTIONS, "predictions of models, ticks, heartbeats", "model", PARTITIONS, 7 * DAY_S, PredictionEvent,
              ("publishers", "intake", "keeper"), (_DETECTOR, _ENRICHER), dead_letter_topic(_DETECTOR)),
        Topic(OUTCOMES, "labels and feedback", "model", PARTITIONS, 7 * DAY_S, Outcome,
              ("publishers", "intake"), (_DETECTOR, _ENRICHER), dead_letter_topic(_DETECTOR)),
        Topic(CHANGES, "deploys, flags, configuration, registry facts", "subject", PARTITIONS, 30 * DAY_S, ChangeEvent,
              ("publishers", "intake"), (_ENRICHER,), dead_letter_topic(_ENRICHER)),
        Topic(METRICS, "business metrics", "tenant", PARTITIONS, 30 * DAY_S, MetricPoint, ("intake",), (_TAGGER,),
              dead_letter_topic(_TAGGER)),
        Topic(CONTRACTS, "what a model's events must look like", "tenant, model", 1, None, Contract,
              ("errata contract apply",), (_DETECTOR, _ENRICHER), dead_letter_topic(_DETECTOR)),
        Topic(REFERENCES, "a model's known-good profile", "tenant, model", 1, None, Reference,
              ("errata reference apply",), (_DETECTOR, _ENRICHER), dead_letter_topic(_DETECTOR)),
        Topic(ANOMALIES, "episodes, as of one seq each", "case_id", PARTITIONS, 7 * DAY_S, Anomaly,
              (_DETECTOR,), (_ENRICHER,), dead_letter_topic(_ENRICHER), others=(Heartbeat,)),
        Topic(ENRICHED, "anomalies with context and redacted rows", "case_id", PARTITIONS, 7 * DAY_S, EnrichedAnomaly,
              (_ENRICHER,), (_TAGGER,), dead_letter_topic(_TAGGER), others=(Heartbeat,)),
        Topic(TAGGED, "enriched anomalies with their diagnosis", "case_id", PARTITIONS, 7 * DAY_S, TaggedCase,
              (_TAGGER,), (_WRITER, TRENDS_SERVICE), dead_letter_topic(_WRITER), others=(Heartbeat,)),
        Topic(TRENDS, "cases opened and findings in hopping windows, by partition of the cases", "window, partition",
              PARTITIONS, None, Trend, (TRENDS_SERVICE,), ("errata trends",)),
        Topic(ENRICH_TODO, "anomalies that went on without context that was not to be had; filled in later", "case_id",
              PARTITIONS, None, Anomaly, (_ENRICHER,), (_ENRICHER,), dead_letter_topic(_ENRICHER)),
        Topic(LEDGER, "one receipt a transaction", "stage, instance", PARTITIONS, 30 * DAY_S, Receipt,
              STAGES, ("keeper",)),
        Topic(INTAKE_POSITIONS, "how far intake has read its files, and its clock", "source", 1, None, None,
              ("intake",), ("intake",)),
        *(Topic(dead_letter_topic(stage), f"inputs the {stage} could not take; payload encrypted", "original key",
                PARTITIONS, 14 * DAY_S, DeadLetter, (stage,), ("errata dlq",)) for stage in (*STAGES, TRENDS_SERVICE)),
        Topic(RESOLUTIONS, "what people made of dead letters", "dead_letter_id", 1, None, Resolution,
              ("errata dlq",), ("errata dlq",)),
        *(Topic(state_topic(stage), f"changelog of the {stage}", "state key", PARTITIONS, None, None,
                (stage,), (stage,)) for stage in (*STAGES[:3], TRENDS_SERVICE)),
    )
}  # fmt: skip


def model_key(tenant: str, model: str) -> bytes:
    """The record key of a model's events: its name, with the tenant before it unless that is ``default``.

    >>> model_key("default", "fraud"), model_key("acme", "fraud")
    (b'fraud', b'acme/fraud')
    """
    return (model if tenant == "default" else f"{tenant}/{model}").encode()
