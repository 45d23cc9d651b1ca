"""What the C allocator and the interpreter keep goes back to the system, now and then."""

import gc
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
# Heaps of as many threads.
HEAPS = """
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
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
done.set()
"""
BATCHES, ARRAYS, ARRAY_BYTES = 50, 6, 640_000  # 5,000 rows of 16 numbers
# Pages that came into being in as many batches, after the first.
PAGES = """
import resource
from errata.adapters.allocator import bound_heap
{first}
def batch():
    arrays = [bytearray({size}) for _ in range({arrays})]
    for array in arrays:
        array[::4096] = b"x" * len(array[::4096])
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({batches}):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@of_glibc
def test_pages_that_hold_nothing_go_back() -> None:
    pieces = [bytes(PIECE_BYTES + at % 100) for at in range(PIECES)]
    held = pieces[::HELD_ONE_IN]
    del pieces
    # The control: by itself glibc gives nothing back, as pieces lie behind all gaps.
    kept_mb = resident_mb(kind="Anonymous")
    trim()
    assert kept_mb - resident_mb(kind="Anonymous") > FREED_MB
    assert len(held) == PIECES / HELD_ONE_IN


def said(script: str, first: str) -> str:
    """What a process prints that began with ``first``."""
    filled = script.format(first=first, threads=THREADS, batches=BATCHES, arrays=ARRAYS, size=ARRAY_BYTES)
    return subprocess.run([sys.executable, "-c", filled], check=True, capture_output=True, text=True).stdout


@of_glibc
def test_threads_share_one_heap() -> None:
    assert said(HEAPS, "bound_heap()").count("<heap ") == ARENAS
    assert said(HEAPS, "").count("<heap ") > THREADS  # the control


@of_glibc
def test_a_batch_is_made_of_the_pages_of_the_last_one() -> None:
    of_a_batch = ARRAYS * ARRAY_BYTES // 4_096
    assert int(said(PAGES, "bound_heap()")) < of_a_batch
    assert int(said(PAGES, "")) > BATCHES * of_a_batch // 2  # the control


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
