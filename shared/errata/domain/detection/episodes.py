"""Episodes: the machine that turns signals into one failure.

One machine a slot walks findings and window ends in the order (record, detector, subject), after all detectors of the
batch have stepped. While an episode is open every finding of the model joins it. It closes at the end of the second
window in a row with no firing signal (signals on labels count windows of outcomes) and reopens, with the same id, when
one of its own signals fires within ten windows after closing; another signal is a new episode. ``seq`` moves at open,
at a new signal, at a window end with changed counts, at close and at reopen, never per batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

QUIET_WINDOWS = 2
REOPEN_WINDOWS = 10
REMEMBERED = 4  # closed episodes that may still reopen

Family = Literal["predictions", "outcomes"]
Row = tuple[int, str, int, int, str]
MoveState = Literal["open", "update", "close", "reopen"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One finding at one record: what fired, how strongly, and the rows that show it. Times in µs since 1970."""

    record: int
    slot: int
    detector: str
    subject: str
    family: Family
    level: Literal["event", "window", "composite"]
    reason: str
    statistic: str
    value: float
    threshold: float
    direction: Literal["up", "down", "both"]
    onset_us: int
    time_us: int  # event time of the record it fired at
    record_time_us: int
    count: int
    exemplars: tuple[Row, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.detector}|{self.subject}"

    @property
    def order(self) -> tuple[int, int, str, str]:
        return self.record, 0, self.detector, self.subject


@dataclass(frozen=True, slots=True)
class WindowEnd:
    """A window of a slot ended at a record (its last event, or a tick). ``fired``: signals of it -> events."""

    record: int
    slot: int
    family: Family
    n: int
    from_us: int
    to_us: int
    record_time_us: int
    number: int
    fired: Mapping[str, int]
    judged: bool = True

    @property
    def order(self) -> tuple[int, int, str, str]:
        return self.record, 1, self.family, ""


@dataclass(slots=True)
class Heard:
    """A signal of an episode, with its newest finding."""

    family: Family
    finding: dict[str, Any]
    closed_count: int = 0  # events of ended windows
    open_count: int = 0
    windows: int = 0

    @property
    def count(self) -> int:
        return self.closed_count + self.open_count


@dataclass(slots=True)
class Spell:
    """An episode as the machine keeps it."""

    id: str
    seq: int
    open: bool
    onset_us: int
    last_seen_us: int
    admitted_by: str
    floor_us: int  # the last close before it opened: no onset of its signals lies before
    events: int = 0
    signals: dict[str, Heard] = field(default_factory=dict)
    quiet: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # windows of a family ended since closing
    closed_us: int | None = None
    exemplars: list[Row] = field(default_factory=list)
    controls: list[Row] = field(default_factory=list)
    mover: str = ""
    window: list[int] = field(default_factory=list)  # from_us, to_us, n of the newest ended window

    @property
    def count(self) -> int:
        return max((heard.count for heard in self.signals.values()), default=0)


@dataclass(frozen=True, slots=True)
class Move:
    """``seq`` moved: the episode as of now goes out. ``record_time_us`` is when."""

    state: MoveState
    spell: dict[str, Any]
    record: int
    record_time_us: int


# (record of the batch, slot) -> the id of an episode that opens there.
NewId = Callable[[int, int], str]


