"""Invalid outputs: a class nobody declared, a number out of range, a score that is none."""

from typing import Any

import pytest
from tests.detectors.streams import clean, detect, each


@pytest.mark.parametrize(
    ("fields", "subject", "reason"),
    [
        ({"prediction": "perhaps", "scores": {}}, "prediction", "unseen_class"),
        ({"scores": {"yes": 1.5, "no": 1.5}}, "scores", "scores"),
        ({"scores": {"yes": -0.5, "no": -0.5}}, "scores", "scores"),
    ],
)
def test_a_single_one_opens_at_its_record(fields: dict[str, Any], subject: str, reason: str) -> None:
    ran = detect(each(clean(300), (77,), lambda event: event.update(fields)))
    assert ran.opened() == [(77, "invalid_output", subject)]
    assert ran.moves[0][1].reason == reason


def test_a_declared_class_is_none() -> None:
    assert detect(each(clean(300), (77,), lambda event: event.update(prediction="no", scores={"no": 0.9}))).moves == []


def test_where_the_contract_says_count_it_takes_ten() -> None:
    counted: dict[str, Any] = {"admission": {"invalid_output": "count"}}
    events = each(clean(300), range(10), lambda event: event.update(prediction="perhaps"))
    assert detect(events, **counted).opened() == [(9, "invalid_output", "prediction")]
    assert detect(each(clean(300), range(9), lambda event: event.update(prediction="perhaps")), **counted).moves == []
