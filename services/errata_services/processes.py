"""The services of the chain as processes of their own: each stage on Kafka, with what it needs from outside."""

import os
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from threading import Event

import structlog

from errata import __version__
from errata.adapters.allocator import COLLECT_EVERY_S, Spare, bound_heap, collect
from errata.contracts import Contract
from errata.contracts.topics import CONTRACTS, STAGES, TRENDS_SERVICE
from errata.errors import ErrataError, Misconfigured
from errata.ports import Stage
from errata.runtime.backoff import Backoff
from errata.runtime.crash_points import CrashPoints
from errata.runtime.poison import PoisonGuard
from errata.runtime.rebuild import rebuilder
from errata.runtime.service import Loop, calm_collector, read_again_on_signal, serve, stop_on_signals
from errata.runtime.stall import Limits, StallWatch
from errata.runtime.stops import page_of
from errata.runtime.tables import Table
from errata.runtime.telemetry import KEEPER
from errata.runtime.worker import OnRewind, Worker
from errata.settings import ServiceSettings
from errata_services.anomaly_detector import CONFIG_HASH, AnomalyDetector
from errata_services.bootstrap import (
    ServiceParts,
    context_store,
    kafka_transport,
    keeper_parts,
    service_catalogue,
    service_parts,
    state_limits,
)
from errata_services.catalog_writer import CatalogWriterWorker
from errata_services.enricher import Enricher, StoreReport
from errata_services.keeper import Keeper
from errata_services.tagger import Tagger
from errata_services.trends import trends_loop

TABLES_EVERY_S = 1.0  # between two looks for new contracts and references
DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
BROKEN, AGAIN = 70, 75
SAYING = (BROKEN, AGAIN, Misconfigured.exit_code)  # exit codes that tell a supervisor what to do
_CLIENTS = ("cimpl", "confluent_kafka", "psycopg", "redis", "sqlalchemy")  # packages; cimpl is confluent_kafka's


def run_service(name: str, settings: ServiceSettings) -> None:
    """Run a service until it is told to stop.

    Errors of errata pass through when their exit code says what to do. Any other is logged by its type and place,
    without its text, which may hold a value of an event, and ends the process by `code_of_unexpected`. Both name the
    page of the runbooks.
    """
    bound_heap()
    stopping = Event()
    stop_on_signals(stopping)
    read_again_on_signal()
    config_hash = CONFIG_HASH if name == DETECTOR else ""
    try:
        if name == KEEPER:
            _keep(settings, stopping)
            return
        with service_parts(name, settings, config_hash) as parts:
            loop, on_tick = LOOPS[name](settings, parts)
            calm_collector()
            member = _Member(loop, parts, settings.leave, stopping)
            serve(member, stopping, sparing(on_tick), stall_watch(settings, parts))
    except Exception as error:
        log = structlog.get_logger()
        if isinstance(error, ErrataError) and error.exit_code in SAYING:
            log.critical("ended", exit_code=error.exit_code, runbook=page_of(error, error.exit_code))
            raise
        code = code_of_unexpected(error)
        log.critical("ended by an unexpected error", exit_code=code, runbook=page_of(error, code), exc_info=error)
        raise SystemExit(code) from None


def _keep(settings: ServiceSettings, stopping: Event) -> None:
    """Run a keeper, which is no member of any group and has no partitions that could stand still."""
    with keeper_parts(settings) as parts:
        keeper = Keeper(
            parts.transport,
            parts.lock,
            parts.telemetry,
            parts.health,
            tick_every_s=settings.tick_every_s,
            heartbeat_every_s=settings.heartbeat_every_s,
        )
        calm_collector()
        serve(keeper, stopping, sparing(parts.health.tick))


def sparing(on_tick: Callable[[], None]) -> Callable[[], None]:
    """``on_tick``, and now and then what the interpreter and the heap keep for nobody goes back to the system."""
    spares = Spare(COLLECT_EVERY_S, give_back=collect), Spare()

    def tick() -> None:
        on_tick()
        for spare in spares:
            spare()

    return tick


