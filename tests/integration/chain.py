"""The four services as processes on real servers, each with topics, keys and database of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import psycopg
from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as KafkaPlace

from errata.adapters.decode_msgspec import LineRouter
from errata.adapters.kafka import KafkaTransport, apply_topics
from errata.adapters.sql import SqlCatalogue
from errata.contracts import Contract, FailureCase, Reference, canonical
from errata.contracts.topics import (
    ANOMALIES,
    CHANGES,
    CONTRACTS,
    ENRICHED,
    OUTCOMES,
    PREDICTIONS,
    REFERENCES,
    STAGES,
    TAGGED,
)
from errata.domain.catalogue.queries import CaseQuery
from errata.errors import Unavailable
from errata.ports import Outgoing, Producer, Record, TopicPartition
from errata.runtime.crash_points import VARIABLE
from errata_services.bootstrap import derived_key
from errata_services.dev.processes import free_port

INPUTS: Mapping[str, tuple[str, ...]] = dict(
    zip(STAGES, ((PREDICTIONS, OUTCOMES), (ANOMALIES, CHANGES), (ENRICHED,), (TAGGED,)), strict=True)
)
WAIT_S, POLL_S = 120.0, 0.3
SECRET = "a key of thirty-two characters and more"
REDACTION_KEY = derived_key(SECRET, b"redaction")
KILLED = -signal.SIGKILL


@dataclass
class Service:
    """One process of a service; ``port`` is that of its health and metrics."""

    name: str
    instance: str
    process: "subprocess.Popen[bytes]"
    log: Path
    port: int

    def end(self, timeout_s: float = 30.0) -> int:
        """Ask it to stop; its exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def page(self, path: str) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:  # a page of our own process
            return str(answer.read().decode())

    def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.page("/statusz"))
        return found

    def logged(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Chain:
    """Services of one test. ``environment`` is what a process of it needs."""

    folder: Path
    environment: dict[str, str]
    properties: dict[str, str]
    prefix: str
    database: str
    running: list[Service] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.transport = KafkaTransport(self.properties, topic_prefix=self.prefix)
        self._askers: dict[str, Consumer] = {}

    # Services.

    def start(self, name: str, instance: str = "0", *options: str, **environment: str) -> Service:
        command = [sys.executable, "-m", "errata_services.cli", "run", name, *options]
        return self._start(command, name, instance, environment)

    def start_broken(self, kind: str, name: str, **environment: str) -> Service:
        """A service of ``broken_service``."""
        script = Path(__file__).with_name("broken_service.py")
        return self._start([sys.executable, str(script), kind, name], name, "0", environment)

    def _start(self, command: list[str], name: str, instance: str, environment: Mapping[str, str]) -> Service:
        port = free_port()
        log = self.folder / f"{name}-{instance}-{uuid4().hex[:6]}.log"
        own = {"ERRATA_INSTANCE": instance, "ERRATA_HTTP_PORT": str(port), **environment}
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                env={**_bare_environment(), **self.environment, **own},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        service = Service(name, instance, process, log, port)
        self.running.append(service)
        return service

    def start_all(self) -> list[Service]:
        return [self.start(name) for name in STAGES]

    def start_supervised(self, name: str) -> Service:
        """A service that is started again when it ends with 75."""
        command = [sys.executable, "-m", "errata_services.cli", "run", name, "--supervise"]
        return self._start(command, name, "0", {})

    def stop(self) -> None:
        for service in self.running:
            if service.process.poll() is None:
                service.process.terminate()  # and not a kill: one that supervises takes its child along
            try:
                service.process.wait(30)
            except subprocess.TimeoutExpired:
                service.process.kill()
                service.process.wait(30)
        self.running.clear()

    def close(self) -> None:
        self.transport.close()
        while self._askers:
            self._askers.popitem()[1].close()

    # Topics and rows.

    def apply(self, *tables: Contract | Reference) -> None:
        producer = self.transport.producer(f"tables-{uuid4().hex}")
        records = [
            Outgoing(
                CONTRACTS if isinstance(table, Contract) else REFERENCES,
                canonical([table.tenant, table.model]),
                table.to_json(),
                partition=0,
            )
            for table in tables
        ]
        _commit(producer, records)
        producer.close()

    def publish(self, lines: Iterable[bytes], size: int = 2_000) -> int:
        """Lines of JSON in their order, each to the place of its key."""
        router, count = LineRouter(), 0
        producer = self.transport.producer(f"publisher-{uuid4().hex}")
        batch: list[Outgoing] = []
        for line in lines:
            route = router.route(line)
            batch.append(Outgoing(route.topic, route.key, line))
            if len(batch) >= size:
                count += _commit(producer, batch)
        count += _commit(producer, batch)
        producer.close()
        return count

    def records(self, topic: str) -> list[Record]:
        """All committed records of a topic, by partition and offset."""
        places = [(topic, number) for number in range(self.transport.partitions(topic))]
        return [record for place in places for record in self.transport.read_from(place)]

    def unread(self, stage: str) -> bool:
        """Whether a stage has records left. Behind the last record there may be marks of transactions."""
        offsets = self.offsets(stage)
        places = [(topic, number) for topic in INPUTS[stage] for number in range(self.transport.partitions(topic))]
        return any(
            True
            for place in places
            if self.transport.end_offset(place) > offsets.get(place, 0)
            for _ in self.transport.read_from(place, offsets.get(place, 0))
        )

    def offsets(self, stage: str) -> dict[TopicPartition, int]:
        """How far a stage is: the group's committed offsets, or what the catalogue says."""
        if stage == STAGES[3]:
            return self.positions()
        if stage not in self._askers:
            # Not an admin client: that crashes when the group has just been given another coordinator.
            self._askers[stage] = Consumer({
                **self.properties, "group.id": f"{self.prefix}errata.{stage}", "log_level": 0
            })  # fmt: skip
        asked = [
            KafkaPlace(self.prefix + topic, number)
            for topic in INPUTS[stage]
            for number in range(self.transport.partitions(topic))
        ]
        try:
            found = self._askers[stage].committed(asked, timeout=10)
            for one in found:
                if one.error is not None:  # its offset says nothing
                    raise KafkaException(one.error)
        except KafkaException:
            del self._askers[stage]  # it may have lost all brokers for good (librdkafka's issue 5301)
            raise
        return {(one.topic.removeprefix(self.prefix), one.partition): one.offset for one in found if one.offset >= 0}

    def positions(self) -> dict[TopicPartition, int]:
        """How far the catalogue is, by its own word."""
        with psycopg.connect(self.database) as connection:
            found = connection.execute("SELECT topic, partition, next_offset FROM consumer_position").fetchall()
        return {(topic, partition): next_offset for topic, partition, next_offset in found}

    def catalogue(self) -> SqlCatalogue:
        return SqlCatalogue(self.database)

    def cases(self) -> list[FailureCase]:
        catalogue = self.catalogue()
        try:
            return sorted(catalogue.cases(CaseQuery(limit=1_000)), key=lambda case: case.case_id)
        finally:
            catalogue.close()

    # Waiting.

    def until(self, done: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait for a condition; a process that ended with an error ends the wait."""
        deadline_s = time.monotonic() + timeout_s
        while (unmet := _unmet(done)) is not None:
            for service in self.running:
                code = service.process.poll()
                if code not in (None, 0, KILLED):
                    raise AssertionError(f"{service.name} ended with {code}: {service.logged()[-3000:]}")
            if time.monotonic() > deadline_s:
                logs = "\n".join(f"--- {one.name}\n{one.logged()[-2000:]}" for one in self.running)
                raise AssertionError(f"not within {timeout_s:g} s: {what}: {unmet}\n{logs}")
            time.sleep(POLL_S)

    def until_drained(self, timeout_s: float = WAIT_S, stages: Sequence[str] = STAGES) -> None:
        """Wait until no stage of these has anything left: in the order of the chain, so that nothing is on its way."""
        for stage in stages:
            self.until(lambda stage=stage: not self.unread(stage), f"{stage} has read all", timeout_s)  # type: ignore[misc]


def _commit(producer: Producer, batch: list[Outgoing]) -> int:
    producer.begin()
    for record in batch:
        producer.produce(record)
    producer.commit()
    count = len(batch)
    batch.clear()
    return count


def _unmet(done: Callable[[], bool]) -> str | None:
    """Why the condition does not hold; None when it does. Servers and services that it asks may be away."""
    try:
        return None if done() else "it is not so"
    except (Unavailable, psycopg.OperationalError, KafkaException, OSError) as error:
        return repr(error)


def _bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ERRATA_")}


@contextmanager
def chain_on(folder: Path, kafka_address: str, redis_url: str, database: str) -> Iterator[Chain]:
    """A chain with its topics and schema made, and no service running."""
    prefix = f"t{uuid4().hex[:10]}."
    properties = {"bootstrap.servers": kafka_address}
    apply_topics(properties, prefix)
    catalogue = SqlCatalogue(database)
    catalogue.migrate()
    catalogue.close()
    environment = {
        "ERRATA_KAFKA__BOOTSTRAP_SERVERS": kafka_address,
        "ERRATA_TOPIC_PREFIX": prefix,
        "ERRATA_REDIS_URL": redis_url,
        "ERRATA_DATABASE_URL": database,
        "ERRATA_KEY": SECRET,
    }
    made = Chain(folder, environment, properties, prefix, database)
    try:
        yield made
    finally:
        made.stop()
        made.close()


def armed(stage: str, point: str, nth: int) -> dict[str, str]:
    """The environment in which a process dies at a crash point."""
    return {VARIABLE: f"{stage}:{point}:{nth}"}
