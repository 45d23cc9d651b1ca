"""Messages that cross a process boundary (frozen pydantic) and the topic registry.

These models are the published contract: ``schemas/`` is generated from them.
"""

from errata.contracts.anomalies import (
    Anomaly,
    ContextEntry,
    DetectorRef,
    EnrichedAnomaly,
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
from errata.contracts.models import Contract, Reference
from errata.contracts.runtime import DeadLetter, Receipt, ReceiptInput

__all__ = [
    "Anomaly",
    "ChangeEvent",
    "ContextEntry",
    "Contract",
    "DeadLetter",
    "DetectorRef",
    "EnrichedAnomaly",
    "Episode",
    "EvidenceRow",
    "FailureCase",
    "Finding",
    "Fingerprint",
    "Message",
    "MetricPoint",
    "ModelRef",
    "Outcome",
    "Part",
    "PredictionEvent",
    "Receipt",
    "ReceiptInput",
    "Reference",
    "RowRef",
    "RuleOut",
    "Severity",
    "Tag",
    "TaggedCase",
    "Window",
    "canonical",
]
