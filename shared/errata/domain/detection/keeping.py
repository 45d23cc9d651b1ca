"""How long a slot is kept: until its partition's state is too large, or 14 days after its last event.

Decided by record time and by the record at which a limit is passed, never by batches: the same records lead to the
same departures however they are cut. So sizes are those of a slot's arrays and an allowance for its samples and
episode, not of the bytes that some batch happened to write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from errata.domain.detection.identity import GENERATION
from errata.domain.detection.runs import flatnonzero
from errata.domain.detection.state import Ints, Slot, State, slot_bytes

DAY_US = 86_400_000_000
NEVER_US = 1 << 62  # as a time to live: where record time is event time, a model that runs once a month is not gone
MIB = 1 << 20
BASE_BYTES = 2 * GENERATION * 8  # the ids of a partition, always held
LEFT_AFTER_EVICTION = 0.95  # of the limit: evictions come in groups, not one with each new model
REMEMBERED = 4_096  # departed slots of a partition that are known by a mark when they come back

Reason = Literal["bound", "ttl"]
REASONS: tuple[Reason, ...] = ("bound", "ttl")


@dataclass(frozen=True, slots=True)
class Limits:
    """``state_bytes`` of a partition; ``ttl_us`` of record time without an event; ``sweep``: tombstones for the
    latter that one transaction writes at most."""

    state_bytes: int = 256 * MIB
    ttl_us: int = 14 * DAY_US
    sweep: int = 500


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Rows and ticks of a batch in receipt order. ``slot``: index of the state; −1 a tick; −2 − n the new slot n."""

    record: Ints
    partition: Ints
    time_us: Ints  # record time
    slot: Ints
    new_bytes: Sequence[int]  # of each new slot

    def __len__(self) -> int:
        return len(self.record)


@dataclass(frozen=True, slots=True)
class Departures:
    """Slots that leave before a record is judged, and where that is. Expired ones come first, each kind by age."""

    record: int
    partition: int
    time_us: int
    slots: Sequence[tuple[Slot, Reason]]


@dataclass(slots=True)
class Keeper:
    """Watches the limits of a state. ``floor_us``: no slot of the partition was last seen before."""

    limits: Limits = field(default_factory=Limits)
    floor_us: dict[int, int] = field(default_factory=dict)

    def next_departures(self, state: State, arrivals: Arrivals, *, after_first: bool = False) -> Departures | None:
        """The first record before which slots leave. ``after_first``: the first record's departures are done.

        Costs a few numpy calls when no limit is near.
        """
        if not len(arrivals) or not (self._may_expire(state, arrivals) or self._may_overflow(state, arrivals)):
            return None
        found = self._find(state, arrivals, after_first)
        if found is None:
            return None
        place, new_bytes = found
        partition, now_us = int(arrivals.partition[place]), int(arrivals.time_us[place])
        slots = _leaving(state, self.limits, partition, now_us, new_bytes)
        return Departures(int(arrivals.record[place]), partition, now_us, slots)

    def forget(self, partition: int) -> None:
        self.floor_us.pop(partition, None)

    def _may_expire(self, state: State, arrivals: Arrivals) -> bool:
        for partition in flatnonzero(np.bincount(arrivals.partition)).tolist():
            times = arrivals.time_us[arrivals.partition == partition]
            newest, oldest = int(times.max()), int(times.min())
            if partition not in self.floor_us:
                self.floor_us[partition] = state.oldest_seen_us(partition, oldest)
            self.floor_us[partition] = min(self.floor_us[partition], oldest)
            if newest - self.floor_us[partition] <= self.limits.ttl_us:
                continue
            self.floor_us[partition] = state.oldest_seen_us(partition, oldest)
            if newest - min(self.floor_us[partition], oldest) > self.limits.ttl_us:
                return True
        return False

    def _may_overflow(self, state: State, arrivals: Arrivals) -> bool:
        if not arrivals.new_bytes:
            return False
        held = max(state.held_bytes.get(p, 0) for p in flatnonzero(np.bincount(arrivals.partition)).tolist())
        return BASE_BYTES + held + sum(arrivals.new_bytes) > self.limits.state_bytes

    def _find(self, state: State, arrivals: Arrivals, after_first: bool) -> tuple[int, int] | None:
        """Row by row: the first place at which a slot has expired or the state is too large, and the bytes wanted."""
        first = int(arrivals.record[0])
        seen: dict[int, int] = {}
        heaps: dict[int, list[tuple[int, int]]] = {}
        held = dict(state.held_bytes)
        rows = zip(
            arrivals.record.tolist(), arrivals.partition.tolist(), arrivals.time_us.tolist(), arrivals.slot.tolist(),
            strict=True,
        )  # fmt: skip
        for place, (record, partition, time_us, slot) in enumerate(rows):
            done = after_first and record == first
            if partition not in heaps:
                heaps[partition] = [(int(state.seen_us[s.index]), s.index) for s in state.slots_of(partition)]
                heapify(heaps[partition])
                seen |= {index: at_us for at_us, index in heaps[partition]}
            wanted = arrivals.new_bytes[-2 - slot] if slot < -1 and slot not in seen else 0
            if not done and _is_expired(heaps[partition], seen, time_us - self.limits.ttl_us):
                return place, wanted
            if wanted:
                held[partition] = held.get(partition, 0) + wanted
                if BASE_BYTES + held[partition] > self.limits.state_bytes and not done:
                    return place, wanted
                heappush(heaps[partition], (time_us, slot))
            if slot != -1:
                seen[slot] = max(seen.get(slot, time_us), time_us)
        return None


