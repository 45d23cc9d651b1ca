"""The diagnosis of an episode: tags, root class, layers ruled out, severity and fingerprint."""

from collections.abc import Sequence
from typing import Final

from errata.contracts import EnrichedAnomaly, Finding, Tag, TaggedCase
from errata.contracts.anomalies import RootClass
from errata.contracts.topics import CHANGES
from errata.domain.diagnosis.fingerprint import fingerprint
from errata.domain.diagnosis.layers import rule_out
from errata.domain.diagnosis.rules import Facts, Hit, Ruleset
from errata.domain.diagnosis.severity import UNKNOWN_CONFIDENCE, UNKNOWN_HARM, severity
from errata.domain.diagnosis.taxonomy import LAYERS, UNKNOWN_TAG, Taxonomy

LEAST_CONFIDENCE: Final = 0.5  # a tag that is less sure is shown, and never makes the root
NO_RULE: Final = "none"


def diagnose(anomaly: EnrichedAnomaly, taxonomy: Taxonomy, rules: Ruleset) -> TaggedCase:
    """The anomaly, every field of it, with its diagnosis. The same anomaly, taxonomy and rules give the same bytes."""
    hits = _surest(rules.hits(facts_of(anomaly)), taxonomy)
    root = hits[0] if hits and hits[0].rule.confidence >= LEAST_CONFIDENCE else None
    tags = _tags(hits, root, taxonomy)
    root_tag, root_class, harm, confidence, witnesses = _root(root, taxonomy)
    return TaggedCase.model_validate(
        {
            **dict(anomaly),
            "tags": tags,
            "root_class": root_class,
            "rule_out": rule_out(anomaly, tags, taxonomy),
            "severity": severity(anomaly, harm, confidence),
            "fingerprint": fingerprint(root_tag, anomaly, witnesses),
            "taxonomy_version": taxonomy.version,
        }
    )


def facts_of(anomaly: EnrichedAnomaly) -> Facts:
    """What rules may speak of."""
    changes = []
    for entry in anomaly.context:
        if entry.source == CHANGES and isinstance(entry.value, dict):
            before_min = entry.value.get("minutes_before_onset")
            if isinstance(before_min, int | float):
                changes.append((entry.name, float(before_min)))
    return Facts(tuple(anomaly.findings), tuple(changes))


def _surest(hits: Sequence[Hit], taxonomy: Taxonomy) -> list[Hit]:
    """One hit a tag, the surest, root first: by confidence, of equals by layer, then by name."""
    best: dict[str, Hit] = {}
    for hit in hits:
        known = best.get(hit.rule.tag)
        if known is None or hit.rule.confidence > known.rule.confidence:
            best[hit.rule.tag] = hit
    return sorted(best.values(), key=lambda hit: (-hit.rule.confidence, _rank(hit.rule.tag, taxonomy), hit.rule.tag))


def _rank(tag: str, taxonomy: Taxonomy) -> int:
    layer = taxonomy.tags[tag].layer
    return len(LAYERS) if layer is None else LAYERS.index(layer)


def _tags(hits: Sequence[Hit], root: Hit | None, taxonomy: Taxonomy) -> list[Tag]:
    tags = [Tag(tag=hit.rule.tag, rule_id=hit.rule.id, confidence=hit.rule.confidence) for hit in hits]
    if root is None and UNKNOWN_TAG in taxonomy.tags:
        tags.insert(0, Tag(tag=UNKNOWN_TAG, rule_id=NO_RULE, confidence=UNKNOWN_CONFIDENCE))
    return tags


def _root(root: Hit | None, taxonomy: Taxonomy) -> tuple[str, RootClass, float, float, tuple[Finding, ...]]:
    """Root tag, its class, harm and confidence, and the findings that made it."""
    if root is None:
        known = taxonomy.tags.get(UNKNOWN_TAG)
        return UNKNOWN_TAG, "unknown", known.harm if known is not None else UNKNOWN_HARM, UNKNOWN_CONFIDENCE, ()
    definition = taxonomy.tags[root.rule.tag]
    return definition.tag, definition.root_class, definition.harm, root.rule.confidence, root.witnesses
