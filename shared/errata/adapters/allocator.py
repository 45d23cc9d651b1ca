"""The C allocator of the process: glibc keeps what was freed, so that a peak would stay for the life of a service."""

import ctypes
import time
from collections.abc import Callable
from functools import cache

SPARE_EVERY_S = 30.0


def trim() -> None:
    """Give all pages of the heap that hold nothing back to the operating system.

    A client in C that fetches after an outage fills tens of MB in several threads, each with an arena of its own.
    What glibc keeps of them at its own judgement grows with the highest peak of each arena. Another C library
    (musl, macOS) has no such call, and is left alone.

    Source: malloc_trim(3); 1 to 30 ms, in place of a batch of a few hundred events.
    """
    call = _malloc_trim()
    if call is not None:
        call(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Looked for once: each library object is a cycle of types, which the collector may find hours later."""
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found


class Spare:
    """Trims the heap between two turns of a loop, at most every ``every_s`` seconds. ``clock`` is monotonic."""

    def __init__(
        self,
        every_s: float = SPARE_EVERY_S,
        *,
        clock: Callable[[], float] = time.monotonic,
        give_back: Callable[[], None] = trim,
    ) -> None:
        self._every_s, self._clock, self._give_back = every_s, clock, give_back
        self._next_s = clock() + every_s

    def __call__(self) -> None:
        now_s = self._clock()
        if now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            self._give_back()
