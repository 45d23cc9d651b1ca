"""The enricher on real Kafka and Redis: rows by offset, gaps where retention took them, context of all members."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from tests.pipeline.enricher_bench import CONTRACT, KEY, change, event, failure
from tests.unit.anomaly_builder import ref
from typer.testing import CliRunner

from errata.adapters.context_redis import RedisContextStore
from errata.adapters.kafka import KafkaTransport, apply_topics
from errata.contracts import EnrichedAnomaly
from errata.contracts.strict import instant
from errata.contracts.topics import ANOMALIES, CHANGES, ENRICHED, PREDICTIONS
from errata.errors import Unavailable
from errata.ports import Outgoing
from errata.runtime.worker import Worker
from errata_services.cli.context import app
from errata_services.dev import servers
from errata_services.enricher import CATCH_UP_S, Enricher

pytestmark = pytest.mark.servers

WAIT_S = 60.0


class Cluster:
    """Topics of their own on a broker, and a Redis."""

    def __init__(self, address: str, redis_url: str) -> None:
        self.address, self.redis_url = address, redis_url
        self.prefix = f"{uuid4().hex[:8]}."
        self.properties = {"bootstrap.servers": address}
        apply_topics(self.properties, self.prefix)
        self.transport = self.connect()

    def connect(self, **how: Any) -> KafkaTransport:
        return KafkaTransport(self.properties, topic_prefix=self.prefix, **how)

    def store(self, timeout_s: float = 10.0) -> RedisContextStore:
        return RedisContextStore.of_url(self.redis_url, prefix=self.prefix, timeout_s=timeout_s)

    def publish(self, topic: str, *values: object, partition: int = 0) -> None:
        producer = self.transport.producer(f"publisher-{uuid4().hex}")
        producer.begin()
        for value in values:
            raw = value if isinstance(value, bytes) else json.dumps(value).encode()
            producer.produce(Outgoing(topic, b"employment", raw, partition=partition))
        producer.commit()
        producer.close()

    def member(self, instance: str, store: RedisContextStore, kind: type[Enricher] = Enricher, **how: Any) -> Worker:
        transport = self.connect(leave_on_close=True)
        enricher = kind(store, transport, lambda *_: CONTRACT, KEY, **how)
        return Worker(enricher, transport, instance=instance, build="test", cipher=None)

    def told(self) -> list[EnrichedAnomaly]:
        places = [(ENRICHED, p) for p in range(self.transport.partitions(ENRICHED))]
        records = [record for place in places for record in self.transport.read_from(place)]
        return [EnrichedAnomaly.model_validate_json(record.value or b"") for record in records]


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis(tmp_path_factory.mktemp("kafka-enricher")) as server:
        yield server


@pytest.fixture
def cluster(kafka_address: str, own_redis: servers.Server) -> Iterator[Cluster]:
    cluster = Cluster(kafka_address, own_redis.url)
    yield cluster
    cluster.transport.close()


def found(**fields: Any) -> bytes:
    """An anomaly found after all that was published before it."""
    now = instant(time.time_ns() // 1_000 + 3_600_000_000)
    return failure(**fields).model_copy(update={"time": now}).to_json()


def run(condition: Callable[[], bool], *members: Worker) -> None:
    until_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until_s, "the members do not get there"
        for member in members:
            member.run_once(0.05)


def test_rows_are_read_back_by_offset_and_missing_where_retention_took_them(cluster: Cluster) -> None:
    cluster.publish(PREDICTIONS, event("a"), event("b"), event("c"))
    admin = AdminClient({"bootstrap.servers": cluster.address})
    gone = TopicPartition(f"{cluster.prefix}{PREDICTIONS}", 0, 1)
    admin.delete_records([gone])[gone].result(timeout=20)
    cluster.publish(CHANGES, change(20), partition=7)
    rows = [ref(0, "a"), ref(2, "c"), ref(3, "a marker"), ref(99, "never"), ref(0, "x", partition=5)]
    cluster.publish(ANOMALIES, found(exemplars=rows, controls=[ref(1, "b")]))
    with closing(cluster.store()) as store:
        member = cluster.member("0", store)
        run(lambda: bool(cluster.told()), member)
        member.close()
    (told,) = cluster.told()
    assert [(row.prediction_id, row.missing) for row in told.rows] == [
        ("a", "out_of_retention"), ("c", None), ("a marker", "out_of_retention"), ("never", "out_of_retention"),
        ("x", "out_of_retention"), ("b", None),
    ]  # fmt: skip
    assert [entry.name for entry in told.context] == ["deploy"]


def test_a_change_one_member_reads_is_told_by_the_other_and_an_outage_loses_nothing(
    cluster: Cluster, own_redis: servers.Server
) -> None:
    with closing(cluster.store()) as one, closing(cluster.store()) as two:
        members = [cluster.member("0", one), cluster.member("1", two)]
        run(lambda: all(member._consumer.assignment() for member in members), *members)
        for partition in range(12):
            cluster.publish(ANOMALIES, found(), partition=partition)
        run(lambda: len(cluster.told()) == 12, *members)
        assert {entry.name for told in cluster.told() for entry in told.context} == {"changes"}
        own_redis.stop()
        for partition in range(12):
            cluster.publish(CHANGES, change(20, change_id=f"c{partition}"), partition=partition)
            cluster.publish(ANOMALIES, found(), partition=partition)
        run(lambda: len(cluster.told()) == 24, *members)
        gaps = [entry.missing for told in cluster.told() for entry in told.context]
        assert sorted(map(str, gaps)) == ["None"] * 12 + ["unavailable"] * 12
        own_redis.restart()
        run(lambda: answers(one) and answers(two), *members)
        for partition in range(12):
            cluster.publish(ANOMALIES, found(), partition=partition)
        run(lambda: len(cluster.told()) == 36, *members)
        for member in members:
            member.close()
    assert sorted(len(told.context) for told in cluster.told()) == [1] * 24 + [12] * 12


class Trusting(Enricher):
    """Believes that the other members have stored all that came after its own start."""

    def _catch_up(self) -> None:
        if self._behind:
            super()._catch_up()


def inputs(member: Worker, topic: str) -> list[int]:
    return sorted(number for name, number in member._consumer.assignment() if name == topic)


@pytest.mark.parametrize(("kind", "said"), [(Enricher, {"deploy"}), (Trusting, {"changes"})])
def test_a_change_that_a_member_held_back_has_not_read_is_told_by_another(
    cluster: Cluster, kind: type[Enricher], said: set[str]
) -> None:
    with closing(cluster.store()) as one, closing(cluster.store()) as two:
        members = [cluster.member("0", one, kind), cluster.member("1", two, kind)]
        run(lambda: all(len(inputs(member, ANOMALIES)) == 6 for member in members), *members)
        runs, held_back = members
        mine, others = inputs(runs, ANOMALIES), inputs(held_back, CHANGES)
        cluster.publish(ANOMALIES, found(), partition=mine[0])
        run(lambda: len(cluster.told()) == 1, runs)  # it has looked up before
        cluster.publish(CHANGES, change(20), partition=others[0])
        for partition in mine:
            cluster.publish(ANOMALIES, found(), partition=partition)
        run(lambda: len(cluster.told()) == 7, runs)
        for member in members:
            member.close()
    told = [{entry.name for entry in one.context} for one in cluster.told()]
    assert sorted(told, key=said.__eq__) == [{"changes"}, *[said] * 6]


def test_changes_that_cannot_be_read_to_their_end_are_a_gap_after_a_bounded_time(cluster: Cluster) -> None:
    later_s = [0.0]
    with closing(cluster.store()) as store:
        member = cluster.member("0", store, clock_s=lambda: time.monotonic() + later_s[0])
        cluster.publish(ANOMALIES, found())
        run(lambda: len(cluster.told()) == 1, member)
        publisher = cluster.transport.producer("slow-publisher")
        publisher.begin()
        publisher.produce(Outgoing(CHANGES, b"employment", json.dumps(change(20)).encode(), partition=7))
        other = cluster.transport.read_from((CHANGES, 7))
        wait_for_end(cluster, (CHANGES, 7))
        cluster.publish(ANOMALIES, found())
        started_s = time.monotonic()
        run(lambda: len(cluster.told()) == 2, member)
        assert time.monotonic() - started_s < 5 * CATCH_UP_S
        publisher.commit()
        assert len(list(other)) == 1
        later_s[0] += 60.0
        cluster.publish(ANOMALIES, found())
        run(lambda: len(cluster.told()) == 3, member)
        member.close()
    assert [[entry.missing or entry.name for entry in one.context] for one in cluster.told()] == [
        ["changes"], ["unavailable"], ["deploy"],
    ]  # fmt: skip


def wait_for_end(cluster: Cluster, place: tuple[str, int]) -> None:
    """Until the broker has what an open transaction wrote."""
    until_s = time.monotonic() + WAIT_S
    while cluster.transport.end_offset(place) == 0:
        assert time.monotonic() < until_s, "nothing was written"


def answers(store: RedisContextStore) -> bool:
    """Whether its breaker is not in the way any more."""
    try:
        store.check()
    except Unavailable:
        return False
    return store.breaker.wait_s == 0


def test_the_command_fills_an_empty_redis(cluster: Cluster, own_redis: servers.Server) -> None:
    own_redis.restart()
    cluster.publish(CHANGES, change(20), b"no change", change(30, change_id="c2"), partition=3)
    environment = {
        "ERRATA_KAFKA__BOOTSTRAP_SERVERS": cluster.address,
        "ERRATA_TOPIC_PREFIX": cluster.prefix,
        "ERRATA_REDIS_URL": cluster.redis_url,
    }
    for words, said in ((["--json"], '{"changes":2}'), ([], "2 changes read; the context store has them all")):
        result = CliRunner().invoke(app, ["rebuild", *words], env=environment)
        assert result.exception is None, result.exception
        assert result.stdout.strip() == said
    with closing(cluster.store()) as store:
        (found,) = store.between([("default", "employment", 0, 2**60, 2**60)])
    assert [one.change_id for one in found.changes] == ["c2", "c1"]
    result = CliRunner().invoke(app, ["rebuild"], env={**environment, "ERRATA_REDIS_URL": "redis://127.0.0.1:1/0"})
    assert isinstance(result.exception, Unavailable)
