"""The enricher: puts on each anomaly what had changed before its onset and the redacted rows it names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from errata.contracts import Anomaly, ChangeEvent, Contract, EvidenceRow, Outcome, PredictionEvent, RowRef
from errata.contracts.cloudevents import cloud_event
from errata.contracts.reading import read_message
from errata.contracts.refusals import parse_change
from errata.contracts.strict import to_us
from errata.contracts.topics import ANOMALIES, CHANGES, ENRICHED, OUTCOMES
from errata.domain.diagnosis.context import (
    OUT_OF_RETENTION,
    UNREADABLE,
    Role,
    change_entries,
    enriched,
    evidence_row,
    wanted_changes,
)
from errata.errors import Refused, Unavailable
from errata.ports import (
    ContextStore,
    DeadInput,
    Outgoing,
    Record,
    StepResult,
    TopicPartition,
    Transport,
)

ContractOf = Callable[[str, str], Contract | None]
Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Per record of the batch its anomaly or refusal, and what was fetched for them.

    ``changes`` is in step with ``read``; None: the context was not to be had.
    """

    read: list[Anomaly | ChangeEvent | Refused]
    changes: list[list[ChangeEvent] | None]
    rows: Mapping[Place, Record | None]
    contracts: Mapping[tuple[str, str], Contract | None]


class Enricher:
    """The stage from ``errata.anomalies.v1`` to ``errata.enriched.v1``, keyed by case id.

    Changes come along as a side input and fill the context store, which is rebuilt from their topic whenever
    partitions are assigned: so it holds nothing that could be lost.
    """

    name = "enricher"
    input = ANOMALIES
    side_inputs: tuple[str, ...] = (CHANGES,)

    def __init__(self, store: ContextStore, transport: Transport, contract_of: ContractOf, key: bytes) -> None:
        self._store = store
        self._transport = transport
        self._contract_of = contract_of
        self._key = key
        self._unstored: list[tuple[ChangeEvent, int]] = []  # until the store answers again

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        for record in self._transport.read_from((CHANGES, partition)):
            change = _read(record)
            if isinstance(change, ChangeEvent):
                self._unstored.append((change, record.timestamp_us))

    def revoke(self, partition: int) -> None:
        pass

    def prepare(self, batch: Sequence[Record]) -> Prepared:
        """Changes, rows and contracts of the batch. A context store that is down costs the context, not the batch."""
        read = [_read(record) for record in batch]
        self._unstored += [
            (message, record.timestamp_us)
            for record, message in zip(batch, read, strict=True)
            if isinstance(message, ChangeEvent)
        ]
        good = [message for message in read if isinstance(message, Anomaly)]
        found = iter(self._changes(good))
        return Prepared(
            read=read,
            changes=[next(found) if isinstance(message, Anomaly) else None for message in read],
            rows=self._rows(good),
            contracts={key: self._contract_of(*key) for key in {_model(anomaly) for anomaly in good}},
        )

    def step(self, batch: Sequence[Record], prepared: Prepared) -> StepResult:
        result = StepResult()
        for record, message, changes in zip(batch, prepared.read, prepared.changes, strict=True):
            if isinstance(message, Refused):
                result.dead.append(DeadInput(record, message))
            elif isinstance(message, Anomaly):
                rows = self._evidence(message, prepared)
                output = enriched(message, change_entries(message, changes), rows)
                headers = cloud_event(output, ENRICHED, self.name)
                result.outputs.append(Outgoing(ENRICHED, message.episode.id.encode(), output.to_json(), headers))
                seen_us = to_us(message.episode.last_seen)
                result.max_event_time_us = max(seen_us, result.max_event_time_us or seen_us)
        return result

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    def _changes(self, anomalies: Sequence[Anomaly]) -> list[list[ChangeEvent] | None]:
        try:
            if self._unstored:
                self._store.add(self._unstored)
                self._unstored = []
            return list(self._store.between([wanted_changes(anomaly) for anomaly in anomalies]))
        except Unavailable:
            return [None] * len(anomalies)

    def _rows(self, anomalies: Sequence[Anomaly]) -> dict[Place, Record | None]:
        wanted: dict[TopicPartition, set[int]] = {}
        for anomaly in anomalies:
            for ref in (*anomaly.exemplars, *anomaly.controls):
                wanted.setdefault((ref.topic, ref.partition), set()).add(ref.offset)
        rows: dict[Place, Record | None] = {}
        for place, offsets in wanted.items():
            in_order = sorted(offsets)
            for offset, record in zip(in_order, self._transport.read_at(place, in_order), strict=True):
                rows[*place, offset] = record
        return rows

    def _evidence(self, anomaly: Anomaly, prepared: Prepared) -> list[EvidenceRow]:
        contract = prepared.contracts[_model(anomaly)]
        roles: tuple[tuple[Role, Sequence[RowRef]], ...] = (
            ("exemplar", anomaly.exemplars),
            ("control", anomaly.controls),
        )
        return [
            evidence_row(role, ref, _read_row(ref, prepared.rows), contract, self._key)
            for role, refs in roles
            for ref in refs
        ]


def _read(record: Record) -> Anomaly | ChangeEvent | Refused:
    if record.topic != CHANGES:
        return read_message(Anomaly, record.value)
    try:
        return parse_change(record.value or b"", record_time_us=record.timestamp_us)
    except Refused as refusal:
        return refusal


def _model(anomaly: Anomaly) -> tuple[str, str]:
    return anomaly.tenant, anomaly.model.name


def _read_row(ref: RowRef, rows: Mapping[Place, Record | None]) -> PredictionEvent | Outcome | str:
    """The message at ``ref``, or why there is none: gone, or not what the reference says it is."""
    record = rows[ref.topic, ref.partition, ref.offset]
    if record is None:
        return OUT_OF_RETENTION
    row: PredictionEvent | Outcome | Refused
    row = read_message(Outcome, record.value) if ref.topic == OUTCOMES else read_message(PredictionEvent, record.value)
    if isinstance(row, Refused) or ref.prediction_id not in _ids(row):
        return UNREADABLE
    return row


def _ids(row: PredictionEvent | Outcome) -> set[str]:
    """The ids a reference may call this row by; an outcome without a prediction id has the empty one."""
    if isinstance(row, Outcome):
        return {row.outcome_id, row.prediction_id or ""}
    return {row.event_id, row.prediction_id or row.event_id}
