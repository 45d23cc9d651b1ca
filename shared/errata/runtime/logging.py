"""Logs of the processes: JSON lines for machines, one readable line for a person at a terminal, and never a secret.

Libraries that log through the standard library end in the same lines, through the same masks.
"""

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from errata.errors import ErrataError

MASK = "***"

_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)|passwd|pwd$|secret|token|api[._-]?key|private[._-]?key|ssl\.key\.pem|redaction[._-]?key"
    r"|authorization|credential|cookie|jaas",
    re.IGNORECASE,
)
# Up to the last @ before a space or quote, since a password may hold one itself.
_CREDENTIALS_IN_URL = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s\"'<>]*@", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"""((?:[\w.-]*(?:password|passwd|pwd|passphrase|secret|token|api[._-]?key))["']?\s*[=:]\s*)"""
    r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&"']+)""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_CARRIED = ("_record", "_from_structlog")  # by structlog, from the logger to the formatter
_FRAMES = 8
_MAX_DEPTH = 8


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without credentials in URLs, values assigned to names of secrets, and the given secrets.

    >>> masked("postgresql://errata:hunter2@db:5432/errata refused; sasl.password=hunter2")
    'postgresql://***@db:5432/errata refused; sasl.password=***'
    """
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _CREDENTIALS_IN_URL.sub(rf"\1{MASK}@", text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _ASSIGNED.sub(rf"\1{MASK}", text)


class MaskSecrets:
    """A processor after which no value of a line, at any depth, holds a secret. Bytes lose their content as well."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first, so that a secret that contains another goes whole.
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {masked(name, self._secrets): self._value(name, value, 0) for name, value in event.items()}

    def _value(self, name: str, value: Any, depth: int) -> Any:
        if name in _CARRIED:
            return value
        if _SECRET_KEY.search(name):
            return MASK
        return self._inner(value, depth)

    def _inner(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)):
            return value
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} bytes>"
        if isinstance(value, Mapping | list | tuple | set | frozenset) and depth < _MAX_DEPTH:
            return self._items(value, depth + 1)
        if isinstance(value, BaseException):
            return _error_text(value, self._secrets)
        return masked(str(value), self._secrets)

    def _items(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {
                masked(str(name), self._secrets): self._value(str(name), item, depth) for name, item in value.items()
            }
        return [self._inner(item, depth) for item in value]


def plain_errors(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Turn ``exc_info`` into type and places. The text of an error that is not ours may hold a value of an event."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["error"] = _error_text(error, ())
        event["frames"] = _frames(error.__traceback__)
    return event


def _error_text(error: BaseException, secrets: Iterable[str]) -> str:
    name = type(error).__name__
    return masked(f"{name}: {error}", secrets) if isinstance(error, ErrataError) else name


def _frames(trace: TracebackType | None) -> list[str]:
    """The innermost places, without lines of code."""
    return [f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in extract_tb(trace)[-_FRAMES:]]


def configure_logging(
    service: str,
    instance: str,
    json: bool,
    *,
    version: str = "",
    level: str = "INFO",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Set up structlog and the standard library's logging for this process; a second call replaces the first.

    Every line has ``time`` (UTC), ``level``, ``event``, ``service``, ``instance`` and ``version``. ``secrets`` are
    values that must not appear wherever they come from. Lines go to standard error by default: standard output is for
    data.
    """
    standard = {"service": service, "instance": instance} | ({"version": version} if version else {})

    def identify(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        for name, value in standard.items():
            event.setdefault(name, value)
        return event

    before: list[Processor] = [
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        identify,
        plain_errors,
        MaskSecrets(secrets),
    ]
    out = stream if stream is not None else sys.stderr
    renderer: Processor = (
        structlog.processors.JSONRenderer(sort_keys=True)
        if json
        else structlog.dev.ConsoleRenderer(colors=out.isatty(), timestamp_key="time")
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(), *before],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


__all__ = ["MASK", "MaskSecrets", "configure_logging", "masked", "plain_errors"]
