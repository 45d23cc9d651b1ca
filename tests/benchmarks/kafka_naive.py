"""A careful plain loop, as a team would write it first: poll a message, validate it with pydantic, apply rules.

It checks what the detector checks of an event, counts faults and distributions in the same windows, judges them with
the same thresholds, and writes what it finds; it does not watch error rates, keeps no state over a restart, writes no
dead letters, and commits every five seconds as the client does by itself. Run as a script in a process of its own.
"""

import json
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from math import log, sqrt
from pathlib import Path
from typing import Annotated, Any, Literal

if __name__ == "__main__":  # run as a file: the package "tests" is not on the path
    sys.path[:0] = [str(Path(__file__).parents[2])]

import numpy as np
from confluent_kafka import Consumer, Producer
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from tests.benchmarks.kafka_findings import Findings
from tests.benchmarks.kafka_lap import tables

from errata.contracts import Contract, Reference
from errata.domain.detection.statistics import (
    CHI2_1E6,
    PSI_MIN,
    SHARE_FLOOR,
    WINDOW,
    WINDOW_MIN,
    merge_cells,
    share_threshold,
)

Name = Annotated[str, Field(min_length=1, max_length=200)]
Value = str | bool | int | float | None
STATUSES = ("error", "timeout", "fallback", "missing_response")


class Part(BaseModel):
    """Fields that nobody named are let through, as the contract does."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class ModelRef(Part):
    name: Name
    version: str | None = None


class Status(Part):
    code: Literal["ok", "error", "timeout", "fallback", "missing_response"] = "ok"


class Outcome(Part):
    value: Value = None
    score: float | None = None


class Deployment(Part):
    endpoint: str | None = None
    variant: str | None = None


class Origin(Part):
    id: str | None = None
    seq: int | None = None


class Event(Part):
    event_id: Name
    time: AwareDatetime
    model: ModelRef
    prediction: str | bool | int | float | list[float] | None = None
    status: Status | None = None
    tenant: Name = "default"
    features: dict[str, Any] = {}
    scores: dict[str, float] = {}
    confidence: float | None = None
    latency_ms: Annotated[float, Field(ge=0)] | None = None
    segments: dict[str, Value] = {}
    outcome: Outcome | None = None
    deployment: Deployment | None = None
    producer: Origin | None = None


class Distribution:
    """Values of one window, counted in the cells of the reference."""

    def __init__(self, raw: Sequence[int], *, ordered: bool) -> None:
        self.merged = merge_cells(np.array(raw), ordered=ordered).tolist()
        self.reference = [0] * (max(self.merged) + 1)
        for cell, count in zip(self.merged, raw, strict=True):
            self.reference[cell] += count
        self.judged = sum(raw) >= WINDOW_MIN and len(self.reference) > 1
        self.counts = [0] * len(raw)

    def end_window(self) -> int:
        """How many values the window had if their distribution is another than the reference's, else 0."""
        window = [0] * len(self.reference)
        for cell, count in zip(self.merged, self.counts, strict=True):
            window[cell] += count
        self.counts[:] = [0] * len(self.counts)
        n = sum(window)
        return n if self.judged and n >= WINDOW_MIN and shifted(window, self.reference) else 0


def shifted(window: Sequence[int], reference: Sequence[int]) -> bool:
    """Whether G and the population stability index both say so, the formulas of ``statistics.drift_figures``."""
    n, m, g, psi, sum_qd, sum_qdd = sum(window), sum(reference), 0.0, 0.0, 0.0, 0.0
    for ours, theirs in zip(window, reference, strict=True):
        q, p = ours / n, theirs / m
        pooled = (ours + theirs) / (n + m)
        g += (ours * log(q / pooled) if ours else 0.0) + (theirs * log(p / pooled) if theirs else 0.0)
        floored_q, floored_p = max(q, SHARE_FLOOR), max(p, SHARE_FLOOR)
        ratio = log(floored_q / floored_p)
        psi += (floored_q - floored_p) * ratio
        if ours:
            d = ratio + 1 - floored_p / floored_q
            sum_qd += q * d
            sum_qdd += q * d * d
    degrees = len(window) - 1
    standard_error = sqrt(max(0.0, (sum_qdd - sum_qd**2) / n))
    return 2 * g >= CHI2_1E6[degrees - 1] and psi - degrees * (1 / n + 1 / m) - 2 * standard_error >= PSI_MIN


