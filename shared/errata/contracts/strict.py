"""The rules every text, number and time of a message obeys; the same for pydantic and for the fast decoder.

Source of the rules: what strict pydantic and msgspec accept differs (times without seconds, naive times, NUL,
integers beyond 64 bits, NaN in unknown fields), and PostgreSQL refuses NUL and lone surrogates later on. So the rules
stand here once, in plain Python, and both decoders are held to them by one corpus.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_FEATURES = 2_000
MAX_VECTOR = 4_096
MAX_FEATURE_BYTES = 4 * 1024
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_US = (datetime.min.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
LAST_US = (datetime.max.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)

# RFC 3339: seconds compulsory, an offset compulsory, `T` and `Z` upper case, no leap second, at most nanoseconds.
_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:(Z)|([+-])(\d\d):(\d\d))", re.ASCII
)


def instant_us(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 time; digits beyond the microsecond are cut off.

    Raises ``ValueError`` for a time without an offset, without seconds, that does not exist, or that is outside of
    the years 1 to 9999 in UTC.

    >>> instant_us("2026-01-05T00:00:00.1234567Z")
    1767571200123456
    """
    found = _INSTANT.fullmatch(text)
    if found is None:
        raise ValueError("not an RFC 3339 time with seconds and an offset, such as 2026-01-05T12:00:00Z")
    year, month, day, hour, minute, second, fraction, zulu, sign, off_hour, off_minute = found.groups()
    at = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC)
    us = (at - EPOCH) // timedelta(microseconds=1)
    us += int((fraction or "0")[:6].ljust(6, "0"))
    if zulu is None:
        if int(off_hour) > 23 or int(off_minute) > 59:
            raise ValueError("an offset is at most 23:59")
        shift = (int(off_hour) * 60 + int(off_minute)) * 60_000_000
        us -= shift if sign == "+" else -shift
    if not FIRST_US <= us <= LAST_US:
        raise ValueError("a time lies in the years 1 to 9999 UTC")
    return us


def instant(us: int) -> datetime:
    """The UTC time of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=us)


def to_us(at: datetime) -> int:
    """Microseconds since 1970 of an aware time."""
    return (at - EPOCH) // timedelta(microseconds=1)


def rfc3339(at: datetime) -> str:
    """The one text form errata writes: UTC, `Z`, no trailing zeros in the fraction.

    >>> rfc3339(instant(1767571200500000))
    '2026-01-05T00:00:00.5Z'
    """
    text = at.astimezone(UTC).replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"


def check_text(text: str) -> str:
    """Refuse what PostgreSQL and UTF-8 cannot keep: NUL and lone surrogates."""
    if "\0" in text:
        raise ValueError("a text must not hold the NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text must not hold a lone surrogate") from error
    return text


def _read_instant(value: Any) -> datetime:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs an offset")
        return value.astimezone(UTC)
    if not isinstance(value, str):
        raise ValueError("a time is a text such as 2026-01-05T12:00:00Z")
    return instant(instant_us(value))


Text = Annotated[str, AfterValidator(check_text)]
Instant = Annotated[
    datetime,
    BeforeValidator(_read_instant),
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
