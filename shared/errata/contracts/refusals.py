"""Raw bytes to events by the published contract, or a refusal with the JSON pointer of the first faulty field.

The class of a refusal is the first that holds of oversize, decode, schema and clock. Its path is the first field with a
fault of that class in schema order: the fields as the schema lists them, then unknown ones as the document lists them.
A fault without a place (syntax, encoding, depth) has the path of the whole document, the empty text; so has a name
that cannot be kept, with the path of the object it stands in.

The fast decoder uses the same pieces where speed does not matter, and is held to the rest by one corpus.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import ValidationError

from errata.contracts.base import Message, Part
from errata.contracts.events import ChangeEvent, Outcome, PredictionEvent
from errata.contracts.strict import (
    INT64_MAX,
    INT64_MIN,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_FEATURES,
    check_text,
    to_us,
)
from errata.errors import Refused, RefusedClock, RefusedDecode, RefusedOversize, RefusedSchema

_M = TypeVar("_M", bound=Message)

MAX_AHEAD_US = 24 * 3600 * 1_000_000
BOM = b"\xef\xbb\xbf"
KINDS = {bool: "bool", int: "number", float: "number", str: "text", type(None): "null", list: "list", dict: "object"}
_TOO_LONG = INT64_MAX + 1  # stands for an integer of so many digits that Python does not read it
_ABSENT = object()
_INSTANT = "an RFC 3339 time with seconds and an offset, such as 2026-01-05T12:00:00Z"
_NAME = "a text of 1 to 200 characters"
_PREDICTION = "a text, number, bool or list of at most 4,096 numbers"
_EXPECTED = {
    "": "a JSON object",
    "/event_id": _NAME,
    "/outcome_id": _NAME,
    "/change_id": _NAME,
    "/prediction_id": _NAME,
    "/supersedes": _NAME,
    "/tenant": _NAME,
    "/subject": _NAME,
    "/model": "an object with a name",
    "/model/name": _NAME,
    "/time": _INSTANT,
    "/observed_time": _INSTANT,
    "/recorded_time": _INSTANT,
    "/outcome/observed_time": _INSTANT,
    "/outcome/recorded_time": _INSTANT,
    "/prediction": _PREDICTION + ", unless status.code is there",
    "/predicted": _PREDICTION,
    "/status/code": "ok, error, timeout, fallback or missing_response",
    "/purpose": "live, drill, heartbeat, backfill or tick",
    "/latency_ms": "a number of milliseconds, 0 or more",
    "/confidence": "a number",
    "/sampled_rate": "a number above 0",
    "/features": "an object of names and values",
    "/scores": "an object of names and numbers",
}


def parse_prediction(raw: bytes, *, record_time_us: int | None) -> PredictionEvent:
    """The prediction event in ``raw``, or a `Refused`. Without a record time the clock is not checked."""
    document = load(raw, PredictionEvent)
    event = _validated(PredictionEvent, document)
    check_clock("/time", to_us(event.time), record_time_us)
    return event


def parse_outcome(raw: bytes, *, record_time_us: int | None) -> Outcome:
    """The outcome in ``raw``, or a `Refused`. Its clock is ``observed_time``."""
    outcome = _validated(Outcome, load(raw, Outcome))
    check_clock("/observed_time", to_us(outcome.observed_time), record_time_us)
    return outcome


def parse_change(raw: bytes, *, record_time_us: int | None) -> ChangeEvent:
    """The change in ``raw``, or a `Refused`."""
    change = _validated(ChangeEvent, load(raw, ChangeEvent))
    check_clock("/time", to_us(change.time), record_time_us)
    return change


def load(raw: bytes, model: type[Message]) -> dict[str, Any]:
    """The JSON object in ``raw`` once nothing in it is oversize or cannot be kept, or a `Refused`."""
    if len(raw) > MAX_BYTES:
        raise RefusedOversize("", f"more than {MAX_BYTES // 1024} KiB; send less, or a reference to it")
    document = _read(raw)
    check_document(document, model, raw)
    if not isinstance(document, dict):
        raise RefusedSchema("", f"an event is {_EXPECTED['']}, not a {kind(document)}")
    return document


def check_document(document: Any, model: type[Message], raw: bytes) -> None:
    """Refuse a parsed document that is too deep, has too many features, or holds what cannot be kept."""
    if isinstance(document, dict):
        check_features(document)
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and too_deep(document):
        raise RefusedDecode("", f"nested deeper than {MAX_DEPTH}; flatten it")
    for path, message in decode_faults(document, model):
        raise RefusedDecode(path, message)


def check_features(document: Mapping[str, Any]) -> None:
    features = document.get("features")
    if isinstance(features, dict) and len(features) > MAX_FEATURES:
        raise RefusedOversize("/features", f"more than {MAX_FEATURES:,} features; send fewer")


def check_clock(path: str, time_us: int, record_time_us: int | None) -> None:
    if record_time_us is not None and time_us - record_time_us > MAX_AHEAD_US:
        raise clock_refusal(path)


def clock_refusal(path: str) -> RefusedClock:
    return RefusedClock(path, "more than 24 h after the record's time; check the publisher's clock")


def kind(value: Any) -> str:
    """The JSON kind of a parsed value, for messages that must not hold the value."""
    return KINDS.get(type(value), "value")


def pointer(path: str, part: str | int) -> str:
    """``path`` and one more reference token, escaped by RFC 6901.

    >>> pointer("/features", "a/b~c")
    '/features/a~1b~0c'
    """
    return f"{path}/{str(part).replace('~', '~0').replace('/', '~1')}"


def schema_refusal(path: str, document: Any) -> RefusedSchema:
    """The refusal of a missing or wrong field at ``path``; the message is made of the path and the value's kind."""
    expected = _EXPECTED.get(path, "what the schema says of this field")
    found = _at(document, path)
    if found is _ABSENT:
        return RefusedSchema(path, f"required and missing; send {expected}")
    return RefusedSchema(path, f"this {kind(found)} cannot stand here; send {expected}")


