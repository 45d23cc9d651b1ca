"""A model's contract and reference, compiled into what detectors index: channels with cells, counters with limits.

A *channel* is a distribution that is counted in cells: a feature, the latency, the confidence, the predicted class.
A *counter* counts events of a window that share a fault: (detector, subject, reason).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from errata.contracts.models import CategorySketch, Contract, NumberSketch
from errata.domain.columns import STATUS_CODES, Layout
from errata.domain.detection.statistics import CHI2_1E6, WINDOW, merge_cells, share_threshold
from errata.domain.layouts import compile_layout

NEVER = WINDOW + 1
INNER_EDGES = 15
# Counters of a model with F features, in this order: F of each per-feature kind, then the single ones.
FEATURE_KINDS = ("missing", "type", "range", "unseen_category", "required")
EXTRA, STATUS, OVER_LIMIT, TAIL, UNSEEN_CLASS, OUTPUT_RANGE, SCORES, POLICY = 0, 1, 5, 6, 7, 8, 9, 10
DEFAULT_ADMISSION: Mapping[str, str] = {
    "policy_violation": "open",
    "personal_data": "open",
    "invalid_output": "open",
    "bad_status": "if_reference_has_none",
}


@dataclass(frozen=True, slots=True)
class Channel:
    """One counted distribution. ``merged`` maps a cell to its merged cell, ``reference`` the merged counts."""

    detector: str
    subject: str
    kind: str  # number or category
    labels: tuple[str, ...]  # of the cells; empty where the contract's policy hides them
    edges: tuple[float, ...]
    raw_reference: tuple[int, ...]
    merged: NDArray[np.int64]
    reference: NDArray[np.int64]

    @property
    def cells(self) -> int:
        return len(self.raw_reference)


@dataclass(frozen=True, slots=True)
class Counter:
    """Events of one fault. It fires where its count in a window reaches ``threshold``; ``admitted`` ones open a case

    by a single event."""

    detector: str
    subject: str
    reason: str
    threshold: int
    reference_share: float
    admitted: bool


@dataclass(frozen=True, slots=True)
class DriftTable:
    """All channels that are judged for drift, one after the other, so that a window costs one set of numpy calls."""

    places: tuple[int, ...]  # of the channels in the profile
    merged: NDArray[np.int64]  # of each cell of the slot its merged cell; that of a cell not judged comes last
    starts: NDArray[np.int64]  # first merged cell of each channel
    reference: NDArray[np.int64]  # merged counts
    g_limits: NDArray[np.float64]


def _drift_table(channels: tuple["Channel | None", ...], bases: tuple[int, ...], cells: int) -> DriftTable:
    places = tuple(place for place, channel in enumerate(channels) if channel is not None)
    judged = [channel for channel in channels if channel is not None]
    sizes = [len(channel.reference) for channel in judged]
    starts = np.cumsum([0, *sizes])
    merged = np.full(cells, starts[-1], np.int64)
    for place, start in zip(places, starts, strict=False):
        channel = channels[place]
        assert channel is not None
        merged[bases[place] : bases[place] + channel.cells] = start + channel.merged
    return DriftTable(
        places,
        merged,
        starts[:-1],
        np.concatenate([np.zeros(0, np.int64), *(channel.reference for channel in judged)]),
        np.array([CHI2_1E6[size - 2] for size in sizes]),
    )


@dataclass(frozen=True, slots=True)
class Columns:
    """What a slot of this profile adds to the tables of all slots (`errata.domain.detection.state.Tables`)."""

    number_cell: NDArray[np.int64]  # of each number channel its first cell, −1 when it is not counted
    category_cell: NDArray[np.int64]
    edges: NDArray[np.float64]  # number channels × 15
    low: NDArray[np.float64]  # of each number channel
    high: NDArray[np.float64]
    threshold: NDArray[np.int64]  # of each counter
    admitted: NDArray[np.bool_]


UNBOUNDED = np.full(3, np.inf)  # latency, confidence and output have no bounds of their own


def _columns(
    channels: Sequence[Channel | None], bases: Sequence[int], numbers: int, counters: Sequence[Counter],
    low: NDArray[np.float64], high: NDArray[np.float64],
) -> Columns:  # fmt: skip
    cells = np.array([base if channel else -1 for channel, base in zip(channels, bases, strict=True)], np.int64)
    return Columns(
        cells[:numbers],
        cells[numbers:],
        np.stack([padded_edges(channel.edges if channel else ()) for channel in channels[:numbers]]),
        np.concatenate([low, -UNBOUNDED]),
        np.concatenate([high, UNBOUNDED]),
        np.array([counter.threshold for counter in counters], np.int64),
        np.array([counter.admitted for counter in counters], np.bool_),
    )


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything detection knows of one model, by place: channel i, counter i, feature i of its layout."""

    layout: Layout
    channels: tuple[Channel | None, ...]  # numbers, latency, confidence, number output; then categories, class output
    counters: tuple[Counter, ...]
    cell_base: tuple[int, ...]  # of each channel
    cells: int
    low: NDArray[np.float64]  # of number features
    high: NDArray[np.float64]
    required: NDArray[np.bool_]
    forbidden: tuple[tuple[float, ...], ...]  # class codes per output policy
    output_low: float
    output_high: float
    latency_limit_ms: float
    latency_p95_ms: float
    error_rate: float  # p0 of the CUSUM bank, NaN without labels in the reference
    place: Mapping[str, int]  # of a feature in its layout
    drift: DriftTable
    columns: Columns

    @property
    def features(self) -> int:
        return len(self.layout.features)

    @property
    def number_channels(self) -> int:
        return len(self.layout.numbers) + 3

    def counter_of(self, kind: str, feature: int) -> int:
        return FEATURE_KINDS.index(kind) * self.features + feature

    @property
    def singles(self) -> int:
        """Where the counters that belong to no feature begin."""
        return len(FEATURE_KINDS) * self.features

    @property
    def contract_hash(self) -> str | None:
        return self.layout.contract.content_hash if self.layout.contract else None

    @property
    def reference_hash(self) -> str | None:
        return self.layout.reference.content_hash if self.layout.reference else None


