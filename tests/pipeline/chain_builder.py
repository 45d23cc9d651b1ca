"""Chains in memory with keys that are always the same, streams for them, and all they made as bytes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from tests.pipeline.case_builder import blank_catalogue

from errata.adapters.aead import KEY_BYTES, Aead
from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.decode_msgspec import LineRouter, MsgspecDecoder, plain_json
from errata.adapters.memory import MemoryTransport
from errata.adapters.sql import SqlCatalogue
from errata.contracts import Contract, FailureCase, Reference, TaggedCase, canonical
from errata.contracts.strict import instant_us
from errata.contracts.topics import ANOMALIES, CONTRACTS, ENRICHED, REFERENCES, STAGES, TAGGED, TOPICS
from errata.domain.catalogue.queries import CaseQuery
from errata.runtime import crash_points
from errata.runtime.crash_points import CrashPoints
from errata_services import catalog_writer
from errata_services.bootstrap import CATALOGUE_FILE, Parts, publish_tables
from errata_services.demo import stream
from errata_services.embedded import Embedded
from errata_services.tagger import Tagger

KEY = bytes(range(KEY_BYTES))
NOW_US = instant_us("2026-03-01T00:00:00Z")
EVERY_POINT = [
    *(("intake", point) for point in ("AFTER_STEP", "MID_PRODUCE", "AFTER_PRODUCE", "AFTER_COMMIT")),
    *((stage, point) for stage in STAGES[:3] for point in crash_points.POINTS),
    *((catalog_writer.STAGE, point) for point in catalog_writer.POINTS),
]


@contextmanager
def chain_parts(folder: Path, *tables: Contract | Reference, key: bytes = KEY) -> Iterator[Parts]:
    """Adapters in memory; the catalogue is a file of ``folder``, so that its bytes can be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CATALOGUE_FILE).write_bytes(blank_catalogue())
    catalogue = SqlCatalogue.of_file(folder / CATALOGUE_FILE)
    transport = MemoryTransport(TOPICS)
    apply_tables(transport, *tables)
    try:
        yield Parts(
            transport, catalogue, Aead(key), key, MsgspecDecoder(key), plain_json, LineRouter(), MemoryContextStore()
        )
    finally:
        catalogue.close()
        transport.close()


def apply_tables(transport: MemoryTransport, *tables: Contract | Reference) -> None:
    for table in tables:
        publish_tables(transport, {CONTRACTS if isinstance(table, Contract) else REFERENCES: table})


def chain(
    parts: Parts, batch_size: int = 500, crash: CrashPoints | None = None, tagger: Tagger | None = None
) -> Embedded:
    return Embedded(parts, batch_size=batch_size, now_us=NOW_US, crash=crash, tagger=tagger or packaged_tagger())


@cache
def packaged_tagger() -> Tagger:
    """Reading the package's rules takes longer than most chains here run; a tagger holds no state."""
    return Tagger()


def batches(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    source = iter(lines)
    while batch := list(islice(source, size)):
        yield batch


def cases_of(parts: Parts) -> list[FailureCase]:
    """All cases of the catalogue in the order of their onsets."""
    return sorted(parts.catalogue.cases(CaseQuery(limit=1_000)), key=lambda case: case.episode.onset)


def tagged_of(parts: Parts) -> list[TaggedCase]:
    return [TaggedCase.model_validate_json(value) for value in values_of(parts, TAGGED)]


def values_of(parts: Parts, topic: str) -> list[bytes]:
    """The values of a topic, partition by partition."""
    numbers = range(parts.transport.partitions(topic))
    return [record.value or b"" for n in numbers for record in parts.transport.read_from((topic, n))]


def passed_on(parts: Parts) -> bytes:
    """What the stages handed to each other, record by record, with its place."""
    return canonical(
        [
            [topic, number, record.offset, (record.key or b"").hex(), (record.value or b"").hex()]
            for topic in (ANOMALIES, ENRICHED, TAGGED)
            for number in range(parts.transport.partitions(topic))
            for record in parts.transport.read_from((topic, number))
        ]
    )


def census_lines(rows: int, *failures: stream.Planted) -> list[bytes]:
    """The beginning of the demo's stream with ``rows`` predictions, failures planted where a test wants them."""
    found: list[bytes] = []
    for line in stream.events(stream.DemoPlan(1, failures)):
        found.append(line + b"\n")
        rows -= line.startswith(b'{"event_id"')
        if rows == 0:
            break
    return found


def odd_lines(good: Sequence[bytes], name: str) -> list[bytes]:
    """To follow ``good``: lines of every other kind, with ids that begin with ``name``."""
    first, second = (json.loads(line) for line in good[-2:])
    at = second["time"]
    broken = [second | {"event_id": f"{name}-broken-{i}", "prediction": "neither"} for i in range(3)]
    outcome = {
        "outcome_id": f"{name}-o",
        "model": {"name": stream.MODEL},
        "observed_time": at,
        "predicted": "employed",
        "value": "not_employed",
    }
    late = {"change_id": f"{name}-late", "kind": "flag", "subject": stream.MODEL, "time": first["time"], "to": "on"}
    unlisted = second | {"event_id": f"{name}-unlisted", "model": {"name": "unlisted"}}
    return [
        good[-1],
        *map(dumps, broken),
        dumps(outcome),
        dumps(outcome),
        dumps(late),
        b"not json\n",
        dumps(unlisted),
        dumps({key: value for key, value in second.items() if key != "time"}),
        dumps(second | {"event_id": "ahead", "time": "2090-01-01T00:00:00Z"}),
        b"\n",
    ]


def dumps(event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"
