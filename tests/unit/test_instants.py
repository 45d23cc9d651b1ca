"""Vectorised times are those of the scalar rule, text for text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from errata.contracts.strict import instant_us
from errata.domain.instants import instants_us

# fmt: off
_DATES = st.sampled_from(["2026-01-05", "2024-02-29", "2023-02-29", "1900-02-29", "2000-02-29", "1969-12-31",
                          "2026-00-10", "2026-04-31", "0000-01-01", "0001-01-01", "9999-12-31", "2026-13-01",
                          "20x6-01-01", "2026/01/05"])
# fmt: on
_CLOCKS = st.sampled_from(["00:00:00", "23:59:59", "24:00:00", "12:60:00", "12:00:60", "12:00", "1a:00:00", "12.00.00"])
_FRACTIONS = st.sampled_from(["", ".", ".5", ".123", ".1234", ".123456", ".123456789", ".1234567890", ",5", ".12x"])
_ZONES = st.sampled_from(["Z", "", "z", "+00:00", "-00:00", "+05:45", "-23:59", "+24:00", "+01:60", "+0100", "*01:00"])
_TEXTS = st.builds("{}{}{}{}{}".format, _DATES, st.sampled_from(["T", " ", "t"]), _CLOCKS, _FRACTIONS, _ZONES)


def scalar(text: str) -> int | None:
    try:
        return instant_us(text)
    except ValueError:
        return None


def vector(texts: list[str]) -> list[int | None]:
    at, good = instants_us(texts)
    return [int(us) if is_time else None for us, is_time in zip(at, good, strict=True)]


@pytest.mark.whole
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.one_of(_TEXTS, st.text(alphabet="0123456789-:TZ.+ é", max_size=36)), max_size=12))
@example(["2026-01-05T12:00:00Z", "2026-01-05T12:00:00.5Z", "xxxx-01-05T12:00:00Z"])
@example(["xxxx-01-05T12:00:00Z", "xxxx-01-05T12:00:00Z"])
@example(["2026-01-05T12:00:00.1234Z", "2026-01-05T12:00:00+01:00"])  # equally long, and of two forms
@example(["2026-01-05T12:00:00+01:00", "2026-01-05T12:00:00.1234Z"])
def test_as_the_scalar_rule(texts: list[str]) -> None:
    assert vector(texts) == [scalar(text) for text in texts]


@pytest.mark.parametrize("fraction", range(10))
def test_digits_beyond_the_microsecond_are_cut_off(fraction: int) -> None:
    text = "2026-01-05T00:00:00" + ("." + "123456789"[:fraction] if fraction else "") + "Z"
    assert vector([text]) == [1_767_571_200_000_000 + int("123456"[:fraction].ljust(6, "0"))]


def test_no_texts() -> None:
    assert vector([]) == []
