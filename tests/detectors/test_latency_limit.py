"""Latency over the contract's limit: a share, not a single slow answer."""

from tests.detectors.streams import clean, detect, each

ROWS = range(40, 300, 20)


def test_the_tenth_over_the_limit_fires() -> None:
    ran = detect(each(clean(400), ROWS, lambda event: event.update(latency_ms=400.5)))
    assert ran.opened() == [(ROWS[9], "latency_limit", "latency_ms")]
    assert detect(each(clean(400), ROWS[:9], lambda event: event.update(latency_ms=400.5))).moves == []


def test_the_limit_itself_is_allowed() -> None:
    assert detect(each(clean(400), ROWS, lambda event: event.update(latency_ms=400.0))).moves == []


def test_without_a_limit_there_is_none_to_break() -> None:
    assert detect(each(clean(400), ROWS, lambda event: event.update(latency_ms=400.5)), slos=None).moves == []


def test_an_unknown_latency_is_no_slow_one() -> None:
    assert detect(each(clean(400), ROWS, lambda event: event.pop("latency_ms"))).moves == []
