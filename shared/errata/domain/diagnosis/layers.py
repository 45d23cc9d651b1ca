"""Ruling out, layer by layer: what was checked, what came of it, and where nothing can be said."""

from collections.abc import Mapping, Sequence
from typing import Final

from errata.contracts import EnrichedAnomaly, Finding, RuleOut, Tag
from errata.contracts.anomalies import Layer
from errata.domain.diagnosis.context import LOOKED_UP
from errata.domain.diagnosis.taxonomy import LAYERS, Taxonomy

CHECKS: Final[Mapping[Layer, str]] = {
    "infrastructure": "latency and status codes against contract and reference",
    "data": "features against contract and reference",
    "model": "output, confidence and error rate against contract and reference",
    "integration": "fallbacks, and changes in the 24 h before onset",
}
_LAYER_OF: Final[Mapping[str, Layer]] = {
    "bad_status": "infrastructure",
    "latency_limit": "infrastructure",
    "latency_shift": "infrastructure",
    "contract_violation": "data",
    "missing_values": "data",
    "distribution_shift": "data",
    "confidence_shift": "model",
    "error_rate": "model",
    "invalid_output": "model",
    "policy_violation": "model",
}


def rule_out(anomaly: EnrichedAnomaly, tags: Sequence[Tag], taxonomy: Taxonomy) -> list[RuleOut]:
    """One verdict a layer, in the order of ``LAYERS``."""
    return [_judge(layer, anomaly, tags, taxonomy) for layer in LAYERS]


def layer_of(finding: Finding) -> Layer | None:
    """The layer a finding speaks of; None for a detector that is not known here."""
    if finding.detector == "distribution_shift" and finding.subject == "prediction":
        return "model"
    if finding.detector == "bad_status" and finding.subject == "fallback":
        return "integration"
    return _LAYER_OF.get(finding.detector)


def _judge(layer: Layer, anomaly: EnrichedAnomaly, tags: Sequence[Tag], taxonomy: Taxonomy) -> RuleOut:
    check = CHECKS[layer]
    own = [tag.tag for tag in tags if tag.tag in taxonomy.tags and taxonomy.tags[tag.tag].layer == layer]
    signals = sorted({f"{found.detector} of {found.subject}" for found in anomaly.findings if layer_of(found) == layer})
    if own:
        said = f"{', '.join(own)}{_by(signals)}"
        return RuleOut(layer=layer, check=check, verdict="implicated", evidence=said)
    if signals:
        said = f"{', '.join(signals)}: no rule says what it means"
        return RuleOut(layer=layer, check=check, verdict="unknown", evidence=said)
    blind = _blind(layer, anomaly)
    if blind is not None:
        return RuleOut(layer=layer, check=check, verdict="unknown", evidence=blind)
    return RuleOut(layer=layer, check=check, verdict="ruled_out", evidence=_quiet(layer))


def _by(signals: Sequence[str]) -> str:
    return f" by {', '.join(signals)}" if signals else ""


def _quiet(layer: Layer) -> str:
    if layer == "integration":
        return "no change was found and no fallback served"
    return "no detector of this layer fired"


def _blind(layer: Layer, anomaly: EnrichedAnomaly) -> str | None:
    """Why silence proves nothing here; None when it does prove something."""
    if layer == "integration":
        return _blind_to_changes(anomaly)
    if anomaly.reference_hash is None:
        return "the model has no reference to compare with"
    rows = [row for row in anomaly.rows if row.missing is None]
    if layer == "infrastructure" and rows and all("latency_ms" not in row.values for row in rows):
        return "the events carry no latency"
    if layer == "model" and all(row.expected is None for row in rows):
        return "no outcome is known"
    return None


def _blind_to_changes(anomaly: EnrichedAnomaly) -> str | None:
    if not anomaly.context:
        return "changes were not looked up"
    missing = [entry.missing for entry in anomaly.context if entry.name == LOOKED_UP and entry.missing is not None]
    if missing:
        return f"changes: {missing[0]}"
    kinds = sorted({entry.name for entry in anomaly.context if entry.name != LOOKED_UP})
    return f"changes before onset ({', '.join(kinds)}) fit no rule" if kinds else None
