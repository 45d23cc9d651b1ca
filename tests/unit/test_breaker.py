"""A breaker by a clock of its own."""

import pytest

from errata.adapters.breaker import Breaker


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def failing(times: int) -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(times):
        breaker.failed()
    return breaker, clock


def test_it_opens_with_the_third_failure_in_a_row() -> None:
    assert failing(2)[0].state == "closed"
    assert failing(3)[0].state == "open"


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker, _ = failing(2)
    breaker.answered()
    breaker.failed()
    breaker.failed()
    assert (breaker.state, breaker.open, breaker.wait_s) == ("closed", False, 0.0)


def test_after_the_pause_one_may_try_and_an_answer_closes_it() -> None:
    breaker, clock = failing(3)
    told: list[str] = []
    for later_s in (0.19, 0.02, 0.0):
        clock.now_s += later_s
        told.append(breaker.state)
    assert told == ["open", "half_open", "half_open"]
    assert (breaker.open, breaker.wait_s) == (True, 0.0)
    breaker.answered()
    assert (breaker.open, breaker.state) == (False, "closed")


@pytest.mark.parametrize(("failures", "pause_s"), [(3, 0.2), (4, 0.4), (9, 12.8), (10, 25.6), (11, 30), (10_000, 30)])
def test_pauses_double_up_to_half_a_minute(failures: int, pause_s: float) -> None:
    assert failing(failures)[0].wait_s == pytest.approx(pause_s)
