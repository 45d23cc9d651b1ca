"""The journal of the in-process transport: each committed transaction one frame of an append-only file.

A frame is ``magic | length | CRC-32 of the payload | CRC-32 of these three`` and the payload. The header has a check
of its own so that a damaged length is told from a frame that was cut off: what a killed process left unfinished at
the end is no transaction and is cut off; damage anywhere else is reported and nothing is dropped.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from errata.errors import Misconfigured, StateDamaged, Unavailable
from errata.ports import Headers, Record, TopicPartition

Commits = dict[str, dict[TopicPartition, int]]
"""Next offsets by consumer group."""

_FILE_MAGIC = b"ERRATA-JOURNAL-1"
_MAGIC = b"EJF1"
_HEADER = struct.Struct("<4sIII")
_COUNT = struct.Struct("<I")
_TIME = struct.Struct("<q")
_RECORD = struct.Struct(
    "<HIQqiiH"
)  # topic index, partition, offset, record time, key and value length (-1: null), headers
_HEADER_LENGTHS = struct.Struct("<HI")
_COMMIT = struct.Struct("<HHIQ")  # group index, topic index, partition, offset
_BOUND = struct.Struct("<HIQQ")  # topic index, partition, start, end
_NAME_LENGTH = struct.Struct("<H")


@dataclass(slots=True)
class Frame:
    """One committed transaction, or a piece of a snapshot: then ``bounds`` has (first, next) offset by partition."""

    record_time_us: int
    records: list[Record]
    commits: Commits = field(default_factory=dict)
    bounds: dict[TopicPartition, tuple[int, int]] = field(default_factory=dict)


class Journal:
    """Appends frames durably: when ``append`` returns, the frame survives a crash of the machine.

    One process at a time; the caller holds the `DataLock` of the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()
        self._end = os.fstat(self._file).st_size

    def frames(self) -> Iterator[Frame]:
        """All frames from the start. An unfinished frame at the end is cut off the file; a damaged one raises
        ``StateDamaged`` with its offset."""
        content = self._path.read_bytes()
        at = len(_FILE_MAGIC)
        while at < len(content):
            payload = self._payload(content, at)
            if payload is None:
                os.ftruncate(self._file, at)
                os.fsync(self._file)
                break
            yield decode_frame(payload)
            at += _HEADER.size + len(payload)
        self._end = at

    def append(self, frame: Frame) -> None:
        """Write and sync one frame; raises ``Unavailable`` and leaves the file as it was when that fails."""
        try:
            _write_all(self._file, encode_frame(frame))
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise Unavailable(
                f"journal {self._path.name} cannot be written: {error.strerror}; free some space"
            ) from error
        self._end = os.fstat(self._file).st_size

    def rewrite(self, frames: Iterable[Frame]) -> None:
        """Put ``frames`` in the place of all there is, in one atomic step."""
        fresh = self._path.with_suffix(".new")
        file = os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        try:
            _write_all(file, _FILE_MAGIC)
            for frame in frames:
                _write_all(file, encode_frame(frame))
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(fresh, self._path)
        _sync_folder(self._path.parent)
        os.close(self._file)
        self._file = self._open()
        self._end = os.fstat(self._file).st_size

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> int:
        file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        start = os.pread(file, len(_FILE_MAGIC), 0)
        if start == _FILE_MAGIC:
            return file
        if not _FILE_MAGIC.startswith(start):
            os.close(file)
            raise Misconfigured(f"{self._path.name} is not a journal that this version of errata can read")
        os.ftruncate(file, 0)  # new, or a process was killed while making it
        _write_all(file, _FILE_MAGIC)
        os.fsync(file)
        _sync_folder(self._path.parent)
        return file

    def _payload(self, content: bytes, at: int) -> bytes | None:
        """The payload of the frame at ``at``; None when the frame was never finished."""
        if _never_filled(content[at : at + _HEADER.size], content, at):
            return None
        if len(content) - at < _HEADER.size:
            raise self._damaged(at)
        magic, length, check, header_check = _HEADER.unpack_from(content, at)
        if magic != _MAGIC or zlib.crc32(content[at : at + _HEADER.size - 4]) != header_check:
            raise self._damaged(at)
        start = at + _HEADER.size
        if start + length > len(content):
            return None
        payload = content[start : start + length]
        if zlib.crc32(payload) != check:
            raise self._damaged(at)
        return payload

    def _damaged(self, at: int) -> StateDamaged:
        return StateDamaged(f"{self._path.name} is damaged at byte {at}; restore the data folder from a backup")


