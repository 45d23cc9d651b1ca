"""Many RFC 3339 times at once, to the same microseconds as `errata.contracts.strict.instant_us`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from errata.contracts.strict import FIRST_US, LAST_US, instant_us
from errata.domain.columns import Ints

_SHORTEST, _LONGEST = 20, 35
_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0, 0, 0], np.int64)
_PARTS = tuple(slice(*ends) for ends in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14)))
_FRAME = {4: "-", 7: "-", 10: "T", 13: ":", 16: ":"}


def instants_us(texts: Sequence[str]) -> tuple[Ints, NDArray[np.bool_]]:
    """Microseconds since 1970 of each text, and whether it is a time at all (its microseconds are 0 if not).

    A text must not hold NUL: decoders have refused it by then.
    """
    at = np.zeros(len(texts), np.int64)
    good = np.zeros(len(texts), np.bool_)
    if not len(texts):
        return at, good
    try:
        packed = np.array(texts, dtype="S")
    except UnicodeEncodeError:
        return _one_by_one(texts)
    width = packed.dtype.itemsize
    if not _SHORTEST <= width <= _LONGEST:
        return _one_by_one(texts)
    bytes_ = packed.view(np.uint8).reshape(len(texts), width)
    lengths = np.count_nonzero(bytes_, axis=1)
    zulu = bytes_[np.arange(len(texts)), lengths - 1] == ord("Z")
    forms = lengths * 2 + zulu
    if (forms == forms[0]).all():
        return _of_one_form(bytes_[:, : lengths[0]], bool(zulu[0]))
    for form in np.unique(forms):
        rows = np.flatnonzero(forms == form)
        at[rows], good[rows] = _of_one_form(bytes_[rows, : form // 2], bool(form % 2))
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
    """Where figures and marks stand in texts of one length, and which figures make which part of a time."""

    figures: NDArray[np.intp]
    marks: NDArray[np.intp]
    text: NDArray[np.uint8]
    fraction: int


@cache
def _form(length: int, zulu: bool) -> _Form | None:
    zone = length - 1 if zulu else length - 6
    fraction = zone - 20  # digits behind the point; -1: no point
    if zone < 19 or fraction == 0 or fraction > 9:
        return None
    marks = _FRAME | ({19: "."} if fraction > 0 else {}) | ({} if zulu else {zone + 3: ":"})
    figures = [column for column in range(length) if column not in marks and column != zone]
    text = np.frombuffer("".join(marks.values()).encode(), np.uint8)
    return _Form(np.array(figures), np.array(list(marks)), text, min(max(fraction, 0), 6))


def _of_one_form(text: NDArray[np.uint8], zulu: bool) -> tuple[Ints, NDArray[np.bool_]]:
    """All rows are equally long, and end in ``Z`` or (not ``zulu``) in what has to be an offset."""
    form = _form(text.shape[1], zulu)
    if form is None:
        return np.zeros(len(text), np.int64), np.zeros(len(text), np.bool_)
    figures = text.T[form.figures] - np.uint8(ord("0"))  # below "0" wraps round to above 9
    good: NDArray[np.bool_] = (figures.max(axis=0) <= 9) & (text[:, form.marks] == form.text).all(axis=1)
    places = figures.astype(np.int64)
    year, month, day, hour, minute, second = (_whole(places[part]) for part in _PARTS)
    us = _whole(places[14 : 14 + form.fraction]) * 10 ** (6 - form.fraction)
    if (text[:, :10] == text[0, :10]).all():  # the usual case: one date serves all rows
        first = int(good.argmax())  # a row whose figures are figures; without one nothing below counts
        year, month, day = (part[first : first + 1] for part in (year, month, day))
    leap = (month == 2) & (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    good &= (year >= 1) & (day >= 1) & (day <= _DAYS[np.minimum(month, 15)] + leap)
    good &= (hour <= 23) & (minute <= 59) & (second <= 59)
    at = (_days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000 + us
    if not zulu:
        sign, off_hour, off_minute = text[:, -6], _whole(places[-4:-2]), _whole(places[-2:])
        good &= ((sign == ord("+")) | (sign == ord("-"))) & (off_hour <= 23) & (off_minute <= 59)
        shift = (off_hour * 60 + off_minute) * 60_000_000
        at -= np.where(sign == ord("+"), shift, -shift)
    good &= (at >= FIRST_US) & (at <= LAST_US)
    return np.where(good, at, 0), good


def _whole(places: Ints) -> Ints:
    """The whole number that the rows of ``places`` spell, first the highest."""
    number = np.zeros(places.shape[1], np.int64)
    for place in places:
        number = number * 10 + place
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
