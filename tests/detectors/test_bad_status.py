"""Bad statuses: one opens a case where the reference has none of it."""

from typing import Any

import pytest
from tests.detectors.streams import Event, clean, detect, each


@pytest.mark.parametrize("code", ["error", "timeout", "fallback", "missing_response"])
def test_a_single_one_opens_at_its_record(code: str) -> None:
    ran = detect(each(clean(300), (123, 200), lambda event: event.update(status={"code": code})))
    assert ran.opened() == [(123, "bad_status", code)]
    said = ran.moves[0][1]
    assert (said.level, said.statistic, said.count) == ("event", "events", 1)
    assert [row.offset for row in said.exemplars] == [123]


def test_ok_is_no_fault() -> None:
    assert detect(each(clean(300), range(300), lambda event: event.update(status={"code": "ok"}))).moves == []


def test_where_the_contract_says_count_it_takes_a_share() -> None:
    def fail(event: Event) -> None:
        event["status"] = {"code": "error"}

    counted: dict[str, Any] = {"admission": {"bad_status": "count"}}
    assert detect(each(clean(300), range(50, 59), fail), **counted).moves == []
    assert detect(each(clean(300), range(50, 70), fail), **counted).opened() == [(59, "bad_status", "error")]


def test_codes_are_counted_apart() -> None:
    events = each(clean(300), (10,), lambda event: event.update(status={"code": "error"}))
    events = each(events, (20,), lambda event: event.update(status={"code": "timeout"}))
    ran = detect(events)
    assert [(at, said.subject) for at, said in ran.moves] == [(10, "error"), (20, "timeout")]
    assert len({said.episode.id for _, said in ran.moves}) == 1
