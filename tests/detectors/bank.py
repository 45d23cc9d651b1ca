"""The bank of CUSUMs in scalar code: one outcome at a time, one sum at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.detectors.streams import reference

from errata.domain.detection.profile import reference_error_rate

FACTORS = (1.3, 1.6, 2.2, 3.5)
UNIT = 2**20


@dataclass
class Cusum:
    """S = max(0, S + x); an alarm at 11 starts it over; alarms chain while the next run starts ≤ 50 later."""

    up: int
    down: int
    sum: int = 0
    run: int = 0  # the outcome at which the run began
    chain: int | None = None
    last_alarm: int = 0
    alarms: list[int] = field(default_factory=list)
    fired: list[int] = field(default_factory=list)

    def see(self, number: int, wrong: bool) -> None:
        self.sum = max(0, self.sum + (self.up if wrong else self.down))
        if self.sum == 0:
            self.run = number + 1
        if self.sum >= 11 * UNIT:
            self.alarms.append(number)
            if self.chain is None or self.run - self.last_alarm > 50:
                self.chain = self.run
            self.last_alarm = number
            if number - self.chain + 1 >= 50:
                self.fired.append(number)
            self.sum, self.run = 0, number + 1


def bank(p0: float) -> list[Cusum]:
    rates = [min(0.95, factor * p0) for factor in FACTORS]
    return [Cusum(round(UNIT * math.log(p1 / p0)), round(UNIT * math.log((1 - p1) / (1 - p0)))) for p1 in rates]


def run_bank(wrong: Sequence[bool], p0: float) -> list[Cusum]:
    sums = bank(p0)
    for number, one in enumerate(wrong):
        for cusum in sums:
            cusum.see(number, one)
    return sums


def reference_rate() -> float:
    error = reference().error
    return reference_error_rate(error.wrong, error.outcomes)


def first_firing(wrong: Sequence[bool]) -> int:
    """The outcome at which a stream of labels opens a case against the test model's reference."""
    return min(number for cusum in run_bank(wrong, reference_rate()) for number in cusum.fired[:1])
