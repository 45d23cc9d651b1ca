"""Counts of one window of time, as the service ``trends`` keeps them."""

from typing import Annotated

from pydantic import Field

from errata.contracts.anomalies import Count, SeverityLevel
from errata.contracts.base import Instant, Message, Text


class Trend(Message):
    """What one partition of ``errata.tagged.v1`` holds of one window; the window itself is the sum over partitions.

    The numbers are absolute, so a newer record of the same key takes the place of the older one. A case counts once
    for each of its tags. ``tag`` is empty for a case that has none.
    """

    window_start: Instant
    window_end: Instant
    size_s: Annotated[int, Field(ge=1)]
    step_s: Annotated[int, Field(ge=1)]
    tenant: Text
    model: Text
    detector: Text
    tag: Text
    severity: SeverityLevel
    partition: Count
    cases_opened: Count
    findings: Count
