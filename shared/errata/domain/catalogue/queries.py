"""What one may ask of the catalogue: the same questions for the command line, an API and pages."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast, get_args

from errata.contracts.anomalies import RootClass, SeverityLevel
from errata.contracts.cases import CaseStatus
from errata.contracts.strict import instant_us, to_us
from errata.errors import Misconfigured

MAX_LIMIT = 10_000
_AGO = re.compile(r"(\d{1,6})([mhdw])", re.ASCII)
_UNIT_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class CaseQuery:
    """A search over cases; a field that is None or empty does not filter.

    ``since_us``: seen at or after this time. ``tag``: a whole tag, or its first parts (``data`` or
    ``data:population``). ``text``: every word of it must occur, as written, in what `search_text` collects.
    Answers come newest first, by when the case was opened.
    """

    status: CaseStatus | None = None
    model: str | None = None
    tenant: str | None = None
    root_class: RootClass | None = None
    severity: SeverityLevel | None = None
    tag: str | None = None
    since_us: int | None = None
    text: str = ""
    limit: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_LIMIT:
            raise Misconfigured(f"--limit: write a number from 1 to {MAX_LIMIT}")


@dataclass(frozen=True, slots=True)
class CaseCounts:
    """How many cases there are, and how many of each status, episode state and root class."""

    cases: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    by_state: dict[str, int] = field(default_factory=dict)
    by_root_class: dict[str, int] = field(default_factory=dict)


def words(text: str) -> tuple[str, ...]:
    """The words of a search, in lower case.

    >>> words("  RELP 100%_x ")
    ('relp', '100%_x')
    """
    return tuple(text.lower().split())


def since_us(text: str, now: datetime) -> int:
    """A point in time from ``24h``, ``7d``, ``30m``, ``2w`` before ``now``, or from an RFC 3339 time.

    >>> from datetime import UTC
    >>> since_us("1d", datetime(1970, 1, 2, tzinfo=UTC)), since_us("1970-01-01T00:00:01Z", datetime.now(UTC))
    (0, 1000000)
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        try:
            return to_us(now - timedelta(seconds=int(ago[1]) * _UNIT_S[ago[2]]))
        except OverflowError:
            return 0
    try:
        return instant_us(text if "T" in text else f"{text}T00:00:00Z")
    except ValueError:
        raise Misconfigured("--since: write 30m, 24h, 7d, 2w, a date, or a time such as 2026-01-05T12:00:00Z") from None


def status_filter(text: str | None) -> CaseStatus | None:
    return cast("CaseStatus | None", _one_of("--status", text, get_args(CaseStatus)))


def root_class_filter(text: str | None) -> RootClass | None:
    return cast("RootClass | None", _one_of("--root-class", text, get_args(RootClass)))


def severity_filter(text: str | None) -> SeverityLevel | None:
    return cast("SeverityLevel | None", _one_of("--severity", text, get_args(SeverityLevel)))


def _one_of(option: str, text: str | None, choices: tuple[str, ...]) -> str | None:
    if text is not None and text not in choices:
        raise Misconfigured(f"{option}: not a known value; write one of {', '.join(choices)}")
    return text


def suggestion(asked: str, known: Iterable[str]) -> str | None:
    """The known id that looks most like the one asked for.

    >>> suggestion("case-12", ["CASE-1", "CASE-12"]), suggestion("x", ["CASE-1"])
    ('CASE-12', None)
    """
    by_folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(asked.lower(), by_folded, n=1, cutoff=0.6)
    return by_folded[near[0]] if near else None
