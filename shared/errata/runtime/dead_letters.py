"""Dead letters: inputs a stage cannot take, kept whole, encrypted, beside their reason.

On the wire the reason stands in headers ``errata.dlq.*``, so that it can be read without the key, and the value is the
payload under the key of the data folder: it may hold what no contract has redacted.
"""

from dataclasses import dataclass
from hashlib import sha256
from types import TracebackType
from uuid import UUID, uuid5

from errata.contracts import DeadLetter
from errata.contracts.strict import instant, instant_us, rfc3339
from errata.contracts.topics import dead_letter_topic
from errata.domain.dead_letters import REPLAY_OF, Kept, hops_of
from errata.errors import Refused, RefusedDecode
from errata.ports import Cipher, DeadInput, Headers, Outgoing, Record

PREFIX = "errata.dlq."
ORIGINAL_PREFIX = "orig."
MAX_PAYLOAD_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 512
MAX_KEY_BYTES = 64 * 1024
MAX_HEADERS_BYTES = 256 * 1024

_VERSION = b"1"
_IDS = UUID("5f4b1b52-94d5-5c86-a1c3-7d1a1c2f2a10")
_FRAMES = 5  # innermost frames of our code that tell one bug from another
_TRACEPARENT = "traceparent"
_LEFT_OUT = "left_out"  # what of key and headers was too long to be carried
_MAX_LINK = 256  # characters of an id or trace that came in a header
_FRAMING = 16  # bytes, at most, that a header takes beside its name and content


class HandlerFailure(Refused):
    """A stage's own bug on an input: the error's type and place, never its text, which may hold a value."""

    refusal_class = "handler"

    def __init__(self, error: Exception) -> None:
        self.error = type(error).__name__
        self.frames = _own_frames(error.__traceback__)
        super().__init__("", f"the stage failed with {self.error}")


class OversizeOutput(Refused):
    """An input whose output would be larger than a record may be."""

    refusal_class = "oversize"


@dataclass(frozen=True, slots=True)
class Payload:
    """What was kept of an input: all of it, or its first 64 KiB when ``total_bytes`` is more."""

    kept: bytes
    total_bytes: int
    sha256: str

    @property
    def whole(self) -> bool:
        return len(self.kept) == self.total_bytes


def dead_letter_id(stage: str, topic: str, partition: int, offset: int) -> str:
    """The id of the letter of one record: the same record gives the same id however often it is read."""
    return str(uuid5(_IDS, f"{stage}/{topic}/{partition}/{offset}"))


def dead_letter(stage: str, build: str, dead: DeadInput, cipher: Cipher | None) -> Outgoing:
    """The letter for an input, to the same partition and key. Without a cipher the payload is left out."""
    record, refusal = dead.record, dead.refusal
    key, carried, left_out = _bounded(record)
    letter_id = dead_letter_id(stage, record.topic, record.partition, record.offset)
    at = rfc3339(instant(record.timestamp_us))
    original = dict(record.headers)
    error = refusal.error if isinstance(refusal, HandlerFailure) else type(refusal).__name__
    fields = {
        "id": letter_id,
        "stage": stage,
        "build": build,
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "ts": at,
        "class": refusal.refusal_class,
        "error": error,
        "path": refusal.path,
        "message": _cut(refusal.message),
        "fingerprint": fingerprint(refusal),
        "attempts": "1",
        "first_failed": at,
        "hops": str(hops_of(record.headers)),
    }
    for name in (REPLAY_OF, _TRACEPARENT):
        if name in original:
            fields[name] = _text(original[name])[:_MAX_LINK]
    if left_out:
        fields[_LEFT_OUT] = left_out
    value = record.value
    if value is not None:
        fields["bytes"] = str(len(value))
        fields["sha256"] = sha256(value).hexdigest()
    headers = [(PREFIX + "v", _VERSION)]
    headers += [(PREFIX + name, text.encode()) for name, text in fields.items()]
    headers += [(ORIGINAL_PREFIX + name, content) for name, content in carried]
    sealed = None if cipher is None or value is None else cipher.seal(value[:MAX_PAYLOAD_BYTES], letter_id.encode())
    return Outgoing(dead_letter_topic(stage), key, sealed, tuple(headers), record.partition)


