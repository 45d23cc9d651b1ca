"""How everything here is measured: interleaved rounds on one core, CPU time, ratios as the median over rounds."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from errata.adapters.allocator import bound_heap
from errata.runtime.service import calm_collector


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run. ``warm``: events a stage sees before it is timed."""

    rounds: int
    warm: int
    permutations: int
    streams: int = 40
    quick: bool = False


# Rounds are divided among processes: with 13 each a ratio still moved by 2 % from run to run. Warm: one generation of
# the ids that are remembered, and more.
FULL = Scale(rounds=125, warm=140_000, permutations=10)
QUICK = Scale(rounds=11, warm=10_000, permutations=1, quick=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``goal`` names its threshold in ``goals.toml``; None: shown only. ``detail`` is for people."""

    name: str
    measured: float
    goal: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """``run`` does the work and returns the number of events; ``ready`` prepares it and is not counted."""

    run: Callable[[], int]
    ready: Callable[[], object] = lambda: None


def heap_of_services() -> None:
    """All variants run on the heap that services have."""
    bound_heap()


@contextmanager
def one_core() -> Iterator[None]:
    """Stay on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def calm() -> Iterator[None]:
    """Leave the collector as it was."""
    before = gc.get_threshold()
    try:
        yield
    finally:
        gc.set_threshold(*before)


def interleaved(variants: Mapping[str, Variant], rounds: int) -> dict[str, list[float]]:
    """CPU time per event in µs, by variant and round; every variant runs once a round, after a warm-up round.

    The collector is as services have it, for all variants. It does not see what stood before a variant began: the
    other variants and all their events are the benchmark's, not the product's.
    """
    taken: dict[str, list[float]] = {name: [] for name in variants}
    with one_core(), calm():
        for round_ in range(rounds + 1):
            for name, variant in variants.items():
                variant.ready()
                calm_collector()
                start_s = time.process_time()
                events = variant.run()
                spent_s = time.process_time() - start_s
                if round_:
                    taken[name].append(spent_s / events * 1e6)
    return taken


def speed_ratio(taken: Mapping[str, list[float]], name: str, baseline: str) -> float:
    """How fast ``name`` is beside ``baseline`` (2: twice as fast): the median of the ratios of each round.

    >>> speed_ratio({"fast": [1.0, 1.0, 9.0], "slow": [2.0, 2.2, 4.0]}, "fast", "slow")
    2.0
    """
    return median(theirs / ours for ours, theirs in zip(taken[name], taken[baseline], strict=True))


def cost(taken: Mapping[str, list[float]], name: str) -> str:
    """The median cost of a variant, in words."""
    us = median(taken[name])
    return f"{us:.2f} µs an event"
