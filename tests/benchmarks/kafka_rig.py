"""One broker for a benchmark, topics of its own for each round, and stages as processes that tell what they took."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from tests.benchmarks.measure import one_core

from errata.adapters.kafka import KafkaTransport, apply_topics
from errata.contracts import Contract, Reference
from errata.contracts.topics import CONTRACTS, PARTITIONS, PREDICTIONS, REFERENCES, model_key
from errata.errors import ErrataError, Unavailable
from errata.ports import Outgoing
from errata_services.dev import servers

HERE = Path(__file__).parent
CHILD_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 30.0
APPLY_ATTEMPTS = 3
SECRET = "a key of thirty-two characters and more"


class RigError(Exception):
    """A stage that ended without its figures."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a stage took for its events. ``told``: all it printed."""

    events: int
    cpu_s: float
    wall_s: float
    told: Mapping[str, Any]

    @property
    def cpu_us(self) -> float:
        """CPU time per event, user and system, of all threads of the process."""
        return self.cpu_s / self.events * 1e6

    @property
    def per_s(self) -> float:
        """Events per second of wall time."""
        return self.events / self.wall_s


@contextmanager
def broker() -> Iterator[str]:
    """The address of a Kafka of our own, kept off the core on which the clients run."""
    with tempfile.TemporaryDirectory(prefix="errata-bench-") as folder, _started(Path(folder)) as server:
        yield server.address


@contextmanager
def _started(folder: Path) -> Iterator[servers.KafkaServer]:
    try:
        with _other_cores():
            starting = servers.kafka(folder)
            server = starting.__enter__()
    except ErrataError as error:
        raise SystemExit(f"{error}\nbash tools/servers.sh installs what the benchmarks on Kafka need") from None
    try:
        yield server
    finally:
        starting.__exit__(None, None, None)


@contextmanager
def _other_cores() -> Iterator[None]:
    """Leave the core of `one_core` to the clients, where there is another."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    if len(allowed) < 2:
        yield
        return
    os.sched_setaffinity(0, allowed - {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(slots=True)
class Round:
    """Topics of one round under a prefix of their own, with the events in them."""

    address: str
    prefix: str
    folder: Path

    @property
    def topic(self) -> str:
        """Where the events lie, as the broker knows it."""
        return f"{self.prefix}{PREDICTIONS}"

    def transport(self) -> KafkaTransport:
        return KafkaTransport({"bootstrap.servers": self.address}, topic_prefix=self.prefix)

    def new_topic(self, name: str) -> str:
        """A topic for what a peer sends; its name at the broker."""
        admin = _admin(self.address)
        full = f"{self.prefix}{name}"
        for future in admin.create_topics([NewTopic(full, PARTITIONS, 1)]).values():
            future.result(ANSWER_TIMEOUT_S)
        return full

    def detector(self, events: int, *, batch_size: int, guarantee: str = "exactly_once") -> Taken:
        environment = {
            "ERRATA_KAFKA__BOOTSTRAP_SERVERS": self.address,
            "ERRATA_TOPIC_PREFIX": self.prefix,
            "ERRATA_KEY": SECRET,
            "ERRATA_BATCH_SIZE": str(batch_size),
            "ERRATA_HTTP_PORT": "0",
        }
        script = str(HERE / "kafka_detector.py")
        return child([sys.executable, script, guarantee, str(events)], self.folder, environment)

    def naive(self, events: int) -> Taken:
        target = self.new_topic("naive.findings")
        script = str(HERE / "kafka_naive.py")
        return child([sys.executable, script, self.address, self.topic, target, str(events)], self.folder)


@contextmanager
def round_of(
    address: str, events: Sequence[tuple[bytes, bytes]], tables: Iterable[tuple[Contract, Reference]]
) -> Iterator[Round]:
    """Fresh topics with tables and events in them; they go when the round ends."""
    prefix = f"b{uuid4().hex[:10]}."
    _apply_topics(address, prefix)
    with tempfile.TemporaryDirectory(prefix="errata-bench-") as folder:
        made = Round(address, prefix, Path(folder))
        try:
            apply_tables(made.transport(), tables)
            preload(address, made.topic, events)
            yield made
        finally:
            _delete(address, prefix)


def _apply_topics(address: str, prefix: str) -> None:
    """On a busy machine a broker takes longer for its first group than a client waits; asking again changes nothing."""
    for _ in range(APPLY_ATTEMPTS - 1):
        with suppress(Unavailable):
            apply_topics({"bootstrap.servers": address}, prefix)
            return
    apply_topics({"bootstrap.servers": address}, prefix)


def apply_tables(transport: KafkaTransport, tables: Iterable[tuple[Contract, Reference]]) -> None:
    producer = transport.producer(f"tables-{uuid4().hex}")
    producer.begin()
    for contract, reference in tables:
        key = model_key(contract.tenant, contract.model)
        producer.produce(Outgoing(CONTRACTS, key, contract.to_json(), partition=0))
        producer.produce(Outgoing(REFERENCES, key, reference.to_json(), partition=0))
    producer.commit()
    transport.close()


def preload(address: str, topic: str, events: Sequence[tuple[bytes, bytes]]) -> None:
    """Put events into a topic, each where its key belongs; not compressed, which every client can read at its best."""
    failed: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": address,
            "log_level": 0,  # a new topic has no leader for a moment, which it tells at every look
            "linger.ms": 20,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "queue.buffering.max.messages": 1_000_000,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _: failed.append(str(error)),
        }
    )
    for key, value in events:
        producer.produce(topic, value, key)
    left = producer.flush(CHILD_TIMEOUT_S)
    if left or failed:
        raise RigError(f"{left + len(failed)} events were not delivered to {topic}")


def child(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Taken:
    """Run a stage on the clients' core until it ends; its last line of output holds what it took."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("ERRATA_")}
    with one_core():
        done = subprocess.run(
            list(command),
            env={**bare, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            cwd=folder,
            check=False,
        )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RigError(f"{Path(command[1]).name} ended with {done.returncode}: {done.stderr[-2000:]}")
    told = json.loads(lines[-1])
    return Taken(told["events"], told["cpu_s"], told["wall_s"], told)


def _admin(address: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": address, "log_level": 0})


def _delete(address: str, prefix: str) -> None:
    admin = _admin(address)
    mine = [name for name in admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics if name.startswith(prefix)]
    for future in admin.delete_topics(mine, operation_timeout=ANSWER_TIMEOUT_S).values():
        future.result(ANSWER_TIMEOUT_S)
