"""The only place that picks adapters."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from errata.adapters.aead import KEY_BYTES, Aead, read_or_make_key
from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.decode_msgspec import LineRouter, MsgspecDecoder
from errata.adapters.journal import DataLock, Journal
from errata.adapters.memory import MemoryTransport
from errata.adapters.sql import SqlCatalogue
from errata.contracts import Contract, Reference, canonical
from errata.contracts.topics import CONTRACTS, REFERENCES, TOPICS
from errata.errors import Misconfigured
from errata.ports import Catalogue, Cipher, ContextStore, Decoder, Outgoing, Router, Transport
from errata.settings import read_settings

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
    router: Router
    context: ContextStore


@contextmanager
def embedded_parts(data: Path | None) -> Iterator[Parts]:
    """Adapters in memory, or with ``data`` on a journal and SQLite in that folder; one process holds it at a time."""
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
        yield Parts(transport, catalogue, cipher, key, MsgspecDecoder(key), LineRouter(), MemoryContextStore())


def publish_table(data: Path, message: Contract | Reference) -> None:
    """Publish a contract or reference to its compacted topic; it holds for the events that come after it."""
    topic = CONTRACTS if isinstance(message, Contract) else REFERENCES
    with embedded_parts(data) as parts:
        publish_tables(parts.transport, {topic: message})


def publish_tables(transport: Transport, messages: Mapping[str, Contract | Reference]) -> None:
    producer = transport.producer("errata.tables-0")
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