class Rules:
    """The rules of one model, and the counts of its window in progress."""

    def __init__(self, contract: Contract, reference: Reference) -> None:
        kinds = {name: feature.type for name, feature in contract.features.items()}
        self.distributions: dict[str, Distribution] = {}
        self.numbers = {
            name: self._numbers(f"distribution_shift|{name}", reference.sketches[name])
            for name, kind in kinds.items()
            if kind == "number"
        }
        self.categories = {
            name: self._names(f"distribution_shift|{name}", reference.sketches[name])
            for name, kind in kinds.items()
            if kind == "category"
        }
        self.features = kinds.keys()
        assert contract.output is not None
        assert contract.slos is not None
        assert contract.slos.latency_ms is not None
        assert reference.latency_ms is not None
        assert reference.confidence is not None
        assert reference.output is not None
        self.latencies = self._numbers("latency_shift|latency_ms", reference.latency_ms)
        self.confidences = self._numbers("confidence_shift|confidence", reference.confidence)
        self.classes = self._names("distribution_shift|prediction", reference.output)
        self.limit_ms = contract.slos.latency_ms.max or 0.0
        self.p95_ms = reference.latency_ms.p95_ms or 0.0
        self.most = share_threshold(0, reference.events)
        self.most_slow = share_threshold(reference.latency_ms.over_p95, reference.latency_ms.n)
        self.counts: Counter[str] = Counter()
        self.events = 0

    def _numbers(self, signal: str, sketch: Any) -> tuple[list[float], list[int]]:
        """The edges between the cells of a number, and the window's counts."""
        one = self.distributions[signal] = Distribution(sketch.counts, ordered=True)
        return list(sketch.edges), one.counts

    def _names(self, signal: str, sketch: Any) -> tuple[dict[Any, int], list[int]]:
        """The cell of each name, and the window's counts; what has no cell is new."""
        names = sorted(sketch.counts)
        counts = [*(sketch.counts[name] for name in names), sketch.other]
        one = self.distributions[signal] = Distribution(counts, ordered=False)
        return {name: cell for cell, name in enumerate(names)}, one.counts

    def judge(self, event: Event) -> None:
        """Count the faults of an event."""
        counts, features = self.counts, event.features
        for name, value in features.items():
            if value is None:
                counts[f"missing_values|{name}"] += 1
            elif name in self.numbers:
                kind = type(value)
                if kind is float or kind is int:
                    edges, cells = self.numbers[name]
                    cells[bisect_right(edges, value)] += 1
                else:
                    counts[f"contract_violation|{name}"] += 1
            elif name not in self.categories:
                counts["contract_violation|features"] += 1
            else:
                cell_of, cells = self.categories[name]
                cell = cell_of.get(value)
                if cell is None:
                    counts[f"contract_violation|{name}"] += 1
                else:
                    cells[cell] += 1
        if len(features) < len(self.features):
            for name in self.features - features.keys():
                counts[f"missing_values|{name}"] += 1
        if event.status is not None and event.status.code != "ok":
            counts[f"bad_status|{event.status.code}"] += 1
        if event.prediction is not None:
            cell_of, cells = self.classes
            cell = cell_of.get(event.prediction)
            if cell is None:
                counts["invalid_output|prediction"] += 1
            else:
                cells[cell] += 1
        if event.confidence is not None:
            edges, cells = self.confidences
            cells[bisect_right(edges, event.confidence)] += 1
        if event.latency_ms is not None:
            edges, cells = self.latencies
            cells[bisect_right(edges, event.latency_ms)] += 1
            if event.latency_ms > self.limit_ms:
                counts["latency_limit|latency_ms"] += 1
            if event.latency_ms > self.p95_ms:
                counts["latency_shift|latency_ms"] += 1
        if any(not 0 <= score <= 1 for score in event.scores.values()):
            counts["invalid_output|scores"] += 1
        self.events += 1

    def end_window(self) -> dict[str, int]:
        """What was too often in the window that ends here."""
        found = {signal: count for signal, count in self.counts.items() if count >= self._threshold(signal)}
        for signal, distribution in self.distributions.items():
            count = distribution.end_window()
            if count:
                found[signal] = max(count, found.get(signal, 0))
        self.counts.clear()
        self.events = 0
        return found

    def _threshold(self, signal: str) -> int:
        if signal.startswith(("bad_status", "invalid_output")):
            return 1
        return self.most_slow if signal == "latency_shift|latency_ms" else self.most


def main(address: str, topic: str, target: str, events: int) -> None:
    rules = {contract.model: Rules(contract, reference) for contract, reference in tables()}
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": f"{topic}.naive",
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 20,  # its default of 1 s lets a fast loop run dry
        }
    )
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True})
    found, seen = Findings(), set()
    consumer.subscribe([topic])
    cpu_s, start_s, taken = 0.0, 0.0, 0
    while taken < events:
        asked_cpu_s = 0.0 if taken else time.process_time()
        message = consumer.poll(1.0)
        if message is None:
            continue
        cpu_s = cpu_s or asked_cpu_s
        if message.error():
            raise SystemExit(str(message.error()))
        start_s = start_s or time.perf_counter()
        taken += 1
        try:
            event = Event.model_validate_json(message.value() or b"")
        except ValidationError:
            found.refused += 1
            continue
        if event.event_id in seen:
            found.duplicates += 1
            continue
        seen.add(event.event_id)
        one = rules[event.model.name]
        one.judge(event)
        if one.events == WINDOW:
            for signal, count in one.end_window().items():
                found.add(event.model.name, signal, count)
                producer.produce(target, json.dumps([event.model.name, signal, count]), event.model.name)
    producer.flush()
    consumer.commit(asynchronous=False)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - start_s
    print(json.dumps({"events": taken, "cpu_s": cpu_s, "wall_s": wall_s, "findings": found.to_plain()}))
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
