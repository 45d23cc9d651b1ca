"""The context store of a single process keeps the promises of every one; a store that breaks one is found out."""

from collections.abc import Sequence

import pytest
from tests.conformance.context_store import ContextStoreSuite, between, change, ids, question

from errata.adapters.context_memory import MemoryContextStore
from errata.contracts import ChangeEvent
from errata.ports import ChangesFound


class TestMemoryContext(ContextStoreSuite):
    def make(self) -> MemoryContextStore:
        return MemoryContextStore()


class Forgetful(MemoryContextStore):
    """Answers with what was seen later too."""

    def between(self, wanted: Sequence[tuple[str, str, int, int, int]], most: int | None = None) -> list[ChangesFound]:
        return super().between([(*one[:4], 2**62) for one in wanted], most)


class OneKey(MemoryContextStore):
    """Joins tenant and subject without a way to tell them apart."""

    def add(self, changes: Sequence[tuple[ChangeEvent, int]]) -> None:
        joined = [
            (one.model_copy(update={"tenant": "", "subject": f"{one.tenant}:{one.subject}"}), at) for one, at in changes
        ]
        super().add(joined)

    def between(self, wanted: Sequence[tuple[str, str, int, int, int]], most: int | None = None) -> list[ChangesFound]:
        return super().between([("", f"{one[0]}:{one[1]}", *one[2:]) for one in wanted], most)


def test_the_suite_finds_a_store_that_tells_what_was_seen_later() -> None:
    with pytest.raises(AssertionError):
        TestMemoryContext().test_what_was_seen_at_that_time_or_after_stays_out(Forgetful())


def test_the_suite_finds_a_store_whose_keys_meet() -> None:
    with pytest.raises(AssertionError):
        TestMemoryContext().test_hostile_names_do_not_meet(OneKey())


def test_the_newest_change_makes_no_older_one_go() -> None:
    store = MemoryContextStore()
    store.add([(change(0, "old"), 1), (change(60 * 24 * 60, "new"), 2)])
    assert ids(between(store, [question(0, 60 * 24 * 60)])[0]) == ["old", "new"]
