"""Messages that cross a process boundary (frozen pydantic) and the topic registry.

These models are the published contract: ``schemas/`` is generated from them.
"""

from errata.contracts.anomalies import (
    Anomaly,
    ContextEntry,
    DetectorRef,
    EnrichedAnomaly,
    Enrichment,
    Episode,
    EvidenceRow,
    Finding,
    Fingerprint,
    RowRef,
    RuleOut,
    Severity,
    Tag,
    TaggedCase,
    Window,
)
from errata.contracts.base import Message, Part, canonical
from errata.contracts.cases import FailureCase
from errata.contracts.events import ChangeEvent, MetricPoint, ModelRef, Outcome, PredictionEvent
from errata.contracts.heartbeats import Heartbeat
from errata.contracts.models import Contract, Reference
from errata.contracts.runtime import DeadLetter, Receipt, ReceiptInput, Resolution

__all__ = [
    "Anomaly",
    "ChangeEvent",
    "ContextEntry",
    "Contract",
    "DeadLetter",
    "DetectorRef",
    "EnrichedAnomaly",
    "Enrichment",
    "Episode",
    "EvidenceRow",
    "FailureCase",
    "Finding",
    "Fingerprint",
    "Heartbeat",
    "Message",
    "MetricPoint",
    "ModelRef",
    "Outcome",
    "Part",
    "PredictionEvent",
    "Receipt",
    "ReceiptInput",
    "Reference",
    "Resolution",
    "RowRef",
    "RuleOut",
    "Severity",
    "Tag",
    "TaggedCase",
    "Window",
    "canonical",
]
