"""The detector's state: integers stacked by slot, so that a batch costs the same number of numpy calls for 5 or 500
models.

A *slot* is one (tenant, model, purpose). Its fixed fields are a row of one array; its cells and counters lie in flat
arrays from its base on. What is not numbers (samples by reference, episodes) is small and stands in the slot.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from errata.domain.columns import Layout
from errata.domain.detection.episodes import SlotEpisodes
from errata.domain.detection.profile import INNER_EDGES, Profile, compile_profile
from errata.domain.state_schemas import Schema

Ints = NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)

BANK = (1.3, 1.6, 2.2, 3.5)  # p1 = f · p0 of each CUSUM of the bank
# Fixed fields of a slot. Times in microseconds since 1970, −1 when unset.
(
    FILL, WINDOWS, EVENTS, LATE, CLAMPED, START_RECORD_US, START_US, LAST_US, MAX_US,
    OUT_FILL, OUT_WINDOWS, OUT_START_US, OUT_LAST_US, OUTCOMES, OUT_START_RECORD_US, UNJUDGED, OUT_WRONG,
) = range(17)  # fmt: skip
CUSUM = 17
# Per CUSUM: its sum, first outcome and time of its run, wrong ones in it; the same of its chain, and its last alarm.
SUM, RUN, RUN_US, RUN_WRONG, CHAIN, CHAIN_US, CHAIN_WRONG, LAST_ALARM = range(8)
WIDTH = CUSUM + 8 * len(BANK)
UNSET_FIELDS = (START_RECORD_US, START_US, LAST_US, MAX_US, OUT_START_US, OUT_LAST_US, OUT_START_RECORD_US)
STAYING_FIELDS = [EVENTS, LATE, CLAMPED, MAX_US, WINDOWS, OUT_WINDOWS, OUTCOMES, UNJUDGED]
SAMPLE = 8  # exemplars and controls
SLOT_OVERHEAD_BYTES = 4_096  # what samples, an episode and names may take beside the arrays
UNSEEN_US = -1
SAMPLE_LIMIT, WRONG_LIMIT = range(2)
_UNSEEN = np.full(1, UNSEEN_US, np.int64)

# The records of a slot, of blocks of ids, of their count, of tables in force, and of slots that left: each with the
# functions that bring an older one to this release's form, one version at a time. An addition that a reader of the
# version may leave out needs no new version.
SLOT_SCHEMA = Schema("slot", 1)
BLOCK_SCHEMA = Schema("block of ids", 1)
IDS_SCHEMA = Schema("count of ids", 1)
TABLES_SCHEMA = Schema("tables in force", 1)
DEPARTED_SCHEMA = Schema("departed slots", 1)
LARGEST_HASH = 2**64 - 1
_NO_LIMITS = np.full((1, 2), LARGEST_HASH, np.uint64)
NOBODY = compile_profile(Layout("", "", None, None))  # of a slot that was given up
_NONE, _NO_NUMBERS, _NO_FLAGS = np.zeros(0, np.int64), np.zeros(0, np.float64), np.zeros(0, np.bool_)

Sampled = tuple[int, str, int, int, str]  # hash of the event id, topic, partition, offset, prediction id


def smallest(*samples: Sequence[Sampled]) -> list[Sampled]:
    """The eight of the smallest hash: the same whatever order or batches they came in."""
    return sorted({row for sample in samples for row in sample})[:SAMPLE]


def limit_of(held: Sequence[Sampled]) -> int:
    """The largest hash that may belong to a sample: asked before the row is made."""
    return LARGEST_HASH if len(held) < SAMPLE else held[-1][0]


def hold(samples: Iterable[list[Sampled]], rows: Iterable[Sampled]) -> None:
    """Put rows into samples, in place, each into the one beside it, as `smallest` would.

    >>> sample = [(n, "t", 0, n, "") for n in range(1, 9)]
    >>> hold([sample, sample], [(0, "t", 0, 0, ""), (9, "t", 0, 9, "")])
    >>> [row[0] for row in sample]
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    for held, row in zip(samples, rows, strict=True):
        if len(held) == SAMPLE and held[-1] < row:
            continue
        place = bisect_left(held, row)
        if place == len(held) or held[place] != row:
            held.insert(place, row)
            del held[SAMPLE:]


