"""The four services under supervisors while their servers are stopped or frozen: time is lost, and nothing else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from tests.integration import test_chain_faults
from tests.integration.chain import Chain, Service, chain_on
from tests.integration.test_chain import differences, timeless
from tests.integration.test_chain_faults import DETECTOR, TAGGER, Story, assert_equal, state_of

from errata.contracts import EnrichedAnomaly
from errata.contracts.topics import ENRICHED, PARTITIONS, STAGES
from errata_services.dev import servers
from errata_services.dev.servers import KafkaServer

pytestmark = [pytest.mark.servers, pytest.mark.whole]

story = test_chain_faults.story

OUTAGE_S = 30.0
FROZEN_S = 15.0  # longer than session.timeout.ms, transaction.timeout.ms and the broker's own session
BACK_S = 60.0  # of which the session of a lost request takes 10
ENDS_S = 60.0  # two sessions and the start


def supervised(four: Chain, told: Story) -> list[Service]:
    four.apply(*told[1])
    return [four.start_supervised(stage) for stage in STAGES]


def test_outages_of_redis_and_postgresql_cost_time_and_the_context_comes_later(
    tmp_path: Path, kafka_address: str, story: Story
) -> None:
    lines, _, wanted, _ = story
    half = len(lines) // 2
    with (
        servers.redis(tmp_path / "redis") as redis,
        servers.postgres(tmp_path / "postgres", durable=True) as database,
        chain_on(tmp_path, kafka_address, redis.url, database.url) as four,
    ):
        supervised(four, story)
        four.publish(lines[:half])
        four.until(lambda: not four.unread(DETECTOR), "the detector has read the first half")
        redis.stop()
        database.stop()
        stopped_s = time.monotonic()
        four.publish(lines[half:])
        four.until(lambda: not four.unread(TAGGER) and not four.unread(DETECTOR), "all but the writer went on")
        Event().wait(OUTAGE_S - (time.monotonic() - stopped_s))  # how long the outage lasts
        redis.restart()
        database.restart()
        four.until_drained()
        cases = four.cases()
        assert [case.case_id for case in cases] == [case["case_id"] for case in wanted]
        assert [case.count for case in cases] == [case["count"] for case in wanted]
        put_out = [EnrichedAnomaly.model_validate_json(one.value or b"") for one in four.records(ENRICHED)]
        assert any(one.enrichment for one in put_out), "what was judged while Redis was down says what it lacks"
        four.until(lambda: not any(case.enrichment for case in four.cases()), "what lacked context has it", BACK_S)
        four.until_drained()
        assert [entry for case in four.cases() for entry in case.context if entry.missing] == []
        found = [timeless(case) | {"rev": 0} for case in four.cases()]  # filling in is a revision more
        assert not differences(found, [case | {"rev": 0} for case in wanted])


@contextmanager
def half_way(tmp_path: Path, redis_url: str, database: str, told: Story) -> Iterator[tuple[Chain, KafkaServer]]:
    """The chain on a broker of its own, amid the second half of the story."""
    lines, half = told[0], len(told[0]) // 2
    with servers.kafka(tmp_path / "kafka") as broker, chain_on(tmp_path, broker.address, redis_url, database) as four:
        supervised(four, told)
        four.publish(lines[:half])
        four.until(lambda: not four.unread(DETECTOR), "the detector has read the first half")
        before = sum(four.offsets(DETECTOR).values())
        four.publish(lines[half:])
        four.until(lambda: sum(four.offsets(DETECTOR).values()) > before, "the detector is amid the second half")
        yield four, broker


def test_a_frozen_broker_costs_time_alone(tmp_path: Path, redis_url: str, postgres_database: str, story: Story) -> None:
    """While it is frozen sessions and transactions end; when it wakes it elects leaders anew, and finds requests to
    join twice. So members are fenced by themselves, and must not take that for another process."""
    with half_way(tmp_path, redis_url, postgres_database, story) as (four, broker):
        broker.freeze()
        Event().wait(FROZEN_S)  # how long it is frozen
        broker.thaw()
        four.until_drained(BACK_S)
        assert_equal(four, story[2])
        found = differences(state_of(four.transport), story[3])
        assert not found, "\n".join(found[:20])
        assert [service.name for service in four.running if service.process.poll() is not None] == []
        assert any("ended with 75: again" in service.logged() for service in four.running), "nobody noticed the outage"


def test_of_two_supervised_services_with_one_instance_the_newer_stays(
    tmp_path: Path, kafka_address: str, redis_url: str, postgres_database: str
) -> None:
    """Negative control: who is fenced by another process stays down, and neither is started again and again."""
    with chain_on(tmp_path, kafka_address, redis_url, postgres_database) as four:
        older = four.start_supervised(TAGGER)
        four.until(lambda: holds_all(older), "the older one has its partitions")
        newer = four.start_supervised(TAGGER)
        assert older.process.wait(ENDS_S) == 78, older.logged()
        assert "has taken over instance 0; two processes of a stage need two values" in older.logged()
        assert "again in" not in older.logged() + newer.logged()
        four.running.remove(older)
        four.until(lambda: holds_all(newer), "the newer one has its partitions")


def holds_all(service: Service) -> bool:
    try:
        found = service.status()["partitions"]
    except OSError:
        return False
    return isinstance(found, list) and len(found) == PARTITIONS
