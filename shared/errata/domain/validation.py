"""Checks an event against its model's contract, one event at a time, in plain words.

The reasons are those of the detectors' counters: ``type``, ``range``, ``missing``, ``extra`` and ``unseen_category`` of
features; ``unseen_class``, ``range``, ``type`` and ``scores`` of the output. Messages name the kind of a value and
never the value: they are printed and logged.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from pydantic import BaseModel

from errata.contracts import Contract, PredictionEvent
from errata.contracts.models import FeatureContract, OutputContract, Range
from errata.contracts.reading import kind_of
from errata.contracts.strict import MAX_FEATURE_BYTES, MAX_VECTOR

_WANTED = {
    "number": "a number",
    "integer": "an integer",
    "category": "a text",
    "text": "a text",
    "bool": "true or false",
    "vector": f"a list of at most {MAX_VECTOR:,} numbers",
}


class Violation(NamedTuple):
    """``pointer`` is the JSON pointer of the faulty field in the event."""

    pointer: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class FeatureCheck:
    """A feature's contract, compiled: ``of_type`` tells values of its type, ``categories`` None allows any text."""

    of_type: Callable[[Any], bool]
    low: float
    high: float
    ranged: bool
    categories: frozenset[str] | None

    def fault(self, value: Any) -> str | None:
        """The reason why a value that is there breaks the contract; None when it does not."""
        if not self.of_type(value):
            return "type"
        if self.ranged and not self.low <= value <= self.high:
            return "range"
        if self.categories is not None and value not in self.categories:
            return "unseen_category"
        return None


def compile_check(feature: FeatureContract) -> FeatureCheck:
    """
    >>> check = compile_check(FeatureContract(type="integer", range=Range(min=0, max=104)))
    >>> [check.fault(value) for value in (104, 105, 1.0, True)]
    [None, 'range', 'type', 'type']
    """
    numeric = feature.type in ("number", "integer")
    low, high = bounds(feature.range)
    named = feature.categories if feature.type == "category" else None
    return FeatureCheck(
        of_type=_OF_TYPE[feature.type],
        low=low,
        high=high,
        ranged=numeric and feature.range is not None,
        categories=None if named is None else frozenset(named),
    )


def bounds(allowed: Range | None) -> tuple[float, float]:
    """Lowest and highest allowed value; infinite where nothing is said."""
    low = None if allowed is None else allowed.min
    high = None if allowed is None else allowed.max
    return float("-inf") if low is None else low, float("inf") if high is None else high


def class_name(value: Any) -> str | None:
    """The class a predicted or true value names: a text, or a bool as ``true`` or ``false``; else None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else None


def output_fault(prediction: Any, output: OutputContract) -> str | None:
    """Why a prediction breaks the contract's output; None when it does not, or there is no prediction."""
    if prediction is None:
        return None
    if output.type == "class":
        name = class_name(prediction)
        unseen = name is None or (output.classes is not None and name not in output.classes)
        return "unseen_class" if unseen else None
    if not (_is_number if output.type == "number" else _is_vector)(prediction):
        return "type"
    low, high = bounds(output.range)
    values = prediction if isinstance(prediction, list) else [prediction]
    return None if all(low <= value <= high for value in values) else "range"


def confidence_of(event: PredictionEvent) -> float | None:
    """What the model says of its prediction: its confidence, else the score of the predicted class."""
    if event.confidence is not None:
        return event.confidence
    return event.scores.get(class_name(event.prediction) or "")


def faulty_score(event: PredictionEvent, output: OutputContract | None) -> str | None:
    """The JSON pointer of the first score of a class output that is not a probability, or of no class the contract
    names; or of a confidence that is not a probability."""
    if output is not None and output.type == "class":
        for name, score in event.scores.items():
            if not 0 <= score <= 1 or (output.classes is not None and name not in output.classes):
                return pointer("scores", name)
    confidence = confidence_of(event)
    if confidence is None or 0 <= confidence <= 1:
        return None
    return "/confidence" if event.confidence is not None else pointer("scores", class_name(event.prediction) or "")


def is_answered(event: PredictionEvent) -> bool:
    """Whether the model served a prediction, itself or by a fallback. An event that did not need not have features."""
    return event.status is None or event.status.code in ("ok", "fallback")


def check_event(event: PredictionEvent, contract: Contract) -> list[Violation]:
    """Everything in which ``event`` breaks ``contract``: its features in the contract's order, then extra features,
    then the output. A tick carries nothing that could; of an event without an answer nothing is missing.
    """
    if event.purpose == "tick":
        return []
    answered = is_answered(event)
    found = [
        violation
        for name, feature in contract.features.items()
        if (violation := _feature_violation(name, feature, event.features)) is not None
        and (answered or violation.reason != "missing")
    ]
    found.extend(
        Violation(pointer("features", name), "extra", "the contract knows no such feature: add it, or leave it out")
        for name in event.features
        if name not in contract.features
    )
    if contract.output is not None:
        reason = output_fault(event.prediction, contract.output)
        if reason is not None:
            found.append(Violation("/prediction", reason, _output_message(reason, event.prediction, contract.output)))
    place = faulty_score(event, contract.output)
    if place is not None:
        found.append(Violation(place, "scores", "a score is a number from 0 to 1 of a class that the contract names"))
    return found


