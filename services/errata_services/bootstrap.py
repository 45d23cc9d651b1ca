"""The only place that picks adapters.

Those of databases are imported where they are opened: their libraries take half a second, which a detector that comes
back from a kill, and needs none of them, would spend while its partitions wait.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import platformdirs
import structlog
from pydantic import SecretStr

from errata import __version__
from errata.adapters.aead import KEY_BYTES, Aead, read_or_make_key
from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.decode_msgspec import LineRouter, MsgspecDecoder, plain_json
from errata.adapters.http_health import open_health_server
from errata.adapters.journal import DataLock, Journal
from errata.adapters.kafka import KafkaTransport, check_topics, remake
from errata.adapters.kafka_statistics import partition_lags, topic_lags
from errata.adapters.memory import MemoryTransport
from errata.adapters.prometheus import PrometheusMeter
from errata.contracts import Contract, Reference, canonical
from errata.contracts.base import complete_messages
from errata.contracts.topics import CONTRACTS, REFERENCES, STAGES, TOPICS
from errata.domain.array_codec import PlainJson
from errata.domain.detection.keeping import MIB, NEVER_US, Limits
from errata.errors import Misconfigured
from errata.ports import (
    Catalogue,
    Cipher,
    ContextStore,
    Decoder,
    GroupsTransport,
    LeaderLock,
    Offsets,
    Outgoing,
    Router,
    TableStage,
    TableWorker,
    Transport,
)
from errata.runtime.health import Health
from errata.runtime.logging import configure_logging
from errata.runtime.replay import Letters
from errata.runtime.telemetry import KEEPER, KeeperTelemetry, StageTelemetry, Telemetry
from errata.settings import ServiceSettings, read_service_settings, read_settings

if TYPE_CHECKING:
    from errata.adapters.context_redis import RedisContextStore
    from errata.adapters.sql import SqlCatalogue

CATALOGUE_FILE = "catalogue.sqlite"
JOURNAL_FILE = "journal.bin"
REDACTION_KEY_FILE = "redaction.key"


def data_folder(option: Path | None) -> Path:
    """Where errata keeps its data: ``--data``, else ``ERRATA_DATA``, else the platform's folder for a user's data."""
    if option is not None:
        return option
    return read_settings().data or platformdirs.user_data_path("errata")


def open_catalogue(data: Path) -> Catalogue:
    """The catalogue of a data folder, brought to this version's schema; made when it is not there."""
    from errata.adapters.sql import SqlCatalogue

    make_folder(data)
    catalogue = SqlCatalogue.of_file(data / CATALOGUE_FILE)
    try:
        catalogue.migrate()
    except BaseException:
        catalogue.close()
        raise
    return catalogue


@dataclass(frozen=True, slots=True)
class Parts:
    """The adapters of an embedded chain. Without a data folder everything ends with the process."""

    transport: MemoryTransport
    catalogue: Catalogue
    cipher: Cipher
    redaction_key: bytes
    decoder: Decoder
    plain: PlainJson
    router: Router
    context: ContextStore


@contextmanager
def embedded_parts(data: Path | None) -> Iterator[Parts]:
    """Adapters in memory, or with ``data`` on a journal and SQLite in that folder; one process holds it at a time."""
    from errata.adapters.sql import SqlCatalogue

    with ExitStack() as stack:
        if data is None:
            catalogue: Catalogue = SqlCatalogue("sqlite://")
            catalogue.migrate()
            cipher, key = Aead.ephemeral(), os.urandom(KEY_BYTES)
            transport = MemoryTransport(TOPICS)
        else:
            make_folder(data)
            stack.enter_context(DataLock(data))
            catalogue = open_catalogue(data)
            cipher, key = Aead.from_folder(data), read_or_make_key(data / REDACTION_KEY_FILE)
            transport = MemoryTransport(TOPICS, journal=Journal(data / JOURNAL_FILE))
        stack.callback(catalogue.close)
        stack.callback(transport.close)
        yield Parts(
            transport, catalogue, cipher, key, MsgspecDecoder(key), plain_json, LineRouter(), MemoryContextStore()
        )


@dataclass(frozen=True, slots=True)
class StateParts:
    """What is needed to look at a detector's state and to make it anew. ``checks_config``: whether the stage compares
    the configuration that made it."""

    transport: GroupsTransport
    decoder: Decoder
    plain: PlainJson
    limits: Limits
    rekeys: bool
    checks_config: bool


@contextmanager
def state_parts(data: Path | None, *, judges: bool = False) -> Iterator[StateParts]:
    """Of the Kafka that the environment names, or of a data folder. ``judges``: events are to be read as the stage
    reads them, so its secret is needed."""
    settings = read_service_settings()
    limits = state_limits(settings.state_mib)
    if data is not None:
        with embedded_parts(data) as parts:
            yield StateParts(
                parts.transport, parts.decoder, parts.plain, of_folder(limits), rekeys=False, checks_config=False
            )
        return
    key = b""
    if judges:
        form = "the secret of the stage, since the ids it knows are hashed with it"
        key = derived_key(_required(settings.key, "key", form), b"redaction")
    with closing(kafka_transport(settings)) as transport:
        yield StateParts(transport, MsgspecDecoder(key), plain_json, limits, rekeys=True, checks_config=True)


