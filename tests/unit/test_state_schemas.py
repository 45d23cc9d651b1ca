"""Old state is brought up to date one version at a time; what cannot be is refused by name."""

from typing import Any

import pytest

from errata.domain.state_schemas import Schema
from errata.errors import StateDamaged


def with_unit(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "unit": "ms"}


def in_us(found: dict[str, Any]) -> dict[str, Any]:
    return {"at": found["at"] * 1_000, "unit": "us"}


LATEST = Schema("clock", 3, {1: with_unit, 2: in_us})


@pytest.mark.parametrize(
    ("version", "content"), [(1, {"at": 5}), (2, {"at": 5, "unit": "ms"}), (3, {"at": 5_000, "unit": "us"})]
)
def test_each_older_version_becomes_the_same(version: int, content: dict[str, Any]) -> None:
    assert LATEST.read(version, content) == {"at": 5_000, "unit": "us"}


def test_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(StateDamaged, match=r"^schema_newer: its clock is of version 4, this release reads up to 3"):
        LATEST.read(4, {})


def test_a_version_without_an_upgrade_is_refused_by_name() -> None:
    with pytest.raises(StateDamaged, match=r"^schema_older: its clock is of version 1"):
        Schema("clock", 3, {2: in_us}).read(1, {"at": 5})
