"""Distribution shift: at the exact end of a window, numbers, categories and the predicted class; not a mild one."""

from collections.abc import Callable

import pytest
from tests.detectors.streams import SECOND_US, START_US, Event, clean, detect, each

from errata.contracts.strict import instant

Change = Callable[[Event], object]


def says(prediction: str) -> Change:
    def change(event: Event) -> None:
        event["prediction"], event["scores"] = prediction, {prediction: next(iter(event["scores"].values()))}
        event.pop("outcome")

    return change


@pytest.mark.parametrize(
    ("subject", "change"),
    [
        ("amount", lambda event: event["features"].update(amount=(event["features"]["amount"] or 0) / 3)),
        ("age", lambda event: event["features"].update(age=40)),
        ("colour", lambda event: event["features"].update(colour="green")),
        ("prediction", says("yes")),
    ],
)
def test_a_shift_fires_at_the_end_of_its_first_window(subject: str, change: Change) -> None:
    ran = detect(each(clean(1_500), range(500, 1_500), change))
    assert ran.opened() == [(999, "distribution_shift", subject)]
    said = ran.moves[0][1]
    assert (said.statistic, said.threshold, said.direction) == ("psi", 0.25, "both")
    assert said.onset == instant(START_US + 500 * SECOND_US)  # the window's first event


def test_an_allowed_category_the_reference_never_saw_is_other() -> None:
    ran = detect(each(clean(500), range(500), lambda event: event["features"].update(colour="violet")))
    (finding,) = ran.moves[0][1].findings
    assert finding.evidence["new_share"] == 1.0
    assert set(finding.evidence["gone"]) == {"blue", "green", "red"}


def test_a_mild_shift_opens_nothing() -> None:
    """One in eight becomes blue: a PSI of about 0.05."""
    assert detect(each(clean(1_000), range(0, 1_000, 8), lambda e: e["features"].update(colour="blue"))).moves == []


def test_a_feature_with_fewer_than_a_hundred_values_is_not_judged() -> None:
    def change(event: Event) -> None:
        event["features"]["age"] = 40

    events = each(clean(500), range(500), lambda event: event["features"].pop("age"))
    for rows, shifted in ((range(99), False), (range(100), True)):
        ran = detect(each(events, rows, change))
        found = {(f.detector, f.subject) for _, said in ran.moves for f in said.findings}
        assert (("distribution_shift", "age") in found) is shifted
