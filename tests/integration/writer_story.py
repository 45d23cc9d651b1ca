"""A catalogue writer on a real database and a log in memory. Run as a module, it is a process that can be killed."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing

from tests.pipeline.case_builder import episode

from errata.adapters.memory import MemoryTransport
from errata.adapters.sql import SqlCatalogue
from errata.contracts import TaggedCase
from errata.contracts.topics import TAGGED, TOPICS
from errata.ports import CrashHook, Offsets, Outgoing, SinkDeadLetter, never_crash
from errata.runtime.crash_points import CrashPoints
from errata_services.catalog_writer import CatalogWriterWorker, no_crash

URL_VARIABLE = "ERRATA_TEST_CATALOGUE"
BATCH = 5  # records; the story takes four batches
RECORDS = 16


def story(*more: TaggedCase) -> MemoryTransport:
    """Three cases that take turns, a poison record among them, and ``more`` in the middle; always the same log."""
    turns: list[bytes | TaggedCase] = [
        case for turn in zip(episode("a"), episode("b", 1), episode("c", 2), strict=True) for case in turn
    ]
    turns[4:4] = [b"not json"]
    turns[8:8] = more
    transport = MemoryTransport({TAGGED: TOPICS[TAGGED]})
    producer = transport.producer("story")
    for value in turns:
        body = value if isinstance(value, bytes) else value.to_json()
        producer.begin()
        producer.produce(Outgoing(TAGGED, b"model", body))
        producer.commit()
    producer.close()
    return transport


def writer(
    transport: MemoryTransport, catalogue: SqlCatalogue, crash: Callable[[str, str], None] = no_crash
) -> CatalogWriterWorker:
    return CatalogWriterWorker(transport, catalogue, "w0", BATCH, crash)


def drain(worker: CatalogWriterWorker) -> int:
    total = 0
    while read := worker.run_once():
        total += read
    return total


class PositionsApart(SqlCatalogue):
    """The control: its positions are committed on their own, before the rows."""

    def apply(
        self,
        cases: Sequence[TaggedCase],
        positions: Offsets,
        group: str,
        owner: str,
        *,
        dead: Sequence[SinkDeadLetter] = (),
        crash: CrashHook = never_crash,
    ) -> int:
        super().apply([], positions, group, owner)
        return super().apply(cases, {}, group, owner, dead=dead, crash=crash)


def main() -> None:
    kind = PositionsApart if "apart" in sys.argv[1:] else SqlCatalogue
    with closing(kind(os.environ[URL_VARIABLE])) as catalogue:
        drain(writer(story(), catalogue, CrashPoints.from_environment(os.environ).at))


if __name__ == "__main__":
    main()