@dataclass(slots=True)
class Slot:
    index: int
    tenant: str
    model: str
    purpose: str
    partition: int
    profile: Profile
    cell_base: int = 0
    counter_base: int = 0
    sample: list[Sampled] = field(default_factory=list)  # of the open window
    controls: list[Sampled] = field(default_factory=list)  # of the last quiet window
    wrong_sample: list[Sampled] = field(default_factory=list)  # of the open window of outcomes
    counter_samples: dict[int, list[Sampled]] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)  # signals that fired in the open window of outcomes
    episodes: SlotEpisodes = field(default_factory=SlotEpisodes)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.tenant, self.model, self.purpose

    def keep_episodes(self, meta: Mapping[str, Any]) -> None:
        """What stays of a packed slot whatever it is judged by."""
        self.episodes = SlotEpisodes.from_plain(meta["episodes"])
        if meta["controls"]:
            self.controls = [_sampled(row) for row in meta["controls"]]

    def keep_samples(self, meta: Mapping[str, Any]) -> None:
        """What belongs to its open windows."""
        if meta["sample"]:
            self.sample = [_sampled(row) for row in meta["sample"]]
        if meta["wrong_sample"]:
            self.wrong_sample = [_sampled(row) for row in meta["wrong_sample"]]
        if meta["counter_samples"]:
            self.counter_samples = {int(c): [_sampled(row) for row in rows] for c, rows in meta["counter_samples"]}
        if meta["fired"]:
            self.fired = set(meta["fired"])


@dataclass(slots=True)
class Tables:
    """The profiles of all slots, concatenated: what the columns of a batch are indexed against."""

    features: Ints
    numbers: Ints
    counter_base: Ints
    number_channel: Ints  # first number channel of a slot
    category_channel: Ints
    feature_base: Ints
    edges: NDArray[np.float64]  # number channels × 15
    low: NDArray[np.float64]  # per number channel
    high: NDArray[np.float64]
    bounded: bool  # whether any number channel has a range
    number_cell: Ints  # first cell of a channel, −1 when it is not counted
    category_cell: Ints
    required: NDArray[np.bool_]
    threshold: Ints  # per counter
    admitted: NDArray[np.bool_]
    latency_limit_ms: NDArray[np.float64]
    latency_p95_ms: NDArray[np.float64]
    output_low: NDArray[np.float64]
    output_high: NDArray[np.float64]
    forbids: NDArray[np.bool_]
    numeric_output: NDArray[np.bool_]
    class_output: NDArray[np.bool_]
    slot_of_counter: Ints
    profiles: list[Profile]  # by slot
    bank: Ints  # slots × CUSUMs × (right, wrong): increments, 0 without a reference of labels


