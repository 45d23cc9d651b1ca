"""The services of the chain as processes of their own: each stage on Kafka, with what it needs from outside."""

import os
import random
from collections.abc import Callable
from threading import Event

from errata import __version__
from errata.contracts import Contract
from errata.contracts.topics import CONTRACTS, STAGES
from errata.ports import Stage
from errata.runtime.backoff import Backoff
from errata.runtime.crash_points import CrashPoints
from errata.runtime.service import Loop, serve, stop_on_signals
from errata.runtime.tables import Table
from errata.runtime.worker import Worker
from errata.settings import ServiceSettings
from errata_services.anomaly_detector import CONFIG_HASH, AnomalyDetector
from errata_services.bootstrap import ServiceParts, context_store, service_catalogue, service_parts
from errata_services.catalog_writer import CatalogWriterWorker
from errata_services.enricher import Enricher
from errata_services.tagger import Tagger

TABLES_EVERY_S = 1.0  # between two looks for new contracts and references
DETECTOR, ENRICHER, TAGGER, WRITER = STAGES


def run_service(name: str, settings: ServiceSettings) -> None:
    """Run a service until it is told to stop. Errors pass through; their exit codes say what to do."""
    stopping = Event()
    stop_on_signals(stopping)
    config_hash = CONFIG_HASH if name == DETECTOR else ""
    with service_parts(name, settings, config_hash) as parts:
        loop, on_tick = _LOOPS[name](settings, parts)
        serve(loop, stopping, on_tick)


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
        parts.transport, parts.decoder, rekeys=True, tables_every_s=TABLES_EVERY_S, telemetry=parts.telemetry
    )
    return _worker(stage, settings, parts, CONFIG_HASH), parts.health.tick


def _enricher(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    contracts = Table(parts.transport, CONTRACTS, Contract, every_s=TABLES_EVERY_S)

    def contract_of(tenant: str, model: str) -> Contract | None:
        contracts.refresh()
        return contracts.get(tenant, model)

    stage = Enricher(context_store(settings), parts.transport, contract_of, parts.redaction_key)

    def tick() -> None:
        parts.health.tick()
        stage.prepare(())  # what could not be stored is tried again also while nothing comes

    return _worker(stage, settings, parts), tick


def _tagger(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    return _worker(Tagger(), settings, parts), parts.health.tick


def _writer(settings: ServiceSettings, parts: ServiceParts) -> _Made:
    catalogue = service_catalogue(settings, WRITER)
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


_LOOPS: dict[str, Callable[[ServiceSettings, ServiceParts], _Made]] = {
    DETECTOR: _detector,
    ENRICHER: _enricher,
    TAGGER: _tagger,
    WRITER: _writer,
}
