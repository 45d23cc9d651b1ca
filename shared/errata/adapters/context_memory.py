"""The context store of a single process: changes in sorted lists, rebuilt from ``errata.changes.v1`` at each start."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from errata.contracts import ChangeEvent
from errata.contracts.strict import to_us
from errata.ports import ChangesFound


class _Kept(NamedTuple):
    time_us: int
    change_id: str
    seen_us: int
    change: ChangeEvent


@dataclass(slots=True)
class _Subject:
    by_id: dict[str, _Kept] = field(default_factory=dict)
    in_order: list[_Kept] = field(default_factory=list)  # by time, then id; ids are unique, so nothing else compares


class MemoryContextStore:
    """A ``ContextStore`` in memory. Of one change id the record seen first stays, in whatever order they come."""

    def __init__(self) -> None:
        self._subjects: dict[tuple[str, str], _Subject] = {}

    def add(self, changes: Sequence[tuple[ChangeEvent, int]]) -> None:
        for change, seen_us in changes:
            subject = self._subjects.setdefault((change.tenant, change.subject), _Subject())
            old = subject.by_id.get(change.change_id)
            if old is not None:
                if old.seen_us <= seen_us:
                    continue
                subject.in_order.remove(old)
            kept = _Kept(to_us(change.time), change.change_id, seen_us, change)
            subject.by_id[change.change_id] = kept
            insort(subject.in_order, kept, key=_place)

    def fill(self, batches: Iterable[Sequence[tuple[ChangeEvent, int]]]) -> int:
        count = 0
        for batch in batches:
            self.add(batch)
            count += len(batch)
        return count

    def between(self, wanted: Sequence[tuple[str, str, int, int, int]], most: int | None = None) -> list[ChangesFound]:
        return [nearest(self._between(*one), most) for one in wanted]

    def _between(
        self, tenant: str, subject: str, from_us: int, until_us: int, seen_before_us: int
    ) -> list[ChangeEvent]:
        known = self._subjects.get((tenant, subject))
        if known is None:
            return []
        first = bisect_left(known.in_order, from_us, key=_time_us)
        past = bisect_right(known.in_order, until_us, key=_time_us)
        return [kept.change for kept in known.in_order[first:past] if kept.seen_us < seen_before_us]


def nearest(changes: list[ChangeEvent], most: int | None) -> ChangesFound:
    """The last ``most`` of changes that are in order."""
    left_out = 0 if most is None else max(0, len(changes) - most)
    return ChangesFound(changes[left_out:], left_out)


def _time_us(kept: _Kept) -> int:
    return kept.time_us


def _place(kept: _Kept) -> tuple[int, str]:
    return kept.time_us, kept.change_id
