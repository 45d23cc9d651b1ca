"""Many RFC 3339 times at once, to the same microseconds as `errata.contracts.strict.instant_us`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from errata.contracts.strict import FIRST_US, LAST_US, instant_us
from errata.domain.columns import Ints
from errata.domain.texts import byte_rows

_WORD = 8  # bytes
_SIX, _HIGH = np.uint64(0x0606060606060606), np.uint64(0xF0F0F0F0F0F0F0F0)
_DATE = np.uint64(0xFFFF)  # of the second word
_LONGEST = 35
_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0, 0, 0], np.int64)
_FRAME = {4: "-", 7: "-", 10: "T", 13: ":", 16: ":"}
_YEAR, _MONTH, _DAY, _HOUR, _MINUTE, _SECOND = (
    range(*ends) for ends in ((0, 4), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19))
)


def instants_us(texts: Sequence[str]) -> tuple[Ints, NDArray[np.bool_]]:
    """Microseconds since 1970 of each text, and whether it is a time at all (its microseconds are 0 if not).

    A text must not hold NUL: decoders have refused it by then.
    """
    if not len(texts):
        return np.zeros(0, np.int64), np.zeros(0, np.bool_)
    sizes = set(map(len, texts))
    if max(sizes) > _LONGEST:  # one absurd text must not widen the table for all
        return _one_by_one(texts)
    bytes_ = byte_rows(texts, _WORD, len(sizes) == 1)
    words = np.ascontiguousarray(bytes_.view("<u8").astype(np.uint64, copy=False).T)
    if len(sizes) == 1:
        length = sizes.pop()
        ends = bytes_[:, length - 1] == ord("Z")
        if (ends == ends[0]).all():
            return _of_one_form(words, length, bool(ends[0]))
    lengths = np.array(list(map(len, texts)), np.int64)
    forms = lengths * 2 + (bytes_[np.arange(len(texts)), lengths - 1] == ord("Z"))
    at = np.zeros(len(texts), np.int64)
    good = np.zeros(len(texts), np.bool_)
    for form in np.unique(forms):
        rows = np.flatnonzero(forms == form)
        at[rows], good[rows] = _of_one_form(words[:, rows], int(form) // 2, bool(form % 2))
    return at, good


def _one_by_one(texts: Sequence[str]) -> tuple[Ints, NDArray[np.bool_]]:
    at = np.zeros(len(texts), np.int64)
    good = np.zeros(len(texts), np.bool_)
    for row, text in enumerate(texts):
        try:
            at[row] = instant_us(text)
        except ValueError:
            continue
        good[row] = True
    return at, good


@dataclass(frozen=True, slots=True)
class _Form:
    """How texts of one length stand in words of eight bytes, the first byte the lowest; a row a word.

    A word XOR ``pattern`` leaves of a figure its value and of a mark 0; the bits of ``digits`` and ``marks`` cover the
    bytes of figures and of marks (as which the zeros behind a text count too).
    """

    pattern: NDArray[np.uint64]
    digits: NDArray[np.uint64]
    marks: NDArray[np.uint64]
    zone: int  # where Z or the sign stands
    fraction: int  # digits that count


@cache
def _form(length: int, zulu: bool, words: int) -> _Form | None:
    zone = length - 1 if zulu else length - 6
    fraction = zone - 20  # digits behind the point; -1: no point
    if zone < 19 or fraction == 0 or fraction > 9:
        return None
    marks = _FRAME | ({19: "."} if fraction > 0 else {}) | ({zone: "Z"} if zulu else {zone + 3: ":"})
    pattern, digits, others = bytearray(words * _WORD), bytearray(words * _WORD), bytearray(words * _WORD)
    for place in range(words * _WORD):
        if place >= length or place in marks:
            pattern[place], others[place] = ord(marks.get(place, "\0")), 0xFF
        elif place != zone:
            pattern[place], digits[place] = ord("0"), 0xFF
    first, second, third = (np.frombuffer(part, "<u8").astype(np.uint64)[:, None] for part in (pattern, digits, others))
    return _Form(first, second, third, zone, min(max(fraction, 0), 6))


def _of_one_form(words: NDArray[np.uint64], length: int, zulu: bool) -> tuple[Ints, NDArray[np.bool_]]:
    """All texts, each a column of ``words``, are equally long and end in ``Z`` or else in what has to be an offset."""
    form = _form(length, zulu, len(words))
    if form is None:
        return np.zeros(words.shape[1], np.int64), np.zeros(words.shape[1], np.bool_)
    plain = words ^ form.pattern
    figures = plain & form.digits
    # Six more than a figure stays below sixteen; what overflows into the next byte was above fifteen itself.
    wrong = ((figures + (_SIX & form.digits)) | figures) & _HIGH | plain & form.marks
    good: NDArray[np.bool_] = np.bitwise_or.reduce(wrong) == 0
    columns = figures.astype(np.int64)
    hour, minute, second = (_whole(columns, places) for places in (_HOUR, _MINUTE, _SECOND))
    us = _whole(columns, range(20, 20 + form.fraction)) * 10 ** (6 - form.fraction)
    one_date = (words[0] == words[0, 0]).all() and (words[1] & _DATE == words[1, 0] & _DATE).all()  # the usual case
    year, month, day = (_whole(columns[:, :1] if one_date else columns, places) for places in (_YEAR, _MONTH, _DAY))
    month, day = np.minimum(month, 15), np.minimum(day, 99)  # as rows that are no times may not leave the tables
    leap = (month == 2) & (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    good &= (year >= 1) & (day >= 1) & (day <= _DAYS[month] + leap)
    good &= (hour <= 23) & (minute <= 59) & (second <= 59)
    at = (_days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000 + us
    if not zulu:
        sign = words[form.zone // _WORD] >> np.uint64(form.zone % _WORD * 8) & np.uint64(0xFF)
        off_hour, off_minute = (_whole(columns, range(form.zone + at_, form.zone + at_ + 2)) for at_ in (1, 4))
        good &= ((sign == ord("+")) | (sign == ord("-"))) & (off_hour <= 23) & (off_minute <= 59)
        shift = (off_hour * 60 + off_minute) * 60_000_000
        at -= np.where(sign == ord("+"), shift, -shift)
    good &= (at >= FIRST_US) & (at <= LAST_US)
    return np.where(good, at, 0), good


def _whole(columns: Ints, places: range) -> Ints:
    """The whole number that the figures at ``places`` spell, first the highest."""
    number = np.zeros(columns.shape[1], np.int64)
    for place in places:
        number = number * 10 + (columns[place // _WORD] >> place % _WORD * 8 & 0xF)
    return number


def _days(year: Ints, month: Ints, day: Ints) -> Ints:
    """Days since 1970 in the proleptic Gregorian calendar; the year is taken to begin in March."""
    early = month <= 2
    shifted = year - early
    era = shifted // 400
    of_era = shifted - era * 400
    of_year = (153 * (month + np.where(early, 9, -3)) + 2) // 5 + day - 1
    days: Ints = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    return days
