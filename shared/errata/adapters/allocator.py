"""Memory that nobody needs goes back: what glibc keeps of a peak, and the interpreter of what it made before."""

import ctypes
import gc
import time
from collections.abc import Callable
from functools import cache

SPARE_EVERY_S = 10.0
COLLECT_EVERY_S = 300.0
ARENAS = 1
# Larger than what a batch makes, or a broker answers. Smaller pieces come from the heap, which has them from the last
# batch: new pages for each cost a detector a quarter of its time.
MAPPED_BYTES = 16 << 20
KEPT_BYTES = 64 << 20  # free at the end of a heap before `trim` is asked; 128 KiB unless told
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def bound_heap() -> None:
    """Have glibc make one heap for all threads, and keep what is free in it until `trim`. Before other threads start.

    By itself it makes a heap for each of a client's threads, up to eight a core: what is free in one is worth nothing
    to other threads, and what is free at its end not even `trim` gives back. And it gives back what a batch frees, page
    by page, only to ask for it again. Another C library is left alone.

    Source: mallopt(3), M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; glibc 2.36, malloc/malloc.c, mtrim.
    """
    call = _of_c_library("mallopt")
    if call is not None:
        call(_M_ARENA_MAX, ARENAS)
        call(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        call(_M_TRIM_THRESHOLD, KEPT_BYTES)


def trim() -> None:
    """Give all pages of the heap that hold nothing back to the operating system.

    A client in C that fetches after an outage fills tens of MB in several threads, each with an arena of its own.
    What glibc keeps of them at its own judgement grows with the highest peak of each arena. Another C library
    (musl, macOS) has no such call, and is left alone.

    Source: malloc_trim(3); 1 to 30 ms, in place of a batch of a few hundred events.
    """
    call = _of_c_library("malloc_trim")
    if call is not None:
        call(0)


@cache
def _of_c_library(name: str) -> Callable[..., int] | None:
    """Looked for once: each library object is a cycle of types, which the collector may find hours later."""
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found


def collect() -> None:
    """Look for cycles of every age, which frees what the interpreter keeps to make objects faster as well.

    It keeps up to 2,000 tuples of each length from 1 to 20, and one of a generator's items is new each time and then
    kept: hours of slow growth. By itself it would let go only once a quarter of all that lives is new.

    Source: CPython 3.11, Objects/tupleobject.c and Modules/gcmodule.c. About 1 µs an object that the collector knows:
    12 ms for a detector of 5 models, 200 ms of 500.
    """
    gc.collect()


class Spare:
    """Gives memory back between two turns of a loop, at most every ``every_s`` seconds. ``clock`` is monotonic."""

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
