"""What the detector, the enricher and the tagger say about a failure."""

from typing import Annotated, Any, Literal

from pydantic import Field

from errata.contracts.base import Fields, FiniteNumber, Instant, Message, Part, Share, Text
from errata.contracts.events import ModelRef, Purpose

Level = Literal["event", "window", "composite"]
Grade = Literal["warning", "failure"]
EpisodeState = Literal["open", "update", "close", "reopen"]
Direction = Literal["up", "down", "both"]
RootClass = Literal["data", "model", "deployment", "infrastructure", "integration", "unknown"]
SeverityLevel = Literal["critical", "high", "medium", "low", "info"]
Layer = Literal["infrastructure", "data", "model", "integration"]
Count = Annotated[int, Field(ge=0)]


class RowRef(Part):
    """Where a row lies: topic, partition, offset, and the publisher's prediction id."""

    topic: Text
    partition: Count
    offset: Count
    prediction_id: Text


class DetectorRef(Part):
    id: Text
    version: Text
    config_hash: Text


class Window(Part):
    """The ``n`` consecutive events judged together, by their event times."""

    from_: Instant = Field(alias="from")
    to: Instant
    n: Count


class Finding(Part):
    """One signal of an episode: what one detector says of one subject (a feature, ``latency_ms``, …)."""

    detector: Text
    subject: Text
    level: Level
    grade: Grade = "failure"
    reason: Text
    statistic: Text
    value: FiniteNumber
    threshold: FiniteNumber
    direction: Direction = "up"
    onset: Instant
    count: Count
    windows: Count = 1
    evidence: Fields = {}


class Episode(Part):
    id: Text
    seq: Count
    state: EpisodeState
    onset: Instant
    last_seen: Instant
    count: Count


class Anomaly(Message):
    """An episode as of one ``seq``, with the finding that moved it on top."""

    tenant: Text
    model: ModelRef
    slice: Text = ""
    purpose: Purpose = "live"
    detector: DetectorRef
    subject: Text
    level: Level
    grade: Grade = "failure"
    reason: Text
    statistic: Text
    value: FiniteNumber
    threshold: FiniteNumber
    direction: Direction = "up"
    reference_hash: Text | None = None
    contract_hash: Text | None = None
    window: Window | None = None
    onset: Instant
    time: Instant
    count: Count
    exemplars: list[RowRef] = []
    controls: list[RowRef] = []
    episode: Episode
    findings: list[Finding]
    evidence: Fields = {}


class ContextEntry(Part):
    """A fact about the model's surroundings, or, with ``missing``, why there is none."""

    name: Text
    value: Any = None
    source: Text
    observed_at: Instant | None = None
    freshness_s: FiniteNumber | None = None
    missing: Text | None = None


class EvidenceRow(Part):
    """One exemplar or control, redacted by the contract's policy; ``raw_ref`` is ``topic/partition/offset``."""

    role: Literal["exemplar", "control"]
    prediction_id: Text
    values: Fields = {}
    observed: Any = None
    expected: Any = None
    raw_ref: Text
    missing: Text | None = None


class Enrichment(Part):
    """Says that something is missing for now: ``reason`` names what was not to be had. It comes later, under the same
    ``seq``; then nothing is said here."""

    status: Literal["partial"]
    reason: Text


class EnrichedAnomaly(Anomaly):
    """An anomaly with what was known around it and the redacted rows it names."""

    context: list[ContextEntry] = []
    rows: list[EvidenceRow] = []
    enrichment: Enrichment | None = None


class Tag(Part):
    """``tag`` is ``namespace:predicate:value`` of the taxonomy; ``rule_id`` names the rule that set it."""

    tag: Text
    rule_id: Text
    confidence: Share


class RuleOut(Part):
    """One layer's check: ``implicated``, ``ruled_out`` or ``unknown``, and why."""

    layer: Layer
    check: Text
    verdict: Literal["implicated", "ruled_out", "unknown"]
    evidence: Text


class Severity(Part):
    value: Share
    level: SeverityLevel
    terms: dict[Text, Share]
    formula: Text


class Fingerprint(Part):
    """``value`` is [root tag, detector, subject, direction]."""

    version: Annotated[int, Field(ge=1)] = 1
    value: list[Text]


class TaggedCase(EnrichedAnomaly):
    """An enriched anomaly with its diagnosis: tags, layers ruled out, root class, severity, fingerprint."""

    tags: list[Tag]
    root_class: RootClass
    rule_out: list[RuleOut]
    severity: Severity
    fingerprint: Fingerprint
    taxonomy_version: Text
