"""Cases opened and findings in hopping windows, by event time: values in, values out.

Time is cut into panes of `STEP_S`; a window of `SIZE_S` begins with each pane and is the sum of the panes in it. A
tagged case is an episode as of one ``seq``, so its counts only grow: what a record adds is its growth over the newest
``seq`` seen of that case. The time of what it adds is ``episode.last_seen``, the event time of the newest finding. So
counts follow from the records of a partition in their order and from nothing else: no clock, no record time.

State may be written entry by entry, and a kill may come between two of them. Each entry therefore tells up to which
offset it is right, and the entries of one record are written in the order pane, case, progress: a record that is
taken again adds to the panes that lack it and to no other.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from errata.contracts import TaggedCase, canonical
from errata.contracts.strict import instant, to_us
from errata.contracts.trends import Trend

SIZE_S = 3_600  # of a window
STEP_S = 600  # between the starts of two windows: each moment lies in six of them
KEPT_S = 7 * 86_400  # panes and windows, behind the newest event time of the partition
CASES_KEPT_S = 30 * 86_400  # what is known of a case after its last finding
WINDOWS = f"windows of {SIZE_S // 60} min, one every {STEP_S // 60} min"

_PANE, _CASE, _PROGRESS = "pane", "case", "progress"


class Group(NamedTuple):
    """What is counted together."""

    tenant: str
    model: str
    detector: str
    tag: str
    severity: str


class Counts(NamedTuple):
    cases_opened: int = 0
    findings: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(self.cases_opened + other.cases_opened, self.findings + other.findings)


class Window(NamedTuple):
    """``start_s``: seconds since 1970."""

    start_s: int
    group: Group


class Change(NamedTuple):
    """An entry of the state; ``value`` None deletes it."""

    key: bytes
    value: bytes | None


def pane_of(at_us: int) -> int:
    """The start of the pane of a time, seconds since 1970.

    >>> pane_of(1_799_999_999), pane_of(1_800_000_000)
    (1200, 1800)
    """
    return at_us // 1_000_000 // STEP_S * STEP_S


def windows_of(pane_s: int) -> range:
    """The starts of the windows that a pane lies in.

    >>> [start // 60 for start in windows_of(7_200)]
    [70, 80, 90, 100, 110, 120]
    """
    return range(pane_s - SIZE_S + STEP_S, pane_s + STEP_S, STEP_S)


def panes_of(window_s: int) -> range:
    """The starts of the panes of a window."""
    return range(window_s, window_s + SIZE_S, STEP_S)


@dataclass(slots=True)
class Known:
    """The newest ``seq`` seen of a case. ``counts``: findings by detector and subject; ``seen_s``: their last time."""

    seq: int
    seen_s: int
    counts: dict[str, int]


@dataclass(slots=True)
class Pane:
    """``upto``: the next offset of the partition that this pane is right for."""

    counts: Counts
    upto: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a record came to. ``changes`` in the order in which to write them; ``dropped``: why nothing is added."""

    changes: list[Change] = field(default_factory=list)
    added: dict[Group, Counts] = field(default_factory=dict)
    dropped: str | None = None


def growth(case: TaggedCase, known: Known | None) -> dict[Group, Counts]:
    """What a case adds to what is known of it. Nothing shrinks: a smaller count than before adds 0."""
    tags = [tag.tag for tag in case.tags] or [""]
    severity = case.severity.level
    before: Mapping[str, int] = known.counts if known is not None else {}
    findings: dict[str, int] = defaultdict(int)
    for name, detector, count in _signals(case):
        findings[detector] += max(0, count - before.get(name, 0))
    opened = known is None and case.episode.state == "open"
    if opened:
        findings[case.detector.id] += 0
    return {
        Group(case.tenant, case.model.name, detector, tag, severity): Counts(
            int(opened and detector == case.detector.id), count
        )
        for detector, count in sorted(findings.items())
        for tag in sorted(set(tags))
        if count or (opened and detector == case.detector.id)
    }


@dataclass(slots=True)
class PartitionTrends:
    """The trends of one partition of ``errata.tagged.v1``. `take` its records in the order of their offsets.

    ``next_offset`` None: nothing was taken yet. ``newest_s``: the newest event time taken.
    """

    partition: int
    panes: dict[int, dict[Group, Pane]] = field(default_factory=dict)  # by the start of the pane
    cases: dict[str, Known] = field(default_factory=dict)
    next_offset: int | None = None
    newest_s: int = 0
    dirty: set[Window] = field(default_factory=set)

    @classmethod
    def restored(cls, partition: int, entries: Mapping[bytes, bytes]) -> "PartitionTrends":
        """From the state that `take` wrote. Raises ``ValueError`` for an entry that is none of ours."""
        self = cls(partition)
        for key, value in entries.items():
            kind, _, *name = json.loads(key)
            content = json.loads(value)
            if kind == _PANE:
                start_s, *group = name
                self.panes.setdefault(start_s, {})[Group(*group)] = Pane(Counts(*content[:2]), content[2])
            elif kind == _CASE:
                self.cases[name[0]] = Known(content["seq"], content["seen_s"], content["counts"])
            elif kind == _PROGRESS:
                self.next_offset, self.newest_s = content["next"], content["newest_s"]
            else:
                raise ValueError(f"an entry of the kind {kind!r}")
        return self

    @property
    def horizon_s(self) -> int:
        """Windows and panes that begin before it are no longer kept."""
        return pane_of(self.newest_s * 1_000_000) - KEPT_S

    def take(self, case: TaggedCase, offset: int) -> Taken:
        """Count a case. Taken again, at its own offset or as a copy at another, it changes nothing."""
        seen_s = to_us(case.episode.last_seen) // 1_000_000
        pane_s = pane_of(seen_s * 1_000_000)
        if self.next_offset is not None and offset < self.next_offset:
            # It was counted; whether the windows went out is not known, so that they go out again.
            self._touch(pane_s, growth(case, None))
            return Taken(dropped="replayed")
        known = self.cases.get(case.episode.id)
        if known is not None and case.episode.seq <= known.seq:
            self._touch(pane_s, growth(case, None))
            return Taken([*self._advance(seen_s), self._progress(offset)], dropped="duplicate")
        if pane_s < self.horizon_s:
            return Taken([self._know(case, seen_s), self._progress(offset)], dropped="late")
        added = growth(case, known)
        changes = [change for group, counts in added.items() for change in self._add(pane_s, group, counts, offset)]
        self._touch(pane_s, added)
        changes += [self._know(case, seen_s), *self._advance(seen_s), self._progress(offset)]
        return Taken(changes, added)

    def skip(self, offset: int) -> Taken:
        """Go past a record that is no case."""
        if self.next_offset is not None and offset < self.next_offset:
            return Taken(dropped="replayed")
        return Taken([self._progress(offset)])

    def take_dirty(self) -> list[Window]:
        """The windows that may differ from what was published, and forget that they do."""
        windows = sorted(self.dirty)
        self.dirty.clear()
        return windows

    def counts(self, window: Window) -> Counts | None:
        """The sum of a window's panes; None when it has none."""
        panes = [self.panes.get(start_s, {}).get(window.group) for start_s in panes_of(window.start_s)]
        found = [pane.counts for pane in panes if pane is not None]
        return total(found) if found else None

    def _add(self, pane_s: int, group: Group, counts: Counts, offset: int) -> Iterator[Change]:
        groups = self.panes.setdefault(pane_s, {})
        pane = groups.get(group) or Pane(Counts(), 0)
        if pane.upto > offset:  # written before a kill came between it and the progress
            return
        groups[group] = pane = Pane(pane.counts.plus(counts), offset + 1)
        yield Change(self._key(_PANE, pane_s, *group), canonical([*pane.counts, pane.upto]))

    def _know(self, case: TaggedCase, seen_s: int) -> Change:
        counts: dict[str, int] = {}
        for name, _, count in _signals(case):
            counts[name] = max(count, counts.get(name, 0))
        known = self.cases.get(case.episode.id)
        if known is not None:
            counts = known.counts | {name: max(count, known.counts.get(name, 0)) for name, count in counts.items()}
        self.cases[case.episode.id] = Known(case.episode.seq, seen_s, counts)
        value = {"seq": case.episode.seq, "seen_s": seen_s, "counts": counts}
        return Change(self._key(_CASE, case.episode.id), canonical(value))

    def _progress(self, offset: int) -> Change:
        self.next_offset = offset + 1
        return Change(self._key(_PROGRESS), canonical({"next": self.next_offset, "newest_s": self.newest_s}))

    def _advance(self, seen_s: int) -> list[Change]:
        """Move the newest event time, and drop what then lies behind the horizon."""
        before_s = self.horizon_s
        self.newest_s = max(self.newest_s, seen_s)
        if self.horizon_s == before_s:
            return []
        changes = []
        for start_s in [start_s for start_s in self.panes if start_s < self.horizon_s]:
            groups = self.panes.pop(start_s)
            self._touch(start_s, groups)
            changes += [Change(self._key(_PANE, start_s, *group), None) for group in groups]
        for name in [name for name, known in self.cases.items() if known.seen_s < self.newest_s - CASES_KEPT_S]:
            del self.cases[name]
            changes.append(Change(self._key(_CASE, name), None))
        return changes

    def _touch(self, pane_s: int, groups: Iterable[Group]) -> None:
        self.dirty |= {Window(start, group) for start in windows_of(pane_s) for group in groups}

    def _key(self, kind: str, *name: Any) -> bytes:
        return canonical([kind, self.partition, *name])


def trend_key(window: Window, partition: int) -> bytes:
    """The key of a window in ``errata.trends.v1``."""
    return canonical([window.start_s, *window.group, partition])


def trend_of(window: Window, counts: Counts, partition: int) -> Trend:
    start = instant(window.start_s * 1_000_000)
    return Trend(
        window_start=start,
        window_end=start + timedelta(seconds=SIZE_S),
        size_s=SIZE_S,
        step_s=STEP_S,
        **window.group._asdict(),
        partition=partition,
        cases_opened=counts.cases_opened,
        findings=counts.findings,
    )


def summed(trends: Iterable[Trend]) -> dict[Window, Counts]:
    """The windows of the shares of all partitions, given the newest record of each key."""
    windows: dict[Window, Counts] = {}
    for one in trends:
        group = Group(one.tenant, one.model, one.detector, one.tag, one.severity)
        window = Window(to_us(one.window_start) // 1_000_000, group)
        windows[window] = windows.get(window, Counts()).plus(Counts(one.cases_opened, one.findings))
    return windows


def total(counts: Iterable[Counts]) -> Counts:
    whole = Counts()
    for one in counts:
        whole = whole.plus(one)
    return whole


def partition_of_key(key: bytes) -> int:
    """The partition that an entry of the state belongs to."""
    return int(json.loads(key)[1])


def _signals(case: TaggedCase) -> Iterator[tuple[str, str, int]]:
    """Name, detector and count of each finding."""
    for one in case.findings:
        yield f"{one.detector}|{one.subject}", one.detector, one.count
