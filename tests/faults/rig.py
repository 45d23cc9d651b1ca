"""What scenarios run on: servers that are started once a run, chains with topics of their own, rows of the table."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TypeVar
from uuid import uuid4

import psycopg
from psycopg import sql
from tests.faults.story import Story
from tests.integration.chain import Chain, Service, chain_on

from errata.contracts import Receipt
from errata.contracts.topics import LEDGER, STAGES
from errata.errors import Unavailable
from errata_services.dev import servers
from errata_services.dev.servers import KafkaServer, Server

DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
Made = TypeVar("Made")
DRAIN_S = 900.0
BROKER_HEAP_MB = 768
ATTEMPTS = 4
FAILED = "it ran to its end"
RESTARTS_S = 120.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run. ``factor`` 1 is the plan of the reference; ``soak_min``: minutes of the soak, 0: none."""

    kills: int
    kill_events: int
    restarts: int
    keys: int
    cycles: int
    freezes_s: tuple[float, ...]
    outage_s: float
    poison_events: int
    spike_s: float
    fuzz_inputs: int
    soak_min: float = 0.0
    quick: bool = False


FULL = Scale(
    kills=504, kill_events=2_000_000, restarts=24, keys=50_000, cycles=3, freezes_s=(3, 8, 15, 40), outage_s=30,
    poison_events=200_000, spike_s=60, fuzz_inputs=1_000_000,
)  # fmt: skip
QUICK = Scale(
    kills=40, kill_events=50_000, restarts=6, keys=5_000, cycles=1, freezes_s=(3, 15), outage_s=10,
    poison_events=20_000, spike_s=15, fuzz_inputs=20_000, quick=True,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``goal`` names its threshold in ``goals.toml``; None: shown only.

    ``control``: the figure is of a run that is wrong on purpose and has to be found out; ``detail`` says how it was.
    """

    promise: str
    measured: float
    goal: str | None = None
    detail: str = ""
    took_s: float = 0.0


@dataclass
class Rig:
    """``progress`` is told what goes on, a line at a time."""

    folder: Path
    scale: Scale
    stack: ExitStack
    progress: Callable[[str], None]
    _count: int = field(default=0)

    @cached_property
    def kafka(self) -> KafkaServer:
        return self.stack.enter_context(self.own_kafka())

    @cached_property
    def redis(self) -> Server:
        return self.stack.enter_context(servers.redis(self.folder / "redis"))

    @cached_property
    def postgres(self) -> Server:
        return self.stack.enter_context(servers.postgres(self.folder / "postgres"))

    @contextmanager
    def own_kafka(self, properties: Mapping[str, str] | None = None) -> Iterator[KafkaServer]:
        """A broker of the caller's own. On a machine with much else to do its first start may take too long."""
        folder = self.place("kafka")
        with ExitStack() as stack:
            broker = entered(
                stack,
                lambda: servers.kafka(folder, heap_mb=BROKER_HEAP_MB, quick=self.scale.quick, properties=properties),
            )
            broker.child.ready_timeout_s = RESTARTS_S
            yield broker

    def place(self, name: str) -> Path:
        self._count += 1
        made = self.folder / f"{self._count:02d}-{name}"
        made.mkdir()
        return made

    @contextmanager
    def chain(
        self, name: str, story: Story, *, kafka: str = "", redis: str = "", database: str = ""
    ) -> Iterator[Chain]:
        """A chain with topics, keys and a database of its own; on the run's servers unless others are given."""
        with ExitStack() as stack:
            url = database or stack.enter_context(self._database())
            address, cache, place = kafka or self.kafka.address, redis or self.redis.url, self.place(name)
            four = entered(stack, lambda: chain_on(place, address, cache, url))
            four.apply(*story.tables)
            yield four

    @contextmanager
    def _database(self) -> Iterator[str]:
        url, name = self.postgres.url, f"errata_{uuid4().hex}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield f"{url.rpartition('/')[0]}/{name}"
        finally:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def entered(stack: ExitStack, make: Callable[[], AbstractContextManager[Made]]) -> Made:
    """Enter a context. On a machine with much else to do servers may answer too late, which passes: that is no fault
    of those that are injected here."""
    for _ in range(ATTEMPTS - 1):
        with suppress(Unavailable):
            return stack.enter_context(make())
    return stack.enter_context(make())


def attempted(what: str, rows: Callable[[], list[Row]]) -> list[Row]:
    """The rows of a part; of one that breaks off a row that says so and misses its goal, and the others go on."""
    try:
        return rows()
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        return [Row(f"{what}: {FAILED}", 0, "completed", f"{type(error).__name__}: {first}"[:300])]


def told_on_stderr(began_s: float) -> Callable[[str], None]:
    def tell(line: str) -> None:
        print(f"{time.monotonic() - began_s:7.0f} s  {line}", file=sys.stderr, flush=True)

    return tell


def kill(service: Service) -> None:
    """SIGKILL, and nothing else: the return code is looked at."""
    os.kill(service.process.pid, signal.SIGKILL)
    code = service.process.wait(30)
    assert code == -signal.SIGKILL, f"{service.name}: ended with {code}, not by our kill"


def receipts(four: Chain, stage: str) -> list[tuple[int, Receipt]]:
    """(record time in µs, receipt) of a stage, in the order of time."""
    found = [(record.timestamp_us, Receipt.model_validate_json(record.value or b"")) for record in four.records(LEDGER)]
    return sorted(((at_us, one) for at_us, one in found if one.stage == stage), key=lambda one: one[0])


def wait(seconds: float) -> None:
    """How long a fault lasts: the one thing here that time itself is."""
    Event().wait(seconds)
