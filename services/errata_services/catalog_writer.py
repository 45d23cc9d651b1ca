"""The catalogue writer: tagged cases into the catalogue. Its offsets live in the database, in the same transaction.

So a case and the position behind it are written together or not at all, and a kill at any point neither loses nor
doubles anything. The group's offsets in the transport are never moved by it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from errata.contracts import TaggedCase, canonical
from errata.contracts.reading import read_message
from errata.contracts.topics import TAGGED
from errata.errors import Refused, RefusedDecode, StateDamaged
from errata.ports import Catalogue, Cipher, Offsets, Record, SinkDeadLetter, TopicPartition, Transport

STAGE = "catalog-writer"
GROUP = f"errata.{STAGE}"
AFTER_ROWS = "AFTER_ROWS"
AFTER_POSITION = "AFTER_POSITION"
AFTER_DB_COMMIT = "AFTER_DB_COMMIT"
POINTS = (AFTER_ROWS, AFTER_POSITION, AFTER_DB_COMMIT)

DEFAULT_BATCH = 5_000
_MAX_MESSAGE = 512  # characters of a refusal's text
_MAX_PAYLOAD = 64 * 1024  # bytes of a refused record that are kept

Crash = Callable[[str, str], None]


def no_crash(stage: str, point: str) -> None:
    """No crash point is armed."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A record and what it holds: a case, or the reason why it is none."""

    record: Record
    content: TaggedCase | Refused


class CatalogWriterWorker:
    """One member of the writer's group. ``run_once`` writes what one poll gave, at most ``batch_size`` records.

    ``instance`` names the process; of two with the same one the newer fences the older, also at the database.
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
    ) -> None:
        self._transport = transport
        self._catalogue = catalogue
        self._owner = f"{instance}:{uuid4().hex}"  # two processes of one instance must still differ
        self._batch_size = batch_size
        self._crash = crash
        self._cipher = cipher
        self._assigned: set[TopicPartition] = set()  # not yet claimed
        self.cases_changed = 0
        self.dead = 0
        self._consumer = transport.consumer(
            GROUP, TAGGED, instance=instance, on_assign=self._on_assign, on_revoke=self._on_revoke
        )

    def run_once(self) -> int:
        """Read one batch and write it; returns the number of records it held, 0 when there was none.

        After ``Unavailable`` the batch is read again by the next call. ``Fenced`` and ``StateDamaged`` are final.
        """
        records = self._poll()
        try:
            self._write([self._read(record) for record in records])
        except BaseException:
            self._rewind(records)
            raise
        return len(records)

    def close(self) -> None:
        self._consumer.close()

    def _on_assign(self, partitions: set[TopicPartition]) -> None:
        self._assigned |= partitions

    def _on_revoke(self, partitions: set[TopicPartition]) -> None:
        self._assigned -= partitions

    def _poll(self) -> list[Record]:
        records = self._consumer.poll(self._batch_size)
        if not self._assigned:
            return records
        # The database knows how far these partitions are; what the poll brought of them comes again from there.
        self._rewind(records)
        self._claim()
        return self._consumer.poll(self._batch_size)

    def _claim(self) -> None:
        """Take the assigned partitions over from their former owner and go to where the catalogue is."""
        positions = self._catalogue.claim(GROUP, self._owner, self._assigned)
        for partition, next_offset in sorted(positions.items()):
            if next_offset > self._transport.end_offset(partition):
                raise StateDamaged(
                    f"the catalogue is ahead of partition {partition[1]} of {partition[0]}: they do not belong"
                    " together; give the catalogue a database of its own, or the log back that it was written from"
                )
            if next_offset > 0:  # at 0 nothing was written yet, and the log may begin later than 0
                self._consumer.seek(partition, next_offset)
        self._assigned.clear()

    def _rewind(self, records: Sequence[Record]) -> None:
        first: Offsets = {}
        for record in records:
            first.setdefault((record.topic, record.partition), record.offset)
        for partition in first.keys() & self._consumer.assignment():
            self._consumer.seek(partition, first[partition])

    def _read(self, record: Record) -> _Read:
        content = read_message(TaggedCase, record.value)
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
                return
            middle = len(batch) // 2
            self._write(batch[:middle])
            self._write(batch[middle:])

    def _apply(self, cases: Sequence[TaggedCase], batch: Sequence[_Read], dead: Sequence[SinkDeadLetter]) -> None:
        positions: Offsets = {(read.record.topic, read.record.partition): read.record.offset + 1 for read in batch}
        self.cases_changed += self._catalogue.apply(
            cases, positions, GROUP, self._owner, dead=dead, crash=lambda point: self._crash(STAGE, point)
        )
        self.dead += len(dead)

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
