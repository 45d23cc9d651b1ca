"""What the C allocator and the interpreter keep goes back to the system, now and then."""

import gc
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tests.memory import of_glibc, resident_mb

from errata.adapters import allocator
from errata.adapters.allocator import ARENAS, COLLECT_EVERY_S, SPARE_EVERY_S, Spare, bound_heap, collect, trim
from errata.settings import ServiceSettings
from errata_services import processes
from errata_services.processes import ENRICHER

MADE = 1_500  # tuples; the interpreter keeps 2,000 of a length
PIECES, PIECE_BYTES, HELD_ONE_IN = 10_000, 6_000, 10  # 60 MB, of which a tenth stays, spread over all of it
FREED_MB = 40.0
THREADS = 6
# Heaps of as many threads, then pieces of 1 MB that came straight from the system after one of 4 MB was freed.
KEPT = """
import ctypes, threading
from errata.adapters.allocator import bound_heap
{first}
here, done = threading.Barrier({threads} + 1), threading.Event()
def hold():
    piece = bytes(6_000)
    here.wait()
    done.wait()
for _ in range({threads}):
    threading.Thread(target=hold, daemon=True).start()
here.wait()
piece = bytes(4 << 20)
del piece
pieces = [bytes(1 << 20) for _ in range(8)]
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
done.set()
"""


@of_glibc
def test_pages_that_hold_nothing_go_back() -> None:
    pieces = [bytes(PIECE_BYTES + at % 100) for at in range(PIECES)]
    held = pieces[::HELD_ONE_IN]
    del pieces
    # The control: by itself glibc gives nothing back, as pieces lie behind all gaps.
    kept_mb = resident_mb(kind="RssAnon")
    trim()
    assert kept_mb - resident_mb(kind="RssAnon") > FREED_MB
    assert len(held) == PIECES / HELD_ONE_IN


def kept(first: str) -> tuple[int, int]:
    """Heaps, and large pieces outside of them, of a process that began with ``first``."""
    ran = [sys.executable, "-c", KEPT.format(first=first, threads=THREADS)]
    said = subprocess.run(ran, check=True, capture_output=True, text=True).stdout
    (mapped,) = re.findall(r'<total type="mmap" count="(\d+)"', said)
    return said.count("<heap "), int(mapped)


@of_glibc
def test_threads_share_two_heaps_and_no_large_piece_lies_in_them() -> None:
    heaps, mapped = kept("bound_heap()")
    assert heaps == ARENAS
    assert mapped >= 8
    heaps, mapped = kept("")  # the control
    assert heaps > THREADS
    assert mapped < 8


def test_a_service_bounds_its_heap_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise InterruptedError

    monkeypatch.setattr(processes, "bound_heap", asked)
    with pytest.raises(InterruptedError):
        processes.run_service(ENRICHER, ServiceSettings())


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    allocator._of_c_library.cache_clear()
    trim()
    bound_heap()
    allocator._of_c_library.cache_clear()


def test_nothing_stays_behind_that_only_the_collector_finds() -> None:
    trim()
    gc.collect()
    for _ in range(10):
        trim()
    assert gc.collect() == 0
    allocator._of_c_library.__wrapped__("malloc_trim")  # the control: looked for again
    assert gc.collect() > 0


def test_what_the_interpreter_keeps_for_later_is_freed() -> None:
    collect()
    before = sys.getallocatedblocks()
    for _ in range(MADE):
        tuple(number for number in (1, 2))
    gc.collect(1)
    # The control: neither their deletion nor the younger generations let them go.
    assert sys.getallocatedblocks() - before > MADE * 0.9
    collect()
    assert sys.getallocatedblocks() - before < MADE * 0.1


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_it_is_asked_once_in_a_while() -> None:
    clock, asked_s = Clock(), list[float]()
    spare = Spare(clock=clock, give_back=lambda: asked_s.append(clock.now_s))
    for at in range(int(3.5 * SPARE_EVERY_S)):
        clock.now_s = float(at)
        spare()
    assert asked_s == [SPARE_EVERY_S, 2 * SPARE_EVERY_S, 3 * SPARE_EVERY_S]


def test_the_loops_of_services_ask_between_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = Clock()
    collecting, trimming = (lambda: said.append("collect")), (lambda: said.append("trim"))

    def spare(every_s: float = SPARE_EVERY_S, *, give_back: Callable[[], None] = trimming) -> Spare:
        return Spare(every_s, clock=clock, give_back=collecting if give_back is collect else give_back)

    monkeypatch.setattr(processes, "Spare", spare)
    tick = processes.sparing(lambda: said.append("tick"))
    for clock.now_s in (0.0, SPARE_EVERY_S, COLLECT_EVERY_S):
        tick()
    assert said == ["tick", "tick", "trim", "tick", "collect", "trim"]
