"""The topic registry: each fact about a topic is written here once; schemas, docs and tests follow it."""

from dataclasses import dataclass
from typing import Literal

from errata.contracts.anomalies import Anomaly, EnrichedAnomaly, TaggedCase
from errata.contracts.base import Message
from errata.contracts.events import ChangeEvent, MetricPoint, Outcome, PredictionEvent
from errata.contracts.models import Contract, Reference
from errata.contracts.runtime import DeadLetter, Receipt

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
LEDGER = "errata.ledger"
INTAKE_POSITIONS = "errata.intake.state"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. ``retention_s`` None means compacted; ``message`` None means opaque bytes (state)."""

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

    @property
    def cleanup(self) -> Literal["compact", "delete"]:
        return "compact" if self.retention_s is None else "delete"


STAGES = ("anomaly-detector", "enricher", "tagger", "catalog-writer")


def dead_letter_topic(stage: str) -> str:
    return f"errata.{stage}.dlq"


def state_topic(stage: str) -> str:
    return f"errata.{stage}.state"


_DETECTOR, _ENRICHER, _TAGGER, _WRITER = STAGES

TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic(PREDICTIONS, "predictions served by models, and ticks", "model", PARTITIONS, 7 * DAY_S, PredictionEvent,
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
              (_DETECTOR,), (_ENRICHER,), dead_letter_topic(_ENRICHER)),
        Topic(ENRICHED, "anomalies with context and redacted rows", "case_id", PARTITIONS, 7 * DAY_S, EnrichedAnomaly,
              (_ENRICHER,), (_TAGGER,), dead_letter_topic(_TAGGER)),
        Topic(TAGGED, "enriched anomalies with their diagnosis", "case_id", PARTITIONS, 7 * DAY_S, TaggedCase,
              (_TAGGER,), (_WRITER,), dead_letter_topic(_WRITER)),
        Topic(LEDGER, "one receipt a transaction", "stage, instance", PARTITIONS, 30 * DAY_S, Receipt,
              STAGES, ("keeper",)),
        Topic(INTAKE_POSITIONS, "how far intake has read its files, and its clock", "source", 1, None, None,
              ("intake",), ("intake",)),
        *(Topic(dead_letter_topic(stage), f"inputs the {stage} could not take; payload encrypted", "original key",
                PARTITIONS, 14 * DAY_S, DeadLetter, (stage,), ("errata dlq",)) for stage in STAGES),
        *(Topic(state_topic(stage), f"changelog of the {stage}", "state key", PARTITIONS, None, None,
                (stage,), (stage,)) for stage in STAGES[:3]),
    )
}  # fmt: skip


def model_key(tenant: str, model: str) -> bytes:
    """The record key of a model's events: its name, with the tenant before it unless that is ``default``.

    >>> model_key("default", "fraud"), model_key("acme", "fraud")
    (b'fraud', b'acme/fraud')
    """
    return (model if tenant == "default" else f"{tenant}/{model}").encode()
