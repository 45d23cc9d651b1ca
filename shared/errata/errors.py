"""Every error errata raises. The class says what its catcher must do.

::

    ErrataError
    ├── Refused                 this input can never work: dead-letter it, go on
    │   ├── RefusedDecode           not JSON, too deep, NUL, lone surrogate, not finite
    │   ├── RefusedSchema           a field of the envelope is missing or wrong
    │   ├── RefusedOversize         too many bytes or features
    │   └── RefusedClock            an event time that cannot be
    ├── Unavailable             a dependency is down or slow: pause, then try again
    │   └── HangingTransaction      records cannot be read: a transaction before them does not end
    ├── Aborted                 this transaction is void: abort, seek back, go on
    ├── Fenced                  a newer instance has taken over: stop with 78
    ├── StateDamaged            state and offsets do not belong together: stop with 70
    ├── BrokenStage             the same bug of ours again and again: stop with 70
    ├── Misconfigured           a setting, file or argument is wrong: stop with 78
    ├── NotFound                what was asked for is not there: tell the person
    └── IllegalMove             a step the life cycle of a case does not have: tell the person
"""

from typing import ClassVar, Literal

RefusalClass = Literal["decode", "schema", "semantic", "oversize", "policy", "clock", "handler", "sink"]


class ErrataError(Exception):
    """Base of all errors of errata. ``str()`` is one line a person can act on."""

    exit_code: ClassVar[int] = 1


class Refused(ErrataError):
    """An input that can never be taken: ``path`` is the JSON pointer of its first faulty field.

    ``message`` names the kind of the value and never the value itself: it is logged and stored.
    """

    refusal_class: ClassVar[RefusalClass] = "schema"

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path or '/'}: {message}")
        self.path = path
        self.message = message


class RefusedDecode(Refused):
    """Not JSON, deeper than 32, or a text or number that JSON or PostgreSQL cannot keep."""

    refusal_class = "decode"


class RefusedSchema(Refused):
    """A required field of the envelope is missing, or a field has the wrong type."""

    refusal_class = "schema"


class RefusedOversize(Refused):
    """Over 256 KiB, or over 2,000 features."""

    refusal_class = "oversize"


class RefusedClock(Refused):
    """An event time more than 24 h after the record's time."""

    refusal_class = "clock"


class Unavailable(ErrataError):
    """A dependency does not answer. Pause and try again; nothing is dropped."""

    exit_code = 75


class HangingTransaction(Unavailable):
    """A transaction of somebody does not end, so that what lies behind it cannot be read."""


class Aborted(ErrataError):
    """The open transaction is void. Abort it, seek back to the batch's start, go on."""

    exit_code = 75


class Fenced(ErrataError):
    """Another process with the same ``ERRATA_INSTANCE`` has taken over; the newer wins."""

    exit_code = 78


class StateDamaged(ErrataError):
    """Restored state does not belong to the committed offsets; processing would be wrong.

    The message begins with the reason: ``digest``, ``position``, ``position_missing``, ``wrong_partition``,
    ``foreign_key``, ``schema_older``, ``schema_newer``, ``unreadable``, ``config``, ``state_behind``, ``state_ahead``,
    ``rebuild_unfinished``, ``hanging_transaction``, ``offset_out_of_range``, ``catalogue_ahead`` or
    ``trends_unreadable``; `errata.runtime.stops` knows a page for each.
    """

    exit_code = 70

    @property
    def reason(self) -> str:
        return str(self).partition(":")[0]


class BrokenStage(ErrataError):
    """A stage fails on its input by a bug of its own, too often to go on; the message names its fingerprint."""

    exit_code = 70


class Misconfigured(ErrataError):
    """A setting, file or argument is wrong; the message says which and what to write instead."""

    exit_code = 78


class NotFound(ErrataError):
    """What was asked for does not exist."""

    exit_code = 1


class IllegalMove(ErrataError):
    """A person asked for a step that the life cycle does not have; the message says which steps there are."""

    exit_code = 1
