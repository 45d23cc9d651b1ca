"""The four services on real Kafka, Redis and PostgreSQL do what the chain in one process does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.chain import REDACTION_KEY, Chain, chain_on
from tests.pipeline.chain_builder import batches, cases_of, chain, chain_parts

from errata.contracts import Contract, FailureCase, Reference
from errata_services.demo import stream

pytestmark = [pytest.mark.servers, pytest.mark.whole]


@pytest.fixture
def four(tmp_path: Path, kafka_address: str, redis_url: str, postgres_database: str) -> Iterator[Chain]:
    with chain_on(tmp_path, kafka_address, redis_url, postgres_database) as made:
        yield made


def test_the_census_stream_gives_the_cases_of_the_chain_in_one_process(
    four: Chain, tmp_path: Path, census_contract: Contract, census_reference: Reference
) -> None:
    lines = list(stream.events(stream.plan(1)))
    four.apply(census_contract, census_reference)
    four.start_all()
    assert four.publish(lines) == len(lines)
    four.until_drained()
    with chain_parts(tmp_path / "embedded", census_contract, census_reference, key=REDACTION_KEY) as parts:
        embedded = chain(parts)
        embedded.feed(batches(lines, 500))
        wanted = sorted(map(timeless, cases_of(parts)), key=lambda case: str(case["case_id"]))
    differing = differences([timeless(case) for case in four.cases()], wanted)
    assert not differing, "\n".join(differing[:20])
    assert len(wanted) == 5
    assert [service.end() for service in four.running] == [0, 0, 0, 0]


# Coordinates and record times of the transport; short ids are given in the order in which cases arrive.
PLACES = {"partition", "offset", "raw_ref", "opened_at", "closed_at", "time", "short_id"}


def timeless(case: FailureCase) -> dict[str, Any]:
    """A case without the transport's coordinates and record times."""
    found: dict[str, Any] = _without(case.model_dump(mode="json", by_alias=True))
    return found


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if name not in PLACES}
    if isinstance(value, list):
        return [_without(inner) for inner in value]
    return value


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two values differ, by path."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted(one.keys() | other.keys())
        return [line for name in names for line in differences(one.get(name), other.get(name), f"{path}/{name}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for at, (a, b) in pairs for line in differences(a, b, f"{path}/{at}")]
    return [] if one == other else [f"{path}: {one!r} != {other!r}"]
