"""Builds a model's reference: exact counts of its events, feature by feature.

A value that breaks the contract leaves the sketches and is counted in ``violations``, as it leaves the statistics of
detectors; what they compare with is therefore counted by the same rules.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from math import ceil
from typing import Any
from uuid import UUID, uuid5

from errata.contracts import Contract, PredictionEvent, Reference, canonical
from errata.contracts.events import Prediction
from errata.contracts.models import (
    CategorySketch,
    ErrorSketch,
    FeatureContract,
    LatencySketch,
    NumberSketch,
    PresenceSketch,
    Sketch,
)
from errata.domain.validation import (
    FeatureCheck,
    class_name,
    compile_check,
    confidence_of,
    faulty_score,
    is_answered,
    output_fault,
)

BINS = 16
MAX_CATEGORIES = 64
REFERENCES = UUID("3f1a6a0e-6f0b-5c39-9a55-0d6f5f1a7c11")  # namespace of reference ids
_IDENTITY = ("content_hash", "reference_id")


def content_hash(message: Contract | Reference) -> str:
    """SHA-256, in hex, of the canonical JSON of what a contract or reference says, without its own hash and the id
    made of it."""
    said = message.model_dump(mode="json", by_alias=True, exclude_none=True)
    return hashlib.sha256(canonical({name: value for name, value in said.items() if name not in _IDENTITY})).hexdigest()


def build_reference(
    events: Iterable[PredictionEvent],
    contract: Contract | None,
    *,
    dataset: str | None,
    created: datetime | None = None,
) -> Reference:
    """The reference of one model from its live events, exact.

    With a contract, events of other models and tenants are left out; without one the first event names the model and
    features are not counted, as detectors do not either. ``created`` is the caller's: the same events and arguments
    give the same bytes. Raises ``ValueError`` when no event is left.
    """
    tally = _Tally(contract)
    for event in events:
        tally.add(event)
    if tally.events == 0:
        whose = f"of the model {contract.model!r} " if contract else ""
        raise ValueError(f"no live prediction {whose}to build a reference of")
    made = tally.reference(dataset, created)
    digest = content_hash(made)
    return made.model_copy(update={"content_hash": digest, "reference_id": str(uuid5(REFERENCES, digest))})


def number_sketch(values: Sequence[float], missing: int = 0) -> NumberSketch:
    """Counts between the values at 1/16, 2/16 … 15/16 of the sorted values; equal edges are one.

    An edge at the smallest value is left out, for nothing lies below it.

    >>> number_sketch([1, 1, 1, 2, 3]).edges, number_sketch([1, 1, 1, 2, 3]).counts
    ([2.0, 3.0], [3, 1, 1])
    """
    ordered = sorted(map(float, values))
    edges = sorted({ordered[k * len(ordered) // BINS] for k in range(1, BINS)} - {ordered[0]}) if ordered else []
    places = [0, *(bisect_left(ordered, edge) for edge in edges), len(ordered)]
    return NumberSketch(
        n=len(ordered),
        missing=missing,
        edges=edges,
        counts=[end - start for start, end in pairwise(places)],
        quantiles={name: _quantile(ordered, share) for name, share in _QUANTILES.items()} if ordered else {},
    )


def category_sketch(counts: Mapping[str, int], missing: int = 0) -> CategorySketch:
    """The 64 most frequent categories, ties by name; the rest is ``other``.

    >>> category_sketch({"b": 2, "a": 1}).counts
    {'a': 1, 'b': 2}
    """
    ranked = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_CATEGORIES]
    n = sum(counts.values())
    kept = {name: counts[name] for name in sorted(ranked)}
    return CategorySketch(n=n, missing=missing, counts=kept, other=n - sum(kept.values()))


def latency_sketch(values_ms: Sequence[float], missing: int, limit_ms: float | None) -> LatencySketch:
    """As ``number_sketch``, with how many lie strictly above the 95th percentile and above the contract's limit."""
    ordered = sorted(map(float, values_ms))
    p95_ms = _quantile(ordered, 0.95) if ordered else None
    return LatencySketch(
        **number_sketch(ordered, missing).model_dump(),
        p95_ms=p95_ms,
        over_p95=0 if p95_ms is None else len(ordered) - bisect_right(ordered, p95_ms),
        over_limit=0 if limit_ms is None else len(ordered) - bisect_right(ordered, limit_ms),
    )