def state_limits(state_mib: int) -> Limits:
    return Limits(state_bytes=state_mib * MIB)


def of_folder(limits: Limits) -> Limits:
    """The limits of a data folder: its record time is that of the events, which may come once a month."""
    return replace(limits, ttl_us=NEVER_US)


# Events come one by one, a thousand a second: answered one by one, they cost a broker more than all transactions of the
# chain. So it waits for 64 KiB, or 20 ms.
FETCHING: Mapping[str, dict[str, str]] = {STAGES[0]: {"fetch.min.bytes": "65536", "fetch.wait.max.ms": "20"}}


@dataclass(slots=True)
class ServiceParts:
    """The adapters of one service on Kafka. ``positions`` tells lag; the service's loop sets it.

    What a service opens beside them goes on ``stack``: it is closed when the service ends, before Kafka's clients are.
    """

    transport: KafkaTransport
    cipher: Cipher
    redaction_key: bytes
    decoder: Decoder
    plain: PlainJson
    telemetry: Telemetry
    health: Health
    stack: ExitStack
    positions: Callable[[], Offsets] = dict

    def on_statistics(self, statistics: Mapping[str, Any]) -> None:
        lags = partition_lags(statistics, self.positions())
        if lags is not None:
            self.health.lag(lags)
            self.telemetry.lag(topic_lags(lags))


@contextmanager
def service_parts(name: str, settings: ServiceSettings, config_hash: str = "") -> Iterator[ServiceParts]:
    """Adapters of a service, its log, its health and metrics; refuses topics that are not as they must be."""
    complete_messages()
    secrets = [_secret(one) for one in (settings.key, settings.database_url, settings.redis_url) if one is not None]
    configure_logging(
        name,
        settings.instance,
        _logs_json(settings),
        version=__version__,
        secrets=[*secrets, *_kafka_secrets(settings)],
    )
    with ExitStack() as stack:
        meter = PrometheusMeter()
        health = Health(stage=name, instance=settings.instance, build=__version__, config_hash=config_hash)
        telemetry = StageTelemetry(meter, name, version=__version__, config_hash=config_hash)
        server = open_health_server(health.pages, meter.exposition, port=settings.http_port, host=settings.http_host)
        if server is not None:
            stack.callback(server.close)
        key = _required(settings.key, "key", "a secret of 32 characters or more, the same for all processes")
        for warning in check_topics(settings.kafka, settings.topic_prefix):
            structlog.get_logger().warning("topic differs", difference=warning)
        holder: list[ServiceParts] = []  # statistics come from a client that the parts hold
        transport = KafkaTransport(
            settings.kafka,
            topic_prefix=settings.topic_prefix,
            members=FETCHING.get(name),
            on_stats=lambda statistics: holder[0].on_statistics(statistics) if holder else None,
        )
        stack.callback(transport.close)
        redaction_key = derived_key(key, b"redaction")
        cipher, decoder = dead_letter_cipher(key), MsgspecDecoder(redaction_key)
        holder.append(ServiceParts(transport, cipher, redaction_key, decoder, plain_json, telemetry, health, stack))
        stack.callback(health.draining)
        yield holder[0]


@dataclass(frozen=True, slots=True)
class KeeperParts:
    """The adapters of a keeper. It opens no payload, and so has no key."""

    transport: KafkaTransport
    lock: LeaderLock
    telemetry: KeeperTelemetry
    health: Health


@contextmanager
def keeper_parts(settings: ServiceSettings) -> Iterator[KeeperParts]:
    """Adapters of a keeper, its log, its health and metrics; refuses topics that are not as they must be."""
    from errata.adapters.sql import PostgresLeaderLock

    url = _required(settings.database_url, "database_url", "postgresql://user:password@host/database")
    secrets = [url, *_kafka_secrets(settings)]
    configure_logging(KEEPER, settings.instance, _logs_json(settings), version=__version__, secrets=secrets)
    with ExitStack() as stack:
        meter = PrometheusMeter()
        health = Health(stage=KEEPER, instance=settings.instance, build=__version__)
        telemetry = KeeperTelemetry(meter, version=__version__)
        server = open_health_server(health.pages, meter.exposition, port=settings.http_port, host=settings.http_host)
        if server is not None:
            stack.callback(server.close)
        for warning in check_topics(settings.kafka, settings.topic_prefix):
            structlog.get_logger().warning("topic differs", difference=warning)
        transport = stack.enter_context(closing(kafka_transport(settings)))
        lock = PostgresLeaderLock(url, KEEPER)
        stack.callback(health.draining)
        yield KeeperParts(transport, lock, telemetry, health)


def context_store(settings: ServiceSettings, timeout_s: float | None = None) -> "RedisContextStore":
    """The context in Redis; not connected to yet."""
    from errata.adapters.context_redis import TIMEOUT_S, RedisContextStore

    url = _required(settings.redis_url, "redis_url", "redis://host:6379/0")
    return RedisContextStore.of_url(url, prefix=settings.topic_prefix, timeout_s=timeout_s or TIMEOUT_S)


