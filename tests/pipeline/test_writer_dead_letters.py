"""The catalogue writer's dead letters: its breaker, and its rows in ``errata dlq``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pipeline.case_builder import tagged
from tests.pipeline.test_dlq_cli import errata, listed

from errata.adapters.memory import MemoryTransport
from errata.adapters.sql import SqlCatalogue
from errata.contracts.topics import PARTITIONS, STAGES, TAGGED, TOPICS
from errata.domain.catalogue.queries import CaseQuery
from errata.domain.poison import RUN
from errata.errors import Unavailable
from errata.ports import Outgoing, TopicPartition
from errata.runtime.backoff import Backoff
from errata.runtime.health import Health, not_ready
from errata.runtime.poison import PoisonGuard
from errata.runtime.telemetry import NoTelemetry
from errata_services.bootstrap import embedded_parts
from errata_services.catalog_writer import CatalogWriterWorker

WRITER = STAGES[3]
BAD, GOOD = (TAGGED, 1), (TAGGED, 2)


@pytest.fixture
def catalogue() -> Iterator[SqlCatalogue]:
    made = SqlCatalogue("sqlite://")
    made.migrate()
    yield made
    made.close()


def send(transport: MemoryTransport, place: TopicPartition, *values: bytes) -> None:
    producer = transport.producer("tagger")
    producer.begin()
    for value in values:
        producer.produce(Outgoing(place[0], b"k", value, partition=place[1]))
    producer.commit()


class Writer:
    def __init__(self, transport: MemoryTransport, catalogue: SqlCatalogue, batch_size: int = 500) -> None:
        self.health = Health(stage=WRITER, instance="0", build="test")
        self.guard = PoisonGuard(WRITER, NoTelemetry(), self.health)
        self.now_s = 0.0
        self.worker = CatalogWriterWorker(
            transport, catalogue, "0", batch_size, health=self.health, guard=self.guard,
            backoff=Backoff(lambda: 1.0), clock=lambda: self.now_s,
        )  # fmt: skip

    def run(self) -> int:
        total = 0
        while taken := self.worker.run_once():
            total += taken
        return total


@pytest.mark.parametrize("batch_size", [7, 500])
def test_poison_stops_its_partition_at_the_100th_and_no_other(catalogue: SqlCatalogue, batch_size: int) -> None:
    transport = MemoryTransport({TAGGED: TOPICS[TAGGED]})
    send(transport, BAD, *[b"no json"] * 150)
    send(transport, GOOD, *[tagged(f"{n:08x}", 1).to_json() for n in range(20)])
    writer = Writer(transport, catalogue, batch_size)
    assert writer.run() == RUN + 20
    assert writer.worker.positions[BAD] == RUN
    assert len(catalogue.dead_letters(1_000)) == RUN
    assert len(catalogue.cases(CaseQuery(limit=100))) == 20
    assert writer.guard.stopped == {BAD}
    assert "100 dead letters in a row" in not_ready(writer.health.facts)[0]
    writer.guard.ask_back()
    assert writer.run() == 50
    assert [letter.offset for letter in catalogue.dead_letters(1_000)] == [*range(150)]
    assert not_ready(writer.health.facts) == []


def test_without_a_breaker_all_of_it_becomes_dead_letters(catalogue: SqlCatalogue) -> None:
    """The control."""
    transport = MemoryTransport({TAGGED: TOPICS[TAGGED]})
    send(transport, BAD, *[b"no json"] * 150)
    worker = CatalogWriterWorker(transport, catalogue, "0")
    while worker.run_once():
        pass
    assert len(catalogue.dead_letters(1_000)) == 150


def test_stopped_partition_stays_so_when_the_database_is_back() -> None:
    class Away(SqlCatalogue):
        away = False

        def apply(self, *given: object, **named: object) -> int:
            if self.away:
                raise Unavailable("no database")
            return super().apply(*given, **named)  # type: ignore[arg-type]

    catalogue = Away("sqlite://")
    catalogue.migrate()
    transport = MemoryTransport({TAGGED: TOPICS[TAGGED]})
    send(transport, BAD, *[b"no json"] * 150)
    writer = Writer(transport, catalogue)
    writer.run()
    catalogue.away = True
    send(transport, GOOD, tagged("00000001", 1).to_json())
    assert writer.worker.run_once() == 0
    catalogue.away = False
    writer.now_s += 60.0
    assert writer.run() == 1
    assert writer.worker.positions[BAD] == RUN
    assert writer.health.standing.paused == {BAD}
    catalogue.close()


def test_rows_of_the_writer_are_listed_shown_and_sent_again(tmp_path: Path) -> None:
    data, empty = tmp_path / "data", tmp_path / "empty.jsonl"
    empty.write_text("")
    case = tagged("00000001", 1).to_json()
    with embedded_parts(data) as parts:
        send(parts.transport, BAD, b"no json", case[:-1])
    assert errata("run", "--embedded", "--input", empty, "--data", data).exit_code == 0
    found = listed(data, "--stage", WRITER)
    assert [letter["class"] for letter in found["letters"]] == ["decode", "decode"]
    letter = min(found["letters"], key=lambda one: one["offset"])
    assert "no json" in errata("dlq", "show", letter["dead_letter_id"], "--data", data).stdout
    result = errata("dlq", "replay", "--id", letter["dead_letter_id"], "--reason", "try", "--data", data)
    assert "1 letter replayed." in result.stdout
    assert errata("run", "--embedded", "--input", empty, "--data", data).exit_code == 0
    again = listed(data, "--stage", WRITER)
    assert (again["open"], again["settled"]) == (2, {"replayed": 1})
    assert {one.get("replay_of") for one in again["letters"]} == {None, letter["dead_letter_id"]}
    with embedded_parts(data) as parts:
        assert sum(parts.transport.end_offset((TAGGED, n)) for n in range(PARTITIONS)) == 3