def _is_expired(heap: list[tuple[int, int]], seen: Mapping[int, int], before_us: int) -> bool:
    """Whether the slot that was not seen for longest was last seen before then."""
    while heap and heap[0][0] < before_us:
        at_us, slot = heap[0]
        if slot not in seen:
            heappop(heap)
        elif seen[slot] == at_us:
            return True
        else:
            heapreplace(heap, (seen[slot], slot))
    return False


def _leaving(state: State, limits: Limits, partition: int, now_us: int, new_bytes: int) -> list[tuple[Slot, Reason]]:
    mine = sorted(state.slots_of(partition), key=lambda slot: (int(state.seen_us[slot.index]), slot.key))
    expired = [slot for slot in mine if now_us - int(state.seen_us[slot.index]) > limits.ttl_us]
    leaving: list[tuple[Slot, Reason]] = [(slot, "ttl") for slot in expired]
    held = BASE_BYTES + state.held_bytes.get(partition, 0) - sum(slot_bytes(slot.profile) for slot in expired)
    if held + new_bytes > limits.state_bytes:
        target = BASE_BYTES + int((limits.state_bytes - BASE_BYTES) * LEFT_AFTER_EVICTION) - new_bytes
        for slot in mine[len(expired) :]:
            if held <= target:
                break
            leaving.append((slot, "bound"))
            held -= slot_bytes(slot.profile)
    return leaving


@dataclass(slots=True)
class Departed:
    """Slots of a partition that left, by a hash of their key: when they were last seen, and why they left.

    The newest `REMEMBERED` by (last seen, hash): the same set in whatever order they left.
    """

    held: dict[int, tuple[int, Reason]] = field(default_factory=dict)

    def add(self, left: Mapping[int, tuple[int, Reason]]) -> None:
        for key, when in left.items():
            self.held[key] = max(when, self.held.get(key, when))
        if len(self.held) > REMEMBERED:
            self.held = dict(sorted(self.held.items(), key=lambda one: (one[1][0], one[0]))[-REMEMBERED:])

    def why(self, key: int) -> str:
        """Why a slot left that comes back; nothing when it is new, or left too long ago to be known."""
        return self.held[key][1] if key in self.held else ""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        rows = sorted(self.held.items())
        return {
            "key": np.array([key for key, _ in rows], np.uint64),
            "seen_us": np.array([seen_us for _, (seen_us, _) in rows], np.int64),
            "reason": np.array([REASONS.index(reason) for _, (_, reason) in rows], np.int64),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Departed":
        columns = (arrays[name].tolist() for name in ("key", "seen_us", "reason"))
        return cls({key: (seen_us, REASONS[reason]) for key, seen_us, reason in zip(*columns, strict=True)})
