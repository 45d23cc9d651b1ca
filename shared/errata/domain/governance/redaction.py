"""What of an event may leave the stages that read it raw: decided per field by the model's contract.

Default deny: what no contract declares leaves as a pseudonym (texts) or not at all (everything else). Nothing in here
raises for a value, so that no error text can carry one.
"""

import hashlib
import hmac
import math
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Final

from errata.contracts import Contract, Outcome, PredictionEvent
from errata.contracts.models import Bucket, FeatureContract

PREFIX: Final = "hmac:"
PSEUDONYM_HEX: Final = 32  # 128 bits
LONGEST_CLASS: Final = 200  # characters; a longer prediction is free text, which no contract has allowed

_DROPPED: Final = object()


def redact_features(features: Mapping[str, Any], contract: Contract | None, key: bytes) -> dict[str, Any]:
    """The features as a case may keep them, by name.

    ``keep``: as it is; ``hash``: a pseudonym; ``bucket``: the bucket of a number, else a pseudonym; ``drop``: absent.
    A feature the contract does not declare (or any, without a contract): texts as pseudonyms, all else absent.
    """
    if contract is not None and contract.evidence == "none":
        return {}
    declared = contract.features if contract is not None else {}
    return _present({name: _by_policy(name, features[name], declared.get(name), key) for name in sorted(features)})


def redact_segments(segments: Mapping[str, Any], contract: Contract | None, key: bytes) -> dict[str, Any]:
    """The segments as a case may keep them: by the policy of the declared feature of that name, else hashed."""
    if contract is not None and contract.evidence == "none":
        return {}
    declared = contract.features if contract is not None else {}
    return _present(
        {
            name: _by_policy(name, segments[name], declared[name], key)
            if name in declared
            else _hashed(name, segments[name], key)
            for name in sorted(segments)
        }
    )


def redact_event(event: PredictionEvent, contract: Contract | None, key: bytes) -> dict[str, Any]:
    """What a case keeps of a prediction: features, segments, latency_ms, status, prediction, scores, confidence.

    Of the status only its code: an error type is text of the publisher's making. Ids, source, trace and attributions
    stay behind.
    """
    if contract is not None and contract.evidence == "none":
        return {}
    values: dict[str, Any] = {
        "features": redact_features(event.features, contract, key),
        "segments": redact_segments(event.segments, contract, key),
        "latency_ms": event.latency_ms,
        "status": event.status.code if event.status is not None else None,
        "prediction": redact_output(event.prediction, contract, key),
        "scores": _scores(event.scores, key),
        "confidence": event.confidence,
    }
    return {name: value for name, value in values.items() if value is not None and value != {}}


def redact_outcome(outcome: Outcome, contract: Contract | None, key: bytes) -> dict[str, Any]:
    """What a case keeps of an outcome that carries its own prediction; its rationale stays behind."""
    if contract is not None and contract.evidence == "none":
        return {}
    values: dict[str, Any] = {
        "segments": redact_segments(outcome.segments, contract, key),
        "prediction": redact_output(outcome.predicted, contract, key),
        "confidence": outcome.confidence,
    }
    return {name: value for name, value in values.items() if value is not None and value != {}}


def redact_output(value: object, contract: Contract | None, key: bytes) -> Any:
    """A prediction or label: kept, but a text too long for a class is hashed; ``evidence: none`` keeps nothing."""
    if contract is not None and contract.evidence == "none":
        return None
    if isinstance(value, str) and len(value) > LONGEST_CLASS:
        return pseudonym("prediction", value, key)
    kept = _kept(value)
    return None if kept is _DROPPED else kept


def pseudonym(field: str, value: str | float, key: bytes) -> str:
    """``hmac:`` + 128 bits of HMAC-SHA-256(key, field, 0x1f, normalised value): joins equal values, tells none.

    >>> pseudonym("city", " Ulm ", b"k") == pseudonym("city", "Ulm", b"k") != pseudonym("town", "Ulm", b"k")
    True
    """
    message = field.encode("utf-8", "surrogatepass") + b"\x1f" + _normalised(value).encode("utf-8", "surrogatepass")
    return PREFIX + hmac.new(key, message, hashlib.sha256).hexdigest()[:PSEUDONYM_HEX]


def bucket_of(value: float, bucket: Bucket) -> str:
    """The bucket a number falls in, lower edge included.

    >>> edges = Bucket(edges=[18, 30.5])
    >>> bucket_of(17.9, edges), bucket_of(18, edges), bucket_of(30.5, edges)
    ('<18', '[18,30.5)', '>=30.5')
    """
    edges = sorted(bucket.edges)
    at = bisect_right(edges, value)
    if at == 0:
        return f"<{_number(edges[0])}"
    if at == len(edges):
        return f">={_number(edges[-1])}"
    return f"[{_number(edges[at - 1])},{_number(edges[at])})"


def _by_policy(name: str, value: Any, declared: FeatureContract | None, key: bytes) -> Any:
    if declared is None:
        return _hashed(name, value, key) if isinstance(value, str) else _DROPPED
    if declared.policy == "keep":
        return _kept(value)
    if declared.policy == "drop":
        return _DROPPED
    if declared.policy == "bucket" and declared.bucket is not None and _is_number(value):
        return bucket_of(value, declared.bucket)
    return _hashed(name, value, key)


def _hashed(name: str, value: Any, key: bytes) -> Any:
    if value is None:
        return None  # that a value is missing is what the case is about, and tells of nobody
    return pseudonym(name, value, key) if isinstance(value, str | bool | int | float) else _DROPPED


def _kept(value: Any) -> Any:
    """Plain values and lists of them; an object is nothing a contract can declare, so nobody has allowed it."""
    if isinstance(value, list | tuple):
        return list(value) if all(_is_plain(item) for item in value) else _DROPPED
    return value if _is_plain(value) else _DROPPED


def _scores(scores: Mapping[str, float], key: bytes) -> dict[str, float]:
    """Scores by class; a class name too long to be one is a pseudonym, as a prediction would be."""
    return {
        name if len(name) <= LONGEST_CLASS else pseudonym("prediction", name, key): scores[name]
        for name in sorted(scores)
    }


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not _DROPPED}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _normalised(value: str | float) -> str:
    """One text for what means the same: surrounding blanks, Unicode forms and 1 against 1.0 make no difference."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    return _number(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if math.isfinite(value) and value.is_integer() else repr(value)
