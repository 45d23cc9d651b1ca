"""Dead letters for people: found, opened, sent again, put away. Each is settled once, whoever asks and whatever dies.

A replay and its resolution are one transaction. There is one transactional id for all who do this, and it is taken
before the resolutions are read: of two at once the newer fences the older, and sees all that the older has done.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from errata import __version__
from errata.contracts import DeadLetter, Receipt, Resolution
from errata.contracts.strict import instant
from errata.contracts.topics import RESOLUTIONS, STAGES, TOPICS, dead_letter_topic
from errata.domain.dead_letters import (
    Kept,
    Obstacle,
    Selection,
    hops_of,
    obstacle,
    patched_payload,
    replay_headers,
    resolution,
)
from errata.errors import Aborted, Fenced, Misconfigured, Refused, StateDamaged, Unavailable
from errata.ports import Catalogue, Cipher, Headers, Outgoing, Producer, Record, SinkDeadLetter, Transport
from errata.runtime import crash_points
from errata.runtime.crash_points import CrashPoints
from errata.runtime.dead_letters import (
    MAX_PAYLOAD_BYTES,
    dead_letter_id,
    fingerprint_of,
    kept_of,
    original_headers,
    printable_payload,
    read_dead_letter,
)
from errata.runtime.receipts import receipt_record

TRANSACTIONAL_ID = "errata-dlq"
CRASH_STAGE = "dlq"
CHUNKS_A_SECOND = 10  # transactions; one holds a tenth of what may go in a second
MAX_CHUNK = 500  # letters of one transaction
MAX_SINK_LETTERS = 10_000
MAX_ABORTS_IN_A_ROW = 5

_SINK_STAGE = STAGES[-1]  # its letters are rows of its database
_UNKNOWN_BUILD = "unknown"

OnFound = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a letter lies: in a dead-letter topic, or as a row of the catalogue's database."""

    topic: str
    partition: int
    offset: int
    row: SinkDeadLetter | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter with what its replay needs. ``sealed_for`` is the context that opens the payload."""

    said: DeadLetter
    place: Place
    kept: Kept
    key: bytes | None
    headers: Headers
    sealed: bytes | None
    sealed_for: bytes
    resolution: Resolution | None = None


@dataclass(slots=True)
class Tally:
    """What a replay or discard did, in letters. Those that were ``left`` by why."""

    done: int = 0
    left: Counter[Obstacle] = field(default_factory=Counter)
    unpatched: int = 0  # no JSON object, so that a patch does not fit


@dataclass(frozen=True, slots=True)
class Asked:
    """Who wants what of letters, and why. ``patch`` is a JSON merge patch."""

    action: Literal["replayed", "discarded"]
    who: str
    why: str
    force: bool = False
    patch: Mapping[str, Any] | None = None


class Letters:
    """The dead letters of a chain: its dead-letter topics, and with ``catalogue`` the rows of the writer.

    Without ``cipher`` they can be listed and discarded, not opened.
    """

    def __init__(self, transport: Transport, cipher: Cipher | None = None, catalogue: Catalogue | None = None) -> None:
        self.transport = transport
        self._cipher = cipher
        self._catalogue = catalogue
        self.unreadable = 0  # records of dead-letter topics that are no letters, met since the start
        self.sinks_cut = False  # whether there are more rows than are looked at

    @property
    def opens(self) -> bool:
        """Whether there is a key to open payloads with."""
        return self._cipher is not None

    def resolutions(self) -> dict[str, Resolution]:
        """The newest resolution of each letter that has one."""
        found: dict[str, Resolution] = {}
        for record in self.transport.read_from((RESOLUTIONS, 0)):
            if record.key is None or record.value is None:
                continue
            try:
                found[record.key.decode()] = Resolution.model_validate_json(record.value)
            except (ValidationError, UnicodeDecodeError):
                raise StateDamaged(f"{RESOLUTIONS} holds at offset {record.offset} what is no resolution") from None
        return found

    def select(
        self,
        wanted: Selection,
        resolutions: Mapping[str, Resolution],
        on_found: OnFound = lambda n: None,
    ) -> Iterator[Letter]:
        """Every letter that fits, by stage, partition and offset, with its resolution."""
        for read, letter in enumerate(self._every(wanted.stages), 1):
            on_found(read)
            if wanted.takes(letter.said):
                yield self._with(letter, resolutions)

    def at(self, places: Sequence[Place], resolutions: Mapping[str, Resolution]) -> list[Letter]:
        """The letters of some places; one whose topic has let it go meanwhile is left out."""
        rows = self._of_rows([place.row for place in places if place.row is not None])
        of_partition: dict[tuple[str, int], list[int]] = {}
        for place in places:
            if place.row is None:
                of_partition.setdefault((place.topic, place.partition), []).append(place.offset)
        records = [record for at, offsets in of_partition.items() for record in self.transport.read_at(at, offsets)]
        found = [letter for letter in map(self._of_record, filter(None, records)) if letter is not None]
        return [self._with(letter, resolutions) for letter in [*found, *rows]]

    def payload(self, letter: Letter) -> bytes | None:
        """What was refused; None for a null. Raises ``Misconfigured`` without the key, or with another one."""
        if letter.sealed is None:
            return None
        if self._cipher is None:
            raise Misconfigured("ERRATA_KEY: is missing; payloads are sealed with the key of the services, so give it")
        try:
            return self._cipher.open(letter.sealed, letter.sealed_for)
        except ValueError:
            raise Misconfigured(
                f"ERRATA_KEY: does not open letter {letter.said.dead_letter_id}; give the key that the service had"
                " when it wrote it"
            ) from None

    def opened(self, letter: Letter) -> DeadLetter:
        """The letter with its payload as text, ``hex:`` before bytes that are none."""
        payload = self.payload(letter)
        return letter.said.model_copy(update={"payload": None if payload is None else printable_payload(payload)})

    def _every(self, stages: Iterable[str]) -> Iterator[Letter]:
        wanted = [stage for stage in STAGES if not stages or stage in stages]
        places = [
            (dead_letter_topic(stage), number)
            for stage in wanted
            for number in range(self.transport.partitions(dead_letter_topic(stage)))
        ]
        ends = self.transport.end_offsets(places)
        for place in places:
            if not ends[place]:
                continue
            for record in self.transport.read_from(place):
                letter = self._of_record(record)
                if letter is not None:
                    yield letter
        if self._catalogue is not None and _SINK_STAGE in wanted:
            rows = self._catalogue.dead_letters(MAX_SINK_LETTERS + 1)
            self.sinks_cut = len(rows) > MAX_SINK_LETTERS
            yield from self._of_rows(rows[:MAX_SINK_LETTERS])

    def _of_record(self, record: Record) -> Letter | None:
        try:
            said = read_dead_letter(record)
        except Refused:
            self.unreadable += 1
            return None
        place = Place(record.topic, record.partition, record.offset)
        context = said.dead_letter_id.encode()
        return Letter(said, place, kept_of(record), record.key, original_headers(record), record.value, context)

    def _of_rows(self, rows: Sequence[SinkDeadLetter]) -> list[Letter]:
        """Rows of the writer. Key and headers stand in its input for as long as that is kept, 7 days."""
        of_partition: dict[tuple[str, int], list[SinkDeadLetter]] = {}
        for row in rows:
            of_partition.setdefault((row.topic, row.partition), []).append(row)
        letters: list[Letter] = []
        for at, mine in of_partition.items():
            originals = self.transport.read_at(at, [row.offset for row in mine])
            letters += map(self._of_row, mine, originals)
        return letters

    def _of_row(self, row: SinkDeadLetter, original: Record | None) -> Letter:
        headers = original.headers if original is not None else ()
        at, error = instant(row.timestamp_us), "Refused"
        said = DeadLetter(
            dead_letter_id=dead_letter_id(_SINK_STAGE, row.topic, row.partition, row.offset),
            stage=_SINK_STAGE,
            build=_UNKNOWN_BUILD,
            topic=row.topic,
            partition=row.partition,
            offset=row.offset,
            ts=at,
            class_=row.refusal_class,
            error=error,
            path=row.path,
            message=row.message,
            fingerprint=fingerprint_of(row.refusal_class, error, row.path),
            first_failed=at,
            replay_of=next((text.decode(errors="replace") for name, text in headers if name == "replay_of"), None),
            hops=hops_of(headers),
        )
        place = Place(row.topic, row.partition, row.offset, row)
        context = f"{row.topic}/{row.partition}/{row.offset}".encode()
        key = original.key if original is not None else None
        return Letter(said, place, _kept_of_row(row, original), key, headers, row.payload, context)

    @staticmethod
    def _with(letter: Letter, resolutions: Mapping[str, Resolution]) -> Letter:
        return replace(letter, resolution=resolutions.get(letter.said.dead_letter_id))


def _kept_of_row(row: SinkDeadLetter, original: Record | None) -> Kept:
    """A row does not say whether it has all of its record. Without the record a long one counts as cut."""
    if original is not None and original.value is None:
        return "null"
    if row.payload is None:
        return "missing"
    length = len(row.payload) if original is None else len(original.value or b"")
    return "cut" if length > MAX_PAYLOAD_BYTES else "whole"


@dataclass(slots=True)
class Pace:
    """At most ``per_s`` letters a second: waits behind each transaction. ``clock`` is monotonic, in seconds."""

    per_s: float
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    @property
    def chunk(self) -> int:
        return max(1, min(MAX_CHUNK, int(self.per_s / CHUNKS_A_SECOND)))

    def wait(self, began_s: float, done: int) -> None:
        left_s = began_s + done / self.per_s - self.clock()
        if left_s > 0:
            self.pause(left_s)


def settle(
    letters: Letters,
    wanted: Selection,
    asked: Asked,
    pace: Pace,
    now: Callable[[], datetime],
    *,
    crash: CrashPoints | None = None,
    on_selected: OnFound = lambda n: None,
    on_done: OnFound = lambda n: None,
) -> Tally:
    """Replay or discard the letters that fit, in transactions of a few, each with their resolutions.

    Raises ``Fenced`` when another of this kind has begun meanwhile; what was committed until then is settled.
    """
    producer = letters.transport.producer(TRANSACTIONAL_ID)  # first: what others have done is then all there to see
    try:
        resolutions = letters.resolutions()
        tally, places = Tally(), list[Place]()
        for letter in letters.select(wanted, resolutions):
            why = _left(letter, asked)
            if why is None:
                places.append(letter.place)
            else:
                tally.left[why] += 1
        on_selected(len(places))
        began_s = pace.clock()
        for start in range(0, len(places), pace.chunk):
            chunk = letters.at(places[start : start + pace.chunk], resolutions)
            records, count = _records(letters, chunk, asked, now, tally)
            _commit(producer, records, crash or CrashPoints.off())
            tally.done += count
            on_done(tally.done)
            pace.wait(began_s, tally.done)
        return tally
    except Fenced:
        raise Fenced(
            "another errata dlq replay or discard has begun and goes on with what is open; this one has stopped"
        ) from None
    finally:
        producer.close()


def plan(letters: Letters, wanted: Selection, asked: Asked) -> Tally:
    """What `settle` would do as things are. Nothing is written, and nobody is fenced."""
    tally = Tally()
    for letter in letters.select(wanted, letters.resolutions()):
        why = _left(letter, asked)
        if why is not None:
            tally.left[why] += 1
        elif asked.action == "replayed" and asked.patch is not None and _value(letters, letter, asked) is None:
            tally.unpatched += 1
        else:
            tally.done += 1
    return tally


def _left(letter: Letter, asked: Asked) -> Obstacle | None:
    if asked.action == "discarded":
        return "settled" if letter.resolution is not None else None
    return obstacle(letter.said, letter.kept, letter.resolution, force=asked.force)


_Settled = tuple[list[Outgoing], Outgoing]
"""The records that replay a letter, none for a discard, and the resolution."""


def _records(
    letters: Letters, chunk: Sequence[Letter], asked: Asked, now: Callable[[], datetime], tally: Tally
) -> tuple[list[_Settled], int]:
    """What one transaction writes for its letters; how many letters that are."""
    records: list[_Settled] = []
    for letter in chunk:
        replay: list[Outgoing] = []
        if asked.action == "replayed":
            value = _value(letters, letter, asked)
            if value is None:
                tally.unpatched += 1
                continue
            replay = [_replay(letter, value[0], asked)]
        patched = asked.action == "replayed" and asked.patch is not None
        done = resolution(
            letter.said, asked.action, letter.resolution, who=asked.who, at=now(), why=asked.why, patched=patched
        )
        key = letter.said.dead_letter_id.encode()
        records.append((replay, Outgoing(RESOLUTIONS, key, done.to_json(), partition=0)))
    return records, len(records)


def _value(letters: Letters, letter: Letter, asked: Asked) -> tuple[bytes | None] | None:
    """The payload to send, in a tuple since it may be a null; None when the patch does not fit it."""
    payload = letters.payload(letter)
    if asked.patch is None:
        return (payload,)
    try:
        return (patched_payload(payload, asked.patch),)
    except ValueError:
        return None


def _replay(letter: Letter, value: bytes | None, asked: Asked) -> Outgoing:
    said = letter.said
    headers = replay_headers(letter.headers, said, patched=asked.patch is not None)
    return Outgoing(said.topic, letter.key, value, headers, said.partition)


def _receipts(records: Sequence[_Settled]) -> list[Outgoing]:
    """Receipts for replays between two stages, in the name of the stage that wrote the first of them: what a reader is
    delivered must have been put out, or the ledger does not add up."""
    out: Counter[str] = Counter()
    for replays, _ in records:
        for replay in replays:
            writer = TOPICS[replay.topic].producers[0]
            if writer in STAGES:
                out[writer] += 1
    return [
        receipt_record(
            Receipt(stage=stage, instance=TRANSACTIONAL_ID, build=__version__, inputs=[], out=n, dlq=0, dropped={})
        )
        for stage, n in sorted(out.items())
    ]


def _commit(producer: Producer, records: Sequence[_Settled], crash: CrashPoints) -> None:
    """One transaction; one that is void is tried again."""
    if not records:
        return
    crash.at(CRASH_STAGE, crash_points.AFTER_STEP)
    for _ in range(MAX_ABORTS_IN_A_ROW):
        producer.begin()
        try:
            for replays, settled in records:
                for replay in replays:
                    producer.produce(replay)
                crash.at(CRASH_STAGE, crash_points.MID_PRODUCE)
                producer.produce(settled)
            for receipt in _receipts(records):
                producer.produce(receipt)
            crash.at(CRASH_STAGE, crash_points.AFTER_PRODUCE)
            producer.commit()
        except Aborted:
            producer.abort()
            continue
        except Fenced:
            raise
        except Exception:
            producer.abort()
            raise
        crash.at(CRASH_STAGE, crash_points.AFTER_COMMIT)
        return
    raise Unavailable(f"{MAX_ABORTS_IN_A_ROW} transactions in a row were void; run it again: what is settled stays so")
