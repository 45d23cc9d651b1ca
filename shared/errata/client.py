"""The publisher: hands events to errata from inside other people's services.

``Publisher`` writes to a file or a pipe, ``KafkaPublisher`` to Kafka. Publishing never raises, never blocks the caller
on I/O, and importing this loads only the standard library. Events are checked by whoever reads them; here they need
only be JSON of at most 1 MiB. What cannot be sent is counted in ``stats`` by its reason, and told once a minute.

>>> import io
>>> stream = io.BytesIO()
>>> with Publisher(stream) as errata:
...     errata.prediction(model="fraud", prediction="ok", event_id="1", time="2026-01-05T12:00:00Z")
True
>>> stream.getvalue()
b'{"event_id":"1","time":"2026-01-05T12:00:00Z","model":{"name":"fraud"},"prediction":"ok"}\\n'
>>> errata.stats.delivered, errata.dropped
(1, 0)
"""

import atexit
import json
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self, get_args
from uuid import UUID, uuid4

if TYPE_CHECKING:
    from errata.adapters.kafka_publisher import KafkaSender

__all__ = ["DropReason", "KafkaPublisher", "Publisher", "PublisherStats"]

DropReason = Literal["not_an_event", "not_json", "too_large", "buffer_full", "timed_out", "refused", "closed"]

MAX_EVENT_BYTES = 2**20
DEFAULT_BUFFER = 10_000  # events
WARN_EVERY_S = 60.0
_CLOSE_S = 5.0
_EXIT_S = 2.0
_LOG = logging.getLogger("errata.client")

_MEANINGS: Mapping[DropReason, str] = {
    "not_an_event": "what is no mapping",
    "not_json": "an event that is not finite JSON",
    "too_large": f"an event of more than {MAX_EVENT_BYTES} bytes",
    "buffer_full": "an event: the buffer is full",
    "timed_out": "an event: it could not be delivered in time",
    "refused": "an event: the target does not take it",
    "closed": "an event: the publisher is closed",
}

# The registry of topics stands in errata.contracts.topics, which loads pydantic; a test holds these against it.
_TOPICS = {
    "event_id": "errata.predictions.v1",
    "outcome_id": "errata.outcomes.v1",
    "change_id": "errata.changes.v1",
}


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """What became of the events of one publisher in this process.

    ``sent`` were taken: each of them is delivered, or dropped, or still ``waiting``. ``dropped`` holds every reason and
    counts those that were not taken as well. An event that timed out may have arrived all the same.
    """

    sent: int
    delivered: int
    waiting: int
    dropped: Mapping[DropReason, int]