@dataclass(slots=True)
class SlotEpisodes:
    """The open episode of a slot, if any, and those closed lately."""

    current: Spell | None = None
    closed: list[Spell] = field(default_factory=list)
    warm_up: str = ""  # until the first judged window: why what was known of the slot before it was given up

    def walk(
        self, marks: Sequence[Signal | WindowEnd], new_id: NewId, controls: Mapping[int, Sequence[Row]] | None = None
    ) -> list[Move]:
        """Walk the marks of one slot, sorted by their order; ``controls`` are the rows of its last quiet window by
        the record from which on they are."""
        moves: list[Move] = []
        for mark in marks:
            if isinstance(mark, Signal):
                rows = _controls_at(controls or {}, mark.record)
                made = self._hear(mark, new_id, rows)
            else:
                made = self._end_window(mark)
            if self.warm_up:
                for move in made:
                    move.spell["warm_up"] = self.warm_up
                if isinstance(mark, WindowEnd) and mark.judged:
                    self.warm_up = ""
            moves.extend(made)
        return moves

    def give_up(self, record: int, record_time_us: int, why: str) -> Move | None:
        """Close the open episode, if any, of a slot that is given up: nothing would end it any more."""
        spell = self.current
        if spell is None:
            return None
        self.current = None
        spell.open, spell.closed_us, spell.seq = False, spell.last_seen_us, spell.seq + 1
        return Move("close", {**_plain(spell), "given_up": why}, record, record_time_us)

    def _hear(self, signal: Signal, new_id: NewId, controls: Sequence[Row]) -> list[Move]:
        if self.current is not None:
            known = signal.name in self.current.signals
            self._join(self.current, signal)
            return [] if known else [_move("update", self.current, signal)]
        again = self._reopened(signal)
        if again is not None:
            self.closed.remove(again)
            again.open, again.closed_us, again.quiet, again.ended = True, None, {}, {}
            self.current = again
            self._join(again, signal)
            return [_move("reopen", again, signal)]
        floor = max((s.closed_us for s in self.closed if s.closed_us is not None), default=0)
        onset = max(signal.onset_us, floor)
        opened = Spell(new_id(signal.record, signal.slot), -1, True, onset, signal.time_us, signal.detector, floor)
        opened.controls = list(controls)
        self.current = opened
        self._join(opened, signal)
        return [_move("open", opened, signal)]

    def _join(self, spell: Spell, signal: Signal) -> None:
        heard = spell.signals.get(signal.name)
        finding = {
            "detector": signal.detector,
            "subject": signal.subject,
            "level": signal.level,
            "reason": signal.reason,
            "statistic": signal.statistic,
            "value": signal.value,
            "threshold": signal.threshold,
            "direction": signal.direction,
            "onset_us": max(signal.onset_us, spell.floor_us),
            "evidence": dict(signal.evidence),
        }
        if heard is None:
            heard = spell.signals[signal.name] = Heard(signal.family, finding)
            spell.mover = signal.name
        else:
            # The figures shown are those of the strongest firing; the onset that of the first.
            first = heard.finding["onset_us"]
            if _strength(finding) > _strength(heard.finding):
                heard.finding = finding
            heard.finding["onset_us"] = min(first, finding["onset_us"])
        heard.open_count = max(heard.open_count, signal.count)
        spell.quiet[signal.family] = 0
        spell.last_seen_us = max(spell.last_seen_us, signal.time_us)
        spell.onset_us = min(spell.onset_us, heard.finding["onset_us"])
        spell.exemplars = sorted({*spell.exemplars, *signal.exemplars})[:8]

    def _reopened(self, signal: Signal) -> Spell | None:
        for spell in reversed(self.closed):
            if signal.name in spell.signals and spell.ended.get(signal.family, 0) < REOPEN_WINDOWS:
                return spell
        return None

    def _end_window(self, end: WindowEnd) -> list[Move]:
        for old in self.closed:
            old.ended[end.family] = old.ended.get(end.family, 0) + 1
        self.closed = [s for s in self.closed if min(s.ended.values(), default=0) < REOPEN_WINDOWS or _waits(s)]
        spell = self.current
        if spell is None or not end.judged:
            return []
        changed = False
        for name, heard in spell.signals.items():
            if heard.family != end.family:
                continue
            total = end.fired.get(name, 0)
            if total:
                heard.windows += 1
            changed = changed or total > 0
            heard.closed_count += max(total, heard.open_count)
            heard.open_count = 0
        if end.family == "predictions":
            spell.events += end.n
        spell.window = [end.from_us, end.to_us, end.n]
        if changed:
            spell.quiet[end.family] = 0
            spell.last_seen_us = max(spell.last_seen_us, end.to_us)
            return [_move("update", spell, end)]
        spell.quiet[end.family] = spell.quiet.get(end.family, 0) + 1
        families = {heard.family for heard in spell.signals.values()}
        if all(spell.quiet.get(family, 0) >= QUIET_WINDOWS for family in families):
            spell.open, spell.closed_us, spell.ended = False, end.to_us, {}
            self.current = None
            self.closed = [*self.closed, spell][-REMEMBERED:]
            return [_move("close", spell, end)]
        return []

    def to_plain(self) -> dict[str, Any]:
        return {
            "current": None if self.current is None else _plain(self.current),
            "closed": [_plain(spell) for spell in self.closed],
            **({"warm_up": self.warm_up} if self.warm_up else {}),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "SlotEpisodes":
        current = plain["current"]
        closed = [_spell(one) for one in plain["closed"]]
        return cls(None if current is None else _spell(current), closed, plain.get("warm_up", ""))


def _waits(spell: Spell) -> bool:
    """Whether a signal of a family that ends no windows could still reopen it."""
    families = {heard.family for heard in spell.signals.values()}
    return any(spell.ended.get(family, 0) < REOPEN_WINDOWS for family in families)


def _strength(finding: Mapping[str, Any]) -> float:
    return float(finding["value"]) / max(float(finding["threshold"]), 1e-9)


def _controls_at(controls: Mapping[int, Sequence[Row]], record: int) -> Sequence[Row]:
    known = [since for since in controls if since < record]
    return controls[max(known)] if known else ()


def _move(state: MoveState, spell: Spell, mark: Signal | WindowEnd) -> Move:
    spell.seq += 1
    return Move(state, _plain(spell), mark.record, mark.record_time_us)


def _plain(spell: Spell) -> dict[str, Any]:
    return {
        "id": spell.id,
        "seq": spell.seq,
        "open": spell.open,
        "onset_us": spell.onset_us,
        "last_seen_us": spell.last_seen_us,
        "admitted_by": spell.admitted_by,
        "floor_us": spell.floor_us,
        "events": spell.events,
        "signals": {
            name: {
                "family": heard.family,
                "finding": {**heard.finding},
                "closed_count": heard.closed_count,
                "open_count": heard.open_count,
                "windows": heard.windows,
            }
            for name, heard in sorted(spell.signals.items())
        },
        "quiet": dict(spell.quiet),
        "ended": dict(spell.ended),
        "closed_us": spell.closed_us,
        "exemplars": [list(row) for row in spell.exemplars],
        "controls": [list(row) for row in spell.controls],
        "mover": spell.mover,
        "window": list(spell.window),
    }


def _spell(plain: Mapping[str, Any]) -> Spell:
    fields = dict(plain)
    fields["signals"] = {
        name: Heard(one["family"], dict(one["finding"]), one["closed_count"], one["open_count"], one["windows"])
        for name, one in plain["signals"].items()
    }
    for rows in ("exemplars", "controls"):
        fields[rows] = [(int(r[0]), str(r[1]), int(r[2]), int(r[3]), str(r[4])) for r in plain[rows]]
    for counts in ("quiet", "ended"):
        fields[counts] = dict(plain[counts])
    fields["window"] = list(plain["window"])
    return Spell(**fields)
