"""Infers a first contract from events: what every one of them held to, with room at the ends of ranges.

It is a proposal for a person to read. Policies follow one rule: a text of at most 64 distinct values is a category and
kept, any other text may identify somebody and is hashed.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log10
from typing import Any

from errata.contracts import Contract, PredictionEvent
from errata.contracts.models import FeatureContract, FeatureType, OutputContract, Range
from errata.domain.profiles import content_hash
from errata.domain.validation import class_name

MAX_CATEGORIES = 64
WIDENED_BY = 0.1  # of the span, on each side
MAX_DIGITS = 15  # decimals a bound is rounded to at most
_KINDS: tuple[FeatureType, ...] = ("bool", "number", "text", "vector")


@dataclass(slots=True)
class _Seen:
    """What the values of one feature, or of the predictions, had in common."""

    kinds: Counter[FeatureType] = field(default_factory=Counter)
    low: float = float("inf")
    high: float = float("-inf")
    whole: bool = True
    texts: set[str] = field(default_factory=set)

    def add(self, value: Any) -> None:
        kind = _kind(value)
        if kind is None:
            return
        self.kinds[kind] += 1
        if kind == "number":
            self.low, self.high = min(self.low, value), max(self.high, value)
            self.whole = self.whole and isinstance(value, int)
        elif kind == "text" and len(self.texts) <= MAX_CATEGORIES:
            self.texts.add(value)

    @property
    def values(self) -> int:
        return sum(self.kinds.values())

    @property
    def kind(self) -> FeatureType:
        """What most of the values are; a text when there is none, for a text is hashed."""
        return max(_KINDS, key=lambda kind: self.kinds[kind]) if self.kinds else "text"

    def feature(self, events: int) -> FeatureContract:
        required = self.values == events
        if self.kind == "number":
            kind: FeatureType = "integer" if self.whole else "number"
            return FeatureContract(type=kind, required=required, range=widened(self.low, self.high, whole=self.whole))
        if self.kind != "text":
            return FeatureContract(type=self.kind, required=required)
        if 0 < len(self.texts) <= MAX_CATEGORIES:
            return FeatureContract(type="category", required=required, categories=sorted(self.texts))
        return FeatureContract(type="text", required=required, policy="hash")

    def output(self) -> OutputContract | None:
        if not self.kinds:
            return None
        if self.kind == "number":
            return OutputContract(type="number", range=widened(self.low, self.high, whole=self.whole))
        if self.kind == "vector":
            return OutputContract(type="vector")
        few = len(self.texts) <= MAX_CATEGORIES
        return OutputContract(type="class", classes=sorted(self.texts) if few else None)


def infer_contract(events: Iterable[PredictionEvent], model: str, tenant: str = "default") -> Contract:
    """The contract that the live events of ``model`` suggest.

    A feature is required when every event has it. Where values of several types occur the commonest wins, so that
    ``contract check`` shows the others. Raises ``ValueError`` when no event is of the model.
    """
    features: dict[str, _Seen] = {}
    output = _Seen()
    count = 0
    for event in events:
        if event.purpose != "live" or event.model is None or (event.tenant, event.model.name) != (tenant, model):
            continue
        count += 1
        for name, value in event.features.items():
            features.setdefault(name, _Seen()).add(value)
        output.add(class_name(event.prediction) or event.prediction)
    if count == 0:
        raise ValueError(f"no live prediction of the model {model!r} to infer a contract from")
    inferred = Contract(
        model=model,
        tenant=tenant,
        features={name: seen.feature(count) for name, seen in sorted(features.items())},
        output=output.output(),
    )
    return inferred.model_copy(update={"content_hash": content_hash(inferred)})


def widened(low: float, high: float, *, whole: bool) -> Range | None:
    """``low`` to ``high`` with a tenth of the span more on each side, rounded outwards; None for a single value, which
    says nothing of its spread.

    >>> found = widened(0, 94, whole=True)
    >>> found.min, found.max
    (-10.0, 104.0)
    >>> found = widened(0.1, 0.4, whole=False)
    >>> found.min, found.max
    (0.07, 0.43)
    """
    span = float(high) - float(low)
    if not 0 < span < float("inf"):
        return None
    low, high = low - WIDENED_BY * span, high + WIDENED_BY * span
    if not (isfinite(low) and isfinite(high)):
        return None
    digits = 0 if whole else 3 - floor(log10(span))
    return Range(min=_outwards(low, digits, floor), max=_outwards(high, digits, ceil))


def _outwards(value: float, digits: int, towards: Any) -> float:
    """``value`` to so many decimals, by floor or ceiling; what is there already but for the last bit stays."""
    if digits > MAX_DIGITS:
        return float(value)
    scaled = value * 10.0**digits
    if not isfinite(scaled) or abs(scaled) >= 2**53:
        return float(value)
    near = round(scaled)
    return float((near if abs(scaled - near) < 1e-6 else towards(scaled)) / 10.0**digits)


def _kind(value: Any) -> FeatureType | None:
    """None for a null and for what no contract could allow."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    numbers = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    return "vector" if numbers else None
