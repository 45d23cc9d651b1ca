"""Many RFC 3339 times at once, to the same microseconds as `errata.contracts.strict.instant_us`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from errata.contracts.strict import FIRST_US, LAST_US, instant_us
from errata.domain.columns import Ints

_SHORTEST, _LONGEST = 20, 35
_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0, 0, 0], np.int64)
_FRAME = {4: "-", 7: "-", 10: "T", 13: ":", 16: ":"}


def instants_us(texts: Sequence[str]) -> tuple[Ints, NDArray[np.bool_]]:
    """Microseconds since 1970 of each text, and whether it is a time at all (its microseconds are 0 if not)."""
    at = np.zeros(len(texts), np.int64)
    good = np.zeros(len(texts), np.bool_)
    if not len(texts):
        return at, good
    try:
        packed = np.array(texts, dtype="S")
    except UnicodeEncodeError:
        return _one_by_one(texts)
    width = packed.dtype.itemsize
    if width > _LONGEST or width < _SHORTEST:
        return _one_by_one(texts)
    bytes_ = packed.view(np.uint8).reshape(len(texts), width)
    lengths = np.count_nonzero(bytes_, axis=1)
    for length in np.unique(lengths):
        if length < _SHORTEST:
            continue
        of_length = lengths == length
        zulu = bytes_[:, length - 1] == ord("Z")
        for is_zulu in (True, False):
            rows = np.flatnonzero(of_length & (zulu if is_zulu else ~zulu))
            if rows.size:
                at[rows], good[rows] = _of_one_form(bytes_[rows, :length], is_zulu)
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


def _of_one_form(text: NDArray[np.uint8], zulu: bool) -> tuple[Ints, NDArray[np.bool_]]:
    """All rows are equally long, and end in ``Z`` or (not ``zulu``) in what has to be an offset."""
    length = text.shape[1]
    zone = length - 1 if zulu else length - 6
    fraction = zone - 20  # digits behind the point; -1: no point
    if zone < 19 or fraction == 0 or fraction > 9:
        return np.zeros(len(text), np.int64), np.zeros(len(text), np.bool_)
    frame = dict(_FRAME)
    if fraction > 0:
        frame[19] = "."
    if not zulu:
        frame[zone + 3] = ":"
    marks = [*frame, zone]
    digits = [column for column in range(length) if column not in marks]
    figure = text[:, digits] - np.uint8(ord("0"))  # below "0" wraps round to above 9
    good = (figure <= 9).all(axis=1)
    places = list(frame)
    good &= (text[:, places] == np.frombuffer("".join(frame.values()).encode(), np.uint8)).all(axis=1)
    value = figure.astype(np.int64)

    year = value[:, 0] * 1000 + value[:, 1] * 100 + value[:, 2] * 10 + value[:, 3]
    month, day, hour, minute, second = (value[:, at] * 10 + value[:, at + 1] for at in (4, 6, 8, 10, 12))
    leap = (month == 2) & (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    good &= (year >= 1) & (day >= 1) & (day <= _DAYS[np.minimum(month, 15)] + leap)
    good &= (hour <= 23) & (minute <= 59) & (second <= 59)

    at = _days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
    at *= 1_000_000
    for place in range(min(fraction, 6)):
        at += value[:, 14 + place] * 10 ** (5 - place)
    if not zulu:
        sign = text[:, zone]
        off_hour, off_minute = (value[:, column] * 10 + value[:, column + 1] for column in (-4, -2))
        good &= ((sign == ord("+")) | (sign == ord("-"))) & (off_hour <= 23) & (off_minute <= 59)
        shift = (off_hour * 60 + off_minute) * 60_000_000
        at -= np.where(sign == ord("+"), shift, -shift)
    good &= (at >= FIRST_US) & (at <= LAST_US)
    return np.where(good, at, 0), good


def _days(year: Ints, month: Ints, day: Ints) -> Ints:
    """Days since 1970 in the proleptic Gregorian calendar; the year is taken to begin in March."""
    early = month <= 2
    shifted = year - early
    era = shifted // 400
    of_era = shifted - era * 400
    of_year = (153 * (month + np.where(early, 9, -3)) + 2) // 5 + day - 1
    days: Ints = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    return days
