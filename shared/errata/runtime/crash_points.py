"""Named places at which a stage can be made to die, so that recovery is tested where it matters.

Kills at random times prove almost nothing: a loop that loses or doubles events passes them. Kills at these points
tell a right loop from a wrong one.
"""

import os
import signal
from collections.abc import Mapping

from errata.errors import Misconfigured

AFTER_STEP = "AFTER_STEP"
MID_PRODUCE = "MID_PRODUCE"
AFTER_PRODUCE = "AFTER_PRODUCE"
AFTER_OFFSETS = "AFTER_OFFSETS"
AFTER_COMMIT = "AFTER_COMMIT"
POINTS = (AFTER_STEP, MID_PRODUCE, AFTER_PRODUCE, AFTER_OFFSETS, AFTER_COMMIT)

VARIABLE = "ERRATA_CRASH"


class CrashPoint(BaseException):
    """The process would have died here. No handler of errors may catch it."""


class CrashPoints:
    """At most one armed point: ``stage`` dies at the ``nth`` passage of ``point``. Free when off."""

    def __init__(self, armed: tuple[str, str, int] | None = None, *, kill: bool = True) -> None:
        self._armed = armed
        self._kill = kill
        self._passed = 0

    @classmethod
    def off(cls) -> "CrashPoints":
        return cls()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "CrashPoints":
        """Read ``ERRATA_CRASH=<stage>:<POINT>:<nth>``; the process is killed there (SIGKILL)."""
        text = environment.get(VARIABLE)
        return cls(_parse(text)) if text else cls()

    @classmethod
    def raising(cls, stage: str, point: str, nth: int = 1) -> "CrashPoints":
        """Raise `CrashPoint` instead of killing the process: for runs whose log is in memory."""
        return cls((stage, point, nth), kill=False)

    def at(self, stage: str, point: str) -> None:
        """Pass a point."""
        if self._armed is None or self._armed[:2] != (stage, point):
            return
        self._passed += 1
        if self._passed != self._armed[2]:
            return
        if self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise CrashPoint(f"{stage} at {point}")


def _parse(text: str) -> tuple[str, str, int]:
    stage, _, rest = text.partition(":")
    point, _, nth = rest.partition(":")
    if not stage or not point or not nth.isascii() or not nth.isdecimal() or int(nth) < 1:
        raise Misconfigured(f"{VARIABLE} must read <stage>:<POINT>:<nth>, such as anomaly-detector:AFTER_STEP:1")
    return stage, point, int(nth)
