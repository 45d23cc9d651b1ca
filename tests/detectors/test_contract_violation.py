"""Contract violations: one count for each feature and reason, at the exact event, and the trace of a changed unit."""

from typing import Any

import pytest
from tests.detectors.streams import Event, clean, detect, each


@pytest.mark.parametrize(
    ("feature", "value", "reason"),
    [
        ("amount", 5_000.0, "range"),
        ("amount", "a lot", "type"),
        ("amount", [1, 2], "type"),
        ("age", -1, "range"),
        ("age", 30.5, "type"),
        ("colour", "mauve", "unseen_category"),
        ("colour", 7, "type"),
        ("note", 7, "type"),
        ("surplus", 1, "extra"),
    ],
)
def test_the_tenth_violation_of_a_window_fires(feature: str, value: Any, reason: str) -> None:
    rows = range(20, 60, 3)

    def break_(event: Event) -> None:
        event["features"][feature] = value

    ran = detect(each(clean(400), rows, break_))
    subject = "features" if reason == "extra" else feature
    assert ran.opened() == [(rows[9], "contract_violation", subject)]
    assert ran.moves[0][1].reason == reason
    assert ran.moves[0][1].count == 10
    assert detect(each(clean(400), rows[:9], break_)).moves == []


def test_reasons_are_counted_apart() -> None:
    """Nine of one and nine of another are no ten."""
    events = each(clean(400), range(20, 29), lambda event: event["features"].update(age=400))
    events = each(events, range(40, 49), lambda event: event["features"].update(age="old"))
    assert detect(events).moves == []
    assert detect(each(events, (60,), lambda event: event["features"].update(age=400))).opened() == [
        (60, "contract_violation", "age")
    ]


def test_several_surplus_features_of_one_event_count_once() -> None:
    ran = detect(each(clean(400), range(5), lambda event: event["features"].update(a=1, b=2, c=3)))
    assert ran.moves == []


def test_a_violating_value_leaves_the_statistics() -> None:
    """500 ages out of range say nothing of the distribution of the others."""
    ran = detect(each(clean(500), range(0, 500, 2), lambda event: event["features"].update(age=400)))
    assert {f.detector for _, said in ran.moves for f in said.findings} == {"contract_violation"}


def test_the_mean_of_violating_numbers_over_the_median_tells_a_change_of_unit() -> None:
    def to_months(event: Event) -> None:
        event["features"]["age"] *= 12

    events = each(clean(400), range(100, 200), to_months)
    (finding,) = detect(events, 37).moves[0][1].findings
    rows = [event["features"]["age"] for event in events if event["features"]["age"] > 120][:10]
    assert finding.evidence["mean_ratio"] == pytest.approx(sum(rows) / 10 / 53, abs=1e-6)
    assert finding.evidence["mean_ratio"] > 4