_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the values do not exceed."""
    return ordered[ceil(round(share * len(ordered), 6)) - 1]


def latency_limit_ms(contract: Contract | None) -> float | None:
    """The latency above which an event breaks the contract: ``slos.latency_ms.max``, else its ``p95``."""
    slo = contract.slos.latency_ms if contract is not None and contract.slos is not None else None
    if slo is None:
        return None
    return slo.max if slo.max is not None else slo.p95


def _hidden(feature: FeatureContract) -> bool:
    """A category that its policy hides and whose values nobody declared may hold secrets: only presence is counted."""
    return feature.type == "category" and feature.categories is None and feature.policy in ("hash", "drop")


@dataclass(slots=True)
class _Feature:
    """The tally of one feature; ``kind`` is the sketch it becomes."""

    check: FeatureCheck
    required: bool
    kind: str
    missing: int = 0
    present: int = 0
    numbers: list[float] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, feature: FeatureContract) -> "_Feature":
        kinds = {"number": "number", "integer": "number", "category": "category", "bool": "category"}
        kind = "presence" if _hidden(feature) else kinds.get(feature.type, "presence")
        return cls(compile_check(feature), feature.required, kind)

    def add(self, value: Any, answered: bool) -> str | None:
        """Count a value; the reason, when it breaks the contract."""
        if value is None:
            self.missing += answered
            return "missing" if self.required and answered else None
        reason = self.check.fault(value)
        if reason is None:
            self.keep(value)
        return reason

    def keep(self, value: Any) -> None:
        if self.kind == "number":
            self.numbers.append(value)
        elif self.kind == "category":
            self.names[class_name(value) or ""] += 1
        else:
            self.present += 1

    def sketch(self) -> Sketch:
        if self.kind == "number":
            return number_sketch(self.numbers, self.missing)
        if self.kind == "category":
            return category_sketch(self.names, self.missing)
        return PresenceSketch(n=self.present, missing=self.missing)


class _Tally:
    """Everything counted on the way through the events."""

    def __init__(self, contract: Contract | None) -> None:
        self.contract = contract
        self.whose = (contract.tenant, contract.model) if contract else None
        self.output = contract.output if contract else None
        self.features = {name: _Feature.of(feature) for name, feature in contract.features.items()} if contract else {}
        self.events = 0
        self.answered = 0
        self.violations: dict[str, Counter[str]] = {}
        self.statuses: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.numbers: list[float] = []
        self.vectors = 0
        self.unpredicted = 0
        self.confidences: list[float] = []
        self.latencies_ms: list[float] = []
        self.outcomes = 0
        self.wrong = 0

    def add(self, event: PredictionEvent) -> None:
        if event.purpose != "live" or event.model is None:
            return
        self.whose = self.whose or (event.tenant, event.model.name)
        if (event.tenant, event.model.name) != self.whose:
            return
        self.events += 1
        self.statuses[event.status.code if event.status else "ok"] += 1
        if event.latency_ms is not None:
            self.latencies_ms.append(event.latency_ms)
        self.answered += is_answered(event)
        self._add_features(event.features, is_answered(event))
        self._add_output(event)
        self._add_outcome(event)

    def _add_features(self, features: Mapping[str, Any], answered: bool) -> None:
        for name, feature in self.features.items():
            reason = feature.add(features.get(name), answered)
            if reason is not None:
                self._violated(name, reason)
        if self.contract is not None:
            for name in features.keys() - self.features.keys():
                self._violated(name, "extra")

    def _add_output(self, event: PredictionEvent) -> None:
        """An output of the wrong type is counted with faulty scores, once an event, as detectors do."""
        reason = output_fault(event.prediction, self.output) if self.output is not None else None
        if reason is None:
            self._add_prediction(event.prediction)
        elif reason != "type":
            self._violated("prediction", reason)
        if reason == "type" or faulty_score(event, self.output) is not None:
            self._violated("scores", "scores")
        confidence = confidence_of(event)
        if confidence is not None and 0 <= confidence <= 1:
            self.confidences.append(confidence)
        for policy in self.contract.policies if self.contract else ():
            if class_name(event.prediction) in policy.forbidden:
                self._violated(policy.id, "policy")

    def _add_prediction(self, value: Prediction | None) -> None:
        if value is None:
            self.unpredicted += 1
        elif isinstance(value, bool | str):
            self.classes[class_name(value) or ""] += 1
        elif isinstance(value, list):
            self.vectors += 1
        else:
            self.numbers.append(float(value))

    def _add_outcome(self, event: PredictionEvent) -> None:
        predicted = class_name(event.prediction)
        if predicted is None or event.outcome is None or event.outcome.kind != "ground_truth":
            return
        if self.output is not None and self.output.type != "class":
            return
        true = class_name(event.outcome.value)
        if true is not None:
            self.outcomes += 1
            self.wrong += predicted != true

    def _violated(self, name: str, reason: str) -> None:
        self.violations.setdefault(name, Counter())[reason] += 1

    def _output_sketch(self) -> Sketch | None:
        kind = self.output.type if self.output else None
        if kind == "class" or (kind is None and self.classes):
            return category_sketch(self.classes, self.unpredicted)
        if kind == "number" or (kind is None and self.numbers):
            return number_sketch(self.numbers, self.unpredicted)
        return PresenceSketch(n=self.vectors, missing=self.unpredicted) if kind or self.vectors else None

    def reference(self, dataset: str | None, created: datetime | None) -> Reference:
        tenant, model = self.whose or ("default", "")
        latencies = self.latencies_ms
        confidences = self.confidences
        return Reference(
            model=model,
            tenant=tenant,
            dataset=dataset,
            created=created,
            events=self.events,
            sketches={name: feature.sketch() for name, feature in self.features.items()},
            output=self._output_sketch(),
            confidence=number_sketch(confidences, self.events - len(confidences)) if confidences else None,
            latency_ms=(
                latency_sketch(latencies, self.events - len(latencies), latency_limit_ms(self.contract))
                if latencies
                else None
            ),
            statuses=dict(sorted(self.statuses.items())),
            violations={name: dict(sorted(self.violations[name].items())) for name in sorted(self.violations)},
            error=ErrorSketch(outcomes=self.outcomes, wrong=self.wrong),
        )


__all__ = [
    "build_reference",
    "category_sketch",
    "content_hash",
    "latency_limit_ms",
    "latency_sketch",
    "number_sketch",
]
