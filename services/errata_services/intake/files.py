"""Lines of files and pipes as records of the input topics, each line exactly once.

Lines of one batch, the ticks between them and the position in the file are one transaction, so a killed run goes on
where it stopped. Record time is the highest event time so far, never ahead of the wall clock: an event of the year 2090
does not move it and is refused by the detector.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import BinaryIO, Protocol

from errata.contracts import canonical
from errata.contracts.refusals import MAX_AHEAD_US
from errata.contracts.strict import MAX_BYTES, instant, rfc3339
from errata.contracts.topics import INTAKE_POSITIONS, PREDICTIONS
from errata.ports import Outgoing, Producer, Router, Transport

NAME = "intake"
RECORD_TIME_HEADER = "errata-record-time-us"
TICK_EVERY_US = 5 * 60_000_000
MAX_LINE_BYTES = 4 * MAX_BYTES  # what is longer is cut here, and refused as oversize by its length
CLOCK_KEY = b"clock"


class Crash(Protocol):
    def at(self, stage: str, point: str) -> None: ...


class FileSource:
    """Publishes the lines of one named input. ``name`` None: a pipe, which has no position to come back to."""

    def __init__(self, transport: Transport, router: Router, *, name: str | None, now_us: int, crash: Crash) -> None:
        self._transport, self._router, self._crash = transport, router, crash
        self._now_us = now_us
        self._key = None if name is None else b"file:" + name.encode()
        self._producer: Producer = transport.producer(f"errata.{NAME}-0")
        kept = {record.key: record.value for record in transport.read_from((INTAKE_POSITIONS, 0))}
        clock = json.loads(kept.get(CLOCK_KEY) or b"{}")
        self._record_time_us: int = clock.get("record_time_us", 0)
        self._tick_us: int | None = clock.get("tick_us")
        position = json.loads((self._key and kept.get(self._key)) or b"{}")
        self._bytes: int = position.get("bytes", 0)
        self._prefix: str = position.get("sha256", "")
        self._digest = sha256()

    def skip_known(self, stream: BinaryIO) -> int:
        """Move a file behind what was published of it before; 0 and its start if it is another file by now."""
        if self._bytes and self._digest_of_prefix(stream):
            return stream.tell()
        stream.seek(0)
        self._bytes, self._digest = 0, sha256()
        return 0

    def _digest_of_prefix(self, stream: BinaryIO) -> bool:
        left, digest = self._bytes, sha256()
        while left and (part := _line(stream, left)):
            digest.update(part)
            left -= len(part)
        self._digest = digest
        return left == 0 and digest.hexdigest() == self._prefix

    def publish(self, lines: Sequence[bytes]) -> int:
        """One transaction for these lines, as read with their line ends; the number published, blank ones left out."""
        records: list[Outgoing] = []
        published = 0
        for line in lines:
            self._bytes += len(line)
            self._digest.update(line)
            content = line.strip()
            if content:
                published += 1
                records += self._records(content)
        self._crash.at(NAME, "AFTER_STEP")
        producer = self._producer
        producer.begin()
        for record in records:
            producer.produce(record)
        self._crash.at(NAME, "MID_PRODUCE")
        clock = {"record_time_us": self._record_time_us, "tick_us": self._tick_us}
        producer.produce(Outgoing(INTAKE_POSITIONS, CLOCK_KEY, canonical(clock), partition=0))
        if self._key is not None:
            position = {"bytes": self._bytes, "sha256": self._digest.hexdigest()}
            producer.produce(Outgoing(INTAKE_POSITIONS, self._key, canonical(position), partition=0))
        self._crash.at(NAME, "AFTER_PRODUCE")
        producer.commit()
        self._crash.at(NAME, "AFTER_COMMIT")
        return published

    def _records(self, content: bytes) -> Iterator[Outgoing]:
        route = self._router.route(content)
        if route.time_us is not None and route.time_us <= self._now_us + MAX_AHEAD_US:
            self._record_time_us = max(self._record_time_us, min(route.time_us, self._now_us))
        if self._tick_us is None:
            self._tick_us = self._record_time_us
        elif self._record_time_us - self._tick_us >= TICK_EVERY_US:
            self._tick_us = self._record_time_us
            yield from self._ticks()
        partition = 0 if route.key is None else None
        yield Outgoing(route.topic, route.key, content, self._header(), partition)

    def _ticks(self) -> Iterator[Outgoing]:
        """A tick into each partition: windows of models that have fallen silent end by it."""
        at = rfc3339(instant(self._record_time_us))
        value = canonical({"event_id": f"tick-{self._record_time_us}", "time": at, "purpose": "tick"})
        for partition in range(self._transport.partitions(PREDICTIONS)):
            yield Outgoing(PREDICTIONS, None, value, self._header(), partition)

    def _header(self) -> tuple[tuple[str, bytes], ...]:
        return ((RECORD_TIME_HEADER, b"%d" % self._record_time_us),)


def lines_of(stream: BinaryIO, most: int) -> Iterator[list[bytes]]:
    """Lines in batches of at most ``most``. A line beyond the limit is cut; its rest is read and dropped."""
    batch: list[bytes] = []
    while line := _line(stream):
        batch.append(line)
        if len(batch) == most:
            yield batch
            batch = []
    if batch:
        yield batch


def _line(stream: BinaryIO, most_bytes: int = MAX_LINE_BYTES) -> bytes:
    """The next line as it is kept: positions and digests count these bytes, not those that were cut off."""
    line = stream.readline(min(most_bytes, MAX_LINE_BYTES))
    if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
        while rest := stream.readline(MAX_LINE_BYTES):
            if rest.endswith(b"\n"):
                break
    return line
