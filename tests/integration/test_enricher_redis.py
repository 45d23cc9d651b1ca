"""The enricher on a real Redis that stops, freezes, loses its content: no event is lost, gaps are marked and close."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from tests.pipeline.enricher_bench import FOUND_US, Bench, change, failure
from tests.pipeline.test_enricher_todo import Chain

from errata.adapters.context_redis import RedisContextStore
from errata.adapters.prometheus import PrometheusMeter
from errata.contracts import EnrichedAnomaly
from errata.contracts.topics import ANOMALIES, CHANGES, ENRICHED
from errata.runtime.health import Health
from errata.runtime.telemetry import StageTelemetry
from errata.runtime.worker import Worker
from errata_services.dev import servers
from errata_services.enricher import StoreReport, rebuild_context

pytestmark = pytest.mark.servers

WAIT_S = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A Redis of this file's own: its tests stop, freeze and empty it."""
    with servers.redis(tmp_path_factory.mktemp("enricher")) as server:
        yield server


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Stage:
    """An enricher on the server with a store and clock of its own."""

    def __init__(self, server: servers.Server, bench: Bench | None = None, timeout_s: float = 5.0) -> None:
        self.clock = Clock()
        self.store = RedisContextStore.of_url(server.url, timeout_s=timeout_s, clock_s=self.clock)
        self.bench = Bench(store=self.store, transport=bench.transport if bench else None)

    def publish(self, *changes: dict[str, object], partition: int = 0) -> None:
        self.bench.publish(CHANGES, *changes, partition=partition, at_us=FOUND_US - 1)

    def found(self) -> list[str]:
        """What an anomaly is told to have happened before it; a gap by its reason."""
        entries = self.bench.enrich(failure()).context
        return [entry.missing or entry.name for entry in entries]


@pytest.fixture
def stage(server: servers.Server) -> Iterator[Stage]:
    server.restart()  # which empties it
    stage = Stage(server)
    yield stage
    stage.store.close()


def test_a_stopped_redis_costs_the_context_which_comes_back_by_itself(stage: Stage, server: servers.Server) -> None:
    stage.publish(change(30, kind="flag"))
    assert stage.found() == ["flag"]
    server.stop()
    stage.publish(change(20, change_id="c2"))
    for _ in range(9):
        assert stage.found() == ["unavailable"]
    server.restart()  # empty
    assert stage.found() == ["unavailable"]  # left alone for now
    stage.clock.now_s += 30
    assert stage.found() == ["flag", "deploy"]


def test_a_frozen_redis_costs_three_time_outs_and_not_one_a_batch(server: servers.Server) -> None:
    server.restart()
    stage = Stage(server, timeout_s=0.25)
    stage.publish(change(20))
    wait_for(stage, ["deploy"])
    server.freeze()
    try:
        started_s = time.monotonic()
        for _ in range(40):
            assert stage.found() == ["unavailable"]
        assert time.monotonic() - started_s < 40 * 0.25 / 2
    finally:
        server.thaw()
    wait_for(stage, ["deploy"])
    stage.store.close()


def wait_for(stage: Stage, wanted: list[str]) -> None:
    """Batches until one is told ``wanted``, each after the pause of a breaker."""
    until_s = time.monotonic() + WAIT_S
    while stage.found() != wanted:
        assert time.monotonic() < until_s, f"never told {wanted}"
        stage.clock.now_s += 30


def test_an_emptied_redis_is_filled_again_and_not_believed_before(stage: Stage, server: servers.Server) -> None:
    stage.publish(change(20), partition=7)
    assert stage.found() == ["deploy"]
    stage.store._client.flushall()
    assert stage.found() == ["deploy"]


def test_what_a_member_could_not_store_is_brought_in_by_those_who_saw_the_outage(
    stage: Stage, server: servers.Server
) -> None:
    other = Stage(server, stage.bench)
    assert stage.found() == other.found() == ["changes"]
    server.stop()
    stage.publish(change(20))
    assert stage.found() == ["unavailable"]  # this one has the change, and stops before Redis is back
    other.bench._new_changes()
    assert other.found() == ["unavailable"]
    server.restart()
    other.clock.now_s += 30
    assert other.found() == ["deploy"]
    other.store.close()


def test_a_change_one_member_read_is_told_by_every_other(stage: Stage, server: servers.Server) -> None:
    other = Stage(server, stage.bench)
    assert other.found() == ["changes"]
    stage.publish(change(20), partition=3)
    other.bench._new_changes()  # not its partition
    stage.bench.step()
    assert other.found() == ["deploy"]
    other.store.close()


