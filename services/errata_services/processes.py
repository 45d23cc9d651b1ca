"""The services of the chain as processes of their own: each stage on Kafka, with what it needs from outside."""

import os
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from threading import Event

import structlog

from errata import __version__
from errata.contracts import Contract
from errata.contracts.topics import CONTRACTS, STAGES
from errata.errors import ErrataError, Misconfigured
from errata.ports import Stage
from errata.runtime.backoff import Backoff
from errata.runtime.crash_points import CrashPoints
from errata.runtime.service import Loop, calm_collector, serve, stop_on_signals
from errata.runtime.tables import Table
from errata.runtime.worker import Worker
from errata.settings import ServiceSettings
from errata_services.anomaly_detector import CONFIG_HASH, AnomalyDetector
from errata_services.bootstrap import ServiceParts, context_store, service_catalogue, service_parts
from errata_services.catalog_writer import CatalogWriterWorker
from errata_services.enricher import Enricher, StoreReport
from errata_services.tagger import Tagger

TABLES_EVERY_S = 1.0  # between two looks for new contracts and references
DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
BROKEN, AGAIN = 70, 75
SAYING = (BROKEN, AGAIN, Misconfigured.exit_code)  # exit codes that tell a supervisor what to do
_CLIENTS = ("cimpl", "confluent_kafka", "psycopg", "redis", "sqlalchemy")  # packages; cimpl is confluent_kafka's


def run_service(name: str, settings: ServiceSettings) -> None:
    """Run a service until it is told to stop.

    Errors of errata pass through when their exit code says what to do. Any other is logged by its type and place,
    without its text, which may hold a value of an event, and ends the process by `code_of_unexpected`.
    """
    stopping = Event()
    stop_on_signals(stopping)
    config_hash = CONFIG_HASH if name == DETECTOR else ""
    try:
        with service_parts(name, settings, config_hash) as parts:
            loop, on_tick = LOOPS[name](settings, parts)
            calm_collector()
            serve(_Member(loop, parts, settings.leave, stopping), stopping, on_tick)
    except Exception as error:
        if isinstance(error, ErrataError) and error.exit_code in SAYING:
            raise
        code = code_of_unexpected(error)
        structlog.get_logger().critical("ended by an unexpected error", exit_code=code, exc_info=error)
        raise SystemExit(code) from None


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


def _worker(stage: Stage, settings: ServiceSettings, parts: ServiceParts, config_hash: str = "") -> Worker:
    worker = Worker(
        stage,
        parts.transport,
        instance=settings.instance,
        build=__version__,
        cipher=parts.cipher,
        batch_size=settings.batch_size,
        crash=CrashPoints.from_environment(os.environ),
        config_hash=config_hash,
        telemetry=parts.telemetry,
        health=parts.health,
    )
    parts.positions = lambda: worker.positions
    return worker


def _detector(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    stage = AnomalyDetector(
        parts.transport,
        parts.decoder,
        rekeys=True,
        tables_every_s=TABLES_EVERY_S,
        telemetry=parts.telemetry,
        plain=parts.plain,
    )
    return _worker(stage, settings, parts, CONFIG_HASH), parts.health.tick


def _enricher(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    contracts = Table(parts.transport, CONTRACTS, Contract, every_s=TABLES_EVERY_S)

    def contract_of(tenant: str, model: str) -> Contract | None:
        contracts.refresh()
        return contracts.get(tenant, model)

    context = parts.stack.enter_context(closing(context_store(settings)))
    stage = Enricher(context, parts.transport, contract_of, parts.redaction_key)

    report = StoreReport(context, parts.telemetry, parts.health)

    def tick() -> None:
        parts.health.tick()
        stage.prepare(())  # what could not be stored is tried again also while nothing comes
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
    )
    parts.positions = lambda: loop.positions
    return loop, parts.health.tick


LOOPS: dict[str, Callable[[ServiceSettings, ServiceParts], _Made]] = {
    DETECTOR: _detector,
    ENRICHER: _enricher,
    TAGGER: _tagger,
    WRITER: _writer,
}
