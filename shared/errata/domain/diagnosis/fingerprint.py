"""What makes two cases the same kind of failure."""

from collections.abc import Sequence

from errata.contracts import EnrichedAnomaly, Finding, Fingerprint


def fingerprint(root_tag: str, anomaly: EnrichedAnomaly, witnesses: Sequence[Finding]) -> Fingerprint:
    """[root tag, detector, subject, direction] of the root finding.

    The root finding is the earliest of those that made the root tag's rule hold, else of all findings of the episode.
    """
    findings = witnesses or anomaly.findings
    if not findings:
        return Fingerprint(value=[root_tag, anomaly.detector.id, anomaly.subject, anomaly.direction])
    root = min(findings, key=lambda finding: (finding.onset, finding.detector, finding.subject, finding.reason))
    return Fingerprint(value=[root_tag, root.detector, root.subject, root.direction])