def test_a_rebuild_fills_an_empty_redis_and_does_no_harm_to_a_full_one(stage: Stage) -> None:
    stage.publish(*(change(at, change_id=f"c{at}") for at in range(1, 6)))
    for _ in range(2):
        assert rebuild_context(stage.bench.transport, stage.store) == 5
    stage.bench._new_changes()
    assert stage.found() == ["deploy"] * 5


def test_with_redis_down_the_loop_takes_every_record_and_commits_it(stage: Stage, server: servers.Server) -> None:
    bench = stage.bench
    worker = Worker(bench.enricher, bench.transport, instance="0", build="test", cipher=None, batch_size=3)
    expected = []
    for at, down in enumerate((False, True, False)):
        server.stop() if down else server.restart()
        stage.clock.now_s += 30
        stage.publish(change(20 + at, change_id=f"c{at}", kind="flag"), partition=at)
        bench.publish(ANOMALIES, *[failure().to_json()] * 5, partition=at)
        while worker.run_once():
            pass
        expected += [["unavailable"] if down else ["flag"] * (at + 1)] * 5
    expected.append(["flag"] * 3)  # the case that had to do without is filled in
    records = [one for p in range(12) for one in bench.transport.read_from((ENRICHED, p))]
    told = [EnrichedAnomaly.model_validate_json(record.value or b"").context for record in records]
    assert sorted([entry.missing or entry.name for entry in one] for one in told) == sorted(expected)
    worker.close()


@pytest.mark.parametrize("how", ["gone and back empty", "frozen", "slow for 2 s"])
def test_a_case_that_had_to_do_without_has_its_context_when_redis_is_back(
    server: servers.Server, tmp_path: Path, how: str
) -> None:
    server.restart()
    stage = Stage(server, timeout_s=0.5)
    chain = Chain(tmp_path, stage.store)
    chain.bench.publish(CHANGES, change(20), partition=3, at_us=FOUND_US - 1)
    chain.finds(1)
    if how == "slow for 2 s":
        with closing(Redis.from_url(server.url)) as other:
            other.client_pause(2_000)  # answers wait so long
    else:
        server.freeze() if how == "frozen" else server.stop()
    chain.run()
    assert chain.case.enrichment is not None
    assert (chain.enricher.lacking, chain.case.context[0].missing) == (1, "unavailable")
    if how != "slow for 2 s":
        server.thaw() if how == "frozen" else server.restart()
    until_s = time.monotonic() + WAIT_S
    while chain.enricher.lacking:
        assert time.monotonic() < until_s, "never filled in"
        stage.clock.now_s += 30
        chain.run()
    assert chain.case.enrichment is None
    assert [entry.name for entry in chain.case.context] == ["deploy"]
    assert [lacks for _, lacks in chain.put_out()] == ["changes unavailable", None]
    chain.catalogue.close()
    stage.store.close()


def test_what_the_store_counts_is_told_as_metrics(stage: Stage, server: servers.Server) -> None:
    meter = PrometheusMeter()
    health = Health(stage="enricher", instance="0", build="test")
    report = StoreReport(stage.store, StageTelemetry(meter, "enricher", version="1"), health)

    def told() -> tuple[float, float, float, float]:
        """Failed calls, hits, misses, breaker."""
        report()
        lines = [line.rpartition(" ") for line in meter.exposition()[1].decode().splitlines()]
        values = {series: value for series, _, value in lines if series.startswith("errata_")}
        return (
            float(values['errata_store_errors_total{stage="enricher",store="redis"}']),
            float(values['errata_cache_operations_total{result="hit",stage="enricher"}']),
            float(values['errata_cache_operations_total{result="miss",stage="enricher"}']),
            float(values['errata_breaker_state{dependency="redis",stage="enricher"}']),
        )

    assert told() == (0, 0, 0, 0)
    stage.publish(change(20), change(30, change_id="c2"))
    assert stage.found() == stage.found() == ["deploy", "deploy"]
    assert told() == told() == (0, 2, 2, 0)
    server.stop()
    for _ in range(9):
        assert stage.found() == ["unavailable"]
    assert told() == (3, 2, 2, 2)
    assert health.status()["breakers"] == {"redis": {"state": "open", "required": False}}  # it goes on without
    server.restart()
    stage.clock.now_s += 30
    assert told() == (3, 2, 2, 1)
    assert stage.found() == ["deploy", "deploy"]
    assert told()[3] == 0