def reference_error_rate(wrong: int, outcomes: int) -> float:
    """p0 of the CUSUM bank: the reference's rate from at least 10,000 outcomes, below that two standard errors more,
    never under 1/(m + 2).

    >>> round(reference_error_rate(1729, 10_000), 4), round(reference_error_rate(173, 1_000), 4)
    (0.1729, 0.1969)
    """
    if outcomes == 0:
        return float("nan")
    rate = wrong / outcomes
    if outcomes < 10_000:
        rate += 2 * float(np.sqrt(rate * (1 - rate) / outcomes))
    return max(rate, 1 / (outcomes + 2))


def _number_channel(detector: str, subject: str, sketch: NumberSketch, shown: bool) -> Channel:
    raw = np.array(sketch.counts, np.int64)
    merged = merge_cells(raw, ordered=True)
    edges = tuple(sketch.edges)
    bounds = ("", *(f"{edge:g}" for edge in edges), "")
    labels = tuple(f"[{low},{high})" for low, high in pairwise(bounds)) if shown else ()
    reference = np.bincount(merged, weights=raw).astype(np.int64)
    return Channel(detector, subject, "number", labels, edges, tuple(sketch.counts), merged, reference)


def _category_channel(detector: str, subject: str, sketch: CategorySketch, shown: bool) -> Channel:
    names = sorted(sketch.counts)
    raw = np.array([*(sketch.counts[name] for name in names), sketch.other], np.int64)
    merged = merge_cells(raw, ordered=False)
    reference = np.bincount(merged, weights=raw).astype(np.int64)
    labels = (*names, "other") if shown else ()
    return Channel(detector, subject, "category", labels, (), tuple(raw.tolist()), merged, reference)


def _usable(channel: Channel | None) -> Channel | None:
    """A channel is judged from at least 100 reference values and two merged cells."""
    if channel is None or channel.reference.sum() < 100 or len(channel.reference) < 2:
        return None
    return channel


def _channels(layout: Layout) -> tuple[Channel | None, ...]:
    reference, contract = layout.reference, layout.contract
    if reference is None:
        return (None,) * (len(layout.numbers) + len(layout.categories) + 4)

    def shown(feature: str) -> bool:
        return contract is not None and feature in contract.features and contract.features[feature].policy == "keep"

    channels: list[Channel | None] = []
    for name in layout.numbers:
        sketch = reference.sketches.get(name)
        number = isinstance(sketch, NumberSketch)
        channels.append(_number_channel("distribution_shift", name, sketch, shown(name)) if number else None)  # type: ignore[arg-type]
    latency, confidence, output = reference.latency_ms, reference.confidence, reference.output
    channels.append(_number_channel("latency_shift", "latency_ms", latency, True) if latency else None)
    channels.append(_number_channel("confidence_shift", "confidence", confidence, True) if confidence else None)
    channels.append(
        _number_channel("distribution_shift", "prediction", output, True) if isinstance(output, NumberSketch) else None
    )
    for name in layout.categories:
        sketch = reference.sketches.get(name)
        category = isinstance(sketch, CategorySketch)
        channels.append(_category_channel("distribution_shift", name, sketch, shown(name)) if category else None)  # type: ignore[arg-type]
    channels.append(
        _category_channel("distribution_shift", "prediction", output, True)
        if isinstance(output, CategorySketch)
        else None
    )
    return tuple(_usable(channel) for channel in channels)


def _admits(contract: Contract | None, kind: str, reference_count: int) -> bool:
    rules = dict(DEFAULT_ADMISSION) | (dict(contract.admission) if contract else {})
    rule = rules.get(kind, "count")
    return rule == "open" or (rule == "if_reference_has_none" and reference_count == 0)


