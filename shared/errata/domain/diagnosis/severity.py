"""How bad a failure is: one formula, its terms shown."""

from collections.abc import Sequence
from typing import Final

from errata.contracts import EnrichedAnomaly, Finding, Severity
from errata.contracts.anomalies import SeverityLevel

FORMULA: Final = "confidence × (0.5·harm + 0.3·reach + 0.2·effect)"
LEVELS: Final[tuple[tuple[float, SeverityLevel], ...]] = ((0.75, "critical"), (0.5, "high"), (0.25, "medium"))
LOW_ABOVE: Final = 0.05
UNKNOWN_HARM: Final = 0.5  # of a cause that is not known: neither made light of nor given first place
UNKNOWN_CONFIDENCE: Final = 0.5


def severity(anomaly: EnrichedAnomaly, harm: float, confidence: float) -> Severity:
    """The severity of an episode whose root tag has this harm (0..1) and confidence (0..1)."""
    terms = {
        "harm": harm,
        "reach": reach(anomaly),
        "effect": effect(anomaly.findings, anomaly.window.n if anomaly.window is not None else 0),
        "confidence": confidence,
    }
    terms = {name: round(term, 6) for name, term in terms.items()}
    value = round(terms["confidence"] * (0.5 * terms["harm"] + 0.3 * terms["reach"] + 0.2 * terms["effect"]), 6)
    return Severity(value=value, level=level(value), terms=terms, formula=FORMULA)


def level(value: float) -> SeverityLevel:
    """
    >>> [level(value) for value in (0.75, 0.5, 0.25, 0.051, 0.05)]
    ['critical', 'high', 'medium', 'low', 'info']
    """
    for least, name in LEVELS:
        if value >= least:
            return name
    return "low" if value > LOW_ABOVE else "info"


def reach(anomaly: EnrichedAnomaly) -> float:
    """The share of the model's events that the episode concerns; 0 when nobody counted the events."""
    events = anomaly.evidence.get("events")
    if isinstance(events, bool) or not isinstance(events, int | float) or events <= 0:
        events = anomaly.window.n if anomaly.window is not None else 0
    return min(1.0, anomaly.episode.count / events) if events > 0 else 0.0


def effect(findings: Sequence[Finding], window_n: int = 0) -> float:
    """The strongest finding: 0 at its threshold, 1 at twice its threshold and beyond.

    A share fires at the very event that reaches its threshold, so its value says nothing of how far it went on to
    rise: for shares the events counted since, of windows of ``window_n`` events, count if they are more.
    """
    return max((_effect(finding, window_n) for finding in findings), default=0.0)


def _effect(finding: Finding, window_n: int) -> float:
    beyond = _measured(finding, window_n) - finding.threshold
    if finding.direction == "down" and beyond < 0:
        beyond = -beyond
    if finding.threshold == 0:
        return 1.0 if beyond > 0 else 0.0
    return min(1.0, max(0.0, beyond / abs(finding.threshold)))


def _measured(finding: Finding, window_n: int) -> float:
    if finding.statistic != "share" or finding.level != "window" or window_n == 0:
        return finding.value
    return max(finding.value, finding.count / (window_n * max(1, finding.windows)))
