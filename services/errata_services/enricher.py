"""The enricher: puts on each anomaly what had changed before its onset and the redacted rows it names."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Protocol

from errata.contracts import (
    Anomaly,
    ChangeEvent,
    ContextEntry,
    Contract,
    EnrichedAnomaly,
    EvidenceRow,
    Heartbeat,
    Outcome,
    PredictionEvent,
    RowRef,
)
from errata.contracts.cloudevents import cloud_event
from errata.contracts.reading import read_message
from errata.contracts.refusals import parse_change
from errata.contracts.strict import to_us
from errata.contracts.topics import ANOMALIES, CHANGES, ENRICH_TODO, ENRICHED, OUTCOMES, PREDICTIONS
from errata.contracts.versions import refused_version
from errata.domain.diagnosis.context import (
    MOST_CHANGES,
    OUT_OF_RETENTION,
    UNAVAILABLE,
    UNREADABLE,
    Role,
    change_entries,
    enriched,
    evidence_row,
    lacking,
    wanted_changes,
)
from errata.errors import Refused, Unavailable
from errata.ports import (
    ChangesFound,
    ContextIncomplete,
    ContextStore,
    DeadInput,
    Offsets,
    Outgoing,
    Record,
    StepResult,
    TopicPartition,
    Transport,
)
from errata.runtime.health import Health
from errata.runtime.heartbeats import pass_on, read_record
from errata.runtime.telemetry import BreakerState, CacheResult, Telemetry

ContractOf = Callable[[str, str], Contract | None]
OnProgress = Callable[[int, int], None]
Place = tuple[str, int, int]
Read = Anomaly | ChangeEvent | Heartbeat | Refused

ROWS_BUDGET_S: Final = 5.0  # for all rows of a batch, but for the read that passes it
CATCH_UP_S: Final = 2.0  # for a batch's findings to wait for changes that were published before them
REFILL_BATCH: Final = 1_000
LONG_TRY_S, REST = 1.0, 10  # a try for the context that fails after longer is rested from ten times as long
FILLED_AT_ONCE: Final = 100  # cases of a transaction
FILL_S, FILL_AGAIN_S = 1.0, 10.0  # until the next look at what lacks context: after one that filled some in, or none


@dataclass(frozen=True, slots=True)
class Prepared:
    """Per record of the batch what it holds or its refusal, and what was fetched for the anomalies.

    ``changes`` is in step with ``read``; None: the context was not to be had. A text in ``rows`` says why there is
    no record. So the gaps are data, and a step over them is as pure as any. Without records it holds anomalies that
    went on without context before, and ``places`` says in which partition each is noted.
    """

    read: Sequence[Read]
    changes: list[ChangesFound | None]
    rows: Mapping[Place, Record | str]
    contracts: Mapping[tuple[str, str], Contract | None]
    places: Sequence[int] = ()


class Breaker(Protocol):
    @property
    def state(self) -> BreakerState: ...


class Enricher:
    """The stage from ``errata.anomalies.v1`` to ``errata.enriched.v1``, keyed by case id.

    Changes come along as a side input and fill the context store, which all members share. A finding may be ahead of
    them, or have its changes in a partition of a member that is behind: so before each look-up a member asks where the
    topic of changes ends, and itself brings what it has not read of it, of all partitions, into the store. What was
    published before the finding is then there, whatever the others do. The store is filled from its topic, so it holds
    nothing that could be lost, and from the beginning when it has lost its content.

    Neither the store nor a row that cannot be read stops the stage or costs an event: the output has a marked gap. So
    it has when the changes cannot be read on to their end in `CATCH_UP_S`. Such an anomaly is noted in
    ``errata.enrich.todo`` by the same transaction. When what it lacks is to be had, it is put out once more, whole,
    under its ``seq``; the note is taken back by that transaction, or by one with a newer ``seq`` of the case that
    lacks nothing.
    """

    name = "enricher"
    input = ANOMALIES
    side_inputs: tuple[str, ...] = (CHANGES,)

    def __init__(
        self,
        store: ContextStore,
        transport: Transport,
        contract_of: ContractOf,
        key: bytes,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock_s``: seconds that never go back; bounds the time spent on what is not to be had."""
        self._store = store
        self._transport = transport
        self._contract_of = contract_of
        self._key = key
        self._clock_s = clock_s
        self._behind = True  # changes of our own partitions may not be in the store
        self._begun = False  # all of the topic was brought to the store once
        self._read_to: Offsets = {}  # up to where this member has brought each partition there
        self._rests_until_s: float | None = None
        self._open: dict[int, dict[str, int]] = {}  # by partition the cases that lack something, as of which seq
        self._noted: dict[tuple[int, str], int | None] = {}  # what the step changes of it; None: it lacks nothing now
        self._read_notes_to: dict[int, int] = {}
        self._next_fill_s = 0.0
        self._found: Prepared | None = None
        self.partial = self.filled = 0  # outputs that lack something, and that were filled in, since the start

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        """What was published before comes from the topic: the side input may begin behind it."""
        self._behind = True
        self._open[partition] = self._noted_in(partition)

    def revoke(self, partition: int) -> None:
        self._open.pop(partition, None)
        self._read_notes_to.pop(partition, None)

    @property
    def lacking(self) -> int:
        """Cases of our partitions that are to be filled in."""
        return sum(map(len, self._open.values()))

    def keep_up(self) -> None:
        """Bring to the store what it may lack, also while nothing comes."""
        self._changes([], (), ())

    def prepare(self, batch: Sequence[Record]) -> Prepared:
        """Changes, rows and contracts of the batch. What is not to be had costs the context, not the batch.

        With an empty batch, what `due` found, and what the store may lack is brought to it.
        """
        if not batch and self._found is not None:
            return self._found
        read = [_read(record) for record in batch]
        good = [message for message in read if isinstance(message, Anomaly)]
        found = iter(self._changes(good, batch, read))
        return Prepared(
            read=read,
            changes=[next(found) if isinstance(message, Anomaly) else None for message in read],
            rows=self._rows(good),
            contracts=self._contracts(good),
        )

    def due(self) -> bool:
        """Whether cases can be filled in now. Looks at some of them, from time to time."""
        if not self.lacking or self._behind or self._clock_s() < self._next_fill_s:
            return False
        self._found = self._fillable()
        self._next_fill_s = self._clock_s() + (FILL_S if self._found else FILL_AGAIN_S)
        return self._found is not None

    def step(self, batch: Sequence[Record], prepared: Prepared) -> StepResult:
        result = StepResult()
        self._noted.clear()
        if not batch:
            self._fill_in(result, prepared)
            return result
        for record, message, changes in zip(batch, prepared.read, prepared.changes, strict=True):
            if isinstance(message, Refused):
                result.dead.append(DeadInput(record, message))
            elif isinstance(message, Heartbeat):
                pass_on(result, message, ENRICHED, self.name, record.partition)
            elif isinstance(message, Anomaly):
                output = self._put_out(result, message, changes, prepared)
                self._note(result, record.partition, message, record.value if output.enrichment else None)
                seen_us = to_us(message.episode.last_seen)
                result.max_event_time_us = max(seen_us, result.max_event_time_us or seen_us)
        return result

    def commit(self) -> None:
        for (partition, case_id), seq in self._noted.items():
            if seq is not None:
                self.partial += 1
                self._open.setdefault(partition, {})[case_id] = seq
            elif self._open.get(partition, {}).pop(case_id, None) is not None and self._found is not None:
                self.filled += 1
        self.rollback()

    def rollback(self) -> None:
        self._noted.clear()
        self._found = None

    def _put_out(
        self, result: StepResult, anomaly: Anomaly, changes: ChangesFound | None, prepared: Prepared
    ) -> EnrichedAnomaly:
        output = enriched(anomaly, _entries(anomaly, changes), self._evidence(anomaly, prepared))
        headers = cloud_event(output, ENRICHED, self.name)
        result.outputs.append(Outgoing(ENRICHED, anomaly.episode.id.encode(), output.to_json(), headers))
        return output

    # What went on without context: noted, and filled in.

    def _note(self, result: StepResult, partition: int, anomaly: Anomaly, note: bytes | None) -> None:
        """Note an anomaly that lacks something; with None take back the note of its case, if there is one."""
        case_id = anomaly.episode.id
        noted = self._noted.get((partition, case_id), self._open.get(partition, {}).get(case_id))
        if note is None and noted is None:
            return
        self._noted[partition, case_id] = None if note is None else anomaly.episode.seq
        result.notes.append(Outgoing(ENRICH_TODO, case_id.encode(), note, partition=partition))

    def _fill_in(self, result: StepResult, prepared: Prepared) -> None:
        for partition, anomaly, changes in zip(prepared.places, prepared.read, prepared.changes, strict=True):
            if isinstance(anomaly, Anomaly):
                self._put_out(result, anomaly, changes, prepared)
                self._note(result, partition, anomaly, None)

    def _fillable(self) -> Prepared | None:
        """Some anomalies that lack something, with what they lack; None if none of it is to be had."""
        try:
            noted = self._some_noted()
        except Unavailable:
            return None
        anomalies = [anomaly for _, anomaly in noted]
        found = self._changes(anomalies, (), ())
        all_ = Prepared(anomalies, list(found), self._rows(anomalies), self._contracts(anomalies))
        whole = [
            at
            for at, (anomaly, changes) in enumerate(zip(anomalies, found, strict=True))
            if not lacking(_entries(anomaly, changes), self._evidence(anomaly, all_))
        ]
        if not whole:
            return None
        return replace(
            all_,
            read=[anomalies[at] for at in whole],
            changes=[found[at] for at in whole],
            places=[noted[at][0] for at in whole],
        )

    def _some_noted(self) -> list[tuple[int, Anomaly]]:
        """The next anomalies that lack something, from all partitions in turn; behind the last from the first again."""
        some: dict[tuple[int, str], Anomaly] = {}
        for partition, cases in sorted(self._open.items()):
            if not cases:
                continue
            for record in self._transport.read_from((ENRICH_TODO, partition), self._read_notes_to.get(partition, 0)):
                self._read_notes_to[partition] = record.offset + 1
                anomaly = _noted(record)
                if anomaly is not None and cases.get(anomaly.episode.id) == anomaly.episode.seq:
                    some[partition, anomaly.episode.id] = anomaly
                if len(some) >= FILLED_AT_ONCE:
                    return [(number, anomaly) for (number, _), anomaly in some.items()]
            self._read_notes_to[partition] = 0
        return [(number, anomaly) for (number, _), anomaly in some.items()]

    def _noted_in(self, partition: int) -> dict[str, int]:
        cases: dict[str, int] = {}
        for record in self._transport.read_from((ENRICH_TODO, partition)):
            anomaly = _noted(record)
            if anomaly is not None:
                cases[anomaly.episode.id] = anomaly.episode.seq
            else:
                cases.pop((record.key or b"").decode(errors="replace"), None)
        return cases

    def _contracts(self, anomalies: Sequence[Anomaly]) -> dict[tuple[str, str], Contract | None]:
        return {key: self._contract_of(*key) for key in {_model(anomaly) for anomaly in anomalies}}

    # What was known.

    def _changes(
        self, anomalies: Sequence[Anomaly], batch: Sequence[Record], read: Sequence[Read]
    ) -> Sequence[ChangesFound | None]:
        wanted = [wanted_changes(anomaly) for anomaly in anomalies]
        begun_s, read_to = self._clock_s(), dict(self._read_to)
        try:
            if self._rests_until_s is not None and begun_s < self._rests_until_s:
                raise Unavailable("the last try took long")
            return self._looked_up(wanted, batch, read)
        except Unavailable:
            self._behind = True
            took_s = self._clock_s() - begun_s
            if took_s > LONG_TRY_S and self._read_to == read_to:  # one that came nearer is worth the next
                self._rests_until_s = begun_s + REST * took_s
            return [None] * len(anomalies)

    def _looked_up(
        self,
        wanted: Sequence[tuple[str, str, int, int, int]],
        batch: Sequence[Record],
        read: Sequence[Read],
    ) -> list[ChangesFound]:
        try:
            if not self._behind:
                self._store_changes(batch, read)
            if self._behind or wanted:
                self._catch_up()
            return self._store.between(wanted, MOST_CHANGES) if wanted else []
        except ContextIncomplete:
            self._refill()
            return self._store.between(wanted, MOST_CHANGES) if wanted else []

    def _store_changes(self, batch: Sequence[Record], read: Sequence[Read]) -> None:
        """Changes as they come. They follow each other without a gap from before ``_read_to``: at their partition's
        assignment it was brought to the end of the topic."""
        seen = [(record, change) for record, change in zip(batch, read, strict=True) if record.topic == CHANGES]
        changes = [(change, record.timestamp_us) for record, change in seen if isinstance(change, ChangeEvent)]
        if changes:
            self._store.add(changes)
        for record, _ in seen:
            place = record.topic, record.partition
            self._read_to[place] = max(self._read_to.get(place, 0), record.offset + 1)

    def _catch_up(self) -> None:
        """Bring all that was published before now into the store, at the first time however long it takes."""
        until_s = self._clock_s() + CATCH_UP_S
        ends = self._transport.end_offsets(_places(self._transport), timeout_s=CATCH_UP_S)
        ahead = {place: end for place, end in ends.items() if self._read_to.get(place, 0) < end}
        if ahead:
            self._store.between([])  # raises while it is down: then its topic need not be read
        for place, end in sorted(ahead.items()):
            left_s = until_s - self._clock_s() if self._begun else None
            if left_s is not None and left_s <= 0:
                raise Unavailable(f"reading {CHANGES} took longer than {CATCH_UP_S:g} s")
            self._read_on(place, left_s)
            self._read_to[place] = max(self._read_to.get(place, 0), end)  # behind what is no record, too
        self._behind, self._begun = False, True

    def _read_on(self, place: TopicPartition, timeout_s: float | None) -> None:
        for changes, next_offset in _read_changes(self._transport, place, self._read_to.get(place, 0), timeout_s):
            self._store.add(changes)
            self._read_to[place] = next_offset

    def _refill(self) -> None:
        ends = self._transport.end_offsets(_places(self._transport))
        rebuild_context(self._transport, self._store)
        self._read_to = ends
        self._behind, self._begun = False, True

    def _rows(self, anomalies: Sequence[Anomaly]) -> dict[Place, Record | str]:
        """Every row the anomalies name, by one read a partition; a read that fails costs its rows."""
        wanted: dict[TopicPartition, set[int]] = {}
        rows: dict[Place, Record | str] = {}
        for anomaly in anomalies:
            for ref in (*anomaly.exemplars, *anomaly.controls):
                if self._holds_rows(ref):
                    wanted.setdefault((ref.topic, ref.partition), set()).add(ref.offset)
                else:
                    rows[ref.topic, ref.partition, ref.offset] = UNREADABLE
        until_s = self._clock_s() + ROWS_BUDGET_S
        for place, offsets in wanted.items():
            in_order = sorted(offsets)
            found = self._read_at(place, in_order) if self._clock_s() < until_s else [UNAVAILABLE] * len(in_order)
            rows.update({(*place, offset): row for offset, row in zip(in_order, found, strict=True)})
        return rows

    def _holds_rows(self, ref: RowRef) -> bool:
        """A reference may name no other topic: none of ours does, and what it names ends up on a case."""
        return ref.topic in (PREDICTIONS, OUTCOMES) and ref.partition < self._transport.partitions(ref.topic)

    def _read_at(self, place: TopicPartition, offsets: Sequence[int]) -> Sequence[Record | str]:
        try:
            found = self._transport.read_at(place, offsets)
        except Unavailable:
            return [UNAVAILABLE] * len(offsets)
        return [OUT_OF_RETENTION if record is None else record for record in found]

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


