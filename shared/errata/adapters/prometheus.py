"""Metrics for Prometheus: instruments on a registry of their own, and their exposition."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

Family = Counter | Gauge | Histogram


class Described(Protocol):
    """What a metric is, as `errata.runtime.telemetry.Metric` says it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]: ...
    @property
    def meaning(self) -> str: ...
    @property
    def all_labels(self) -> tuple[str, ...]: ...
    @property
    def buckets(self) -> tuple[float, ...]: ...


class PrometheusMeter:
    """The metrics of one process, with those of the process itself (memory, CPU, start time)."""

    def __init__(self) -> None:
        # A second sample per counter and histogram that nobody here reads; the library knows this switch only.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left it untyped
        self._registry = CollectorRegistry()
        self._families: dict[str, Family] = {}
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def instrument(self, metric: Described, values: Sequence[str]) -> Callable[[float], None]:
        """The series of these label values; begun at 0. Its function adds, sets or observes, as the kind says."""
        if metric.name not in self._families:
            self._families[metric.name] = _family(metric, self._registry)
        family = self._families[metric.name]
        child = family.labels(*values) if values else family
        if isinstance(child, Counter):
            return child.inc
        return child.set if isinstance(child, Gauge) else child.observe

    def exposition(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body, in the format that the ``Accept`` header of a scrape asks for."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)


def _family(metric: Described, registry: CollectorRegistry) -> Family:
    if metric.kind == "counter":
        return Counter(metric.name, metric.meaning, metric.all_labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.meaning, metric.all_labels, registry=registry)
    return Histogram(metric.name, metric.meaning, metric.all_labels, registry=registry, buckets=metric.buckets)