def read_dead_letter(record: Record, cipher: Cipher | None = None) -> DeadLetter:
    """The letter of a record of a dead-letter topic, with its payload when the cipher can open it.

    A payload that is no text reads as ``hex:`` and its bytes; `read_payload` gives the bytes themselves.
    """
    fields = _fields(record)
    payload = read_payload(record, cipher) if cipher is not None else None
    try:
        return DeadLetter(
            dead_letter_id=fields["id"],
            stage=fields["stage"],
            build=fields["build"],
            topic=fields["topic"],
            partition=int(fields["partition"]),
            offset=int(fields["offset"]),
            ts=instant(instant_us(fields["ts"])),
            class_=fields["class"],  # type: ignore[arg-type]  # checked by the model
            error=fields["error"],
            path=fields["path"],
            message=fields["message"],
            fingerprint=fields["fingerprint"],
            attempts=int(fields["attempts"]),
            first_failed=instant(instant_us(fields["first_failed"])),
            replay_of=fields.get(REPLAY_OF),
            hops=int(fields["hops"]),
            traceparent=fields.get(_TRACEPARENT),
            payload=None if payload is None else printable_payload(payload.kept),
        )
    except (KeyError, ValueError) as error:
        raise RefusedDecode("", "a dead letter lacks a header or has one that cannot be read") from error


def read_payload(record: Record, cipher: Cipher) -> Payload | None:
    """The bytes that were refused; None when they were not kept. ``ValueError`` when the key is another one."""
    if record.value is None:
        return None
    fields = _fields(record)
    kept = cipher.open(record.value, fields["id"].encode())
    return Payload(kept, int(fields["bytes"]), fields["sha256"])


def original_headers(record: Record) -> tuple[tuple[str, bytes], ...]:
    """The headers that the refused record had."""
    start = len(ORIGINAL_PREFIX)
    return tuple((name[start:], content) for name, content in record.headers if name.startswith(ORIGINAL_PREFIX))


def kept_of(record: Record) -> Kept:
    """What a letter has of its input, read without the key."""
    fields = _fields(record)
    total = int(fields.get("bytes", "-1"))
    if total > MAX_PAYLOAD_BYTES or _LEFT_OUT in fields:
        return "cut"
    if total < 0:
        return "null"
    return "missing" if record.value is None else "whole"


def fingerprint(refusal: Refused) -> str:
    """Equal for letters of one cause: class, error and place; not the value, not the message."""
    if isinstance(refusal, HandlerFailure):
        return _fingerprint(refusal.refusal_class, refusal.error, *refusal.frames)
    return fingerprint_of(refusal.refusal_class, type(refusal).__name__, refusal.path)


def fingerprint_of(refusal_class: str, error: str, path: str) -> str:
    """As `fingerprint`, from what a letter says of a refusal that is no bug."""
    return _fingerprint(refusal_class, error, _shape(path))


def _fingerprint(*parts: str) -> str:
    return sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def _bounded(record: Record) -> tuple[bytes | None, Headers, str]:
    """Key and headers as a letter carries them, and which of them it had to leave out: it must fit into one record
    however much came beside the payload."""
    key, headers, left_out = record.key, record.headers, list[str]()
    if key is not None and len(key) > MAX_KEY_BYTES:
        key = None
        left_out.append("key")
    if sum(_FRAMING + len(name) + len(content) for name, content in headers) > MAX_HEADERS_BYTES:
        headers = ()
        left_out.append("headers")
    return key, headers, " ".join(left_out)


def _shape(path: str) -> str:
    """A pointer without the numbers of list items."""
    return "/".join("*" if part.isdecimal() else part for part in path.split("/"))


def _own_frames(trace: TracebackType | None) -> tuple[str, ...]:
    """Module and function of the innermost frames of our code, without line numbers: those change with each build."""
    frames = []
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.split(".")[0] in ("errata", "errata_services"):
            frames.append(f"{module}:{trace.tb_frame.f_code.co_qualname}")
        trace = trace.tb_next
    return tuple(frames[-_FRAMES:])


def _fields(record: Record) -> dict[str, str]:
    start = len(PREFIX)
    return {name[start:]: _text(content) for name, content in record.headers if name.startswith(PREFIX)}


def _text(content: bytes) -> str:
    return content.decode(errors="replace").replace("\0", "\ufffd")


def _cut(message: str) -> str:
    return message.encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore")


def printable_payload(content: bytes) -> str:
    """A payload as text; one that is none as ``hex:`` and its bytes."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return "hex:" + content.hex()
    return "hex:" + content.hex() if "\0" in text else text