class Measured(Protocol):
    """A context store on a server, with what it counts from its start: calls that failed, and its cache's."""

    errors: int

    @property
    def breaker(self) -> Breaker: ...
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def evicted(self) -> int: ...


class StoreReport:
    """Tells what a context store and an enricher count as metrics, and the breaker: called after batches, never within
    a step."""

    def __init__(self, store: Measured, telemetry: Telemetry, health: Health, enricher: Enricher | None = None) -> None:
        """With ``enricher`` also what it put out without context, and filled in."""
        self._store, self._telemetry, self._health, self._enricher = store, telemetry, health, enricher
        self._told: dict[str, int] = {}
        self()

    def __call__(self) -> None:
        store = self._store
        for _ in range(self._since("errors", store.errors)):
            self._telemetry.store_failed("redis")
        lookups: tuple[tuple[CacheResult, int], ...] = (
            ("hit", store.hits), ("miss", store.misses), ("evicted", store.evicted),
        )  # fmt: skip
        for result, count in lookups:
            if more := self._since(result, count):
                self._telemetry.cached(result, more)
        if self._enricher is not None:
            partial = self._since("partial", self._enricher.partial)
            filled = self._since("filled", self._enricher.filled)
            self._telemetry.enriched(partial, filled, self._enricher.lacking)
        self._telemetry.breaker("redis", store.breaker.state)
        self._health.breaker("redis", store.breaker.state, required=False)

    def _since(self, what: str, count: int) -> int:
        more = count - self._told.get(what, 0)
        self._told[what] = count
        return more


