"""Confidence shift: the score of the predicted class, either way, at the end of a window."""

import pytest
from tests.detectors.streams import Event, clean, detect, each


@pytest.mark.parametrize(("score", "direction"), [(0.55, "down"), (0.99, "up")])
def test_it_fires_at_the_end_of_its_window_with_its_direction(score: float, direction: str) -> None:
    ran = detect(each(clean(1_000), range(500, 1_000), lambda event: event.update(scores={event["prediction"]: score})))
    assert ran.opened() == [(999, "confidence_shift", "confidence")]
    assert ran.moves[0][1].direction == direction


def test_only_the_score_of_the_predicted_class_counts() -> None:
    def other(event: Event) -> None:
        event["scores"]["no" if event["prediction"] == "yes" else "yes"] = 0.01

    assert detect(each(clean(500), range(500), other)).moves == []


def test_scores_that_are_none_leave_the_statistics() -> None:
    """They are broken outputs, not low confidence."""
    broken = each(clean(500), range(0, 500, 2), lambda event: event.update(scores={event["prediction"]: 7.0}))
    found = {f.detector for _, said in detect(broken).moves for f in said.findings}
    assert found == {"invalid_output"}
