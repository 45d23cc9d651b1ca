"""The whole chain in one process: the same stages and steps as in four, on adapters in memory or in a data folder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from errata import __version__
from errata.contracts import Contract, DeadLetter, Receipt, TaggedCase
from errata.contracts.cloudevents import IS_HEARTBEAT
from errata.contracts.topics import CONTRACTS, STAGES, TAGGED, dead_letter_topic
from errata.domain.detection import state as at
from errata.domain.detection.keeping import Limits
from errata.runtime.crash_points import CrashPoints
from errata.runtime.dead_letters import read_dead_letter
from errata.runtime.tables import Table
from errata.runtime.worker import Worker
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import Parts, of_folder
from errata_services.catalog_writer import CatalogWriterWorker
from errata_services.enricher import Enricher
from errata_services.intake.files import FileSource, lines_of
from errata_services.tagger import Tagger

OnCase = Callable[[TaggedCase], None]
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """A window that holds events and is not yet judged."""

    model: str
    events: int
    outcomes: int


@dataclass(slots=True)
class Summary:
    """What one run came to. Nothing is lost: lines = processed + dead letters + dropped by reason."""

    lines: int = 0
    resumed_at_bytes: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    late: int = 0
    clamped: int = 0
    opened: list[str] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    open_windows: list[OpenWindow] = field(default_factory=list)

    @property
    def dead_by_class(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for letter in self.dead:
            counts[letter.class_] = counts.get(letter.class_, 0) + 1
        return counts


class Embedded:
    """One chain on one set of adapters. After a crash a new one on the same adapters goes on where it stopped."""

    def __init__(
        self,
        parts: Parts,
        *,
        batch_size: int,
        now_us: int,
        crash: CrashPoints | None = None,
        instance: str = "0",
        tagger: Tagger | None = None,
        limits: Limits | None = None,
    ) -> None:
        """``tagger``: one with rules of its own; by default that of the package. ``limits`` of the detector's state."""
        self.parts = parts
        self.summary = Summary()
        self._batch_size, self._now_us = batch_size, now_us
        self._crash = crash or CrashPoints.off()
        transport = parts.transport
        contracts = Table(transport, CONTRACTS, Contract)
        contracts.refresh()
        self._dead_from = {
            (topic, p): transport.end_offset((topic, p))
            for topic in map(dead_letter_topic, STAGES)
            for p in range(transport.partitions(topic))
        }
        self._cases_from = {p: transport.end_offset((TAGGED, p)) for p in range(transport.partitions(TAGGED))}
        limits = of_folder(limits or Limits())
        self.detector = AnomalyDetector(transport, parts.decoder, plain=parts.plain, limits=limits)
        enricher = Enricher(parts.context, transport, contracts.get, parts.redaction_key)
        self.workers = [
            Worker(
                stage,
                transport,
                instance=instance,
                build=__version__,
                cipher=parts.cipher,
                batch_size=batch_size,
                crash=self._crash,
                on_progress=on_progress,
            )
            for stage, on_progress in ((self.detector, self._judged), (enricher, None), (tagger or Tagger(), None))
        ]
        self.writer = CatalogWriterWorker(
            transport, parts.catalogue, instance, batch_size, self._crash.at, parts.cipher
        )

    def run(
        self,
        stream: BinaryIO,
        *,
        path: Path | None = None,
        on_case: OnCase | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Summary:
        """Publish a stream of lines and judge them batch by batch. With ``path`` a file is read on from where it was
        left, so that the same file again brings nothing new."""
        source = self._source(None if path is None else str(path.resolve()))
        if path is not None:
            self.summary.resumed_at_bytes = source.skip_known(stream)
            if on_bytes:
                on_bytes(self.summary.resumed_at_bytes)
        self.drain(on_case)
        for lines in lines_of(stream, self._batch_size):
            self.summary.lines += source.publish(lines)
            if on_bytes:
                on_bytes(sum(map(len, lines)))
            self.drain(on_case)
        return self.finish()

    def feed(self, batches: Iterable[list[bytes]], on_case: OnCase | None = None) -> Summary:
        """As ``run``, from lines made in this process, which have no position to come back to."""
        source = self._source(None)
        self.drain(on_case)
        for lines in batches:
            self.summary.lines += source.publish(lines)
            self.drain(on_case)
        return self.finish()

    def _source(self, name: str | None) -> FileSource:
        return FileSource(self.parts.transport, self.parts.router, name=name, now_us=self._now_us, crash=self._crash)

    def drain(self, on_case: OnCase | None = None) -> None:
        """Run all stages until none has anything left."""
        busy = True
        while busy:
            busy = sum(worker.run_once() for worker in self.workers) + self.writer.run_once() > 0
        self._news(on_case)

    def finish(self) -> Summary:
        """What happened since the start; windows that are still open stay open."""
        transport, summary = self.parts.transport, self.summary
        summary.dead = [
            read_dead_letter(record)
            for place, offset in sorted(self._dead_from.items())
            for record in transport.read_from(place, offset)
        ]
        summary.open_windows = [
            OpenWindow(slot.model, int(fixed[at.FILL]), int(fixed[at.OUT_FILL]))
            for slot, fixed in ((slot, self.detector.state.fixed[slot.index]) for slot in self.detector.slots)
            if fixed[at.FILL] or fixed[at.OUT_FILL]
        ]
        return summary

    def _judged(self, receipt: Receipt) -> None:
        for reason, n in receipt.dropped.items():
            self.summary.dropped[reason] = self.summary.dropped.get(reason, 0) + n
        self.summary.late += self.detector.judged.late
        self.summary.clamped += self.detector.judged.clamped

    def _news(self, on_case: OnCase | None) -> None:
        for partition, offset in self._cases_from.items():
            for record in self.parts.transport.read_from((TAGGED, partition), offset):
                self._cases_from[partition] = record.offset + 1
                if IS_HEARTBEAT in record.headers:
                    continue
                case = TaggedCase.model_validate_json(record.value or b"")
                kind = {"open": self.summary.opened, "reopen": self.summary.reopened, "close": self.summary.closed}
                moved = kind.get(case.episode.state)
                if moved is not None:
                    moved.append(case.episode.id)
                    if on_case:
                        on_case(case)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.writer.close()