def stall_watch(settings: ServiceSettings, parts: ServiceParts) -> StallWatch | None:
    """The watch over a service's partitions and its loop, with clients of its own; None when it is turned off."""
    if settings.stall_s == 0:
        return None
    return StallWatch(parts.health, parts.telemetry, kafka_transport(settings), Limits.of(settings.stall_s))


def code_of_unexpected(error: Exception) -> int:
    """The exit code for an error that nobody foresaw in a service.

    A shortage of the machine (memory, files) or trouble with a server may be over at the next start. Anything else is
    a bug or state that cannot be: it would come again, so the service stays down for a person to look at.
    """
    passes = isinstance(error, MemoryError | OSError) or type(error).__module__.partition(".")[0] in _CLIENTS
    return AGAIN if passes else BROKEN


@dataclass(frozen=True, slots=True)
class _Member:
    """A loop whose member, if it ``leaves``, tells its group when it was asked to stop; not when it failed: one that
    failed is started again."""

    loop: Loop
    parts: ServiceParts
    leaves: bool
    stopping: Event

    def run_once(self, timeout_s: float = 0.0) -> int:
        return self.loop.run_once(timeout_s)

    def close(self) -> None:
        self.parts.transport.leave_on_close = self.leaves and self.stopping.is_set()
        self.loop.close()


_Made = tuple[Loop, Callable[[], None]]


def _worker(
    stage: Stage,
    settings: ServiceSettings,
    parts: ServiceParts,
    config_hash: str = "",
    on_rewind: OnRewind | None = None,
) -> Worker:
    worker = Worker(
        stage,
        parts.transport,
        instance=settings.instance,
        build=__version__,
        cipher=parts.cipher,
        batch_size=settings.batch_size,
        crash=CrashPoints.from_environment(os.environ),
        config_hash=config_hash,
        on_rewind=on_rewind,
        telemetry=parts.telemetry,
        health=parts.health,
        guard=_guard(stage.name, parts),
    )
    parts.positions = lambda: worker.positions
    return worker


def _guard(stage: str, parts: ServiceParts) -> PoisonGuard:
    """The breaker of a service, which a person closes by SIGUSR1 or a restart."""
    guard = PoisonGuard(stage, parts.telemetry, parts.health)
    read_again_on_signal(guard.ask_back)
    return guard


def _detector(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    make = partial(
        AnomalyDetector,
        parts.transport,
        parts.decoder,
        rekeys=True,
        tables_every_s=TABLES_EVERY_S,
        plain=parts.plain,
        limits=state_limits(settings.state_mib),
    )
    anew = rebuilder(make, parts.transport, CONFIG_HASH) if settings.on_rewind == "rebuild" else None
    return _worker(make(telemetry=parts.telemetry), settings, parts, CONFIG_HASH, anew), parts.health.tick


def _enricher(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    contracts = Table(parts.transport, CONTRACTS, Contract, every_s=TABLES_EVERY_S)

    def contract_of(tenant: str, model: str) -> Contract | None:
        contracts.refresh()
        return contracts.get(tenant, model)

    context = parts.stack.enter_context(closing(context_store(settings)))
    stage = Enricher(context, parts.transport, contract_of, parts.redaction_key)

    report = StoreReport(context, parts.telemetry, parts.health, stage)

    def tick() -> None:
        parts.health.tick()
        stage.keep_up()  # what could not be stored is tried again also while nothing comes
        report()

    return _worker(stage, settings, parts), tick


def _tagger(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    return _worker(Tagger(), settings, parts), parts.health.tick


def _writer(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    catalogue = parts.stack.enter_context(closing(service_catalogue(settings, WRITER)))
    catalogue.check()
    loop = CatalogWriterWorker(
        parts.transport,
        catalogue,
        settings.instance,
        settings.batch_size,
        CrashPoints.from_environment(os.environ).at,
        parts.cipher,
        backoff=Backoff(random.random),
        telemetry=parts.telemetry,
        health=parts.health,
        guard=_guard(WRITER, parts),
    )
    parts.positions = lambda: loop.positions
    return loop, parts.health.tick


LOOPS: dict[str, Callable[[ServiceSettings, ServiceParts], _Made]] = {
    DETECTOR: _detector,
    ENRICHER: _enricher,
    TAGGER: _tagger,
    WRITER: _writer,
    TRENDS_SERVICE: trends_loop,
}
