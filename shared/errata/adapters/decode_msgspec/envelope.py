"""The envelope of an event by hand-written checks: what strict pydantic accepts and refuses, at a tenth of its price.

A check takes a value and gives the path of its first faulty part relative to itself, or None. The corpus holds these
checks to the published contract.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import msgspec

from errata.contracts import Message, Outcome, PredictionEvent
from errata.contracts.events import OutcomeKind, Purpose, StatusCode
from errata.contracts.refusals import (
    check_document,
    check_features,
    load,
    missing_of_outcome,
    missing_of_prediction,
    pointer,
    schema_refusal,
)
from errata.contracts.strict import MAX_BYTES, MAX_DEPTH, MAX_VECTOR, instant_us
from errata.errors import Refused, RefusedDecode

Check = Callable[[Any], str | None]

_MAX_NAME = 200
_ZEROS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else ord(" ") for byte in range(256))
_LONG_INTEGER = (
    b"0" * 19
)  # nineteen digits in a row, once each digit is a zero: an eighth of a regular expression's time
_NO_JSON = "Input data was truncated", "JSON is malformed: invalid number"  # as msgspec words it, and so the next
_SEND_JSON = "not JSON; send one JSON object"
# Of many events, and never raised: to make and raise one for each costs as much again as finding what is wrong.
_CUT_OFF = RefusedDecode("", _SEND_JSON)
NAMELESS = schema_refusal("/event_id", {})
_decode = msgspec.json.Decoder().decode


def _text(value: Any) -> str | None:
    return None if value.__class__ is str else ""


def _name(value: Any) -> str | None:
    return None if value.__class__ is str and 0 < len(value) <= _MAX_NAME else ""


def _number(value: Any) -> str | None:
    return None if value.__class__ is float or value.__class__ is int else ""


def _integer(value: Any) -> str | None:
    return None if value.__class__ is int else ""


def _at_least_0(value: Any) -> str | None:
    return None if _number(value) is None and value >= 0 else ""


def _above_0(value: Any) -> str | None:
    return None if _number(value) is None and value > 0 else ""


def _scalar(value: Any) -> str | None:
    return "" if value.__class__ is list or value.__class__ is dict else None


def is_vector(value: Any) -> bool:
    return value.__class__ is list and len(value) <= MAX_VECTOR and all(_number(one) is None for one in value)


def _prediction(value: Any) -> str | None:
    return None if _scalar(value) is None or is_vector(value) else ""


def _instant(value: Any) -> str | None:
    if value.__class__ is not str:
        return ""
    try:
        instant_us(value)
    except ValueError:
        return ""
    return None


def _bag(value: Any) -> str | None:
    return None if value.__class__ is dict else ""


def _or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _one_of(literal: Any) -> Check:
    allowed = frozenset(get_args(literal))
    return lambda value: None if value.__class__ is str and value in allowed else ""


def _map(check: Check) -> Check:
    def of_all(value: Any) -> str | None:
        if value.__class__ is not dict:
            return ""
        for name, one in value.items():
            if check(one) is not None:
                return pointer("", name)
        return None

    return of_all


def _list(check: Check) -> Check:
    def of_all(value: Any) -> str | None:
        if value.__class__ is not list:
            return ""
        for index, one in enumerate(value):
            if check(one) is not None:
                return f"/{index}"
        return None

    return of_all


def _part(required: tuple[str, ...] = (), **checks: Check) -> Check:
    def of_part(value: Any) -> str | None:
        if value.__class__ is not dict:
            return ""
        for name, check in checks.items():
            if name in value:
                fault = check(value[name])
                if fault is not None:
                    return f"/{name}{fault}"
            elif name in required:
                return f"/{name}"
        return None

    return of_part


_T = _or_null(_text)
_MODEL = _part(("name",), name=_name, version=_T, digest=_T)
_SOURCE = _part(kind=lambda value: None if value in ("human", "system", "judge") else "", id=_T)

_PREDICTION: dict[str, Check] = {
    "event_id": _name,
    "time": _instant,
    "model": _or_null(_MODEL),
    "prediction": _prediction,
    "status": _or_null(_part(code=_one_of(StatusCode), error_type=_T)),
    "tenant": _name,
    "purpose": _one_of(Purpose),
    "prediction_id": _or_null(_name),
    "source": _T,
    "type": _text,
    "features": _bag,
    "scores": _map(_number),
    "confidence": _or_null(_number),
    "attributions": _map(_number),
    "latency_ms": _or_null(_at_least_0),
    "segments": _map(_scalar),
    "outcome": _or_null(
        _part(
            value=_scalar,
            score=_or_null(_number),
            observed_time=_or_null(_instant),
            kind=_one_of(OutcomeKind),
            source=_or_null(_SOURCE),
            rationale=_T,
            recorded_time=_or_null(_instant),
        )
    ),
    "deployment": _or_null(_part(endpoint=_T, variant=_T, region=_T, runtime=_T)),
    "versions": _or_null(_part(preprocessing=_T, feature_view=_T, dataset=_T, code=_T, prompt=_T)),
    "sampled_rate": _above_0,
    "classification": _or_null(_part(level=_T, category=_T, regulation=_list(_text))),
    "recorded_time": _or_null(_instant),
    "correlation_id": _T,
    "causation_id": _T,
    "traceparent": _T,
    "raw_ref": _T,
    "adapter": _or_null(_part(id=_T, version=_T)),
    "producer": _or_null(_part(id=_T, seq=_or_null(_integer))),
    "schema_version": _T,
}
_OUTCOME: dict[str, Check] = {
    "outcome_id": _name,
    "model": _MODEL,
    "observed_time": _instant,
    "prediction_id": _or_null(_name),
    "value": _scalar,
    "score": _or_null(_number),
    "predicted": _prediction,
    "confidence": _or_null(_number),
    "segments": _map(_scalar),
    "predicted_time": _or_null(_instant),
    "tenant": _name,
    "purpose": _one_of(Purpose),
    "kind": _one_of(OutcomeKind),
    "source": _or_null(_SOURCE),
    "supersedes": _or_null(_name),
    "rationale": _T,
    "recorded_time": _or_null(_instant),
}


def read_prediction(raw: bytes) -> dict[str, Any]:
    """The prediction event in ``raw`` as plain data that the contract accepts, or a `Refused`; no clock check."""
    document = _read(raw, PredictionEvent)
    _check(document, _PREDICTION, ("event_id", "time"), missing_of_prediction(document))
    return document


def read_outcome(raw: bytes) -> dict[str, Any]:
    """As `read_prediction`, of an outcome."""
    document = _read(raw, Outcome)
    _check(document, _OUTCOME, ("outcome_id", "observed_time"), missing_of_outcome(document))
    return document


def _check(
    document: Mapping[str, Any], checks: Mapping[str, Check], required: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    if not missing and all(name in document for name in required) and _is_clear(document, checks):
        return
    across = {path.split("/")[1]: path for path in missing}
    for name, check in checks.items():
        if name in across:
            raise schema_refusal(across[name], document)
        if name in document:
            fault = check(document[name])
            if fault is not None:
                raise schema_refusal(f"/{name}{fault}", document)
        elif name in required:
            raise schema_refusal(f"/{name}", document)


def _is_clear(document: Mapping[str, Any], checks: Mapping[str, Check]) -> bool:
    """Whether no field that is there has a fault; in any order, which costs least."""
    for name, value in document.items():
        check = checks.get(name)
        if check is not None and check(value) is not None:
            return False
    return True


def _read(raw: bytes, model: type[Message]) -> dict[str, Any]:
    if len(raw) > MAX_BYTES:
        return load(raw, model)
    try:
        document = _decode(raw)
    except msgspec.DecodeError as error:
        if _is_no_json(str(error), raw):
            raise RefusedDecode("", _SEND_JSON) from None
        return load(raw, model)
    except (ValueError, RecursionError):
        return load(raw, model)
    if document.__class__ is not dict:
        return load(raw, model)
    if has_hidden_faults(raw):
        check_document(document, model, raw)
    else:
        check_features(document)
    return document


def evident_refusal(fault: str, raw: bytes) -> Refused | None:
    """The refusal of an event that a typed decoder told all of in ``fault``: cut off, as most that are no JSON."""
    return _CUT_OFF if _is_no_json(fault, raw) else None


def _is_no_json(fault: str, raw: bytes) -> bool:
    """Whether what msgspec says of a text is all there is to say: it ends too early, or holds a number that is none.

    One cut off inside a pair of escapes is "truncated" to msgspec too, and has a place; one cut off inside a text was
    not looked at for UTF-8.
    """
    return fault.startswith(_NO_JSON) and raw.isascii() and b"\\u" not in raw


def has_hidden_faults(raw: bytes) -> bool:
    """Whether ``raw`` may hold what msgspec reads without a word: NUL, integers over 64 bits, too deep nesting."""
    return b"\\u0000" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH or _LONG_INTEGER in raw.translate(_ZEROS)
