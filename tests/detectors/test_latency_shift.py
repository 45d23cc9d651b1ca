"""Latency shift: upwards only; by the tail at an event, by the distribution at a window's end."""

from collections.abc import Callable

from tests.detectors.streams import Event, clean, detect, each, reference


def times(factor: float) -> Callable[[Event], None]:
    def change(event: Event) -> None:
        event["latency_ms"] = round(min(399.0, event["latency_ms"] * factor), 2)

    return change


def p95_ms() -> float:
    latency = reference().latency_ms
    assert latency is not None
    assert latency.p95_ms is not None
    return latency.p95_ms


def test_slower_answers_fire_at_the_54th_in_the_tail() -> None:
    events = each(clean(500), range(500), times(3))
    tail = [i for i, event in enumerate(events) if event["latency_ms"] > p95_ms()]
    ran = detect(events)
    assert ran.opened() == [(tail[53], "latency_shift", "latency_ms")]
    assert ran.moves[0][1].reason == "tail"


def test_a_shift_below_the_tail_fires_at_the_windows_end() -> None:
    """Everything near 100 ms: slower on the whole, though fewer than 54 lie above the 95th percentile."""
    events = each(clean(500), range(500), lambda event: event.update(latency_ms=100.0))
    ran = detect(events)
    assert ran.opened() == [(499, "latency_shift", "latency_ms")]
    assert (ran.moves[0][1].reason, ran.moves[0][1].direction) == ("distribution", "up")


def test_faster_answers_are_no_failure() -> None:
    assert detect(each(clean(1_000), range(1_000), times(0.2))).moves == []


def test_a_slightly_slower_model_is_none_either() -> None:
    assert detect(each(clean(1_000), range(1_000), times(1.05))).moves == []