def rebuild_context(transport: Transport, store: ContextStore, on_progress: OnProgress | None = None) -> int:
    """Fill ``store`` with every change of the topic as it is now; the number of changes. A store that has some loses
    none of them. ``on_progress`` is told offsets done and all. Raises ``Unavailable`` when the store or the log does
    not answer; to begin again does no harm."""
    ends = transport.end_offsets(_places(transport))
    total = sum(ends.values())

    def batches() -> Iterator[list[tuple[ChangeEvent, int]]]:
        done = 0
        for place, end in ends.items():
            for changes, next_offset in _read_changes(transport, place):
                yield changes
                if on_progress is not None:
                    on_progress(done + min(next_offset, end), total)
            done += end
        if on_progress is not None:
            on_progress(done, total)

    return store.fill(batches())


def _places(transport: Transport) -> list[TopicPartition]:
    return [(CHANGES, partition) for partition in range(transport.partitions(CHANGES))]


def _entries(anomaly: Anomaly, found: ChangesFound | None) -> list[ContextEntry]:
    return change_entries(anomaly, None) if found is None else change_entries(anomaly, found.changes, found.left_out)


def _read_changes(
    transport: Transport, place: TopicPartition, offset: int = 0, timeout_s: float | None = None
) -> Iterator[tuple[list[tuple[ChangeEvent, int]], int]]:
    """The changes of a partition in batches, each with the offset after it. What is no change is passed over."""
    records = transport.read_from(place, offset, timeout_s=timeout_s)
    while batch := list(islice(records, REFILL_BATCH)):
        read = [(_read(record), record.timestamp_us) for record in batch]
        yield [(change, seen_us) for change, seen_us in read if isinstance(change, ChangeEvent)], batch[-1].offset + 1


def _read(record: Record) -> Read:
    if record.topic != CHANGES:
        return read_record(Anomaly, record)
    other = refused_version(CHANGES, record.headers)
    if other is not None:
        return other
    try:
        return parse_change(record.value or b"", record_time_us=record.timestamp_us)
    except Refused as refusal:
        return refusal


def _noted(record: Record) -> Anomaly | None:
    """The anomaly of a note; None for one that was taken back, or that nobody of us wrote."""
    anomaly = read_message(Anomaly, record.value) if record.value is not None else None
    return anomaly if isinstance(anomaly, Anomaly) else None


def _model(anomaly: Anomaly) -> tuple[str, str]:
    return anomaly.tenant, anomaly.model.name


def _read_row(ref: RowRef, rows: Mapping[Place, Record | str]) -> PredictionEvent | Outcome | str:
    """The message at ``ref``, or why there is none: gone, or not what the reference says it is."""
    record = rows[ref.topic, ref.partition, ref.offset]
    if isinstance(record, str):
        return record
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
