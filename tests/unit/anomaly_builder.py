"""Builders of anomalies as the detector makes them, for tests of what comes behind it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from errata.contracts import (
    Anomaly,
    ContextEntry,
    DetectorRef,
    EnrichedAnomaly,
    Episode,
    EvidenceRow,
    Finding,
    ModelRef,
    RowRef,
    Window,
)
from errata.contracts.topics import CHANGES

ONSET = datetime(2026, 1, 5, 12, tzinfo=UTC)
CASE_ID = "6a0f3c1e-0000-5000-8000-000000000001"


def finding(detector: str, subject: str, reason: str, **fields: Any) -> Finding:
    """A finding whose value is twice its threshold, unless told otherwise; keywords that are no field are evidence."""
    plain: dict[str, Any] = {
        "detector": detector,
        "subject": subject,
        "reason": reason,
        "level": "window",
        "statistic": "share",
        "value": 0.5,
        "threshold": 0.25,
        "onset": ONSET,
        "count": 200,
    }
    plain.update({name: fields.pop(name) for name in list(fields) if name in Finding.model_fields})
    return Finding(**{"evidence": fields, **plain})


def anomaly(*findings: Finding, **fields: Any) -> Anomaly:
    """An open episode of these findings; the last one moved it."""
    last = findings[-1]
    onset = min(found.onset for found in findings)
    plain: dict[str, Any] = {
        "tenant": "default",
        "model": ModelRef(name="employment"),
        "detector": DetectorRef(id=last.detector, version="1", config_hash="c"),
        "subject": last.subject,
        "level": last.level,
        "reason": last.reason,
        "statistic": last.statistic,
        "value": last.value,
        "threshold": last.threshold,
        "direction": last.direction,
        "reference_hash": "r",
        "contract_hash": "k",
        "window": Window(from_=onset, to=onset + timedelta(seconds=499), n=500),
        "onset": onset,
        "time": onset + timedelta(seconds=499),
        "count": last.count,
        "episode": Episode(
            id=CASE_ID, seq=1, state="open", onset=onset, last_seen=onset + timedelta(seconds=499), count=200
        ),
        "findings": list(findings),
    }
    return Anomaly(**{**plain, **fields})


def enriched_anomaly(*findings: Finding, changes: list[ContextEntry] | None = None, **fields: Any) -> EnrichedAnomaly:
    """An anomaly with the changes before it (none found, unless told otherwise) and one row with its outcome."""
    row = EvidenceRow(
        role="exemplar",
        prediction_id="p1",
        values={"latency_ms": 12.0},
        observed="1",
        expected="0",
        raw_ref="errata.predictions.v1/0/7",
    )
    context = changes if changes is not None else [ContextEntry(name="changes", value=[], source=CHANGES)]
    return EnrichedAnomaly.model_validate(
        {**dict(anomaly(*findings)), "context": context, "rows": [row], **fields}, strict=True
    )


def change(kind: str, minutes_before_onset: float) -> ContextEntry:
    return ContextEntry(
        name=kind,
        value={"change_id": "c1", "to": "v2", "minutes_before_onset": minutes_before_onset},
        source=CHANGES,
        observed_at=ONSET - timedelta(minutes=minutes_before_onset),
        freshness_s=minutes_before_onset * 60,
    )


def ref(offset: int, prediction_id: str, topic: str = "errata.predictions.v1", partition: int = 0) -> RowRef:
    return RowRef(topic=topic, partition=partition, offset=offset, prediction_id=prediction_id)