def check_contract(contract: Contract) -> list[Violation]:
    """What a contract says that cannot be meant: its shape is right, its sense is not; fields nobody knows included."""
    found = [
        Violation(place, "unknown_field", "no such field: a slip of the pen?") for place in unknown_fields(contract)
    ]
    for name, feature in contract.features.items():
        found.extend(
            Violation(pointer("features", name, *path), "contract", message)
            for path, message in _feature_nonsense(feature)
        )
    output = contract.output
    if output is None:
        return found
    if output.classes is not None and output.type != "class":
        found.append(Violation("/output/classes", "contract", f"classes belong to the type class, not {output.type}"))
    if _is_reversed(output.range):
        found.append(Violation("/output/range", "contract", "min lies above max"))
    found.extend(
        Violation(pointer("policies", str(i), "forbidden"), "contract", "forbids what is none of output.classes")
        for i, policy in enumerate(contract.policies)
        if output.classes is not None and not set(policy.forbidden) <= set(output.classes)
    )
    return found


def unknown_fields(part: BaseModel, at: tuple[str, ...] = ()) -> list[str]:
    """JSON pointers of the fields that no model of ours knows. Readers keep them; in a file a person wrote they are
    mistakes."""
    found = [pointer(*at, name) for name in part.model_extra or ()]
    for name in type(part).model_fields:
        value = getattr(part, name)
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if isinstance(value, BaseModel):
            found.extend(unknown_fields(value, (*at, name)))
        for key, entry in entries:
            if isinstance(entry, BaseModel):
                found.extend(unknown_fields(entry, (*at, name, str(key))))
    return found


def _feature_nonsense(feature: FeatureContract) -> Iterator[tuple[tuple[str, ...], str]]:
    if _is_reversed(feature.range):
        yield ("range",), "min lies above max"
    if feature.range is not None and feature.type not in ("number", "integer"):
        yield ("range",), f"a range belongs to a number or integer, not to a {feature.type}"
    if feature.categories is not None and feature.type != "category":
        yield ("categories",), f"categories belong to the type category, not to {feature.type}"
    if feature.categories is not None and len(set(feature.categories)) < len(feature.categories):
        yield ("categories",), "a category stands twice"
    if feature.policy == "bucket":
        if feature.type not in ("number", "integer"):
            yield ("policy",), f"only numbers can be put in buckets, not a {feature.type}: use hash or drop"
        if feature.bucket is None:
            yield ("bucket",), "the policy bucket needs bucket: {edges: [...]}"
    if feature.bucket is not None and any(a >= b for a, b in pairwise(feature.bucket.edges)):
        yield ("bucket", "edges"), "edges must ascend"


def _is_reversed(allowed: Range | None) -> bool:
    low, high = bounds(allowed)
    return low > high


def pointer(*path: str) -> str:
    """The JSON pointer of a path.

    >>> pointer("features", "a/b~c")
    '/features/a~1b~0c'
    """
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _feature_violation(name: str, feature: FeatureContract, features: Mapping[str, Any]) -> Violation | None:
    value = features.get(name)
    if value is None:
        if not feature.required:
            return None
        return Violation(pointer("features", name), "missing", "required by the contract, and absent or null")
    reason = compile_check(feature).fault(value)
    return None if reason is None else Violation(pointer("features", name), reason, _message(reason, value, feature))


def _message(reason: str, value: Any, feature: FeatureContract) -> str:
    if reason == "type":
        return f"the contract wants {_WANTED[feature.type]}, this is {kind_of(value)}{_too_long(value)}"
    if reason == "range":
        return _range_message(value, feature.range)
    return f"{kind_of(value)} that is none of the {len(feature.categories or ()):,} categories of the contract"


def _too_long(value: Any) -> str:
    if isinstance(value, str) and len(value.encode()) > MAX_FEATURE_BYTES:
        return f" of more than {MAX_FEATURE_BYTES:,} bytes"
    if isinstance(value, list) and len(value) > MAX_VECTOR:
        return f" of more than {MAX_VECTOR:,} entries"
    return ""


def _range_message(value: float, allowed: Range | None) -> str:
    low, high = bounds(allowed)
    limit = f"below the contract's {low:g}" if value < low else f"above the contract's {high:g}"
    return f"{kind_of(value)} {limit}"


def _output_message(reason: str, prediction: Any, output: OutputContract) -> str:
    if reason == "unseen_class":
        return f"{kind_of(prediction)} that is none of the contract's classes"
    if reason == "type":
        return f"the contract wants {_WANTED[output.type]}, this is {kind_of(prediction)}"
    return "outside the contract's output range"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value.encode()) <= MAX_FEATURE_BYTES


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_VECTOR and all(map(_is_number, value))


_OF_TYPE: Mapping[str, Callable[[Any], bool]] = {
    "number": _is_number,
    "integer": _is_integer,
    "category": _is_text,
    "text": _is_text,
    "bool": _is_bool,
    "vector": _is_vector,
}
