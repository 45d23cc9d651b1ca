"""A case as the catalogue keeps it."""

from typing import Any, Literal

from errata.contracts.anomalies import Count, TaggedCase
from errata.contracts.base import Fields, Instant, Part, Text

CaseStatus = Literal["new", "triaged", "verified", "in_remediation", "resolved", "closed", "rejected", "regressed"]
RejectionReason = Literal["duplicate", "false_positive", "not_a_failure", "insufficient_information", "label_error"]


class AdmittedBy(Part):
    policy: Text
    version: Text


class Retention(Part):
    raw_until: Instant | None = None
    redacted_until: Instant | None = None


class FailureCase(TaggedCase):
    """One failure, from onset to end. The chain writes the machine's fields; people's stand beside them."""

    case_id: Text
    short_id: Text
    status: CaseStatus = "new"
    opened_at: Instant
    last_seen: Instant
    closed_at: Instant | None = None
    rev: Count
    admitted_by: AdmittedBy
    sensitivity: Text = "internal"
    retention: Retention | None = None
    # computed later
    pattern_id: Text | None = None
    impact: Fields | None = None
    reproducibility: Fields | None = None
    # people's
    title: Text | None = None
    owner: Text | None = None
    priority: Text | None = None
    substatus: Text | None = None
    resolution: Any = None
