"""The anomaly detector: predictions and outcomes in, episodes out.

Around the pure engine: decoding by the models' layouts, removal of duplicates, state by slot as changelog entries.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Any

import numpy as np

from errata.contracts import Anomaly, Contract, Heartbeat, Reference, canonical
from errata.contracts.cloudevents import cloud_event
from errata.contracts.strict import instant
from errata.contracts.topics import (
    ANOMALIES,
    CONTRACTS,
    OUTCOMES,
    PREDICTIONS,
    REFERENCES,
    STAGES,
    model_key,
    state_topic,
)
from errata.domain.array_codec import PlainJson, pack_arrays, pack_json, unpack_alike, unpack_arrays, unpack_json
from errata.domain.columns import PURPOSES, Batch, Beat, Ints, Layout, Outcomes, Predictions
from errata.domain.detection.anomalies import anomaly_of, case_id, config_hash
from errata.domain.detection.engine import DETECTORS, LABEL_DETECTORS, Engine, Judged, clamped
from errata.domain.detection.identity import BLOCK, Hashes, SeenIds
from errata.domain.detection.keeping import BASE_BYTES, Arrivals, Departed, Departures, Keeper, Limits, Reason
from errata.domain.detection.profile import Profile, compile_profile
from errata.domain.detection.runs import flatnonzero
from errata.domain.detection.state import (
    BLOCK_SCHEMA,
    DEPARTED_SCHEMA,
    IDS_SCHEMA,
    NOBODY,
    SLOT_SCHEMA,
    TABLES_SCHEMA,
    Slot,
    State,
    slot_bytes,
)
from errata.domain.detection.statistics import G_SHARE, PSI_MIN, WINDOW, WINDOW_MIN
from errata.domain.layouts import compile_layout
from errata.domain.partitioner import partition_of
from errata.errors import StateDamaged
from errata.ports import DeadInput, Decoder, Outgoing, Record, StateChange, StepResult, Transport
from errata.runtime.changelog import TABLE_KEY
from errata.runtime.heartbeats import heartbeat_record, note_heartbeat
from errata.runtime.tables import Table
from errata.runtime.telemetry import NoTelemetry, Telemetry

REKEYED = "errata-rekeyed"  # header of a record that was sent to its place
MAX_HOMES = 65_536  # models whose partition is kept, and slots whose key is
IDS, BLOCK_OF_IDS, DEPARTED, SLOT = b"ids", b"ids:", b"departed", b'["slot",'
VERSIONS = {d.id: d.version for d in DETECTORS} | {d.id: d.version for d in LABEL_DETECTORS}
CONFIG_HASH = config_hash(
    sorted(VERSIONS.items()),
    {"window": WINDOW, "window_min": WINDOW_MIN, "psi_min": PSI_MIN, "g_share": G_SHARE},
)


class AnomalyDetector:
    """The first stage of the chain, as `errata.ports.Stage`."""

    name = STAGES[0]
    input = PREDICTIONS
    side_inputs: tuple[str, ...] = (OUTCOMES,)
    state_topic = state_topic(STAGES[0])
    # Configurations whose state this one goes on from, each with why it may. Any other stops the stage.
    migrates: Mapping[str, str] = {}

    def __init__(
        self,
        transport: Transport,
        decoder: Decoder,
        *,
        rekeys: bool = False,
        tables_every_s: float = 0.0,
        telemetry: Telemetry | None = None,
        plain: PlainJson = canonical,
        limits: Limits | None = None,
    ) -> None:
        """``rekeys``: records may come from strangers, with another key or in another partition than their model's.
        ``tables_every_s``: seconds between two looks for new contracts and references. ``plain``
        writes plain data of the state as JSON. ``limits``: how much state a partition may have, and for how long."""
        self._decoder = decoder
        self._plain = plain
        self._telemetry: Telemetry = telemetry or NoTelemetry()
        self._partitions = {topic: transport.partitions(topic) for topic in (PREDICTIONS, OUTCOMES)} if rekeys else {}
        self._homes: dict[bytes, int] = {}
        self._contracts = Table(transport, CONTRACTS, Contract, every_s=tables_every_s)
        self._references = Table(transport, REFERENCES, Reference, every_s=tables_every_s)
        self._layouts: dict[bytes, Layout] = {}
        self._profiles: dict[int, Profile] = {}
        self._state = State()
        self._engine = Engine(self._state)
        self._keeper = Keeper(limits or Limits())
        self._departed: dict[int, Departed] = {}
        self._expired: dict[int, dict[bytes, None]] = {}  # keys that await a tombstone
        self._gone: dict[Reason, int] = {}  # slots that left in this batch
        self._seen: dict[int, SeenIds] = {}
        self._committed: dict[int, dict[bytes, bytes]] = {}  # without the blocks of ids
        self._pending: list[StateChange] = []
        self._tables_in_force: dict[int, dict[str, list[object]]] = {}
        self.judged = Judged()
        self._refresh_tables()

    # -- tables -------------------------------------------------------------------------------------------------------

    def _refresh_tables(self) -> None:
        changed = self._contracts.refresh() | self._references.refresh()
        if changed:
            self._telemetry.known_models(model_key(*of).decode() for of in changed)
        for tenant, model in changed:
            contract, reference = self._contracts.get(tenant, model), self._references.get(tenant, model)
            layout = compile_layout(tenant, model, contract, reference)
            self._layouts[model_key(tenant, model)] = layout
            for purpose in PURPOSES:
                index = self._state.by_key.get((tenant, model, purpose))
                if index is not None:
                    self._state.replace_profile(self._state.slot(index), self._profile(layout))

    def _profile(self, layout: Layout) -> Profile:
        if not (layout.contract or layout.reference):
            return compile_profile(layout)  # the one of all such models
        known = self._profiles.get(id(layout))
        if known is None or known.layout is not layout:
            known = self._profiles[id(layout)] = compile_profile(layout)
        return known

    # -- the stage ----------------------------------------------------------------------------------------------------

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        taken, blocks = self._restore(partition, entries)
        self._seen.pop(partition, None)
        if taken:  # else its memory comes with its first id: a partition without events needs none
            self._seen[partition] = SeenIds()
            self._seen[partition].rewind(taken, blocks)

    def _restore(self, partition: int, entries: Mapping[bytes, bytes]) -> tuple[int, dict[int, Hashes]]:
        """All but the ids, of which it says how many came, and what the entries hold of them."""
        blocks: dict[int, Hashes] = {}
        slots = []
        taken = 0
        for key, value in sorted(entries.items()):
            if key == TABLE_KEY:
                self._tables_in_force[partition] = TABLES_SCHEMA.read(*unpack_json(value))
            elif key == IDS:
                taken = int(IDS_SCHEMA.read(*unpack_json(value))["taken"])
            elif key.startswith(BLOCK_OF_IDS):
                version, _, arrays = unpack_arrays(value)
                blocks[int(key[len(BLOCK_OF_IDS) :])] = BLOCK_SCHEMA.read(version, arrays)["ids"]
            elif key == DEPARTED:
                version, _, arrays = unpack_arrays(value)
                self._departed[partition] = Departed.of_arrays(DEPARTED_SCHEMA.read(version, arrays))
            elif key.startswith(SLOT):
                slots.append(value)
            else:
                raise StateDamaged("foreign_key: it holds a key that this stage does not write")
        self._restore_slots(partition, slots)
        self._keeper.forget(partition)
        self._committed[partition] = {key: value for key, value in entries.items() if not key.startswith(BLOCK_OF_IDS)}
        return taken, blocks

    def _restore_slots(self, partition: int, values: Sequence[bytes]) -> None:
        for alike in unpack_alike(values):
            if alike.schema_version == SLOT_SCHEMA.version:
                self._state.unpack(partition, self._profiles_of(alike.metas), alike.metas, alike.arrays)
                continue
            for at, old in enumerate(alike.metas):  # each is brought to this form by itself
                content = old, {name: array[at] for name, array in alike.arrays.items()}
                meta, arrays = SLOT_SCHEMA.read(alike.schema_version, content)
                of_one = {name: array[np.newaxis] for name, array in arrays.items()}
                self._state.unpack(partition, self._profiles_of([meta]), [meta], of_one)

    def _profiles_of(self, metas: Sequence[Mapping[str, Any]]) -> list[Profile]:
        """What each packed slot is judged by today."""
        known = {(layout.tenant, layout.model): layout for layout in self._layouts.values()}
        layouts = [known.get((meta["slot"][0], meta["slot"][1])) for meta in metas]
        return [self._profile(layout) if layout else NOBODY for layout in layouts]

    def revoke(self, partition: int) -> None:
        for slot in self._state.slots_of(partition):
            self._state.remove(slot)
        for held in (self._seen, self._committed, self._tables_in_force, self._departed, self._expired):
            held.pop(partition, None)
        self._keeper.forget(partition)

    def prepare(self, batch: Sequence[Record]) -> None:
        self._refresh_tables()

    def step(self, batch: Sequence[Record], prepared: None) -> StepResult:
        decoded = self._decoder.decode(batch, self._layouts)
        strays = self._strays(batch, decoded)
        rekeyed = [_rekeyed(batch[index], key) for index, key in strays.items()]
        if strays:
            batch = [record for index, record in enumerate(batch) if index not in strays]
            decoded = self._decoder.decode(batch, self._layouts)
        taken = {partition: seen.taken for partition, seen in self._seen.items()}
        deleted, duplicates = self._judge_all(batch, decoded)
        result = StepResult()
        result.outputs = [
            self._output(anomaly_of(slot, move, VERSIONS, CONFIG_HASH)) for slot, move in self.judged.moves
        ]
        if decoded.beats:
            self._pass_on(decoded.beats, result)
        result.dead = [DeadInput(batch[refusal.record], refusal.refusal) for refusal in decoded.refused]
        result.dropped = {reason: len(records) for reason, records in decoded.skipped.items() if records}
        if rekeyed:
            result.rekeyed = rekeyed
            result.dropped["rekeyed"] = len(rekeyed)
        if duplicates:
            result.dropped["duplicate"] = duplicates
        result.changes = [*self._changes(batch, taken), *deleted]
        if len(decoded.predictions):
            rows = decoded.predictions
            result.max_event_time_us = int(clamped(rows.time_us, rows.record_time_us).max())
        self._pending = result.changes
        return result

    # -- judging, between slots that leave --------------------------------------------------------------------------

    def _judge_all(self, batch: Sequence[Record], decoded: Batch) -> tuple[list[StateChange], int]:
        """Judge a batch, cut where slots leave: the tombstones of those, and the number of duplicates."""
        self.judged, self._gone = Judged(), {}
        start, duplicates, reached = 0, 0, False
        tombstones: dict[tuple[int, bytes], None] = {}
        rest = decoded
        while True:
            arrivals, known = self._arrivals(rest)
            leaving = self._keeper.next_departures(self._state, arrivals, after_first=reached)
            if leaving is None:
                duplicates += self._judge(batch[start:], rest, start, known)
                break
            reached = leaving.record == 0
            if reached:
                tombstones |= dict.fromkeys(self._depart(leaving, start))
            else:  # who leaves then depends on what comes before
                part = batch[start : start + leaving.record]
                duplicates += self._judge(part, self._decoder.decode(part, self._layouts), start)
                start += leaving.record
                rest = self._decoder.decode(batch[start:], self._layouts)
        self._sweep(tombstones)
        held = {(slot.partition, _slot_key(slot)) for slot in self.slots} if tombstones else set()
        deleted = [StateChange(*place, None) for place in tombstones if place not in held]
        return [*deleted, *self._departed_changes(tombstones)], duplicates

    def _judge(
        self, batch: Sequence[Record], decoded: Batch, start: int, known: tuple[Ints | None, Ints | None] = (None, None)
    ) -> int:
        """One part of a batch, which begins at record ``start`` of it; the number of duplicates. ``known``: what
        `_known_slots` says of its predictions and outcomes, where it was asked already."""
        slots = self._slots_of(decoded.predictions, decoded, known[0])
        outcome_slots = self._slots_of(decoded.outcomes, decoded, known[1])
        keep, keep_outcomes = self._distinct(decoded)
        judged = self._engine.step(
            decoded, slots, outcome_slots, keep, keep_outcomes, lambda record, slot: self._case_id(batch[record], slot)
        )
        for rows, of_rows in ((decoded.predictions, slots), (decoded.outcomes, outcome_slots)):
            np.maximum.at(self._state.seen_us, of_rows, rows.record_time_us)
            judged.touched.update(flatnonzero(np.bincount(of_rows)).tolist())
        if start:
            judged.moves = [(slot, replace(move, record=move.record + start)) for slot, move in judged.moves]
        self.judged.add(judged)
        return int((~keep).sum() + (~keep_outcomes).sum())

    def _arrivals(self, decoded: Batch) -> tuple[Arrivals, tuple[Ints, Ints]]:
        """Rows and ticks in receipt order, with the slots there are before any of them is judged; and these slots by
        themselves, of predictions and of outcomes."""
        p, o, ticks = decoded.predictions, decoded.outcomes, decoded.ticks
        new_bytes: list[int] = []
        known = self._known_slots(p, decoded, new_bytes), self._known_slots(o, decoded, new_bytes)
        record = np.concatenate([p.record, o.record, np.array([tick.record for tick in ticks], np.int64)])
        order = np.argsort(record, kind="stable")
        ticked = [np.array(column, np.int64) for column in (
            [tick.partition for tick in ticks], [tick.record_time_us for tick in ticks], [-1] * len(ticks),
        )]  # fmt: skip
        arrivals = Arrivals(
            record[order],
            np.concatenate([p.partition, o.partition, ticked[0]])[order],
            np.concatenate([p.record_time_us, o.record_time_us, ticked[1]])[order],
            np.concatenate([*known, ticked[2]])[order],
            new_bytes,
        )
        return arrivals, known

    def _known_slots(self, rows: Predictions | Outcomes, batch: Batch, new_bytes: list[int]) -> Ints:
        """The slot of each row, −2 − n for one that is not there yet; its bytes are added to ``new_bytes``."""
        pairs = rows.layout * len(PURPOSES) + rows.purpose
        there = flatnonzero(np.bincount(pairs))
        found: list[int] = []
        get, layouts, n = self._state.by_key.get, batch.layouts, len(PURPOSES)
        for pair in there.tolist():
            layout = layouts[pair // n]
            slot = get((layout.tenant, layout.model, PURPOSES[pair % n]))
            if slot is None:
                slot = -2 - len(new_bytes)
                new_bytes.append(slot_bytes(self._profile(layout)))
            found.append(slot)
        slots = np.zeros(len(batch.layouts) * len(PURPOSES), np.int64)
        slots[there] = found
        of_rows: Ints = slots[pairs]
        return of_rows

    def _depart(self, leaving: Departures, record: int) -> list[tuple[int, bytes]]:
        """Let slots go, and end their open episodes: nothing else would. The places of tombstones due at once."""
        due: list[tuple[int, bytes]] = []
        left: dict[int, tuple[int, Reason]] = {}
        for slot, reason in leaving.slots:
            key = _slot_key(slot)
            move = slot.episodes.give_up(record, leaving.time_us, reason)
            if move is not None:
                self.judged.moves.append((slot, move))
            if reason == "bound" or move is not None:
                due.append((leaving.partition, key))
            else:
                self._expired.setdefault(leaving.partition, {})[key] = None
            left[_hash_of(key)] = (int(self._state.seen_us[slot.index]), reason)
            self._gone[reason] = self._gone.get(reason, 0) + 1
            self.judged.touched.discard(slot.index)
            self._state.remove(slot)
        self._departed.setdefault(leaving.partition, Departed()).add(left)
        return due

    def _sweep(self, tombstones: dict[tuple[int, bytes], None]) -> None:
        """Add tombstones of expired slots, as many as a transaction may write; those left wait for the next."""
        most = self._keeper.limits.sweep
        for partition, keys in self._expired.items():
            for key in list(keys)[: max(0, most - len(tombstones))]:
                del keys[key]
                tombstones[partition, key] = None

    def _departed_changes(self, tombstones: Mapping[tuple[int, bytes], None]) -> list[StateChange]:
        return [
            StateChange(
                partition,
                DEPARTED,
                pack_arrays(DEPARTED_SCHEMA.version, {}, self._departed[partition].to_arrays(), self._plain),
            )
            for partition in sorted({partition for partition, _ in tombstones})
        ]

    def _output(self, message: Anomaly) -> Outgoing:
        headers = cloud_event(message, ANOMALIES, self.name)
        return Outgoing(ANOMALIES, message.episode.id.encode(), message.to_json(), headers)

    def _pass_on(self, beats: Sequence[Beat], result: StepResult) -> None:
        """Heartbeats among the outputs, in receipt order, to the partitions they came from."""
        placed = [(move.record, output) for (_, move), output in zip(self.judged.moves, result.outputs, strict=True)]
        for beat in beats:
            message = Heartbeat(heartbeat_id=beat.heartbeat_id, time=instant(beat.time_us), partition=beat.partition)
            placed.append((beat.record, heartbeat_record(message, ANOMALIES, self.name, beat.partition)))
            note_heartbeat(result, beat.time_us)
        result.outputs = [output for _, output in sorted(placed, key=lambda pair: pair[0])]

    def commit(self) -> None:
        if self.judged.findings:
            self._telemetry.detected(self.judged.findings)
        if self.judged.late or self.judged.clamped:
            self._telemetry.mistimed({"late": self.judged.late, "clamped": self.judged.clamped})
        for change in self._pending:
            if change.value is None:
                self._committed[change.partition].pop(change.key, None)
            elif not change.key.startswith(BLOCK_OF_IDS):
                self._committed[change.partition][change.key] = change.value
        for seen in self._seen.values():
            seen.settle()
        self._pending = []
        if self._gone:
            self._telemetry.evicted(self._gone)
        if self._state.is_sparse:
            self._state.compact()
        self._telemetry.state_held(self.held_bytes, self._keeper.limits.state_bytes)

    def rollback(self) -> None:
        """Back to the last commit: the state is made anew from its committed entries, but for the ids, which are many
        and know themselves what the last steps changed."""
        committed, seen, self._pending = self._committed, self._seen, []
        self._state = State()
        self._engine = Engine(self._state)
        self._seen, self._committed, self._tables_in_force = {}, {}, {}
        self._departed, self._expired, self._gone = {}, {}, {}
        self._keeper.floor_us.clear()
        for partition, entries in committed.items():
            self._restore(partition, entries)
            if partition in seen:
                self._seen[partition] = seen[partition]
                self._seen[partition].undo()

    # -- who a row belongs to -----------------------------------------------------------------------------------------

    def _slots_of(self, rows: Predictions | Outcomes, batch: Batch, known: Ints | None) -> Ints:
        """The slot of each row; new slots are made in receipt order. ``known``: what `_known_slots` said just now."""
        if known is not None and not (known < 0).any():
            return known
        pairs = rows.layout * len(PURPOSES) + rows.purpose
        slots = np.full(len(batch.layouts) * len(PURPOSES), -1, np.int64)
        new = []
        for pair in flatnonzero(np.bincount(pairs)).tolist():
            layout, purpose = batch.layouts[pair // len(PURPOSES)], PURPOSES[pair % len(PURPOSES)]
            slots[pair] = self._state.by_key.get((layout.tenant, layout.model, purpose), -1)
            if slots[pair] < 0:
                new.append((int(np.argmax(pairs == pair)), pair, layout, purpose))
        for row, pair, layout, purpose in sorted(new, key=lambda one: one[0]):
            partition = int(rows.partition[row])
            added = self._state.add(layout.tenant, layout.model, purpose, partition, self._profile(layout))
            if partition in self._departed:
                added.episodes.warm_up = self._departed[partition].why(_hash_of(_slot_key(added)))
            slots[pair] = added.index
        of_rows: Ints = slots[pairs]
        return of_rows

    def _strays(self, batch: Sequence[Record], decoded: Batch) -> dict[int, bytes]:
        """Records that lie elsewhere than their model's key says, and that key.

        A model's events are judged by one member in one order, so these go to their place and are judged there. One
        that was sent there already is taken as it comes.
        """
        strays: dict[int, bytes] = {}
        if not self._partitions:
            return strays
        keys = [model_key(layout.tenant, layout.model) for layout in decoded.layouts]
        misplaced = np.array(decoded.misplaced, np.int64)
        for topic, rows in ((PREDICTIONS, decoded.predictions), (OUTCOMES, decoded.outcomes)):
            homes = np.array([self._home(key, topic) for key in keys], np.int64)
            astray = rows.partition != homes[rows.layout]
            if len(misplaced):
                astray |= np.isin(rows.record, misplaced)
            for row in flatnonzero(astray).tolist():
                index = int(rows.record[row])
                if all(name != REKEYED for name, _ in batch[index].headers):
                    strays[index] = keys[int(rows.layout[row])]
        return dict(sorted(strays.items()))

    def _home(self, key: bytes, topic: str) -> int:
        """The partition of a model; both topics have as many."""
        home = self._homes.get(key)
        if home is None:
            if len(self._homes) > MAX_HOMES:
                self._homes.clear()
            home = self._homes[key] = partition_of(key, self._partitions[topic])
        return home

    def _distinct(self, batch: Batch) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], ...]:
        """Which rows are no duplicates of an id seen before, by partition in receipt order."""
        p, o = batch.predictions, batch.outcomes
        hashes = np.concatenate([p.id_hash, o.id_hash])
        partitions = np.concatenate([p.partition, o.partition])
        order = np.argsort(np.concatenate([p.record, o.record]), kind="stable")
        keep = np.ones(len(hashes), np.bool_)
        for partition in flatnonzero(np.bincount(partitions)).tolist():
            mine = order[partitions[order] == partition]
            if partition not in self._seen:
                self._seen[partition] = SeenIds()
            keep[mine] = ~self._seen[partition].step(hashes[mine])
        return keep[: len(p)], keep[len(p) :]

    def _case_id(self, record: Record, slot: int) -> str:
        """The id of a case that opens at a record: its event key is (tenant, source, type, id)."""
        who = self._state.slot(slot)
        event = json.loads(record.value or b"{}")
        name = event.get("event_id") or event.get("outcome_id") or sha256(record.value or b"").hexdigest()
        kind = event.get("type") or ("errata.prediction.v1" if "event_id" in event else "errata.outcome.v1")
        key = canonical([who.tenant, event.get("source") or who.model, kind, name]).decode()
        return case_id(who.tenant, who.model, "" if who.purpose == "live" else f"@{who.purpose}", key)

    # -- state as entries ---------------------------------------------------------------------------------------------

    def _changes(self, batch: Sequence[Record], taken: Mapping[int, int]) -> list[StateChange]:
        changes: list[StateChange] = []
        for index in sorted(self.judged.touched):
            slot = self._state.slot(index)
            meta, arrays = self._state.pack(slot)
            value = pack_arrays(SLOT_SCHEMA.version, meta, arrays, self._plain)
            changes.append(StateChange(slot.partition, _slot_key(slot), value))
        for partition, seen in sorted(self._seen.items()):
            before = taken.get(partition, 0)
            if seen.taken == before:
                continue
            for place, ids in seen.blocks_since(before):
                value = pack_arrays(BLOCK_SCHEMA.version, {}, {"ids": ids}, self._plain)
                changes.append(StateChange(partition, BLOCK_OF_IDS + b"%d" % place, value))
            changes.append(
                StateChange(partition, IDS, pack_json(IDS_SCHEMA.version, {"taken": seen.taken, "block": BLOCK}))
            )
        return [*changes, *self._table_changes(batch)]

    def _table_changes(self, batch: Sequence[Record]) -> list[StateChange]:
        """Contracts and references that take effect with this batch, at which offset of each partition."""
        fresh: dict[int, dict[str, str]] = {}
        for index in self.judged.touched:
            slot = self._state.slot(index)
            in_force = self._tables_in_force.setdefault(slot.partition, {})
            profile = slot.profile
            for kind, value in (("contract", profile.contract_hash), ("reference", profile.reference_hash)):
                name = f"{kind}:{slot.tenant}/{slot.model}"
                if value is not None and in_force.get(name, [None])[0] != value:
                    fresh.setdefault(slot.partition, {})[name] = value
        changes = []
        for partition, entries in sorted(fresh.items()):
            first: dict[str, int] = {}
            for record in batch:
                if record.partition == partition:
                    first.setdefault(record.topic, record.offset)
            in_force = self._tables_in_force[partition]
            in_force |= {name: [value, first] for name, value in entries.items()}
            changes.append(StateChange(partition, TABLE_KEY, pack_json(TABLES_SCHEMA.version, in_force)))
        return changes

    # -- what people ask ----------------------------------------------------------------------------------------------

    @property
    def slots(self) -> list[Slot]:
        return [slot for slot in self._state.slots if slot is not None]

    @property
    def held_bytes(self) -> int:
        """The state of the partition that has most, as it counts against the limit."""
        return BASE_BYTES + max(self._state.held_bytes.values(), default=0)

    @property
    def state(self) -> State:
        return self._state


def _rekeyed(record: Record, key: bytes) -> Outgoing:
    return Outgoing(record.topic, key, record.value, (*record.headers, (REKEYED, b"1")))


def _hash_of(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def _slot_key(slot: Slot) -> bytes:
    return _key_of(slot.tenant, slot.model, slot.purpose)


@lru_cache(maxsize=MAX_HOMES)
def _key_of(tenant: str, model: str, purpose: str) -> bytes:
    return canonical(["slot", tenant, model, purpose])
