"""The loop of a process, and what it leaves to the garbage collector."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event

import pytest

from errata.runtime import service
from errata.runtime.service import COLLECTED_AFTER, COLLECTED_BETWEEN, calm_collector, serve

BATCHES, OF_BATCH = 600, 100
OBJECTS_OF_A_CYCLE = 2  # it and its attributes


class Cycle:
    """Garbage that no reference count frees."""

    def __init__(self, born: list[int]) -> None:
        self.me, self.born = self, born
        born[0] += 1

    def __del__(self) -> None:
        self.born[0] -= 1


@dataclass
class Leaving:
    """A loop that leaves cycles behind with each batch, and asks to stop after some batches."""

    stopping: Event
    alive: list[int] = field(default_factory=lambda: [0])
    most: int = 0
    batches: int = 0
    thresholds: set[int] = field(default_factory=set)
    closed: bool = False

    def run_once(self, timeout_s: float = 0.0) -> int:
        self.thresholds.add(gc.get_threshold()[0])
        for _ in range(OF_BATCH):
            Cycle(self.alive)
        self.most = max(self.most, self.alive[0])
        self.batches += 1
        if self.batches == BATCHES:
            self.stopping.set()
        return OF_BATCH

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_cycles_that_batches_leave_are_collected_between_them() -> None:
    calm_collector()
    stopping = Event()
    loop = Leaving(stopping)
    serve(loop, stopping)
    assert (loop.batches, loop.closed) == (BATCHES, True)
    assert loop.most <= COLLECTED_BETWEEN + OF_BATCH * OBJECTS_OF_A_CYCLE
    assert loop.thresholds == {COLLECTED_AFTER}  # within a batch it does not look


@pytest.mark.usefixtures("collector")
def test_without_that_they_would_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(service, "COLLECTED_BETWEEN", COLLECTED_AFTER)
    calm_collector()
    stopping = Event()
    loop = Leaving(stopping)
    serve(loop, stopping)
    assert loop.most > 5 * COLLECTED_BETWEEN
