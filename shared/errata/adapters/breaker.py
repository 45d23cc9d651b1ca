"""Leaves a dependency that does not answer alone for a while, so that each call need not wait for its time-out."""

from collections.abc import Callable
from time import monotonic
from typing import Literal

TRIES = 3  # failures in a row that open it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0


class Breaker:
    """Opens after three failures in a row. After each pause one call may try; if it fails the pause doubles.

    >>> breaker = Breaker(lambda: 0.0)
    >>> for _ in range(5):
    ...     breaker.failed()
    ...     print(breaker.state, breaker.wait_s)
    closed 0.0
    closed 0.0
    open 0.2
    open 0.4
    open 0.8
    """

    def __init__(self, clock_s: Callable[[], float] = monotonic) -> None:
        self._clock_s = clock_s
        self._failures = 0
        self._until_s = 0.0

    @property
    def open(self) -> bool:
        """Whether the last three calls or more have failed."""
        return self._failures >= TRIES

    @property
    def wait_s(self) -> float:
        """Seconds until a call may be made; 0: now."""
        return max(0.0, self._until_s - self._clock_s()) if self.open else 0.0

    @property
    def state(self) -> Literal["closed", "half_open", "open"]:
        """``half_open``: the next call is a try."""
        if not self.open:
            return "closed"
        return "open" if self.wait_s else "half_open"

    def failed(self) -> None:
        self._failures += 1
        doublings = min(max(self._failures - TRIES, 0), 16)
        self._until_s = self._clock_s() + min(FIRST_PAUSE_S * 2.0**doublings, LONGEST_PAUSE_S)

    def answered(self) -> None:
        self._failures = 0
