"""What every context store promises, as tests. A store's own test file subclasses the suite and makes the store."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errata.adapters.context_memory import MemoryContextStore
from errata.contracts import ChangeEvent
from errata.contracts.strict import instant, rfc3339
from errata.ports import ContextStore

NOON_US = 1_767_614_400_000_000  # 2026-01-05T12:00:00Z
MINUTE_US = 60_000_000
DAY_US = 24 * 60 * MINUTE_US
EVER_US = 2**60
HOSTILE = [
    ("a", "b:c"), ("a:b", "c"), ("a:b:c", ""), ("a%3Ab", "c"), ("a", "b%3Ac"), ("a", "b\r\nDEL *"), ("*", "?"),
    ("{a}", "{b}"), ("a ", "b"), ("a", " b"), ("ä", "模型"), ("a\u0308", "模型"), ("A", "B"), ("x" * 200, "y" * 200),
]  # fmt: skip


def change(minutes: float = 0, change_id: str = "c1", subject: str = "fraud", **fields: Any) -> ChangeEvent:
    """A change so many minutes after noon."""
    time = rfc3339(instant(NOON_US + round(minutes * MINUTE_US)))
    said = {"change_id": change_id, "kind": "deploy", "subject": subject, "time": time, **fields}
    return ChangeEvent.model_validate_json(json.dumps(said))


def question(
    since: float, until: float, seen_before_us: int = EVER_US, *, tenant: str = "default", subject: str = "fraud"
) -> tuple[str, str, int, int, int]:
    """A question about the time between so many minutes after noon."""
    return tenant, subject, NOON_US + round(since * MINUTE_US), NOON_US + round(until * MINUTE_US), seen_before_us


def between(store: ContextStore, wanted: Sequence[tuple[str, str, int, int, int]]) -> list[list[ChangeEvent]]:
    """All changes that are asked for."""
    found = store.between(wanted)
    assert all(one.left_out == 0 for one in found)
    return [one.changes for one in found]


def ids(changes: Sequence[ChangeEvent]) -> list[str]:
    return [found.change_id for found in changes]


class ContextStoreSuite(ABC):
    @abstractmethod
    def make(self) -> ContextStore:
        """An empty store that counts as filled."""

    @pytest.fixture
    def store(self) -> ContextStore:
        return self.make()

    def test_a_change_comes_back_whole(self, store: ContextStore) -> None:
        fields: dict[str, Any] = {"from": "v1", "to": "v2", "actor": "é\u2028", "own": {"field": [1, {"a": "b"}]}}
        said = change(link="https://ci/1", **fields)
        store.add([(said, 1)])
        assert between(store, [question(0, 0)]) == [[said]]

    def test_both_edges_are_inside_to_the_microsecond(self, store: ContextStore) -> None:
        us = 1 / MINUTE_US
        store.add([(change(at, f"c{at}"), 1) for at in (-us, 0, 5, 10, 10 + us)])
        assert ids(between(store, [question(0, 10)])[0]) == ["c0", "c5", "c10"]
        assert between(store, [question(6, 9)]) == [[]]

    def test_edges_hold_where_a_double_no_longer_tells_microseconds_apart(self, store: ContextStore) -> None:
        times_us = [NOON_US + 1_000 * 365 * DAY_US + more for more in range(4)]
        assert len({float(time_us) for time_us in times_us}) < 4
        store.add([(change(0, f"c{at}", time=rfc3339(instant(us))), 1) for at, us in enumerate(times_us)])
        assert ids(between(store, [("default", "fraud", times_us[1], times_us[2], EVER_US)])[0]) == ["c1", "c2"]

    def test_what_was_seen_at_that_time_or_after_stays_out(self, store: ContextStore) -> None:
        store.add([(change(1, "before"), 9), (change(2, "then"), 10), (change(3, "after"), 11)])
        assert ids(between(store, [question(0, 9, 10)])[0]) == ["before"]
        assert ids(between(store, [question(0, 9, 12)])[0]) == ["before", "then", "after"]

    def test_changes_are_told_by_time_and_id_in_whatever_order_they_come(self, store: ContextStore) -> None:
        seen = [(change(5, "b"), 1), (change(5, "a"), 2), (change(3, "c"), 3)]
        for one in reversed(seen):
            store.add([one])
        assert ids(between(store, [question(0, 9)])[0]) == ["c", "a", "b"]

    def test_the_same_change_twice_is_one(self, store: ContextStore) -> None:
        for seen_us in (5, 5, 7, 3):
            store.add([(change(1, to="v2"), seen_us), (change(1, to="v2"), seen_us)])
        assert ids(between(store, [question(0, 9)])[0]) == ["c1"]
        assert ids(between(store, [question(0, 9, 4)])[0]) == ["c1"]
        assert between(store, [question(0, 9, 3)]) == [[]]

    @pytest.mark.parametrize("turned", [False, True])
    def test_of_one_id_the_change_seen_first_is_told(self, store: ContextStore, turned: bool) -> None:
        seen = [(change(5, to="v2"), 1), (change(7, to="v3"), 2)]
        for one in reversed(seen) if turned else seen:
            store.add([one])
        assert [found.to for found in between(store, [question(0, 9)])[0]] == ["v2"]

    def test_every_question_of_a_batch_has_its_answer_in_its_place(self, store: ContextStore) -> None:
        store.add([(change(at, f"c{at}"), at) for at in range(10)])
        store.add([(change(4, "other", subject="churn"), 1)])
        wanted = [
            question(3, 5), question(0, 9, 2), question(4, 7), question(3, 5), question(0, 9, subject="churn"),
            question(0, 9, subject="nobody"), question(9, 9), question(5, 3), question(0, 9, tenant="acme"),
        ]  # fmt: skip
        assert [ids(found) for found in between(store, wanted)] == [
            ["c3", "c4", "c5"], ["c0", "c1"], ["c4", "c5", "c6", "c7"], ["c3", "c4", "c5"], ["other"], [], ["c9"], [],
            [],
        ]  # fmt: skip
        assert between(store, []) == []

    def test_of_more_than_are_asked_for_the_last_are_told_and_the_others_counted(self, store: ContextStore) -> None:
        store.add([(change(at, f"c{at}"), 1) for at in range(9)])
        store.add([(change(at, f"c{at}"), 2) for at in range(9)])  # again
        store.add([(change(4, "later"), 99), (change(10, "after"), 1)])
        (found, all_of_them) = store.between([question(0, 9, 99), question(6, 9)], 3)
        assert (ids(found.changes), found.left_out) == (["c6", "c7", "c8"], 6)
        assert (ids(all_of_them.changes), all_of_them.left_out) == (["c6", "c7", "c8"], 0)
        assert store.between([question(0, 9)], 0)[0] == ([], 10)

    def test_hostile_names_do_not_meet(self, store: ContextStore) -> None:
        names = [(tenant, subject or "none") for tenant, subject in HOSTILE]
        store.add([(change(0, f"c{at}", subject, tenant=tenant), 1) for at, (tenant, subject) in enumerate(names)])
        found = between(store, [question(0, 0, tenant=tenant, subject=subject) for tenant, subject in names])
        assert [ids(one) for one in found] == [[f"c{at}"] for at in range(len(names))]

    def test_many_at_once_are_all_kept(self, store: ContextStore) -> None:
        store.add([(change(at / 100, f"c{at:04}", f"s{at % 3}"), 1) for at in range(2_500)])
        found = between(store, [question(0, 60, subject=f"s{at}") for at in range(3)])
        assert sorted(name for one in found for name in ids(one)) == [f"c{at:04}" for at in range(2_500)]

    def test_filling_adds_and_loses_nothing(self, store: ContextStore) -> None:
        store.add([(change(1, "live"), 1)])
        assert store.fill([[(change(2, "a"), 1), (change(3, "b"), 1)], [], [(change(4, "c"), 1)]]) == 3
        assert ids(between(store, [question(0, 9)])[0]) == ["live", "a", "b", "c"]

    @settings(
        max_examples=25,
        deadline=None,  # one test in several classes, each with a store of its own: differing executors
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(
        seen=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8), st.sampled_from(["a", "b"])), max_size=30),
        asked=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=8),
    )
    def test_any_store_says_what_the_one_in_memory_says(
        self, seen: list[tuple[int, int, str]], asked: list[tuple[int, int, int]]
    ) -> None:
        """Ids that stand for one change each; of two contents of one id only the test above speaks."""
        changes = [(change(minute, f"{subject}{minute}", subject), seen_us) for minute, seen_us, subject in seen]
        wanted = [
            question(since, since + width, before, subject=subject)
            for since, width, before in asked
            for subject in ("a", "b")
        ]
        memory, store = MemoryContextStore(), self.make()
        for one in changes:
            memory.add([one])
        store.add(list(reversed(changes)))
        assert between(store, wanted) == between(memory, wanted)
