"""The enricher: puts on each anomaly what had changed before its onset and the redacted rows it names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from errata.contracts import Anomaly, ChangeEvent, Contract, EvidenceRow, Outcome, PredictionEvent, RowRef
from errata.contracts.reading import read_message
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
    RecordReader,
    StepResult,
    TopicPartition,
    Transport,
)

ContractOf = Callable[[str, str], Contract | None]
Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one reading of the changes brought, and where the next one begins."""

    changes: list[tuple[ChangeEvent, int]]
    dead: list[DeadInput]
    positions: dict[TopicPartition, int]


class ChangeFeed:
    """Brings ``errata.changes.v1`` into a context store: all partitions, from their start, outside any group.

    Positions live in memory, because the store they fill can be rebuilt from the topic at any time.
    """

    def __init__(self, transport: Transport, store: ContextStore) -> None:
        self._transport = transport
        self._store = store
        self._positions: dict[TopicPartition, int] = {}

    def pull(self) -> Pulled:
        """What is new since the last ``push``. Raises ``Unavailable`` if the topic does not answer."""
        found: list[tuple[ChangeEvent, int]] = []
        dead: list[DeadInput] = []
        positions = dict(self._positions)
        for partition in range(self._transport.partitions(CHANGES)):
            place = (CHANGES, partition)
            for record in self._transport.read_from(place, positions.get(place, 0)):
                positions[place] = record.offset + 1
                change = read_message(ChangeEvent, record.value)
                if isinstance(change, Refused):
                    dead.append(DeadInput(record, change))
                else:
                    found.append((change, record.timestamp_us))
        return Pulled(found, dead, positions)

    def push(self, pulled: Pulled) -> list[DeadInput]:
        """Store it and move on; returns what is no ``ChangeEvent``, each record once in the life of this feed.

        Raises ``Unavailable``, and pulls the same again next time, if the store does not answer.
        """
        if pulled.changes:
            self._store.add(pulled.changes)
        self._positions = pulled.positions
        return pulled.dead


@dataclass(frozen=True, slots=True)
class Prepared:
    """Per record of the batch its anomaly or refusal, and what was fetched for them.

    ``changes`` is in step with ``anomalies``; None: the context was not to be had.
    """

    anomalies: list[Anomaly | Refused]
    changes: list[list[ChangeEvent] | None]
    rows: Mapping[Place, Record | None]
    contracts: Mapping[tuple[str, str], Contract | None]


class Enricher:
    """The stage from ``errata.anomalies.v1`` to ``errata.enriched.v1``, keyed by case id. Holds no state."""

    name = "enricher"
    input = ANOMALIES
    side_inputs: tuple[str, ...] = ()

    def __init__(
        self, store: ContextStore, reader: RecordReader, contract_of: ContractOf, key: bytes, feed: ChangeFeed
    ) -> None:
        self._store = store
        self._reader = reader
        self._contract_of = contract_of
        self._key = key
        self._feed = feed
        self._dead_changes: list[DeadInput] = []
        self._dead_in_step = 0

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        pass

    def revoke(self, partition: int) -> None:
        pass

    def prepare(self, batch: Sequence[Record]) -> Prepared:
        """Changes, rows and contracts of the batch. A context store that is down costs the context, not the batch."""
        anomalies = [read_message(Anomaly, record.value) for record in batch]
        good = [anomaly for anomaly in anomalies if not isinstance(anomaly, Refused)]
        found = iter(self._changes(good))
        return Prepared(
            anomalies=list(anomalies),
            changes=[None if isinstance(anomaly, Refused) else next(found) for anomaly in anomalies],
            rows=self._rows(good),
            contracts={key: self._contract_of(*key) for key in {_model(anomaly) for anomaly in good}},
        )

    def step(self, batch: Sequence[Record], prepared: Prepared) -> StepResult:
        result = StepResult(dead=list(self._dead_changes))
        self._dead_in_step = len(self._dead_changes)
        for record, anomaly, changes in zip(batch, prepared.anomalies, prepared.changes, strict=True):
            if isinstance(anomaly, Refused):
                result.dead.append(DeadInput(record, anomaly))
                continue
            message = enriched(anomaly, change_entries(anomaly, changes), self._evidence(anomaly, prepared))
            result.outputs.append(Outgoing(ENRICHED, anomaly.episode.id.encode(), message.to_json()))
            seen_us = to_us(anomaly.episode.last_seen)
            result.max_event_time_us = max(seen_us, result.max_event_time_us or seen_us)
        return result

    def commit(self) -> None:
        del self._dead_changes[: self._dead_in_step]
        self._dead_in_step = 0

    def rollback(self) -> None:
        self._dead_in_step = 0

    def _changes(self, anomalies: Sequence[Anomaly]) -> list[list[ChangeEvent] | None]:
        pulled = self._feed.pull()
        try:
            self._dead_changes += self._feed.push(pulled)
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
            for offset, record in zip(in_order, self._reader.read_at(place, in_order), strict=True):
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
