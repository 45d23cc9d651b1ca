"""A stage as a process: runs until it is told to stop, ends with the exit code that says what to do.

0 stopped, 70 an invariant is broken, 75 start it again, 78 a setting is wrong or another process took its place.
"""

import faulthandler
import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event
from types import FrameType
from typing import Protocol

POLL_S = 0.25
CLOSE_TIMEOUT_S = 60.0  # then the process ends with 1, its stacks in the log
COLLECTED_AFTER = 100_000  # containers made and not freed; 700 unless told
COLLECTED_BETWEEN = 5_000  # … between two batches


class Loop(Protocol):
    """What a process runs: `errata.runtime.worker.Worker` or another with the same two methods."""

    def run_once(self, timeout_s: float = 0.0) -> int: ...

    def close(self) -> None: ...


def calm_collector() -> None:
    """Have the garbage collector look rarely, and never at what stands before the first batch.

    A batch is tens of thousands of tuples that die together by their reference counts; looking for cycles among them
    at every 700th costs a detector a sixth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_AFTER)


@contextmanager
def _within_batch() -> Iterator[None]:
    """Before and after it the collector looks soon: what died with the batch is gone then, and cycles alone are left.

    Else a service that takes little at a time would keep a hundred thousand of them, and grow for an hour.
    """
    gc.set_threshold(COLLECTED_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(COLLECTED_BETWEEN)


def serve(
    loop: Loop,
    stopping: Event,
    on_tick: Callable[[], None] = lambda: None,
    watch: AbstractContextManager[object] | None = None,
) -> None:
    """Run until ``stopping`` is set: the batch at hand is finished, then the member leaves. Errors pass through.

    ``watch`` is around the loop, and left before the member leaves."""
    try:
        with watch or nullcontext():
            while not stopping.is_set():
                on_tick()
                with _within_batch():
                    loop.run_once(POLL_S)
    finally:
        # A client in C that hangs with the interpreter's lock in its hand is beyond any thread of ours.
        faulthandler.dump_traceback_later(CLOSE_TIMEOUT_S, exit=True)
        loop.close()
        faulthandler.cancel_dump_traceback_later()


def read_again_on_signal(ask: Callable[[], None] = lambda: None) -> None:
    """SIGUSR1 asks to read again what the breaker has stopped; for a process that has none it asks nothing."""

    def again(number: int, frame: FrameType | None) -> None:
        ask()

    signal.signal(signal.SIGUSR1, again)


def stop_on_signals(stopping: Event) -> None:
    """SIGTERM and SIGINT ask for an orderly end; the handler only sets a flag."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
