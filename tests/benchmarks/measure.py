"""How everything here is measured: interleaved rounds on one core, CPU time, ratios as the median over rounds."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``goal`` names its threshold in ``goals.toml``; None: shown only. ``detail`` is for people."""

    name: str
    measured: float
    goal: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """``run(round)`` does the work and returns the number of events; ``ready(round)`` prepares it, not counted.
    Round 0 is the warm-up."""

    run: Callable[[int], int]
    ready: Callable[[int], object] = lambda round_: None


def pin(core: int | None = None) -> None:
    """Stay on one core, where the system can: the last one allowed unless told."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[-1] if core is None else allowed[core % len(allowed)]})


def interleaved(variants: Mapping[str, Variant], rounds: int) -> dict[str, list[float]]:
    """CPU time per event in µs, by variant and round; every variant runs once a round, after a warm-up round."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, variant in variants.items():
            variant.ready(round_)
            start = time.process_time()
            events = variant.run(round_)
            spent_s = time.process_time() - start
            if round_:
                taken[name].append(spent_s / events * 1e6)
    return taken


def speed_ratio(taken: Mapping[str, list[float]], name: str, baseline: str) -> float:
    """How fast ``name`` is beside ``baseline`` (2: twice as fast): the median of the ratios of each round."""
    return median(theirs / ours for ours, theirs in zip(taken[name], taken[baseline], strict=True))


def cost(taken: Mapping[str, list[float]], name: str) -> str:
    """The median cost of a variant, in words."""
    us = median(taken[name])
    return f"{us:.2f} µs an event, {1e3 / us:.0f} k events/s"