def service_catalogue(settings: ServiceSettings, service: str) -> "SqlCatalogue":
    """The catalogue in PostgreSQL; not connected to yet."""
    from errata.adapters.sql import SqlCatalogue

    url = _required(settings.database_url, "database_url", "postgresql://user:password@host/database")
    return SqlCatalogue(url, service=service)


def kafka_transport(settings: ServiceSettings) -> KafkaTransport:
    """Kafka for commands that read and write topics."""
    return KafkaTransport(settings.kafka, topic_prefix=settings.topic_prefix)


def remake_state(
    settings: ServiceSettings, *, state: str, group: str, inputs: Sequence[str], between: Callable[[], None]
) -> None:
    """A service's state away and its group at the beginning; see `errata.adapters.kafka.remake`."""
    remake.remake_state(settings.kafka, settings.topic_prefix, state=state, group=group, inputs=inputs, between=between)


def table_worker(stage: TableStage, settings: ServiceSettings, group: str, topic: str, state: str) -> TableWorker:
    """A member of a group on Faust. Raises ``Misconfigured`` where it is not installed."""
    try:
        from errata.adapters.faust_trends import FaustWorker
    except ImportError as error:
        raise Misconfigured("run trends: Faust is not installed; install errata[trends]") from error
    return FaustWorker(
        stage,
        settings.kafka,
        topic_prefix=settings.topic_prefix,
        group=group,
        topic=topic,
        state=state,
        partitions=TOPICS[topic].partitions,
    )


@contextmanager
def dead_letters(data: Path | None) -> Iterator[Letters]:
    """The dead letters of the chain on Kafka that the environment names, or of a data folder.

    On Kafka the writer's are among them when a database is named, and payloads can be opened when the key is.
    """
    with ExitStack() as stack:
        if data is not None:
            if not data.is_dir():
                raise Misconfigured("--data: there is no such folder; name the data folder of an embedded run")
            parts = stack.enter_context(embedded_parts(data))
            yield Letters(parts.transport, parts.cipher, parts.catalogue)
            return
        settings = read_service_settings()
        transport = stack.enter_context(closing(kafka_transport(settings)))
        cipher = None if settings.key is None else dead_letter_cipher(_secret(settings.key))
        catalogue = None
        if settings.database_url is not None:
            catalogue = stack.enter_context(closing(service_catalogue(settings, "dlq")))
        yield Letters(transport, cipher, catalogue)


def dead_letter_cipher(key: str) -> Cipher:
    """What seals payloads, from the secret of a chain on Kafka."""
    return Aead(derived_key(key, b"dead letters"))


def kafka_connection() -> tuple[dict[str, str], str]:
    """Properties and topic prefix of the environment."""
    settings = read_service_settings()
    return settings.kafka, settings.topic_prefix


def _required(secret: SecretStr | None, name: str, form: str) -> str:
    if secret is None:
        variable = f"ERRATA_{name.upper()}"
        raise Misconfigured(f"{variable}: is missing; give {form}, or the name of a file with it in {variable}_FILE")
    return _secret(secret)


def _secret(one: SecretStr) -> str:
    return one.get_secret_value()


def _kafka_secrets(settings: ServiceSettings) -> list[str]:
    return [value for name, value in settings.kafka.items() if "password" in name or name.endswith((".pem", "secret"))]


def derived_key(secret: str, purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose."""
    return blake2b(secret.encode(), digest_size=KEY_BYTES, key=b"errata " + purpose).digest()


def _logs_json(settings: ServiceSettings) -> bool:
    return settings.log == "json" or (settings.log == "auto" and not sys.stderr.isatty())


def publish_table(data: Path | None, message: Contract | Reference) -> None:
    """Publish a contract or reference to its compacted topic; it holds for the events that come after it.

    To the Kafka that the environment names, unless a data folder is given.
    """
    topic = CONTRACTS if isinstance(message, Contract) else REFERENCES
    settings = read_service_settings()
    if data is None and settings.bootstrap is not None:
        with closing(kafka_transport(settings)) as transport:
            publish_tables(transport, {topic: message}, f"errata.tables-{uuid4().hex}")
        return
    with embedded_parts(data_folder(data)) as parts:
        publish_tables(parts.transport, {topic: message})


def catalogue_to_read(data: Path | None) -> Catalogue:
    """The catalogue of the database that the environment names, unless a data folder is given."""
    settings = read_service_settings()
    if data is None and settings.database_url is not None:
        return service_catalogue(settings, "cases")
    return open_catalogue(data_folder(data))


def publish_tables(
    transport: Transport, messages: Mapping[str, Contract | Reference], transactional_id: str = "errata.tables-0"
) -> None:
    producer = transport.producer(transactional_id)
    producer.begin()
    for topic, message in messages.items():
        producer.produce(Outgoing(topic, canonical([message.tenant, message.model]), message.to_json(), partition=0))
    producer.commit()


def make_folder(data: Path) -> None:
    """The data folder, readable by its owner only: its journal holds events as they came."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Misconfigured("--data: the folder cannot be made; name one that this user may write to") from error
