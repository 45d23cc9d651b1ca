"""The publisher: hands events to errata from inside other people's services.

It never raises, never blocks the caller on I/O, and loads only the standard library. Events are checked by whoever
reads them; here they need only be JSON. What cannot be sent is counted in ``Publisher.dropped``.

>>> import io
>>> stream = io.BytesIO()
>>> with Publisher(stream) as errata:
...     errata.prediction(model="fraud", prediction="ok", event_id="1", time="2026-01-05T12:00:00Z")
True
>>> stream.getvalue()
b'{"event_id":"1","time":"2026-01-05T12:00:00Z","model":{"name":"fraud"},"prediction":"ok"}\\n'
"""

import atexit
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from uuid import uuid4

__all__ = ["Publisher"]

DEFAULT_BUFFER = 10_000  # events
_CLOSE_S = 5.0
_EXIT_S = 2.0
_LOG = logging.getLogger("errata.client")


class Publisher:
    """Appends events as JSON lines to a file, a named pipe or an open binary stream.

    A thread of its own writes. The buffer holds ``buffer`` events; one more is dropped and counted rather than waited
    for. The first drop of each kind is logged once, as a warning of one line. Safe to use from several threads; in a
    forked child it starts anew.
    """

    _pid: int
    _dropped: int
    _lines: deque[bytes]
    _changed: threading.Condition
    _thread: threading.Thread

    def __init__(self, target: str | Path | IO[bytes], *, buffer: int = DEFAULT_BUFFER) -> None:
        self._path = Path(target) if isinstance(target, str | Path) else None
        self._stream = None if isinstance(target, str | Path) else target
        self._most = buffer
        self._warned: set[str] = set()
        self._start()
        atexit.register(self.close, _EXIT_S)

    @property
    def dropped(self) -> int:
        """Events that will never arrive."""
        return self._dropped

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
        return self._offer(
            {
                "event_id": event_id or str(uuid4()),
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
        return self._offer(
            {
                "outcome_id": outcome_id or str(uuid4()),
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
        return self._offer(
            {
                "change_id": change_id or str(uuid4()),
                "kind": kind,
                "subject": subject,
                "time": time if time is not None else datetime.now(UTC),
                **{"from" if name == "from_" else name: value for name, value in fields.items()},
            }
        )

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Wait until all that was taken is written or dropped; False when that takes longer than ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._writing, timeout_s)

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Write what is there, then stop; what is not written within ``timeout_s`` is dropped."""
        atexit.unregister(self.close)
        if self._pid != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            self._dropped += len(self._lines)
            self._lines.clear()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._dropped = 0
        self._lines = deque()
        self._writing = False
        self._closed = False
        self._changed = threading.Condition()
        self._file = -1
        self._half_line = False
        self._thread = threading.Thread(target=self._write_all, name="errata-publisher", daemon=True)
        self._thread.start()

    def _offer(self, event: Mapping[str, object]) -> bool:
        try:
            if self._pid != os.getpid():  # threads do not live on in a forked child
                self._start()
            line = _line(event)
        except (TypeError, ValueError, RecursionError) as error:
            return self._drop(1, "an event that is not finite JSON", error)
        except Exception as error:
            return self._drop(1, "an event", error)
        with self._changed:
            if not self._closed and len(self._lines) < self._most:
                self._lines.append(line)
                self._changed.notify_all()
                return True
        return self._drop(1, "an event after close" if self._closed else "an event: the buffer is full", None)

    def _drop(self, events: int, what: str, error: Exception | None) -> bool:
        with self._changed:
            self._dropped += events
            first = what not in self._warned
            self._warned.add(what)
        if first:
            why = f" ({type(error).__name__})" if error else ""
            _LOG.warning("errata drops %s%s; further ones are counted only", what, why)
        return False

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
            except Exception as error:
                self._forget_file()
                self._drop(len(lines), "events: the target cannot be written", error)
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


def _line(event: Mapping[str, object]) -> bytes:
    present = {name: value for name, value in event.items() if value is not None}
    return json.dumps(present, allow_nan=False, separators=(",", ":"), default=_plain).encode() + b"\n"


def _plain(value: Any) -> object:
    """What services hand in beside plain data: times, ids and numbers of numpy."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs an offset")
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        return item()
    raise TypeError("not plain data")