class DataLock:
    """Holds a data folder for one process; it ends with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(folder / "errata.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise Misconfigured(
                f"data folder {folder} is in use by another errata process; stop it or choose another with --data"
            ) from error

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "DataLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def encode_frame(frame: Frame) -> bytes:
    """A frame as it stands in the file, header included."""
    names: dict[str, int] = {}

    def index(name: str) -> int:
        return names.setdefault(name, len(names))

    body: list[bytes] = [_TIME.pack(frame.record_time_us), _COUNT.pack(len(frame.records))]
    for record in frame.records:
        body += _record_parts(record, index(record.topic))
    commits = [
        _COMMIT.pack(index(group), index(topic), partition, offset)
        for group, offsets in frame.commits.items()
        for (topic, partition), offset in offsets.items()
    ]
    bounds = [
        _BOUND.pack(index(topic), partition, start, end) for (topic, partition), (start, end) in frame.bounds.items()
    ]
    body += [_COUNT.pack(len(commits)), *commits, _COUNT.pack(len(bounds)), *bounds]
    table = [part for name in names for part in (_NAME_LENGTH.pack(len(name.encode())), name.encode())]
    payload = b"".join([_COUNT.pack(len(names)), *table, *body])
    header = _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload), 0)[:-4]
    return header + _COUNT.pack(zlib.crc32(header)) + payload


def decode_frame(payload: bytes) -> Frame:
    """The frame of a payload whose check was right."""
    reader = _Reader(payload)
    names = [reader.text(*reader.unpack(_NAME_LENGTH)) for _ in range(*reader.unpack(_COUNT))]
    (record_time_us,) = reader.unpack(_TIME)
    records = [_read_record(reader, names) for _ in range(*reader.unpack(_COUNT))]
    frame = Frame(record_time_us, records)
    for _ in range(*reader.unpack(_COUNT)):
        group, topic, partition, offset = reader.unpack(_COMMIT)
        frame.commits.setdefault(names[group], {})[names[topic], partition] = offset
    for _ in range(*reader.unpack(_COUNT)):
        topic, partition, start, end = reader.unpack(_BOUND)
        frame.bounds[names[topic], partition] = (start, end)
    return frame


class _Reader:
    """Walks through a payload."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        values = form.unpack_from(self._payload, self._at)
        self._at += form.size
        return values

    def take(self, length: int) -> bytes:
        self._at += length
        return self._payload[self._at - length : self._at]

    def text(self, length: int) -> str:
        return self.take(length).decode()


def _record_parts(record: Record, topic: int) -> list[bytes]:
    parts = [
        _RECORD.pack(
            topic,
            record.partition,
            record.offset,
            record.timestamp_us,
            -1 if record.key is None else len(record.key),
            -1 if record.value is None else len(record.value),
            len(record.headers),
        ),
        record.key or b"",
        record.value or b"",
    ]
    for name, value in record.headers:
        encoded = name.encode()
        parts += [_HEADER_LENGTHS.pack(len(encoded), len(value)), encoded, value]
    return parts


def _read_record(reader: _Reader, names: list[str]) -> Record:
    topic, partition, offset, timestamp_us, key_length, value_length, header_count = reader.unpack(_RECORD)
    key = None if key_length < 0 else reader.take(key_length)
    value = None if value_length < 0 else reader.take(value_length)
    headers: Headers = ()
    if header_count:
        headers = tuple(_read_header(reader) for _ in range(header_count))
    return Record(names[topic], partition, offset, timestamp_us, key, value, headers)


def _read_header(reader: _Reader) -> tuple[str, bytes]:
    name_length, value_length = reader.unpack(_HEADER_LENGTHS)
    return reader.text(name_length), reader.take(value_length)


def _never_filled(header: bytes, content: bytes, at: int) -> bool:
    """Whether the file ends in the beginning of a header, or in zeros: it grew before it was filled."""
    if len(header) < _HEADER.size:
        return header.startswith(_MAGIC[: len(header)]) or not any(header)
    return not any(header) and not any(content[at:])


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
