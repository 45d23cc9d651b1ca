"""Routing of published lines: enough of the envelope to find topic and key, decoded by msgspec."""

from typing import Any

import msgspec

from errata.contracts.strict import instant_us
from errata.contracts.topics import CHANGES, OUTCOMES, PREDICTIONS, model_key
from errata.ports import Route


class _Model(msgspec.Struct, gc=False):
    name: str = ""


class _Line(msgspec.Struct, gc=False):
    event_id: Any = None
    outcome_id: Any = None
    change_id: Any = None
    model: _Model | None = None
    subject: str | None = None
    tenant: str = "default"
    time: str | None = None
    observed_time: str | None = None


class LineRouter:
    """See `errata.ports.Router`."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Line).decode

    def route(self, line: bytes) -> Route:
        try:
            found = self._decode(line)
        except (msgspec.DecodeError, RecursionError):
            return Route(self._topic_of_broken(line), None, None)
        topic, name, time = _parts(found)
        return Route(topic, model_key(found.tenant, name) if name else None, _us(time))

    @staticmethod
    def _topic_of_broken(line: bytes) -> str:
        """The topic of a line that breaks the envelope, by the id it carries if it is JSON at all."""
        try:
            found = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            return PREDICTIONS
        if not isinstance(found, dict) or "event_id" in found:
            return PREDICTIONS
        return OUTCOMES if "outcome_id" in found else CHANGES if "change_id" in found else PREDICTIONS


def _parts(line: _Line) -> tuple[str, str | None, str | None]:
    model = line.model.name if line.model else None
    if line.event_id is not None or (line.outcome_id is None and line.change_id is None):
        return PREDICTIONS, model, line.time
    if line.outcome_id is not None:
        return OUTCOMES, model, line.observed_time
    return CHANGES, line.subject, line.time


def _us(time: str | None) -> int | None:
    try:
        return None if time is None else instant_us(time)
    except (ValueError, OverflowError):
        return None