class State:
    """All slots of a stage."""

    def __init__(self) -> None:
        self.slots: list[Slot | None] = []
        self.by_key: dict[tuple[str, str, str], int] = {}
        self.fixed: Ints = np.zeros((0, WIDTH), np.int64)
        self.cells: Ints = np.zeros(0, np.int64)
        self.counts: Ints = np.zeros(0, np.int64)
        self.first_us: Ints = np.zeros(0, np.int64)
        self.milli_sums: Ints = np.zeros(0, np.int64)  # per counter: sum of violating numbers, in thousandths
        self.seen_us: Ints = np.zeros(0, np.int64)  # by slot: record time of its newest event
        self.limits: NDArray[np.uint64] = np.zeros((0, 2), np.uint64)  # by slot: `limit_of` its sample, its wrong one
        self.held_bytes: dict[int, int] = {}  # by partition: see `slot_bytes`
        self._tables: Tables | None = None

    def slot(self, index: int) -> Slot:
        slot = self.slots[index]
        assert slot is not None
        return slot

    def hold(self, slots: Ints, rows: Iterable[Sampled]) -> None:
        """Put rows into the samples of the open windows of slots, each into that of the slot beside it."""
        samples = [self.slot(index).sample for index in slots.tolist()]
        hold(samples, rows)
        self.limits[slots, SAMPLE_LIMIT] = np.array(list(map(limit_of, samples)), np.uint64)

    def hold_wrong(self, slots: Ints, rows: Iterable[Sampled]) -> None:
        """As `hold`, of the open windows of outcomes."""
        samples = [self.slot(index).wrong_sample for index in slots.tolist()]
        hold(samples, rows)
        self.limits[slots, WRONG_LIMIT] = np.array(list(map(limit_of, samples)), np.uint64)

    def begin_window(self, slot: Slot) -> None:
        slot.sample, slot.counter_samples = [], {}
        self.limits[slot.index, SAMPLE_LIMIT] = LARGEST_HASH

    def begin_outcomes(self, slot: Slot) -> None:
        slot.wrong_sample = []
        self.limits[slot.index, WRONG_LIMIT] = LARGEST_HASH

    def add(self, tenant: str, model: str, purpose: str, partition: int, profile: Profile) -> Slot:
        slot = Slot(len(self.slots), tenant, model, purpose, partition, profile, len(self.cells), len(self.counts))
        self.slots.append(slot)
        self.by_key[slot.key] = slot.index
        self.fixed = _extended(self.fixed, fresh_row())
        self.seen_us = _extended(self.seen_us, _UNSEEN)
        self.limits = _extended(self.limits, _NO_LIMITS)
        self.held_bytes[partition] = self.held_bytes.get(partition, 0) + slot_bytes(profile)
        self._grow(profile)
        return slot

    def _grow(self, profile: Profile) -> None:
        counters = len(profile.counters)
        self.cells = _extended(self.cells, np.zeros(profile.cells, np.int64))
        self.counts = _extended(self.counts, np.zeros(counters, np.int64))
        self.first_us = _extended(self.first_us, np.full(counters, -1, np.int64))
        self.milli_sums = _extended(self.milli_sums, np.zeros(counters, np.int64))
        self._tables = None

    def replace_profile(self, slot: Slot, profile: Profile) -> None:
        """Judge by another contract or reference from here on: the open windows start over, episodes stay."""
        self.held_bytes[slot.partition] += slot_bytes(profile) - slot_bytes(slot.profile)
        slot.profile = profile
        slot.cell_base, slot.counter_base = len(self.cells), len(self.counts)
        slot.sample, slot.wrong_sample, slot.counter_samples, slot.fired = [], [], {}, set()
        self.limits[slot.index] = LARGEST_HASH
        self.fixed[slot.index] = _started_over(self.fixed[slot.index])
        self._grow(profile)

    def remove(self, slot: Slot) -> None:
        """Forget a slot; its place in the arrays is left empty."""
        self.slots[slot.index] = None
        del self.by_key[slot.key]
        self.held_bytes[slot.partition] -= slot_bytes(slot.profile)
        self._tables = None

    def slots_of(self, partition: int) -> list[Slot]:
        return [slot for slot in self.slots if slot is not None and slot.partition == partition]

    def oldest_seen_us(self, partition: int, default_us: int) -> int:
        """When the slot of a partition that was not seen for longest was last seen."""
        return min((int(self.seen_us[slot.index]) for slot in self.slots_of(partition)), default=default_us)

    @property
    def is_sparse(self) -> bool:
        """Whether most places in the arrays belong to slots that were removed."""
        return len(self.slots) > 64 and len(self.slots) > 2 * len(self.by_key)

    def compact(self) -> None:
        """Give back the places of slots that were removed. The indices of the others change."""
        slots = [slot for slot in self.slots if slot is not None]
        rows = [slot.index for slot in slots]
        self.fixed, self.seen_us, self.limits = self.fixed[rows], self.seen_us[rows], self.limits[rows]
        none = np.zeros(0, np.int64)
        cells = np.concatenate([none, *(self.cells[self.cells_of(slot)] for slot in slots)])
        per_counter = [
            np.concatenate([none, *(array[self.counters_of(slot)] for slot in slots)])
            for array in (self.counts, self.first_us, self.milli_sums)
        ]
        self.cells, (self.counts, self.first_us, self.milli_sums) = cells, per_counter
        cell_base = counter_base = 0
        for index, slot in enumerate(slots):
            slot.index, slot.cell_base, slot.counter_base = index, cell_base, counter_base
            cell_base += slot.profile.cells
            counter_base += len(slot.profile.counters)
        self.slots = [*slots]
        self.by_key = {slot.key: slot.index for slot in slots}
        self._tables = None

    def cells_of(self, slot: Slot) -> slice:
        return slice(slot.cell_base, slot.cell_base + slot.profile.cells)

    def counters_of(self, slot: Slot) -> slice:
        return slice(slot.counter_base, slot.counter_base + len(slot.profile.counters))

    def pack(self, slot: Slot) -> tuple[dict[str, Any], dict[str, Ints]]:
        """Plain data and arrays of a slot, all that `unpack` needs besides its profile."""
        counters = self.counters_of(slot)
        meta: dict[str, Any] = {
            "slot": [slot.tenant, slot.model, slot.purpose],
            "contract": slot.profile.contract_hash,
            "reference": slot.profile.reference_hash,
            "sample": slot.sample,
            "controls": slot.controls,
            "wrong_sample": slot.wrong_sample,
            "counter_samples": sorted(slot.counter_samples.items()),
            "fired": sorted(slot.fired),
            "episodes": slot.episodes.to_plain(),
            "seen_us": int(self.seen_us[slot.index]),
        }
        arrays = {
            "fixed": self.fixed[slot.index],
            "cells": self.cells[self.cells_of(slot)],
            "counts": self.counts[counters],
            "first_us": self.first_us[counters],
            "milli_sums": self.milli_sums[counters],
        }
        return meta, arrays

    def unpack(
        self,
        partition: int,
        profiles: Sequence[Profile],
        metas: Sequence[Mapping[str, Any]],
        arrays: Mapping[str, Ints],
    ) -> None:
        """Slots as they were packed, of arrays of the same lengths: the first axis of each of ``arrays`` is by slot.

        All at once: after a crash every millisecond spent on a slot is one more of silence, and there are thousands.
        Those with another contract or reference than then begin new windows. Raises ``ValueError`` for arrays that no
        slot has.
        """
        if arrays["fixed"].shape[1:] != (WIDTH,):
            raise ValueError(f"a slot has {WIDTH} fixed fields")
        if not arrays["counts"].shape == arrays["first_us"].shape == arrays["milli_sums"].shape:
            raise ValueError("a slot has as many counts as times and sums")
        cells, counters = arrays["cells"].shape[1], arrays["counts"].shape[1]
        same = [
            (meta["contract"], meta["reference"]) == (profile.contract_hash, profile.reference_hash)
            and (profile.cells, len(profile.counters)) == (cells, counters)
            for meta, profile in zip(metas, profiles, strict=True)
        ]
        going_on = np.flatnonzero(same).tolist()
        theirs = {name: array[going_on] for name, array in arrays.items()}
        self._go_on(partition, [profiles[i] for i in going_on], [metas[i] for i in going_on], theirs)
        for i in np.flatnonzero(~np.array(same)).tolist():
            tenant, model, purpose = metas[i]["slot"]
            slot = self.add(tenant, model, purpose, partition, profiles[i])
            self.fixed[slot.index] = _started_over(arrays["fixed"][i])
            self.seen_us[slot.index] = _seen_us(metas[i], arrays["fixed"][i])
            slot.keep_episodes(metas[i])

    def _go_on(
        self,
        partition: int,
        profiles: Sequence[Profile],
        metas: Sequence[Mapping[str, Any]],
        arrays: Mapping[str, Ints],
    ) -> None:
        """Slots that are judged as before."""
        cell_base, counter_base = len(self.cells), len(self.counts)
        first, limits = len(self.slots), np.zeros((len(metas), 2), np.uint64)
        for profile, meta in zip(profiles, metas, strict=True):
            tenant, model, purpose = meta["slot"]
            slot = Slot(len(self.slots), tenant, model, purpose, partition, profile, cell_base, counter_base)
            slot.keep_episodes(meta)
            slot.keep_samples(meta)
            limits[len(self.slots) - first] = limit_of(slot.sample), limit_of(slot.wrong_sample)
            self.slots.append(slot)
            self.by_key[slot.key] = slot.index
            cell_base += profile.cells
            counter_base += len(profile.counters)
        seen_us = [_seen_us(meta, row) for meta, row in zip(metas, arrays["fixed"], strict=True)]
        self.fixed = _extended(self.fixed, arrays["fixed"])
        self.seen_us = _extended(self.seen_us, np.array(seen_us, np.int64))
        self.limits = _extended(self.limits, limits)
        self.cells = _extended(self.cells, arrays["cells"].reshape(-1))
        self.counts = _extended(self.counts, arrays["counts"].reshape(-1))
        self.first_us = _extended(self.first_us, arrays["first_us"].reshape(-1))
        self.milli_sums = _extended(self.milli_sums, arrays["milli_sums"].reshape(-1))
        self.held_bytes[partition] = self.held_bytes.get(partition, 0) + sum(map(slot_bytes, profiles))
        self._tables = None

    @property
    def tables(self) -> Tables:
        if self._tables is None:
            self._tables = self._tabulate()
        return self._tables

    def _tabulate(self) -> Tables:
        """Concatenated by slot. Models without contract and reference share a profile, so that what costs Python's
        time is asked once of each profile."""
        profiles = [slot.profile if slot else NOBODY for slot in self.slots]
        place: dict[int, int] = {}
        which = np.array([place.setdefault(id(profile), len(place)) for profile in profiles], np.int64)
        distinct = list({id(profile): profile for profile in profiles}.values())
        columns = [profile.columns for profile in profiles]
        held = [slot for slot in self.slots if slot is not None]
        cell_base = np.array([slot.cell_base if slot else 0 for slot in self.slots], np.int64)
        counter_base = np.array([slot.counter_base if slot else 0 for slot in self.slots], np.int64)
        features = np.array([p.features for p in distinct], np.int64)[which]
        channels = np.array([p.number_channels for p in distinct], np.int64)[which]
        categories = np.array([len(p.columns.category_cell) for p in distinct], np.int64)[which]
        low = np.concatenate([_NO_NUMBERS, *(one.low for one in columns)])
        high = np.concatenate([_NO_NUMBERS, *(one.high for one in columns)])
        mine = np.array([slot.index for slot in held], np.int64)
        counters = np.array([len(p.counters) for p in distinct], np.int64)[which[mine]]
        targets = _ranges(counter_base[mine], counters)
        slot_of_counter = np.zeros(len(self.counts), np.int64)
        slot_of_counter[targets] = np.repeat(mine, counters)
        threshold = np.full(len(self.counts), np.iinfo(np.int64).max // 2, np.int64)
        threshold[targets] = np.concatenate([_NONE, *(slot.profile.columns.threshold for slot in held)])
        admitted = np.zeros(len(self.counts), np.bool_)
        admitted[targets] = np.concatenate([_NO_FLAGS, *(slot.profile.columns.admitted for slot in held)])
        contracts = [p.layout.contract for p in distinct]
        outputs = [contract.output.type if contract and contract.output else "" for contract in contracts]
        return Tables(
            features=features,
            numbers=np.array([len(p.layout.numbers) for p in distinct], np.int64)[which],
            counter_base=counter_base,
            number_channel=_bases(channels),
            category_channel=_bases(categories),
            feature_base=_bases(features),
            edges=np.concatenate([np.zeros((0, INNER_EDGES)), *(one.edges for one in columns)]),
            low=low,
            high=high,
            bounded=bool(np.isfinite(low).any() or np.isfinite(high).any()),
            number_cell=_placed([one.number_cell for one in columns], cell_base, channels),
            category_cell=_placed([one.category_cell for one in columns], cell_base, categories),
            required=np.concatenate([_NO_FLAGS, *(p.required for p in profiles)]),
            threshold=threshold,
            admitted=admitted,
            latency_limit_ms=np.array([p.latency_limit_ms for p in distinct], np.float64)[which],
            latency_p95_ms=np.array([p.latency_p95_ms for p in distinct], np.float64)[which],
            output_low=np.array([p.output_low for p in distinct], np.float64)[which],
            output_high=np.array([p.output_high for p in distinct], np.float64)[which],
            forbids=np.array([any(p.forbidden) for p in distinct], np.bool_)[which],
            numeric_output=np.array([o == "number" for o in outputs], np.bool_)[which],
            class_output=np.array([o != "number" and o != "vector" for o in outputs], np.bool_)[which],
            slot_of_counter=slot_of_counter,
            profiles=profiles,
            bank=np.array([bank_increments(p.error_rate) for p in distinct], np.int64).reshape(-1, len(BANK), 2)[which],
        )


def _bases(lengths: Ints) -> Ints:
    """Where each of some ranges begins that lie one behind the other."""
    bases: Ints = np.cumsum(lengths) - lengths
    return bases


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """The numbers of ranges, one range after the other.

    >>> _ranges(np.array([10, 3]), np.array([2, 1])).tolist()
    [10, 11, 3]
    """
    numbers: Ints = np.repeat(starts - _bases(lengths), lengths) + np.arange(lengths.sum())
    return numbers


def _placed(cells: Sequence[Ints], cell_base: Ints, lengths: Ints) -> Ints:
    """First cells of channels, counted from the beginning of all; −1 stays."""
    inside = np.concatenate([_NONE, *cells])
    placed: Ints = np.where(inside < 0, inside, inside + np.repeat(cell_base, lengths))
    return placed


@cache
def fresh_row() -> Ints:
    """The fixed fields of a slot that has seen nothing; never to be written to."""
    row = np.zeros((1, WIDTH), np.int64)
    row[0, list(UNSET_FIELDS)] = -1
    for f in range(len(BANK)):
        row[0, [CUSUM + 8 * f + RUN_US, CUSUM + 8 * f + CHAIN_US]] = -1
        row[0, CUSUM + 8 * f + LAST_ALARM] = -(10**9)
    return row


def _started_over(row: Ints) -> Ints:
    """The fixed fields of a slot whose windows begin anew: what it has counted since ever stays."""
    fresh: Ints = fresh_row()[0].copy()
    fresh[STAYING_FIELDS] = row[STAYING_FIELDS]
    return fresh


def slot_bytes(profile: Profile) -> int:
    """What a slot counts for against the limit of its partition: the same whatever it holds at the moment."""
    return 8 * (WIDTH + profile.cells + 3 * len(profile.counters)) + SLOT_OVERHEAD_BYTES


def _seen_us(meta: Mapping[str, Any], fixed: Ints) -> int:
    """When a packed slot was last seen; of records that do not yet say it, the newest time they know of."""
    if "seen_us" in meta:
        return int(meta["seen_us"])
    return int(fixed[[MAX_US, START_RECORD_US, OUT_START_RECORD_US, OUT_LAST_US]].max())


def _extended(array: NDArray[Number], more: NDArray[Number]) -> NDArray[Number]:
    """``array`` with ``more`` behind it, in memory that doubles: thousands of additions cost one copy of each."""
    held, wanted = len(array), len(array) + len(more)
    store = array if array.base is None else array.base
    if len(store) < wanted:
        store = np.empty((max(wanted, 2 * held), *array.shape[1:]), array.dtype)
        store[:held] = array
    store[held:wanted] = more
    longer: NDArray[Number] = store[:wanted]
    return longer


@lru_cache(maxsize=8_192)
def bank_increments(p0: float) -> list[list[int]]:
    """The integer increments (right, wrong) of each CUSUM, in units of 2⁻²⁰ nat.

    >>> bank_increments(0.1729)[0]
    [-67912, 275109]
    """
    if not p0 > 0:
        return [[0, 0]] * len(BANK)
    pairs = []
    for factor in BANK:
        p1 = min(0.95, factor * p0)
        pairs.append([round(2**20 * float(np.log((1 - p1) / (1 - p0)))), round(2**20 * float(np.log(p1 / p0)))])
    return pairs


def _sampled(row: Sequence[Any]) -> Sampled:
    return int(row[0]), str(row[1]), int(row[2]), int(row[3]), str(row[4])
