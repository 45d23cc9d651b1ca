"""The watch over a process that stands still: partitions with records before them that do not move, a loop that hangs.

It runs in a thread of its own and asks the log through clients of its own, so that nothing the loop hangs in can hide
it. A partition stalls when its position stays where it is although another client reads a committed record there;
while the log does not answer nobody knows of any, so that an outage of the brokers ends no process. Only a restart
mends a stall: a client in C that hangs cannot be freed from outside.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import NoReturn, Protocol

import structlog

from errata.errors import ErrataError, Unavailable
from errata.ports import Offsets, Record, TopicPartition
from errata.runtime.health import Health, Standing
from errata.runtime.stops import FOLDER, STALLED
from errata.runtime.telemetry import Telemetry

STALL_S = 90.0
LEAST_ALARM_S = 30.0
AGAIN = Unavailable.exit_code
_FRAMES = 16  # the innermost of each thread
_SAYING_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a partition or the loop may stand still, in seconds: then its stacks are logged, then the process ends.

    With the defaults a stall is found within 60 s, and within 120 s another process goes on. ``answer_s`` bounds each
    request of the watch; ``alarm_s`` is how long the watch itself may hang, as it does when something in C holds the
    interpreter's lock.
    """

    tell_s: float = STALL_S / 2
    end_s: float = STALL_S
    every_s: float = STALL_S / 18
    answer_s: float = 5.0
    alarm_s: float = STALL_S

    @classmethod
    def of(cls, stall_s: float) -> "Limits":
        """Limits for a process that ends after ``stall_s``."""
        return cls(
            stall_s / 2, stall_s, stall_s / 18, min(5.0, max(1.0, stall_s / 2)), alarm_s=max(stall_s, LEAST_ALARM_S)
        )


