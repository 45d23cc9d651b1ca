"""Pauses between tries of something that is down: growing, and spread so that many do not come back at once."""

from collections.abc import Callable

FIRST_S, MOST_S = 0.2, 30.0


class Backoff:
    """Full jitter: each pause is anywhere between zero and a bound that doubles from ``first_s`` to ``most_s``.

    >>> backoff = Backoff(lambda: 1.0)
    >>> [backoff.next_s() for _ in range(9)]
    [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    """

    def __init__(self, chance: Callable[[], float], *, first_s: float = FIRST_S, most_s: float = MOST_S) -> None:
        """``chance`` draws from [0, 1]."""
        self._chance, self._first_s, self._most_s = chance, first_s, most_s
        self._tries = 0

    def next_s(self) -> float:
        bound: float = min(self._most_s, self._first_s * 2.0**self._tries)
        self._tries = min(self._tries + 1, 30)
        return bound * self._chance()

    def reset(self) -> None:
        self._tries = 0