class Tally:
    """Counts for one publisher in one process, and a warning a minute at most for each reason."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.RLock()  # a signal handler may publish too
        self._sent = self._delivered = self._lost = 0
        self._dropped: dict[DropReason, int] = dict.fromkeys(get_args(DropReason), 0)
        self._warned_s: dict[DropReason, float] = {}

    def take(self, events: int = 1) -> None:
        with self._lock:
            self._sent += events

    def deliver(self, events: int = 1) -> None:
        with self._lock:
            self._delivered += events

    def lose(self, reason: DropReason, detail: str = "", events: int = 1) -> None:
        """Drop events that were taken."""
        with self._lock:
            self._lost += events
        self.drop(reason, detail, events)

    def drop(self, reason: DropReason, detail: str = "", events: int = 1) -> None:
        now_s = self._now_s()
        with self._lock:
            self._dropped[reason] += events
            dropped = self._dropped[reason]
            told_s = self._warned_s.get(reason)
            tell = told_s is None or now_s - told_s >= WARN_EVERY_S
            if tell:
                self._warned_s[reason] = now_s
        if tell:
            why = f" ({detail})" if detail else ""
            _LOG.warning("errata drops %s%s; %d so far, told once a minute", _MEANINGS[reason], why, dropped)

    def stats(self) -> PublisherStats:
        with self._lock:
            waiting = self._sent - self._delivered - self._lost
            return PublisherStats(self._sent, self._delivered, waiting, dict(self._dropped))


class _Events(ABC):
    """Makes events and hands them on; safe to use from several threads, and in a forked child, where it starts anew."""

    _pid: int
    _tally: Tally

    def __init__(self) -> None:
        self._begin()
        atexit.register(self.close, _EXIT_S)

    @property
    def stats(self) -> PublisherStats:
        return self._tally.stats()

    @property
    def dropped(self) -> int:
        """Events that will never arrive."""
        return sum(self._tally.stats().dropped.values())

    def prediction(
        self,
        *,
        model: str | Mapping[str, object],
        prediction: object = None,
        features: Mapping[str, object] | None = None,
        event_id: str | None = None,
        time: datetime | str | None = None,
        **fields: object,
    ) -> bool:
        """Publish one served prediction; ``fields`` are further fields of the event, such as ``scores``.

        Without ``event_id`` one is drawn, without ``time`` it is now. Says whether the event was taken.
        """
        return self.publish(
            {
                "event_id": _id_or_new(event_id),
                "time": time if time is not None else datetime.now(UTC),
                "model": {"name": model} if isinstance(model, str) else model,
                "prediction": prediction,
                "features": features,
                **fields,
            }
        )

    def outcome(
        self,
        *,
        model: str | Mapping[str, object],
        value: object = None,
        prediction_id: str | None = None,
        outcome_id: str | None = None,
        observed_time: datetime | str | None = None,
        **fields: object,
    ) -> bool:
        """Publish what a prediction should have been, or an opinion about it."""
        return self.publish(
            {
                "outcome_id": _id_or_new(outcome_id),
                "model": {"name": model} if isinstance(model, str) else model,
                "observed_time": observed_time if observed_time is not None else datetime.now(UTC),
                "prediction_id": prediction_id,
                "value": value,
                **fields,
            }
        )

    def change(
        self,
        *,
        subject: str,
        kind: str = "deploy",
        change_id: str | None = None,
        time: datetime | str | None = None,
        **fields: object,
    ) -> bool:
        """Publish a deploy, flag, configuration, data, schema or registry change of the model ``subject``."""
        return self.publish(
            {
                "change_id": _id_or_new(change_id),
                "kind": kind,
                "subject": subject,
                "time": time if time is not None else datetime.now(UTC),
                **{"from" if name == "from_" else name: value for name, value in fields.items()},
            }
        )

    def publish(self, event: Mapping[str, object]) -> bool:
        """Publish an event as it stands: a prediction has an ``event_id``, an outcome an ``outcome_id``, a change a
        ``change_id``. Fields that are None are left out. Says whether the event was taken."""
        if self._pid != os.getpid():  # threads do not live on in a forked child
            self._begin_anew()
        try:
            present = {name: value for name, value in event.items() if value is not None}
        except Exception as error:
            return self._drop("not_an_event", type(error).__name__)
        try:
            line = _json(present)
        except Exception as error:  # what an event holds may raise anything when it is looked at
            return self._drop("not_json", type(error).__name__)
        if len(line) > MAX_EVENT_BYTES:
            return self._drop("too_large", f"{len(line)} bytes")
        try:
            return self._take(present, line)
        except Exception as error:
            return self._drop("refused", type(error).__name__)

    @abstractmethod
    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Wait until all that was taken has arrived or is dropped; False when that takes longer than ``timeout_s``."""

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Send what is there, then stop; what is not gone within ``timeout_s`` is dropped."""
        atexit.unregister(self.close)
        if self._pid == os.getpid():
            self._end(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        try:
            self._tally = Tally()  # first: the old one's lock may be held by a thread that is no more
            self._start()
        finally:
            self._pid = os.getpid()

    def _begin_anew(self) -> None:
        with _beginning:
            if self._pid != os.getpid():
                try:
                    self._begin()
                except Exception as error:
                    self._tally.drop("refused", type(error).__name__, 0)

    def _drop(self, reason: DropReason, detail: str = "") -> bool:
        self._tally.drop(reason, detail)
        return False

    @abstractmethod
    def _start(self) -> None:
        """Set up what does the sending in this process."""

    @abstractmethod
    def _take(self, event: Mapping[str, object], line: bytes) -> bool: ...

    @abstractmethod
    def _end(self, timeout_s: float) -> None: ...


class Publisher(_Events):
    """Appends events as JSON lines to a file, a named pipe or an open binary stream.

    A thread of its own writes. The buffer holds ``buffer`` events; one more is dropped and counted rather than waited
    for.
    """

    _lines: deque[bytes]
    _changed: threading.Condition
    _thread: threading.Thread

    def __init__(self, target: str | Path | IO[bytes], *, buffer: int = DEFAULT_BUFFER) -> None:
        self._path = Path(target) if isinstance(target, str | Path) else None
        self._stream = None if isinstance(target, str | Path) else target
        self._most = buffer
        super().__init__()

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Wait until all that was taken is written or dropped; False when that takes longer than ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, timeout_s)

    def _end(self, timeout_s: float) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            left = len(self._lines)
            self._lines.clear()
        if left:
            self._tally.lose("closed", events=left)

    def _start(self) -> None:
        self._lines = deque()
        self._writing = False
        self._closed = False
        self._changed = threading.Condition()
        self._file = -1
        self._half_line = False
        self._thread = threading.Thread(target=self._write_all, name="errata-publisher", daemon=True)
        self._thread.start()

    def _take(self, event: Mapping[str, object], line: bytes) -> bool:
        with self._changed:
            if not self._closed and len(self._lines) < self._most:
                self._tally.take()
                self._lines.append(line + b"\n")
                self._changed.notify_all()
                return True
        return self._drop("closed" if self._closed else "buffer_full")

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    break
                lines = list(self._lines)
                self._lines.clear()
                self._writing = True
            try:
                self._write(b"".join(lines))
                self._tally.deliver(len(lines))
            except Exception as error:
                self._forget_file()
                self._tally.lose("refused", type(error).__name__, len(lines))
            finally:
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()
        self._forget_file()

    def _write(self, content: bytes) -> None:
        if self._stream is not None:
            self._stream.write(content)
            self._stream.flush()
            return
        if self._file < 0:
            # Opening a pipe waits for its reader; that is this thread's business, not the caller's.
            self._file = os.open(str(self._path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._half_line:
            content = b"\n" + content
        rest = memoryview(content)
        while rest:
            self._half_line = True
            rest = rest[os.write(self._file, rest) :]
        self._half_line = False

    def _forget_file(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


class KafkaPublisher(_Events):
    """Sends events to Kafka, each to the topic and partition where errata's detector looks for its model.

    ::

        from errata.client import KafkaPublisher

        errata = KafkaPublisher("localhost:9092")
        errata.prediction(model="fraud", prediction="ok", features={"amount": 12.5}, latency_ms=7.5)
        errata.close()

    Without ``bootstrap_servers`` they come from ``ERRATA_KAFKA__BOOTSTRAP_SERVERS``; any ``ERRATA_KAFKA__*`` names a
    property of librdkafka (``ERRATA_KAFKA__SASL_PASSWORD_FILE``: its value from that file), ``properties`` go over them
    by their own names, and ``topic_prefix`` stands in for ``ERRATA_TOPIC_PREFIX``.

    Making one raises ``Misconfigured`` for settings that can never work, and waits for no broker. After that nothing
    raises and nothing waits: the buffer holds ``buffer`` events and ``buffer_bytes`` (100,000 and 32 MiB by default),
    one more is dropped; a broker that is away gets what it missed when it is back within ``timeout_s`` (30 s by
    default) of the event, else the event is dropped. Both are counted.
    """

    _sender: "KafkaSender | None"

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        *,
        topic_prefix: str | None = None,
        buffer: int | None = None,
        buffer_bytes: int | None = None,
        timeout_s: float | None = None,
        properties: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        # confluent-kafka is loaded here and not on import: most who import this never see Kafka, or see it late.
        from errata.adapters import kafka_publisher as kafka

        given = os.environ.get("ERRATA_TOPIC_PREFIX", "") if topic_prefix is None else topic_prefix
        self._topic_prefix = kafka.checked_prefix(given)
        arguments = {
            "bootstrap.servers": bootstrap_servers,
            "queue.buffering.max.messages": buffer,
            "queue.buffering.max.kbytes": None if buffer_bytes is None else max(1, buffer_bytes // 1024),
            "message.timeout.ms": None if timeout_s is None else max(1, round(timeout_s * 1000)),
        }
        variables = kafka.environment_properties(os.environ)
        self._properties = kafka.sender_properties(variables, arguments, properties or {})
        self._make = kafka.KafkaSender
        super().__init__()

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Wait until all that was taken is delivered or dropped; False when that takes longer than ``timeout_s``."""
        sender = self._sender
        if sender is None or self._pid != os.getpid():
            return True
        return sender.flush(timeout_s)

    def _start(self) -> None:
        self._sender = None
        self._sender = self._make(self._properties, self._settle_with(self._tally))

    def _end(self, timeout_s: float) -> None:
        if self._sender is not None:
            self._sender.close(timeout_s)

    def _take(self, event: Mapping[str, object], line: bytes) -> bool:
        if self._sender is None:
            return self._drop("refused")
        topic, key = _place(event)
        self._tally.take()  # first: the report may come before `send` is back
        loss = self._sender.send(self._topic_prefix + topic, key, line)
        if loss is None:
            return True
        self._tally.take(-1)
        return self._drop(*loss)

    @staticmethod
    def _settle_with(tally: Tally) -> Callable[[DropReason | None, str], None]:
        def settle(loss: DropReason | None, detail: str) -> None:
            if loss is None:
                tally.deliver()
            else:
                tally.lose(loss, detail)

        return settle


def _place(event: Mapping[str, object]) -> tuple[str, bytes | None]:
    """Topic and key of an event; one that names no model has no key and is refused by its reader, with a reason."""
    topic = next((topic for field, topic in _TOPICS.items() if field in event), _TOPICS["event_id"])
    model = event.get("model")
    named = model.get("name") if isinstance(model, Mapping) else None
    name = event.get("subject") if topic == _TOPICS["change_id"] else named
    tenant = event.get("tenant", "default")
    if not (isinstance(name, str) and name and isinstance(tenant, str)):
        return topic, None
    return topic, (name if tenant == "default" else f"{tenant}/{name}").encode(errors="surrogatepass")


def _id_or_new(given: str | None) -> str:
    return str(uuid4()) if given is None or (isinstance(given, str) and not given) else given


def _json(event: Mapping[str, object]) -> bytes:
    return json.dumps(event, allow_nan=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> object:
    """What services hand in beside plain data: times, ids and numbers of numpy."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs an offset")
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        return item()
    raise TypeError("not plain data")


_beginning = threading.RLock()  # two threads of a forked child must not both begin anew


def _new_lock() -> None:
    global _beginning
    _beginning = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
