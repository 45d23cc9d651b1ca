from datetime import UTC, datetime

import pytest

from errata.contracts.strict import to_us
from errata.domain.catalogue.queries import (
    CaseQuery,
    root_class_filter,
    severity_filter,
    since_us,
    status_filter,
    suggestion,
    words,
)
from errata.errors import Misconfigured

NOW = datetime(2026, 1, 8, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30m", datetime(2026, 1, 8, 11, 30, tzinfo=UTC)),
        ("24h", datetime(2026, 1, 7, 12, tzinfo=UTC)),
        ("7d", datetime(2026, 1, 1, 12, tzinfo=UTC)),
        ("1w", datetime(2026, 1, 1, 12, tzinfo=UTC)),
        ("2026-01-05", datetime(2026, 1, 5, tzinfo=UTC)),
        ("2026-01-05T01:00:00+01:00", datetime(2026, 1, 5, tzinfo=UTC)),
    ],
)
def test_since_reads_ages_dates_and_times(text: str, expected: datetime) -> None:
    assert since_us(text, NOW) == to_us(expected)


def test_an_age_beyond_the_calendar_means_everything() -> None:
    assert since_us("999999w", NOW) == 0


@pytest.mark.parametrize("text", ["yesterday", "", "7", "-1d", "2026-13-01", "2026-01-05T00:00:00", "١d"])
def test_since_refuses_anything_else(text: str) -> None:
    with pytest.raises(Misconfigured, match="--since"):
        since_us(text, NOW)


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_a_limit_has_bounds(limit: int) -> None:
    with pytest.raises(Misconfigured, match="--limit"):
        CaseQuery(limit=limit)


def test_filters_take_known_values_only_and_name_them() -> None:
    assert status_filter(None) is None
    assert (status_filter("new"), root_class_filter("data"), severity_filter("high")) == ("new", "data", "high")
    with pytest.raises(Misconfigured, match=r"--status.*triaged"):
        status_filter("open")
    with pytest.raises(Misconfigured, match=r"--root-class.*deployment"):
        root_class_filter("deploy")
    with pytest.raises(Misconfigured, match=r"--severity.*critical"):
        severity_filter("awful")


def test_words_are_lower_case_and_keep_their_signs() -> None:
    assert words("RELP  50%_\\") == ("relp", "50%_\\")
    assert words("  ") == ()


def test_a_suggestion_is_near_or_absent() -> None:
    known = ["CASE-1", "CASE-14", "FRAUD-142"]
    assert suggestion("fraud142", known) == "FRAUD-142"
    assert suggestion("zzz", known) is None
    assert suggestion("case-1", []) is None