# The decision: pure, the time comes in.


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stands still: ``partitions`` that did so for ``tell_s``, and the seconds of that which does so longest."""

    partitions: frozenset[TopicPartition] = frozenset()
    stands_s: float = 0.0
    loop_s: float = 0.0


@dataclass(slots=True)
class StandStill:
    """Since when each partition has stood at which position with a record before it."""

    since: dict[TopicPartition, tuple[int, float]] = field(default_factory=dict)

    def look(self, standing: Standing, waiting: Collection[TopicPartition], now_s: float, tell_s: float) -> Verdict:
        """Take in what was seen at ``now_s``. ``waiting``: partitions known to have a record at their position; time
        counts from when that was first known, and anew after a look at which it was not."""
        self.since = {
            place: self._since(place, standing.positions[place], now_s)
            for place in waiting
            if not excused(standing, now_s) and place not in standing.paused
        }
        loop_s = loop_stands_s(standing, now_s)
        stalled = {place: now_s - since_s for place, (_, since_s) in self.since.items() if now_s - since_s >= tell_s}
        if loop_s >= tell_s:
            stalled |= {place: loop_s for place in standing.positions if place not in stalled}
        return Verdict(frozenset(stalled), max([loop_s, *stalled.values()]), loop_s)

    def _since(self, place: TopicPartition, position: int, now_s: float) -> tuple[int, float]:
        before = self.since.get(place)
        return before if before is not None and before[0] == position else (position, now_s)


def excused(standing: Standing, now_s: float) -> bool:
    """Whether the process stands still on purpose: it stops, restores or has announced a wait."""
    facts = standing.facts
    return facts.draining or facts.restoring > 0 or now_s < facts.waits_until_s


def loop_stands_s(standing: Standing, now_s: float) -> float:
    """Seconds since the loop last turned, beyond waits that it has announced."""
    facts = standing.facts
    return 0.0 if facts.draining else max(0.0, now_s - max(facts.last_tick_s, facts.waits_until_s))


# The log.


class Log(Protocol):
    """What is asked of a transport. It is the watch's own: it is used, and closed, in the watch's thread alone."""

    def end_offsets(self, partitions: list[TopicPartition], *, timeout_s: float | None = None) -> Offsets: ...

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]: ...

    def close(self) -> None: ...


class Waiting:
    """Which partitions have a record at their position. Asks only about those that did not move since the last look,
    and reads only what it has not seen: behind the last record there may be marks of transactions, which are no lag."""

    def __init__(self, log: Log, answer_s: float, before_each: Callable[[], None] = lambda: None) -> None:
        """``before_each`` is called before each request; none takes longer than a few times ``answer_s``."""
        self._log, self._answer_s, self._before_each = log, answer_s, before_each
        self._last: Mapping[TopicPartition, int] = {}
        self._records: dict[TopicPartition, int] = {}  # position at which a record is known to lie
        self._marks: dict[TopicPartition, tuple[int, int]] = {}  # position and end between which there is none

    def among(self, positions: Mapping[TopicPartition, int]) -> set[TopicPartition]:
        """Raises ``Unavailable`` when the log does not answer: then nothing is known."""
        unmoved = sorted(place for place, position in positions.items() if self._last.get(place) == position)
        self._last = dict(positions)
        if not unmoved:
            return set()
        self._before_each()
        ends = self._log.end_offsets(unmoved, timeout_s=self._answer_s)
        return {place for place in unmoved if self._waits(place, positions[place], ends[place])}

    def _waits(self, place: TopicPartition, position: int, end: int) -> bool:
        if end <= position or self._marks.get(place) == (position, end):
            return False
        if self._records.get(place) != position:
            self._before_each()
            found = self._log.read_from(place, position, timeout_s=self._answer_s)
            if next(found, None) is None:
                self._marks[place] = position, end
                return False
            self._records[place] = position
        return True


# The thread.


def _end(code: int) -> NoReturn:
    os._exit(code)


class StallWatch:
    """Looks at a process until it is left: a context around its loop.

    Ends the process with 75, as a kill would: no member leaves, no transaction ends, and the next start goes on from
    what was committed. What hangs in C with the interpreter's lock in its hand no thread of ours can see; a timer
    outside of the interpreter, which each look winds up again, ends the process with 1 then.
    """

    def __init__(
        self,
        health: Health,
        telemetry: Telemetry,
        log: Log,
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], object] = _end,
    ) -> None:
        """``clock`` is monotonic, in seconds, and the same as that of ``health``."""
        self._health, self._telemetry, self._log = health, telemetry, log
        self._limits = limits or Limits()
        self._clock, self._end = clock, end
        self._waiting = Waiting(log, self._limits.answer_s, self._wind)
        self._stands = StandStill()
        self._told = False
        self._left = threading.Event()
        self._timer = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="errata-stall-watch", daemon=True)

    def __enter__(self) -> "StallWatch":
        self._wind()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._timer:  # behind this the timer is not ours any more
            self._left.set()
            faulthandler.cancel_dump_traceback_later()
        self._thread.join(_SAYING_S)

    def _run(self) -> None:
        while not self._left.wait(self._limits.every_s):
            self._wind()
            try:
                self.look()
            except Exception:  # a watch that died would be missed by nobody, and its timer would end the process
                structlog.get_logger().error("the stall watch failed at a look", exc_info=True)
        self._log.close()

    def _wind(self) -> None:
        with self._timer:
            if not self._left.is_set():
                faulthandler.dump_traceback_later(self._limits.alarm_s, exit=True)

    def look(self) -> Verdict:
        """Look once; tells, and ends the process, when it is time for it."""
        standing = self._health.standing
        waiting = set() if excused(standing, self._clock()) else self._known_waiting(standing)
        standing, before = self._health.standing, standing  # asking took its time
        waiting = {place for place in waiting if standing.positions.get(place) == before.positions[place]}
        verdict = self._stands.look(standing, waiting, self._clock(), self._limits.tell_s)
        hangs = verdict.loop_s >= self._limits.tell_s
        self._telemetry.stalled(max(len(verdict.partitions), int(hangs)))
        if verdict.stands_s >= self._limits.end_s:
            self._say_and_end(verdict)
        elif verdict.stands_s >= self._limits.tell_s and not self._told:
            found = stacks()
            self._say(lambda: self._tell("stands still", verdict, found))
        elif self._told and verdict.stands_s < self._limits.tell_s:
            structlog.get_logger().warning("moves again")
        self._told = verdict.stands_s >= self._limits.tell_s
        return verdict

    def _known_waiting(self, standing: Standing) -> set[TopicPartition]:
        watched = {place: at for place, at in standing.positions.items() if place not in standing.paused}
        try:
            return self._waiting.among(watched)
        except ErrataError:  # the log does not answer, or a partition is not there any more
            return set()

    def _tell(self, event: str, verdict: Verdict, stacks: Mapping[str, list[str]], **more: object) -> None:
        structlog.get_logger().error(
            event,
            stands_s=round(verdict.stands_s, 1),
            loop_stands_s=round(verdict.loop_s, 1),
            partitions=[f"{topic}/{number}" for topic, number in sorted(verdict.partitions)],
            stacks=stacks,
            **more,
        )

    def _say_and_end(self, verdict: Verdict) -> None:
        found = stacks()

        def last_words() -> None:
            page = f"{FOLDER}/{STALLED}.md"
            self._tell("stood still for too long; start it again", verdict, found, exit_code=AGAIN, runbook=page)
            for handler in logging.getLogger().handlers:
                handler.flush()
            with suppress(OSError, ValueError):
                sys.stderr.flush()

        self._say(last_words)
        self._end(AGAIN)

    def _say(self, words: Callable[[], None]) -> None:
        """Say them, but do not wait for long: the log may be what the process hangs in."""
        saying = threading.Thread(target=words, name="errata-stall-words", daemon=True)
        saying.start()
        saying.join(min(_SAYING_S, self._limits.tell_s))


def stacks() -> dict[str, list[str]]:
    """Where each thread of the interpreter is now, innermost last; places only, without values or lines of code."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unnamed')} ({ident})": [
            f"{os.path.basename(one.f_code.co_filename)}:{line} {one.f_code.co_name}"
            for one, line in list(islice(traceback.walk_stack(frame), _FRAMES))[::-1]
        ]
        for ident, frame in sys._current_frames().items()
    }
