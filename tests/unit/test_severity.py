from typing import Any

import pytest
from tests.unit.anomaly_builder import enriched_anomaly, finding

from errata.contracts import Finding
from errata.domain.diagnosis.severity import effect, reach, severity


def signal(value: float, threshold: float, **fields: Any) -> Finding:
    return finding(
        "error_rate", "outcome", "cusum", **{"statistic": "cusum", **fields}, value=value, threshold=threshold
    )


def test_the_terms_are_shown_and_make_the_value() -> None:
    said = severity(enriched_anomaly(signal(1.7, 1.0)), harm=0.6, confidence=0.9)
    assert said.terms == {"harm": 0.6, "reach": 0.4, "effect": 0.7, "confidence": 0.9}
    assert said.value == round(0.9 * (0.5 * 0.6 + 0.3 * 0.4 + 0.2 * 0.7), 6) == 0.504
    assert said.level == "high"
    assert said.formula == "confidence × (0.5·harm + 0.3·reach + 0.2·effect)"


@pytest.mark.parametrize(
    ("value", "threshold", "wanted"),
    [(1, 1, 0), (1.5, 1, 0.5), (2, 1, 1), (9, 1, 1), (0.5, 1, 0), (1, 0, 1), (0, 0, 0)],
)
def test_effect_runs_from_the_threshold_to_twice_it(value: float, threshold: float, wanted: float) -> None:
    assert effect([signal(value, threshold)]) == wanted


def test_a_downward_finding_counts_below_its_threshold() -> None:
    assert effect([signal(0.5, 1, direction="down")]) == 0.5


def test_the_strongest_finding_counts_and_none_is_nothing() -> None:
    assert effect([signal(1.1, 1), signal(1.5, 1)]) == 0.5
    assert effect([]) == 0


def test_a_share_counts_by_what_it_rose_to_after_it_fired() -> None:
    fired = signal(0.02, 0.02, statistic="share", count=10)
    assert effect([fired], 500) == 0
    assert effect([fired.model_copy(update={"count": 15})], 500) == pytest.approx(0.5)
    assert effect([fired.model_copy(update={"count": 45, "windows": 3})], 500) == pytest.approx(0.5)
    assert effect([fired.model_copy(update={"count": 45, "windows": 3, "statistic": "cusum"})], 500) == 0
    assert effect([fired.model_copy(update={"count": 400})]) == 0


def test_reach_takes_the_counted_events_first() -> None:
    found = signal(2, 1)
    assert reach(enriched_anomaly(found, evidence={"events": 1000})) == 0.2
    assert reach(enriched_anomaly(found)) == 0.4
    assert reach(enriched_anomaly(found, evidence={"events": 100})) == 1
    assert reach(enriched_anomaly(found, evidence={"events": True})) == 0.4
    assert reach(enriched_anomaly(found, window=None)) == 0


@pytest.mark.parametrize(
    ("harm", "confidence", "wanted"),
    [(1, 1, "critical"), (1, 0.9, "high"), (0.6, 0.6, "medium"), (0, 0.2, "low"), (0, 0, "info")],
)
def test_levels(harm: float, confidence: float, wanted: str) -> None:
    assert severity(enriched_anomaly(signal(3, 1)), harm, confidence).level == wanted
