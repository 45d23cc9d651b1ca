"""Whether a process lives, is ready and has started: plain conditions on facts the loop reports about itself.

Liveness asks only whether the loop still turns. It never depends on Kafka or a store, so that an outage of those makes
no process restart; readiness does, and says of what.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from errata.contracts import Receipt
from errata.errors import ErrataError
from errata.ports import TopicPartition
from errata.runtime.logging import masked
from errata.runtime.telemetry import BreakerState

Page = Callable[[], tuple[bool, dict[str, Any]]]

TICK_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """A dependency's breaker. Without one that is ``required`` the stage waits; without another it goes on."""

    state: BreakerState = "closed"
    required: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the loop. Monotonic times in seconds.

    ``waits_until_s``: the end of a bounded wait that the loop has announced, such as a restore; 0 for none.
    ``joined``: the group has told this member its share, which may be no partition at all.
    """

    last_tick_s: float
    waits_until_s: float = 0.0
    waits_for: str = ""
    started: bool = False
    joined: bool = False
    restoring: int = 0
    draining: bool = False
    breakers: Mapping[str, Breaker] = field(default_factory=dict)
    last_error: str | None = None
    poisoned: Mapping[TopicPartition, str] = field(default_factory=dict)  # places that are not read, and why


@dataclass(frozen=True, slots=True)
class Standing:
    """The facts with the next offset of each partition, and the partitions that rest until a dependency is back."""

    facts: Facts
    positions: Mapping[TopicPartition, int] = field(default_factory=dict)
    paused: frozenset[TopicPartition] = frozenset()


def not_live(facts: Facts, now_s: float) -> list[str]:
    """Why the process should be restarted; empty when it lives."""
    quiet_s = now_s - max(facts.last_tick_s, facts.waits_until_s)
    if quiet_s < TICK_LIMIT_S:
        return []
    where = f" (in {facts.waits_for})" if facts.waits_for else ""
    return [f"the loop has not turned for {now_s - facts.last_tick_s:.0f} s{where}"]


def not_started(facts: Facts) -> list[str]:
    """What the start still waits for; empty when it is done."""
    return [] if facts.started else [_with_error("transactions are not initialised yet", facts)]


def not_ready(facts: Facts) -> list[str]:
    """Why the process does no work now; empty when it does, or is idle because others have all partitions."""
    if facts.draining:
        return ["stopping"]
    if not facts.started:
        return not_started(facts)
    reasons = []
    if not facts.joined:
        reasons.append(_with_error("the group has not assigned partitions yet", facts))
    if facts.restoring:
        reasons.append(f"the state of {facts.restoring} partition(s) is being restored")
    reasons += [
        _with_error(f"{name} is unavailable (breaker {breaker.state.replace('_', ' ')})", facts)
        for name, breaker in sorted(facts.breakers.items())
        if breaker.required and breaker.state != "closed"
    ]
    reasons += [
        f"{topic} partition {number} is not read any more: {why} (breaker open; SIGUSR1 or a restart closes it)"
        for (topic, number), why in sorted(facts.poisoned.items())
    ]
    return reasons


def _with_error(reason: str, facts: Facts) -> str:
    return f"{reason}; last error: {facts.last_error}" if facts.last_error else reason


class Health:
    """The facts of one process. Its loop reports, probes ask from other threads.

    ``clock`` is monotonic, in seconds. What ``status`` shows holds no settings and nothing of an event.
    """

    def __init__(
        self,
        *,
        stage: str,
        instance: str,
        build: str,
        config_hash: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = {"stage": stage, "instance": instance, "build": build, "config_hash": config_hash}
        self._clock = clock
        self._lock = threading.Lock()
        self._facts = Facts(last_tick_s=clock())
        self._positions: dict[TopicPartition, int] = {}
        self._lags: dict[TopicPartition, int] = {}
        self._paused: frozenset[TopicPartition] = frozenset()
        self._receipt: Receipt | None = None

    # What the loop reports.

    def tick(self) -> None:
        """The loop turns. To be called at least every few seconds, also when there is nothing to do."""
        with self._lock:
            self._facts = replace(self._facts, last_tick_s=self._clock())

    @contextmanager
    def waiting(self, for_what: str, limit_s: float) -> Iterator[None]:
        """Inside, the loop stands still on purpose, for ``limit_s`` at most: it counts as alive until then."""
        self._change(waits_until_s=self._clock() + limit_s, waits_for=for_what)
        try:
            yield
        finally:
            self._change(last_tick_s=self._clock(), waits_until_s=0.0, waits_for="")

    def started(self) -> None:
        """The producer has initialised its transactions."""
        self._change(started=True)

    @contextmanager
    def restoring(self, partitions: int, limit_s: float = 60.0) -> Iterator[None]:
        """Inside, the state of this many partitions is read back. After an error they count as not restored."""
        self._change(restoring=partitions)
        with self.waiting("restore", limit_s):
            yield
        self._change(restoring=0)

    def assigned(self, positions: Mapping[TopicPartition, int]) -> None:
        """All partitions this member has now, with their next offsets; none is a share too."""
        with self._lock:
            self._facts = replace(self._facts, joined=True)
            self._positions = dict(positions)
            self._lags = {place: lag for place, lag in self._lags.items() if place in positions}
            self._paused &= frozenset(positions)

    def committed(self, positions: Mapping[TopicPartition, int], receipt: Receipt | None = None) -> None:
        """A batch was committed up to these next offsets: the last error is over."""
        with self._lock:
            self._positions.update(positions)
            self._receipt = receipt or self._receipt
            self._facts = replace(self._facts, last_tick_s=self._clock(), last_error=None)

    def lag(self, lags: Mapping[TopicPartition, int]) -> None:
        with self._lock:
            self._lags = dict(lags)

    def paused(self, partitions: frozenset[TopicPartition]) -> None:
        with self._lock:
            self._paused = partitions

    def poisoned(self, places: Mapping[TopicPartition, str]) -> None:
        """All assigned places that are not read because of too many dead letters, and why. They count as paused."""
        with self._lock:
            self._paused = self._paused - frozenset(self._facts.poisoned) | frozenset(places)
            self._facts = replace(self._facts, poisoned=dict(places))

    def breaker(self, dependency: str, state: BreakerState, *, required: bool = True) -> None:
        with self._lock:
            breakers = {**self._facts.breakers, dependency: Breaker(state, required)}
            self._facts = replace(self._facts, breakers=breakers)

    def failed(self, error: BaseException) -> None:
        """Remember an error. Of one that is not ours only the type: its text may hold anything."""
        text = masked(str(error)) if isinstance(error, ErrataError) else type(error).__name__
        self._change(last_error=text)

    def draining(self) -> None:
        """The process was asked to end: no more work for it."""
        self._change(draining=True)

    def _change(self, **facts: Any) -> None:
        with self._lock:
            self._facts = replace(self._facts, **facts)

    # What probes ask.

    @property
    def facts(self) -> Facts:
        with self._lock:
            return self._facts

    @property
    def standing(self) -> Standing:
        with self._lock:
            return Standing(self._facts, dict(self._positions), self._paused)

    @property
    def pages(self) -> dict[str, Page]:
        """Path → page: whether all is well, and a body that says why not."""
        return {
            "/livez": lambda: _verdict(not_live(self.facts, self._clock())),
            "/readyz": lambda: _verdict(not_ready(self.facts)),
            "/startupz": lambda: _verdict(not_started(self.facts)),
            "/statusz": lambda: (True, self.status()),
        }

    def status(self) -> dict[str, Any]:
        """Who this is and where it stands, for people. ``lag`` None: not known yet."""
        with self._lock:
            facts, receipt = self._facts, self._receipt
            partitions = [
                {
                    "topic": topic,
                    "partition": number,
                    "position": position,
                    "lag": self._lags.get((topic, number)),
                    "paused": (topic, number) in self._paused,
                }
                for (topic, number), position in sorted(self._positions.items())
            ]
        return {
            **self._identity,
            "live": not not_live(facts, self._clock()),
            "ready": not not_ready(facts),
            "started": not not_started(facts),
            "last_tick_age_s": round(self._clock() - facts.last_tick_s, 3),
            "waits_for": facts.waits_for or None,
            "partitions": partitions,
            "stopped_partitions": [
                {"topic": topic, "partition": number, "reason": why}
                for (topic, number), why in sorted(facts.poisoned.items())
            ],
            "breakers": {
                name: {"state": one.state, "required": one.required} for name, one in sorted(facts.breakers.items())
            },
            "last_error": facts.last_error,
            "last_receipt": None if receipt is None else receipt.model_dump(mode="json", by_alias=True),
        }


def _verdict(reasons: list[str]) -> tuple[bool, dict[str, Any]]:
    return not reasons, {"status": "failing" if reasons else "ok", "reasons": reasons}
