"""What was known around a failure: changes before its onset and the rows it names, redacted."""

from collections.abc import Sequence
from typing import Any, Final, Literal

from errata.contracts import (
    Anomaly,
    ChangeEvent,
    ContextEntry,
    Contract,
    EnrichedAnomaly,
    Enrichment,
    EvidenceRow,
    Outcome,
    PredictionEvent,
    RowRef,
    canonical,
)
from errata.contracts.strict import to_us
from errata.contracts.topics import CHANGES
from errata.domain.governance.redaction import redact_event, redact_outcome, redact_output

LOOK_BACK_US: Final = 24 * 3600 * 1_000_000
LOOKED_UP: Final = "changes"  # the entry that says that changes were looked for: none found, or not available
OUT_OF_RETENTION: Final = "out_of_retention"
UNAVAILABLE: Final = "unavailable"
UNREADABLE: Final = "unreadable"
WITHHELD: Final = "withheld_by_contract"
TOO_LARGE: Final = "too_large"
MOST_CHANGES: Final = 20  # on a case, those nearest before its onset; of the others their number
MAX_ROW_BYTES: Final = 32 * 1024  # sixteen rows and the rest of a case have to fit into one record

Role = Literal["exemplar", "control"]


def wanted_changes(anomaly: Anomaly) -> tuple[str, str, int, int, int]:
    """What to ask a ``ContextStore`` for: this model's changes of the 24 h before onset, seen before the finding.

    A replay sees no more than the first run did: what arrived after the finding stays out, whatever time it carries.
    """
    onset_us = to_us(anomaly.episode.onset)
    return anomaly.tenant, anomaly.model.name, onset_us - LOOK_BACK_US, onset_us, to_us(anomaly.time)


def change_entries(anomaly: Anomaly, changes: Sequence[ChangeEvent] | None, left_out: int = 0) -> list[ContextEntry]:
    """One entry a change; one entry ``changes`` if there is none, or with its reason if they were not to be had.

    ``left_out``: how many older ones there are; said by an entry ``changes`` after the others."""
    if changes is None:
        return [ContextEntry(name=LOOKED_UP, source="context", missing=UNAVAILABLE)]
    if not changes:
        return [ContextEntry(name=LOOKED_UP, value=[], source=CHANGES)]
    entries = [_change_entry(anomaly, change) for change in changes]
    if left_out:
        entries.append(ContextEntry(name=LOOKED_UP, value={"left_out": left_out}, source=CHANGES))
    return entries


def _change_entry(anomaly: Anomaly, change: ChangeEvent) -> ContextEntry:
    before_s = (to_us(anomaly.episode.onset) - to_us(change.time)) / 1_000_000
    fields = {
        "change_id": change.change_id,
        "from": change.from_,
        "to": change.to,
        "actor": change.actor,
        "link": change.link,
        "minutes_before_onset": round(before_s / 60, 6),
    }
    return ContextEntry(
        name=change.kind,
        value={name: value for name, value in fields.items() if value is not None},
        source=CHANGES,
        observed_at=change.time,
        freshness_s=before_s,
    )


def evidence_row(
    role: Role, ref: RowRef, row: PredictionEvent | Outcome | str, contract: Contract | None, key: bytes
) -> EvidenceRow:
    """A row as the case keeps it; ``row`` is what was read back, or the reason why nothing was."""
    raw_ref = f"{ref.topic}/{ref.partition}/{ref.offset}"
    if isinstance(row, str):
        return EvidenceRow(role=role, prediction_id=ref.prediction_id, raw_ref=raw_ref, missing=row)
    if contract is not None and contract.evidence == "none":
        return EvidenceRow(role=role, prediction_id=ref.prediction_id, raw_ref=raw_ref, missing=WITHHELD)
    values, observed, expected = _values(row, contract, key)
    if len(canonical(values)) > MAX_ROW_BYTES:
        return EvidenceRow(role=role, prediction_id=ref.prediction_id, raw_ref=raw_ref, missing=TOO_LARGE)
    return EvidenceRow(
        role=role,
        prediction_id=ref.prediction_id,
        values=values,
        observed=redact_output(observed, contract, key),
        expected=redact_output(expected, contract, key),
        raw_ref=raw_ref,
    )


def _values(row: PredictionEvent | Outcome, contract: Contract | None, key: bytes) -> tuple[dict[str, Any], Any, Any]:
    if isinstance(row, Outcome):
        return redact_outcome(row, contract, key), row.predicted, row.value
    return redact_event(row, contract, key), row.prediction, row.outcome.value if row.outcome is not None else None


def enriched(anomaly: Anomaly, context: Sequence[ContextEntry], rows: Sequence[EvidenceRow]) -> EnrichedAnomaly:
    """The anomaly, every field of it, with its context and rows, and a mark if some were not to be had now."""
    fields = {**dict(anomaly), "context": list(context), "rows": list(rows)}
    reason = lacking(context, rows)
    if reason:
        fields["enrichment"] = Enrichment(status="partial", reason=reason)
    return EnrichedAnomaly.model_validate(fields)


def lacking(context: Sequence[ContextEntry], rows: Sequence[EvidenceRow]) -> str:
    """What was not to be had, though it may be later; the empty text if nothing. What is gone for good lacks nothing.

    >>> lacking([ContextEntry(name="changes", source="context", missing="unavailable")], [])
    'changes unavailable'
    """
    parts = (("changes", context), ("rows", rows))
    return ", ".join(f"{name} {UNAVAILABLE}" for name, part in parts if any(one.missing == UNAVAILABLE for one in part))
