"""Missing values: absent or null counts, at the exact event, against the reference's own share."""

from tests.detectors.streams import Event, clean, detect, each, reference

from errata.domain.detection.statistics import share_threshold

K = share_threshold(reference().sketches["amount"].missing, reference().events)


def missing_rows(events: list[Event]) -> list[int]:
    return [i for i, event in enumerate(events) if event["features"].get("amount") is None]


def test_it_fires_at_the_kth_event_and_not_before() -> None:
    """Half of them null, half absent: both are missing."""
    events = each(clean(500), range(100, 200, 4), lambda event: event["features"].update(amount=None))
    events = each(events, range(102, 200, 4), lambda event: event["features"].pop("amount"))
    rows = missing_rows(events)
    assert detect(events).opened() == [(rows[K - 1], "missing_values", "amount")]
    few = each(events, rows[K - 1 :], lambda event: event["features"].update(amount=100.0))
    assert len(missing_rows(few)) == K - 1
    assert detect(few).moves == []


def test_the_share_is_of_one_window() -> None:
    """As many in two windows, but fewer than k in each, are normal."""
    events = each(clean(1_100), missing_rows(clean(1_100)), lambda event: event["features"].update(amount=100.0))
    rows = [*range(500 - K + 1, 500), *range(500, 500 + K - 1)]
    assert detect(each(events, rows, lambda event: event["features"].update(amount=None))).moves == []
    together = [row + K for row in rows]
    ran = detect(each(events, together, lambda event: event["features"].update(amount=None)))
    assert ran.opened() == [(together[K - 1], "missing_values", "amount")]


def test_an_answer_that_failed_need_not_carry_features() -> None:
    def fail(event: Event) -> None:
        event["status"] = {"code": "error"}
        event["features"] = {}
        event.pop("prediction")

    ran = detect(each(clean(300), range(50, 150), fail))
    assert {name for _, name, _ in ran.findings} == {"bad_status"}


def test_a_missing_feature_that_is_required_is_a_violation_too() -> None:
    ran = detect(each(clean(300), range(50, 150), lambda event: event["features"].pop("colour")))
    found = {(f.detector, f.subject, f.reason) for _, said in ran.moves for f in said.findings}
    assert found == {("missing_values", "colour", "share"), ("contract_violation", "colour", "missing")}