def _counters(layout: Layout) -> tuple[Counter, ...]:
    reference, contract = layout.reference, layout.contract
    events = reference.events if reference else 0

    def counter(
        detector: str, subject: str, reason: str, seen: int, n: int | None = None, admission: str = ""
    ) -> Counter:
        total = events if n is None else n
        judged = reference is not None and total >= 100
        threshold = share_threshold(min(seen, total), total) if judged else NEVER
        share = round(seen / total, 6) if total else 0.0
        return Counter(
            detector, subject, reason, threshold, share, bool(admission) and _admits(contract, admission, seen)
        )

    violations = reference.violations if reference else {}
    counters: list[Counter] = []
    for kind in FEATURE_KINDS:
        for name in layout.features:
            if kind == "missing":
                sketch = reference.sketches.get(name) if reference else None
                seen, n = (sketch.missing, sketch.n + sketch.missing) if sketch else (0, None)
                counters.append(counter("missing_values", name, "share", seen, n))
            else:
                reason = "missing" if kind == "required" else kind
                seen = violations.get(name, {}).get(reason, 0)
                counters.append(counter("contract_violation", name, reason, seen, admission="contract_violation"))
    extra = sum(by_reason.get("extra", 0) for by_reason in violations.values())
    counters.append(counter("contract_violation", "features", "extra", extra, admission="contract_violation"))
    statuses = reference.statuses if reference else {}
    counters.extend(
        counter("bad_status", code, "status", statuses.get(code, 0), admission="bad_status")
        for code in STATUS_CODES[1:]
    )
    latency = reference.latency_ms if reference else None
    latency_n = latency.n if latency else 0
    over, tail = (latency.over_limit, latency.over_p95) if latency else (0, 0)
    counters.append(counter("latency_limit", "latency_ms", "over_limit", over, latency_n, "latency_over_limit"))
    counters.append(counter("latency_shift", "latency_ms", "tail", tail, latency_n))
    for subject, reason in (("prediction", "unseen_class"), ("prediction", "range"), ("scores", "scores")):
        seen = violations.get(subject, {}).get(reason, 0)
        counters.append(counter("invalid_output", subject, reason, seen, admission="invalid_output"))
    counters.extend(
        counter("policy_violation", policy.id, "forbidden_output", violations.get(policy.id, {}).get("policy", 0),
                admission="policy_violation")
        for policy in (contract.policies if contract else ())
    )  # fmt: skip
    return tuple(counters)


def compile_profile(layout: Layout) -> Profile:
    """Compile a layout once; thresholds, merge maps and tables do not change until contract or reference do.

    All models without a contract and a reference share one: its layout has no name.
    """
    return _compile_profile(layout) if layout.contract or layout.reference else _bare_profile()


@cache
def _bare_profile() -> Profile:
    return _compile_profile(compile_layout("", "", None, None))


def _compile_profile(layout: Layout) -> Profile:
    contract, reference = layout.contract, layout.reference
    features = contract.features if contract else {}
    low = np.full(len(layout.numbers), -np.inf)
    high = np.full(len(layout.numbers), np.inf)
    for i, name in enumerate(layout.numbers):
        allowed = features[name].range if name in features else None
        if allowed is not None:
            low[i] = -np.inf if allowed.min is None else allowed.min
            high[i] = np.inf if allowed.max is None else allowed.max
    output = contract.output if contract else None
    output_range = output.range if output else None
    slo = contract.slos.latency_ms if contract and contract.slos else None
    limit = None if slo is None else (slo.max if slo.max is not None else slo.p95)
    latency = reference.latency_ms if reference else None
    channels = _channels(layout)
    sizes = [channel.cells if channel else 0 for channel in channels]
    cell_base = tuple(accumulate(sizes, initial=0))[:-1]
    error = reference.error if reference else None
    counters = _counters(layout)
    return Profile(
        layout=layout,
        channels=channels,
        counters=counters,
        cell_base=cell_base,
        cells=sum(sizes),
        low=low,
        high=high,
        required=np.array([name in features and features[name].required for name in layout.features], np.bool_),
        forbidden=tuple(
            tuple(layout.classes[name] for name in policy.forbidden if name in layout.classes)
            for policy in (contract.policies if contract else ())
        ),
        output_low=-np.inf if output_range is None or output_range.min is None else output_range.min,
        output_high=np.inf if output_range is None or output_range.max is None else output_range.max,
        latency_limit_ms=np.inf if limit is None else limit,
        latency_p95_ms=np.inf if latency is None or latency.p95_ms is None else latency.p95_ms,
        error_rate=reference_error_rate(error.wrong, error.outcomes) if error else float("nan"),
        place={name: i for i, name in enumerate(layout.features)},
        drift=_drift_table(channels, cell_base, sum(sizes)),
        columns=_columns(channels, cell_base, len(layout.numbers) + 3, counters, low, high),
    )


@lru_cache(maxsize=4096)
def padded_edges(edges: tuple[float, ...]) -> NDArray[np.float64]:
    """The inner edges padded to 15 with +∞, for a search of four comparisons."""
    row = np.full(INNER_EDGES, np.inf)
    row[: len(edges)] = edges
    return row
