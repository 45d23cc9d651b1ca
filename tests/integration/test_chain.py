"""The four services on real Kafka, Redis and PostgreSQL do what the chain in one process does."""

import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.chain import REDACTION_KEY, Chain, Service, chain_on
from tests.pipeline.chain_builder import batches, cases_of, chain, chain_parts

from errata.contracts import Contract, FailureCase, Reference, canonical
from errata.contracts.topics import PARTITIONS, PREDICTIONS, STAGES, state_topic
from errata.domain.array_codec import unpack_arrays
from errata.domain.detection import state as at
from errata.domain.partitioner import partition_of
from errata.ports import Outgoing
from errata.runtime.changelog import entries_of, read_records
from errata_services.cli.ledger import read_audit
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
    books, balanced = read_audit(four.transport)
    assert balanced
    assert books.faults == []
    assert [one.stage for one in books.accounts] == sorted(STAGES[:3])
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


def test_records_of_strangers_are_sent_to_their_place_and_counted(four: Chain) -> None:
    """kcat without a key, and records in a partition of somebody's choice, end in the state of one partition."""
    start = datetime(2026, 1, 5, 12, tzinfo=UTC)
    lines = [
        canonical(
            {
                "event_id": f"e-{number}",
                "time": (start + timedelta(seconds=number)).isoformat(),
                "model": {"name": "fraud"},
                "prediction": "ok",
            }
        )
        for number in range(400)
    ]
    failing = canonical(
        {"event_id": "bad", "time": start.isoformat(), "model": {"name": "fraud"}, "status": {"code": "timeout"}}
    )
    home = partition_of(b"fraud", PARTITIONS)
    four.publish(lines[:100])
    kcat = ["kcat", "-P", "-b", four.properties["bootstrap.servers"], "-t", f"{four.prefix}{PREDICTIONS}"]
    subprocess.run(kcat, input=b"\n".join([*lines[100:300], failing]), check=True, timeout=60)
    producer = four.transport.producer("stranger")
    producer.begin()
    for number, line in enumerate(lines[300:]):
        producer.produce(Outgoing(PREDICTIONS, b"fraud", line, partition=number % PARTITIONS))
    producer.commit()
    placed_well = sum(number % PARTITIONS == home for number in range(100))
    services = four.start_all()
    four.until_drained()
    assert [case.model.name for case in four.cases()] == ["fraud"]
    places = [number for number in range(PARTITIONS) for key in slots(four, number) if b"fraud" in key]
    assert places == [home]
    (value,) = slots(four, home).values()
    assert int(unpack_arrays(value)[2]["fixed"][at.EVENTS]) == 401
    rekeyed = re.search(r"errata_events_rekeyed_total\{.*predictions.*\} (\d+)", services[0].page("/metrics"))
    assert rekeyed is not None
    assert int(rekeyed[1]) == 201 + 100 - placed_well
    enricher, writer = services[1], services[3]
    four.until(lambda: open_cases(writer) == 1.0, "the writer tells its open case")
    assert enricher.status()["breakers"] == {"redis": {"state": "closed", "required": False}}


def open_cases(writer: Service) -> float:
    """Of all classes together, as the writer's metrics tell them."""
    return sum(float(n) for n in re.findall(r"^errata_cases_open\{.*\} (\S+)$", writer.page("/metrics"), re.M))


def slots(four: Chain, number: int) -> dict[bytes, bytes]:
    records, _ = read_records(four.transport, state_topic("anomaly-detector"), number)
    return {key: value for key, value in entries_of(records).items() if key.startswith(b"[")}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two values differ, by path."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted(one.keys() | other.keys())
        return [line for name in names for line in differences(one.get(name), other.get(name), f"{path}/{name}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for at, (a, b) in pairs for line in differences(a, b, f"{path}/{at}")]
    return [] if one == other else [f"{path}: {one!r} != {other!r}"]
