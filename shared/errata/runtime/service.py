"""A stage as a process: runs until it is told to stop, ends with the exit code that says what to do.

0 stopped, 70 an invariant is broken, 75 start it again, 78 a setting is wrong or another process took its place.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from threading import Event
from types import FrameType
from typing import Protocol

import structlog

from errata.errors import ErrataError
from errata.runtime.backoff import Backoff

POLL_S = 0.25
EXIT_AGAIN = 75
EXIT_BROKEN = 70
STABLE_S = 60.0  # a child that lived this long starts again without a pause
GRACE_S = 30.0


class Loop(Protocol):
    """What a process runs: `errata.runtime.worker.Worker` or another with the same two methods."""

    def run_once(self, timeout_s: float = 0.0) -> int: ...

    def close(self) -> None: ...


def serve(loop: Loop, stopping: Event, on_tick: Callable[[], None] = lambda: None) -> None:
    """Run until ``stopping`` is set: the batch at hand is finished, then the member leaves. Errors pass through."""
    try:
        while not stopping.is_set():
            on_tick()
            loop.run_once(POLL_S)
    finally:
        loop.close()


def stop_on_signals(stopping: Event) -> None:
    """SIGTERM and SIGINT ask for an orderly end; the handler only sets a flag."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def exit_code_of(error: BaseException) -> int:
    """What a process that ended with ``error`` exits with; a bug is an invariant that does not hold.

    >>> exit_code_of(ValueError())
    70
    """
    return error.exit_code if isinstance(error, ErrataError) else EXIT_BROKEN


def supervise(
    command: Sequence[str],
    stopping: Event,
    backoff: Backoff,
    clock: Callable[[], float],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Keep a child running: started again after 75 and after signals, with growing pauses; its exit code otherwise.

    ``clock`` is monotonic, in seconds.
    """
    log = structlog.get_logger()
    while True:
        began_s = clock()
        child = subprocess.Popen(command, env=None if environment is None else dict(environment))
        code = _wait(child, stopping)
        if stopping.is_set() or not _again(code):
            if code in (EXIT_BROKEN, 78):
                log.error("stopped for good", exit_code=code, runbook="deploy/runbooks/ErrataServiceDown.md")
            return code
        if clock() - began_s >= STABLE_S:
            backoff.reset()
        pause_s = backoff.next_s()
        log.warning("started again", exit_code=code, pause_s=round(pause_s, 2))
        if stopping.wait(pause_s):
            return 0


def _again(code: int) -> bool:
    return code == EXIT_AGAIN or code < 0


def _wait(child: "subprocess.Popen[bytes]", stopping: Event) -> int:
    asked = False
    while True:
        try:
            return child.wait(0.2)
        except subprocess.TimeoutExpired:
            if stopping.is_set() and not asked:
                asked = True
                child.terminate()


def command_of(service: str) -> list[str]:
    """How this very installation starts a service.

    >>> command_of("tagger")[1:]
    ['-m', 'errata_services.cli', 'run', 'tagger']
    """
    return [sys.executable, "-m", "errata_services.cli", "run", service]
