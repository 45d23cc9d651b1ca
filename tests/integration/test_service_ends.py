"""How a service ends: what its exit code says, what it logs, and that nothing stays open behind it."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from confluent_kafka import KafkaException
from redis import Redis
from redis.exceptions import RedisError
from tests.integration.chain import Chain, chain_on

from errata.contracts import canonical
from errata.contracts.topics import PREDICTIONS, STAGES, state_topic
from errata.domain.array_codec import pack_arrays
from errata.errors import Misconfigured, RefusedSchema
from errata.ports import StateChange
from errata.runtime.changelog import PartitionLog, Position
from errata.runtime.receipts import Taken
from errata.settings import read_service_settings
from errata_services import processes
from errata_services.bootstrap import service_parts

pytestmark = pytest.mark.servers

DETECTOR, ENRICHER, _, WRITER = STAGES
OWN_DATABASE = 9


@pytest.fixture
def four(tmp_path: Path, kafka_address: str, redis_url: str, postgres_database: str) -> Iterator[Chain]:
    with chain_on(tmp_path, kafka_address, redis_url, postgres_database) as made:
        yield made


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Services set up logging for their process; here that is the tests'."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("supervised", [False, True])
def test_state_that_cannot_be_ends_with_70_and_stays_down(four: Chain, supervised: bool) -> None:
    """Whole by its digest and at the group's offset, but not what a detector writes."""
    write_impossible_state(four, 3)
    service = four.start_supervised(DETECTOR) if supervised else four.start(DETECTOR)
    assert service.process.wait(60) == 70
    lines = service.logged().splitlines()
    (told,) = [json.loads(line) for line in lines if line.startswith("{") and '"critical"' in line]
    assert (told["event"], told["exit_code"], told["service"]) == ("ended", 70, DETECTOR)
    assert told["runbook"] == "deploy/runbooks/stops/changelog-damaged.md"
    assert any(line.startswith("errata: unreadable: ") for line in lines)
    assert "Traceback" not in service.logged()
    assert "too many values" not in service.logged()  # the error's text: another one's might hold a value of an event


@pytest.mark.usefixtures("own_logging")
def test_an_error_that_nobody_foresaw_is_told_by_its_kind_and_place_and_ends_with_70(
    four: Chain, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = read_service_settings(four.environment | {"ERRATA_HTTP_PORT": "0", "ERRATA_LOG": "json"})
    impossible = settings.model_copy(update={"stall_s": "long"})  # which no check of settings lets through
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(SystemExit) as ended:
            processes.run_service(ENRICHER, impossible)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), before, strict=True):
            signal.signal(number, handler)
    assert ended.value.code == 70
    said = "".join(capfd.readouterr())
    (told,) = [json.loads(line) for line in said.splitlines() if '"critical"' in line]
    assert (told["event"], told["exit_code"]) == ("ended by an unexpected error", 70)
    assert (told["error"], told["runbook"]) == ("TypeError", "deploy/runbooks/stops/bug.md")
    assert any("processes.py" in frame and "stall_watch" in frame for frame in told["frames"])
    assert "operand" not in said  # the error's text: another one's might hold a value of an event


def test_the_state_of_the_other_partitions_is_no_trouble(four: Chain) -> None:
    """Negative control: without that state the same service runs until it is told to stop."""
    service = four.start(DETECTOR)
    four.until(lambda: bool(answered(service.status).get("ready")), "it is ready")
    assert service.end() == 0
    assert "critical" not in service.logged()


def answered(status: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return status()
    except OSError:
        return {}


def write_impossible_state(four: Chain, number: int) -> None:
    topic = state_topic(DETECTOR)
    position = Position({PREDICTIONS: Taken(0, 0, 0)})
    change = StateChange(number, b'["slot","default","a","live"]', pack_arrays(1, {"slot": "not three"}, {}))
    producer = four.transport.producer("damage")
    producer.begin()
    for record in PartitionLog(number, {}, None).stage(topic, [change], position):
        producer.produce(record)
    producer.commit()
    producer.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("not deterministic"), 70),
        (KeyError("slot"), 70),
        (AssertionError(), 70),
        (RefusedSchema("/x", "an input refused where none is judged"), 70),
        (MemoryError(), 75),
        (OSError(24, "too many open files"), 75),
        (KafkaException("a failure that no adapter named"), 75),
        (RedisError(), 75),
        (psycopg.OperationalError(), 75),
    ],
)
def test_what_may_be_over_at_the_next_start_is_tried_again(error: Exception, code: int) -> None:
    assert processes.code_of_unexpected(error) == code


@pytest.mark.usefixtures("own_logging")
def test_the_writer_leaves_no_connection_behind(four: Chain) -> None:
    settings = read_service_settings(four.environment | {"ERRATA_HTTP_PORT": "0"})
    with service_parts(WRITER, settings) as parts:
        loop, _ = processes.LOOPS[WRITER](settings, parts)
        loop.run_once(0.1)
        assert sessions_of_the_writer(four) > 0
        loop.close()
    four.until(lambda: sessions_of_the_writer(four) == 0, "PostgreSQL has seen the writer's sessions end", 20)


def sessions_of_the_writer(four: Chain) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
    with psycopg.connect(four.database) as connection:
        found = connection.execute(query, [f"errata-{WRITER}"]).fetchone()
    assert found is not None
    return int(found[0])


@pytest.mark.usefixtures("own_logging")
def test_the_enricher_leaves_no_connection_behind(four: Chain) -> None:
    own = four.environment["ERRATA_REDIS_URL"].removesuffix("/0") + f"/{OWN_DATABASE}"  # other tests share the server
    settings = read_service_settings(four.environment | {"ERRATA_HTTP_PORT": "0", "ERRATA_REDIS_URL": own})
    four.publish([canonical({"change_id": "c-1", "kind": "deploy", "subject": "a", "time": "2026-01-05T12:00:00Z"})])
    with Redis.from_url(four.environment["ERRATA_REDIS_URL"]) as redis:
        with service_parts(ENRICHER, settings) as parts:
            loop, _ = processes.LOOPS[ENRICHER](settings, parts)
            four.until(lambda: loop.run_once(0.5) > 0, "it has put the change into Redis", 60)
            assert clients_of(redis, OWN_DATABASE) > 0
            loop.close()
        four.until(lambda: clients_of(redis, OWN_DATABASE) == 0, "Redis has seen the enricher's connections end", 20)


def clients_of(redis: Redis, database: int) -> int:
    clients: Any = redis.client_list()
    return sum(int(one["db"]) == database for one in clients)


def test_a_service_without_its_database_is_told_so_and_not_logged_as_unexpected(four: Chain) -> None:
    del four.environment["ERRATA_DATABASE_URL"]
    service = four.start(WRITER)
    assert service.process.wait(60) == Misconfigured.exit_code
    assert service.logged().splitlines()[-1].startswith("errata: ERRATA_DATABASE_URL: is missing")
    assert "unexpected" not in service.logged()