def decode_faults(document: Any, model: type[Message]) -> Iterator[tuple[str, str]]:
    """(path, message) of texts and numbers that JSON or PostgreSQL cannot keep, in schema order."""
    return _faults(document, model, "")


def too_deep(document: Any) -> bool:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return any(isinstance(value, dict | list) for value in level)


def _read(raw: bytes) -> Any:
    if raw.startswith(BOM):
        raise RefusedDecode("", "starts with a byte order mark; send plain UTF-8")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise RefusedDecode("", "not UTF-8; encode it as UTF-8") from None
    try:
        return _json(text)
    except RecursionError:
        raise RefusedDecode("", f"nested deeper than {MAX_DEPTH}; flatten it") from None
    except ValueError:
        raise RefusedDecode("", "not JSON; send one JSON object") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of thousands of digits: read the rest, to say where it stands
        return json.loads(text, parse_int=_int)


def _int(digits: str) -> int:
    return int(digits) if len(digits) < 25 else _TOO_LONG


@cache
def _fields(model: type[Part]) -> dict[str, type[Part] | None]:
    """The fields of a part in schema order by their names on the wire, with the part each one holds."""
    return {info.alias or name: _part_of(info.annotation) for name, info in model.model_fields.items()}


def _part_of(annotation: Any) -> type[Part] | None:
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Part):
            return one
    return None


def _faults(value: Any, model: type[Part] | None, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if not all(_keepable(name) for name in value):
            yield path, "a name in here holds a NUL or a lone surrogate; leave it out"
        fields = _fields(model) if model else {}
        for name in fields:
            if name in value:
                yield from _faults(value[name], fields[name], f"{path}/{name}")
        for name, inner in value.items():
            if name not in fields:
                yield from _faults(inner, None, pointer(path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _faults(inner, None, f"{path}/{index}")
    elif isinstance(value, str):
        if not _keepable(value):
            yield path, "this text holds a NUL or a lone surrogate; leave it out"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield path, "this number is not finite; send null or leave it out"
    elif isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        yield path, "this integer needs more than 64 bits; send it as a text"


def _keepable(text: str) -> bool:
    try:
        check_text(text)
    except ValueError:
        return False
    return True


def _validated(model: type[_M], document: dict[str, Any]) -> _M:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        _refuse(model, document, error)


def _refuse(model: type[Message], document: dict[str, Any], error: ValidationError) -> NoReturn:
    order = {name: at for at, name in enumerate(_fields(model))}
    paths = [_path(one["loc"]) for one in error.errors(include_url=False, include_context=False, include_input=False)]
    missing = _MISSING.get(model, lambda _: ())(document)
    # `sorted` is stable: within one field the order is pydantic's, which is the schema's.
    first = sorted([*missing, *filter(None, paths)], key=lambda path: order.get(path.split("/")[1], len(order)))
    raise schema_refusal(first[0] if first else "", document)


def _path(loc: tuple[str | int, ...]) -> str:
    path = ""
    for part in loc:
        path = pointer(path, part)
    return path


def missing_of_prediction(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of what a prediction event must have by rules across fields, in schema order."""
    if document.get("purpose") == "tick":
        return ()
    status = document.get("status")
    coded = isinstance(status, dict) and "code" in status
    return (
        *model_missing(document),
        *(("/prediction",) if document.get("prediction") is None and not coded else ()),
    )


def missing_of_outcome(document: Mapping[str, Any]) -> tuple[str, ...]:
    """As `missing_of_prediction`, of an outcome."""
    get = document.get
    return (
        *model_missing(document),
        *(("/prediction_id",) if get("prediction_id") is None and get("predicted") is None else ()),
        *(("/value",) if get("value") is None and get("score") is None else ()),
    )


def model_missing(document: Mapping[str, Any]) -> tuple[str, ...]:
    if "model" not in document:
        return ("/model/name",)
    return ("/model",) if document["model"] is None else ()


_MISSING: dict[type[Message], Any] = {PredictionEvent: missing_of_prediction, Outcome: missing_of_outcome}


def _at(document: Any, path: str) -> Any:
    found = document
    for part in path.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return _ABSENT
    return found


__all__ = [
    "MAX_AHEAD_US",
    "Refused",
    "check_clock",
    "check_document",
    "check_features",
    "clock_refusal",
    "kind",
    "load",
    "missing_of_outcome",
    "missing_of_prediction",
    "parse_change",
    "parse_outcome",
    "parse_prediction",
    "pointer",
    "schema_refusal",
]
