"""The catalogue writer: tagged cases into the catalogue. Its offsets live in the database, in the same transaction.

So a case and the position behind it are written together or not at all, and a kill at any point neither loses nor
doubles anything. The group's offsets in the transport are never moved by it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import structlog

from errata.contracts import Heartbeat, TaggedCase, canonical
from errata.contracts.topics import TAGGED, model_key
from errata.errors import Refused, RefusedDecode, StateDamaged, Unavailable
from errata.ports import Catalogue, Cipher, DeadInput, Offsets, Record, SinkDeadLetter, TopicPartition, Transport
from errata.runtime.backoff import Backoff
from errata.runtime.health import Health
from errata.runtime.heartbeats import read_record
from errata.runtime.poison import PoisonGuard
from errata.runtime.telemetry import BatchReport, NoTelemetry, RebalanceKind, Telemetry, abort_reason, dead_by_class

STAGE = "catalog-writer"
GROUP = f"errata.{STAGE}"
AFTER_ROWS = "AFTER_ROWS"
AFTER_POSITION = "AFTER_POSITION"
AFTER_DB_COMMIT = "AFTER_DB_COMMIT"
POINTS = (AFTER_ROWS, AFTER_POSITION, AFTER_DB_COMMIT)

DEFAULT_BATCH = 5_000
OPEN_CASES_EVERY_S = 15.0  # as often as they are scraped
_MAX_MESSAGE = 512  # characters of a refusal's text
_MAX_PAYLOAD = 64 * 1024  # bytes of a refused record that are kept

Crash = Callable[[str, str], None]


def no_crash(stage: str, point: str) -> None:
    """No crash point is armed."""


class DatabaseDown(Exception):
    """The catalogue does not answer: to be told from a transport that does not, which waiting does not mend."""

    def __init__(self, cause: Unavailable) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def _database() -> Iterator[None]:
    try:
        yield
    except Unavailable as error:
        raise DatabaseDown(error) from error


@dataclass(frozen=True, slots=True)
class _Read:
    """A record and what it holds: a case, a heartbeat, or the reason why it is neither."""

    record: Record
    content: TaggedCase | Heartbeat | Refused


def _place_of(record: Record) -> TopicPartition:
    return record.topic, record.partition


class CatalogWriterWorker:
    """One member of the writer's group. ``run_once`` writes what one poll gave, at most ``batch_size`` records.

    ``instance`` names the process; of two with the same one the newer fences the older, also at the database.
    With ``backoff`` a database that does not answer costs time only: the partitions are paused, the member stays in its
    group, and the same batch is tried again. Without it ``Unavailable`` passes through.
    ``cases_changed`` and ``dead`` count revisions and dead letters since the start.
    """

    def __init__(
        self,
        transport: Transport,
        catalogue: Catalogue,
        instance: str,
        batch_size: int = DEFAULT_BATCH,
        crash: Crash = no_crash,
        cipher: Cipher | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        telemetry: Telemetry | None = None,
        health: Health | None = None,
        guard: PoisonGuard | None = None,
    ) -> None:
        """``clock`` is monotonic, in seconds. Without ``guard`` every record is read, however many are dead letters."""
        self._guard = guard
        self._sunk: list[DeadInput] = []  # of the batch in hand: what the database would not have
        self._watched = telemetry is not None
        self._telemetry: Telemetry = telemetry or NoTelemetry()
        self._next_look_s = clock()
        self._health = health or Health(stage=STAGE, instance=instance, build="")
        self._transport = transport
        self._backoff = backoff
        self._clock = clock
        self._rests_until_s: float | None = None
        self._catalogue = catalogue
        self._owner = f"{instance}:{uuid4().hex}"  # two processes of one instance must still differ
        self._batch_size = batch_size
        self._crash = crash
        self._cipher = cipher
        self._assigned: set[TopicPartition] = set()  # not yet claimed
        self.positions: Offsets = {}  # of what is claimed, as the catalogue has them
        self.cases_changed = 0
        self.dead = 0
        self._consumer = transport.consumer(
            GROUP, TAGGED, instance=instance, on_assign=self._on_assign, on_revoke=self._on_revoke
        )
        self._health.started()

    def run_once(self, timeout_s: float = 0.0) -> int:
        """Read one batch and write it; returns the number of records it held, 0 when there was none.

        After ``Unavailable`` the batch is read again by the next call. ``Fenced`` and ``StateDamaged`` are final.
        """
        self._heed_guard()
        if self._rests_until_s is not None and not self._awake(timeout_s, self._rests_until_s):
            return 0
        try:
            done = self._take(timeout_s)
            looked = self._tell_open_cases()
        except DatabaseDown as error:
            if self._backoff is None:
                raise error.cause from None
            self._rest(self._backoff.next_s(), error.cause)
            return 0
        if self._backoff is not None and (done or looked):
            self._backoff.reset()
        return done

    def _take(self, timeout_s: float) -> int:
        records = self._poll(timeout_s)
        self._telemetry.reading(len(records))
        began_s = self._clock()
        dead_before, changed_before = self.dead, self.cases_changed
        self._sunk.clear()
        try:
            batch = self._stopping([self._read(record) for record in records])
            read_s = self._clock()
            self._write(batch)
        except BaseException as error:
            self._telemetry.aborted(abort_reason(error.cause if isinstance(error, DatabaseDown) else error))
            self._rewind(records)
            raise
        if records:
            self._report(batch, read_s - began_s, self._clock() - read_s, dead_before, changed_before)
            self._guarded(records, batch)
        return len(batch)

    # The breaker.

    def _stopping(self, batch: list[_Read]) -> list[_Read]:
        """The batch without what lies behind the unreadable record that is one too many of its partition."""
        if self._guard is None:
            return batch
        dead = [DeadInput(read.record, read.content) for read in batch if isinstance(read.content, Refused)]
        last = self._guard.look([read.record for read in batch], dead)
        return [one for one in batch if one.record.offset <= last.get(_place_of(one.record), one.record.offset)]

    def _guarded(self, records: Sequence[Record], batch: Sequence[_Read]) -> None:
        """The batch is written: stop what has too many dead letters, and go back to what was left out of it."""
        dead = [DeadInput(read.record, read.content) for read in batch if isinstance(read.content, Refused)]
        dead, self._sunk = [*dead, *self._sunk], []
        if self._guard is None:
            return
        taken = [read.record for read in batch]
        self._guard.look(taken, dead)
        if len(batch) < len(records):
            last = {_place_of(record): record.offset for record in taken}
            self._rewind([record for record in records if record.offset > last.get(_place_of(record), -1)])
        if self._guard.committed(Counter(map(_place_of, taken)), dead, self._clock()):
            self._stop()

    def _stop(self) -> None:
        """Have the partitions that are to stand still do so; also after others were resumed or assigned."""
        if self._guard is not None:
            assigned = self._consumer.assignment()
            self._consumer.pause(self._guard.stopped & assigned)
            self._guard.tell(assigned)

    def _heed_guard(self) -> None:
        """Read what was stopped and that somebody has asked back; unless the database rests, when all wait."""
        if self._guard is not None and self._rests_until_s is None and (places := self._guard.back()):
            assigned = self._consumer.assignment()
            self._consumer.resume(places & assigned)
            self._guard.tell(assigned)

    def _report(
        self, batch: Sequence[_Read], processing_s: float, commit_s: float, dead_before: int, changed_before: int
    ) -> None:
        """What a written batch came to."""
        cases = [read.content for read in batch if isinstance(read.content, TaggedCase)]
        refused = [read.content for read in batch if isinstance(read.content, Refused)]
        sunk = self.dead - dead_before - len(refused)  # readable, but the database would not have them
        unchanged = max(0, len(cases) - sunk - (self.cases_changed - changed_before))
        newest = max((case.episode.last_seen for case in cases), default=None)
        self._telemetry.batch(
            BatchReport(
                consumed={TAGGED: len(batch)},
                processing_s=processing_s,
                commit_s=commit_s,
                produced={},
                dead=dead_by_class(one.refusal_class for one in refused) | ({"sink": sunk} if sunk else {}),
                dropped={"duplicate": unchanged} if unchanged else {},
                newest_event_s=None if newest is None else newest.timestamp(),
            )
        )
        for read in batch:
            if isinstance(read.content, Heartbeat):
                self._telemetry.heartbeat(read.content.time.timestamp())
        self._telemetry.catalogue_written("postgresql", commit_s)
        self._telemetry.breaker("postgresql", "closed")
        self._telemetry.deduplicated(unchanged)
        opened: Counter[tuple[str, str]] = Counter(
            (model_key(case.tenant, case.model.name).decode(), case.root_class)
            for case in cases
            if case.episode.state == "open"
        )
        self._telemetry.cases_opened(opened)
        self._health.breaker("postgresql", "closed")
        self._health.committed(self.positions)

    def _tell_open_cases(self) -> bool:
        """What is open in the whole catalogue, at most every `OPEN_CASES_EVERY_S`; whether it was asked.

        While nothing comes this is also how the database is found to be down, or back."""
        if not self._watched or self._clock() < self._next_look_s:
            return False
        with _database():
            open_cases = self._catalogue.open_cases()
        self._next_look_s = self._clock() + OPEN_CASES_EVERY_S
        self._telemetry.cases_open(open_cases)
        self._telemetry.breaker("postgresql", "closed")
        self._health.breaker("postgresql", "closed")
        return True

    def _rest(self, pause_s: float, error: Unavailable) -> None:
        structlog.get_logger().warning("catalogue unavailable; waiting", pause_s=round(pause_s, 2), error=str(error))
        self._pause()
        self._rests_until_s = self._clock() + pause_s
        self._health.failed(error)
        self._health.breaker("postgresql", "open")
        self._telemetry.breaker("postgresql", "open")
        self._telemetry.store_failed("postgresql")

    def _pause(self) -> None:
        assigned = frozenset(self._consumer.assignment())
        self._consumer.pause(assigned)
        self._health.paused(assigned)
        self._telemetry.paused(len(assigned))

    def _awake(self, timeout_s: float, until_s: float) -> bool:
        """Whether the pause is over. Until then polls keep the member in its group, and bring nothing."""
        left_s = until_s - self._clock()
        if left_s > 0:
            self._rewind(self._consumer.poll(1, min(timeout_s, left_s)))  # of partitions that came meanwhile
            self._pause()
            return False
        self._consumer.resume(self._consumer.assignment())
        self._health.paused(frozenset())
        self._health.breaker("postgresql", "half_open")
        self._telemetry.paused(0)
        self._telemetry.breaker("postgresql", "half_open")
        self._rests_until_s = None
        self._stop()
        return True

    def close(self) -> None:
        self._consumer.close()

    def _on_assign(self, partitions: set[TopicPartition]) -> None:
        self._assigned |= partitions
        self._rebalanced("assigned", self._consumer.assignment())
        self._stop()

    def _on_revoke(self, partitions: set[TopicPartition]) -> None:
        self._assigned -= partitions
        for partition in partitions:
            self.positions.pop(partition, None)
        held = self._consumer.assignment() - partitions  # they are held until this returns
        self._rebalanced("revoked", held)
        if self._guard is not None:
            self._guard.revoked(partitions)
            self._guard.tell(held)

    def _rebalanced(self, kind: RebalanceKind, assigned: set[TopicPartition]) -> None:
        self._telemetry.rebalanced(kind, len(assigned))
        self._health.assigned({place: self.positions.get(place, 0) for place in assigned})

    def _poll(self, timeout_s: float) -> Sequence[Record]:
        records = self._consumer.poll(self._batch_size, timeout_s)
        if not self._assigned:
            return records
        # The database knows how far these partitions are; what the poll brought of them comes again from there.
        self._rewind(records)
        self._claim()
        return self._consumer.poll(self._batch_size)

    def _claim(self) -> None:
        """Take the assigned partitions over from their former owner and go to where the catalogue is."""
        with _database():
            positions = self._catalogue.claim(GROUP, self._owner, self._assigned)
        for partition, next_offset in sorted(positions.items()):
            end = self._transport.end_offset(partition)
            if next_offset > end:
                raise StateDamaged(
                    f"catalogue_ahead: the catalogue is at offset {next_offset} of partition {partition[1]} of"
                    f" {partition[0]}, which ends at {end}: they do not belong together; give the catalogue a database"
                    " of its own, or the log back that it was written from"
                )
            if next_offset > 0:  # at 0 nothing was written yet, and the log may begin later than 0
                self._consumer.seek(partition, next_offset)
        self.positions |= positions
        self._assigned.clear()
        self._health.assigned({place: self.positions.get(place, 0) for place in self._consumer.assignment()})

    def _rewind(self, records: Sequence[Record]) -> None:
        first: Offsets = {}
        for record in records:
            first.setdefault((record.topic, record.partition), record.offset)
        for partition in first.keys() & self._consumer.assignment():
            self._consumer.seek(partition, first[partition])

    def _read(self, record: Record) -> _Read:
        content = read_record(TaggedCase, record)
        if isinstance(content, TaggedCase):
            try:
                canonical(content.model_dump(by_alias=True))  # `to_json` would make null of it
            except ValueError:  # a NaN or Infinity in a free field, where the model does not look
                content = RefusedDecode("", "a number that is not finite")
        return _Read(record, content)

    def _write(self, batch: Sequence[_Read]) -> None:
        """One transaction for the batch; when the database refuses a value, halves of it, down to that record."""
        if not batch:
            return
        dead = [self._dead_letter(read.record, read.content) for read in batch if isinstance(read.content, Refused)]
        try:
            self._apply([read.content for read in batch if isinstance(read.content, TaggedCase)], batch, dead)
        except Refused as refused:
            if len(batch) == 1:
                self._apply([], batch, [self._dead_letter(batch[0].record, refused, sink=True)])
                self._sunk.append(DeadInput(batch[0].record, refused))
                return
            middle = len(batch) // 2
            self._write(batch[:middle])
            self._write(batch[middle:])

    def _apply(self, cases: Sequence[TaggedCase], batch: Sequence[_Read], dead: Sequence[SinkDeadLetter]) -> None:
        positions: Offsets = {(read.record.topic, read.record.partition): read.record.offset + 1 for read in batch}
        with _database():
            self.cases_changed += self._catalogue.apply(
                cases, positions, GROUP, self._owner, dead=dead, crash=lambda point: self._crash(STAGE, point)
            )
        self.dead += len(dead)
        self.positions |= positions

    def _dead_letter(self, record: Record, refused: Refused, sink: bool = False) -> SinkDeadLetter:
        return SinkDeadLetter(
            record.topic,
            record.partition,
            record.offset,
            record.timestamp_us,
            "sink" if sink else refused.refusal_class,
            refused.path,
            refused.message[:_MAX_MESSAGE],
            self._sealed(record),
        )

    def _sealed(self, record: Record) -> bytes | None:
        if self._cipher is None or record.value is None:
            return None
        place = f"{record.topic}/{record.partition}/{record.offset}"
        return self._cipher.seal(record.value[:_MAX_PAYLOAD], place.encode())
