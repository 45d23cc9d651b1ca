"""Windows and what is counted in them; a record that comes again, at any place of a kill, changes nothing."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from tests.integration.trend_cases import START, case, recounted, story

from errata.contracts import TaggedCase
from errata.contracts.strict import instant, to_us
from errata.domain.trends import (
    CASES_KEPT_S,
    KEPT_S,
    SIZE_S,
    STEP_S,
    Change,
    Counts,
    Group,
    PartitionTrends,
    Window,
    growth,
    pane_of,
    panes_of,
    partition_of_key,
    summed,
    trend_key,
    trend_of,
    windows_of,
)

AT_S = to_us(START) // 1_000_000
GROUP = Group("default", "fraud", "error_rate", "a:b:c", "high")
Windows = dict[Window, Counts]


class Member:
    """One partition with its state and what was published, as a driver keeps them."""

    def __init__(self, state: dict[bytes, bytes] | None = None, published: Windows | None = None) -> None:
        self.state = {} if state is None else state
        self.published: Windows = {} if published is None else published
        self.trends = PartitionTrends.restored(0, self.state)

    def take(self, one: TaggedCase, offset: int, most: int | None = None) -> list[Change]:
        """``most``: how many changes are written before a kill."""
        changes = self.trends.take(one, offset).changes
        for change in changes[:most]:
            if change.value is None:
                self.state.pop(change.key, None)
            else:
                self.state[change.key] = change.value
        return changes

    def publish(self) -> Windows:
        for window in self.trends.take_dirty():
            counts = self.trends.counts(window)
            if window.start_s < self.trends.horizon_s:
                self.published.pop(window, None)
            elif counts is not None:
                self.published[window] = counts
        return self.published


def plainly(cases: list[TaggedCase]) -> Windows:
    return {
        Window(to_us(start) // 1_000_000, Group(*group)): Counts(*counts)
        for (start, *group), counts in recounted(cases).items()
    }


def counted(cases: list[TaggedCase]) -> Windows:
    member = Member()
    for offset, one in enumerate(cases):
        member.take(one, offset)
    return member.publish()


# Windows.


@pytest.mark.parametrize("seconds", [0, 1, STEP_S - 1, STEP_S, 5 * STEP_S + 17, AT_S + 12_345])
def test_a_moment_lies_in_the_windows_that_hold_it_and_in_no_other(seconds: int) -> None:
    starts = list(windows_of(pane_of(seconds * 1_000_000)))
    near = range((seconds // STEP_S - 20) * STEP_S, seconds + 20 * STEP_S, STEP_S)
    assert starts == [start for start in near if start <= seconds < start + SIZE_S]
    assert len(starts) == SIZE_S // STEP_S == 6


def test_a_window_is_made_of_the_panes_that_lie_in_it() -> None:
    assert all(start in windows_of(pane) for start in (0, 600, AT_S) for pane in panes_of(start))
    assert len(panes_of(0)) == SIZE_S // STEP_S


def test_a_time_before_1970_has_its_pane() -> None:
    assert pane_of(-1) == -STEP_S


# Growth.


def test_the_first_record_of_a_case_opens_it_and_counts_all_its_findings() -> None:
    one = case("a", 1, counts={("error_rate", "x"): 3, ("error_rate", "y"): 2, ("bad_status", "z"): 4})
    assert growth(one, None) == {GROUP: Counts(1, 5), GROUP._replace(detector="bad_status"): Counts(0, 4)}


def test_a_later_record_counts_what_its_findings_have_grown_by() -> None:
    trends = PartitionTrends(0)
    trends.take(case("a", 1, counts={("error_rate", "x"): 3}), 0)
    later = case("a", 2, counts={("error_rate", "x"): 7, ("bad_status", "y"): 2}, severity="low")
    low = GROUP._replace(severity="low")
    assert trends.take(later, 1).added == {low: Counts(0, 4), low._replace(detector="bad_status"): Counts(0, 2)}
    assert trends.take(case("a", 3, state="close", counts={("error_rate", "x"): 7}), 2).added == {}
    assert trends.take(case("a", 4, state="reopen", counts={("error_rate", "x"): 5}), 3).added == {}, "nothing shrinks"


def test_a_case_whose_opening_is_no_longer_kept_was_opened_then_and_not_now() -> None:
    assert growth(case("a", 5, counts={("error_rate", "x"): 9}), None) == {GROUP: Counts(0, 9)}


def test_a_case_counts_once_for_each_of_its_tags_and_under_none_when_it_has_none() -> None:
    assert {group.tag for group in growth(case("a", 1, tags=("p:q:r", "s:t:u", "p:q:r")), None)} == {"p:q:r", "s:t:u"}
    assert {group.tag for group in growth(case("a", 1, tags=()), None)} == {""}


def test_a_case_that_opens_without_a_finding_is_opened_all_the_same() -> None:
    assert growth(case("a", 1, counts={("error_rate", "x"): 0}), None) == {GROUP: Counts(1, 0)}


# Counting.


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_are_those_of_the_plainest_recount(seed: int) -> None:
    told = story(15, seed)
    assert len(told) > 90, "some come twice"
    assert counted(told) == plainly(told)


def test_order_between_cases_does_not_matter() -> None:
    told = story(10, 3)
    by_case = sorted(told, key=lambda one: (one.episode.id, one.episode.seq))
    assert counted(by_case) == counted(told)


def test_a_copy_of_a_record_counts_nothing() -> None:
    told = story(8, 4)
    assert counted([*told, *told]) == counted(told)


@pytest.mark.parametrize("seed", range(40))
def test_kills_between_any_two_writes_change_nothing(seed: int) -> None:
    """A driver that dies anywhere: some changes of a record are written, some records come again from an old offset."""
    chance = random.Random(seed)
    told = story(8, seed)
    state: dict[bytes, bytes] = {}
    published: Windows = {}
    committed = 0
    for _ in range(12):
        member, offset = Member(state, published), committed
        for _ in range(chance.randrange(1, 20)):
            if offset == len(told):
                break
            if chance.random() < 0.1:
                member.take(told[offset], offset, most=chance.randrange(8))
                break
            member.take(told[offset], offset)
            offset += 1
            if chance.random() < 0.2:
                member.publish()
                committed = offset
    member = Member(state, published)
    for offset in range(committed, len(told)):
        member.take(told[offset], offset)
    assert member.publish() == plainly(told)


def test_without_the_check_a_record_that_comes_again_counts_twice() -> None:
    """The control: state that does not know how far it is."""
    told = story(8, 1)
    member = Member()
    for offset, one in enumerate(told):
        member.take(one, offset)
    member.trends.next_offset = None
    member.trends.cases.clear()
    for groups in member.trends.panes.values():
        for pane in groups.values():
            pane.upto = 0
    for offset, one in enumerate(told):
        member.take(one, offset)
    assert member.publish() != plainly(told)


def test_a_record_taken_again_publishes_its_windows_again() -> None:
    """It was counted before a kill; whether it was published nobody knows."""
    member = Member()
    member.take(case("a", 1), 0)
    again = Member(member.state)
    assert again.take(case("a", 1), 0) == []
    assert again.publish() == counted([case("a", 1)])


def test_changes_are_written_in_the_order_that_a_kill_between_them_needs() -> None:
    changes = Member().take(case("a", 1, tags=("p:q:r", "s:t:u")), 7)
    assert [change.key.split(b'"')[1] for change in changes] == [b"pane", b"pane", b"case", b"progress"]
    assert {partition_of_key(change.key) for change in changes} == {0}


def test_a_record_that_is_no_case_moves_the_progress_only() -> None:
    trends = PartitionTrends(0)
    (change,) = trends.skip(4).changes
    assert (trends.next_offset, change.key) == (5, b'["progress",0]')
    assert trends.skip(4).changes == [], "it was passed before"


def test_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="an entry of the kind 'window'"):
        PartitionTrends.restored(0, {b'["window",0]': b"1"})


# What is no longer kept.


def test_old_windows_go_with_the_newest_event_and_what_is_older_still_is_late() -> None:
    member = Member()
    member.take(case("old", 1, START), 0)
    assert member.publish()
    member.take(case("new", 1, START + timedelta(seconds=KEPT_S + 2 * SIZE_S)), 1)
    late = member.trends.take(case("late", 1, START), 2)
    assert (late.dropped, late.added) == ("late", {})
    new = counted([case("new", 1, START + timedelta(seconds=KEPT_S + 2 * SIZE_S))])
    assert member.publish() == new
    assert Counter(key.split(b'"')[1] for key in member.state) == {b"pane": 1, b"case": 2, b"progress": 1}
    # A late case is known all the same: what it grows by later is its growth.
    grown = case("late", 2, START + timedelta(seconds=KEPT_S), counts={("error_rate", "all"): 5})
    assert member.trends.take(grown, 3).added == {GROUP: Counts(0, 4)}


def test_a_window_that_has_lost_a_pane_goes_with_it() -> None:
    """What is shown is whole: a window that began before the horizon is not shown with the panes that are left."""
    member = Member()
    member.take(case("a", 1, START), 0)
    member.take(case("b", 1, START + timedelta(seconds=3 * STEP_S)), 1)
    member.take(case("c", 1, START + timedelta(seconds=KEPT_S + STEP_S)), 2)
    assert min(window.start_s for window in member.publish()) == member.trends.horizon_s == AT_S + STEP_S
    assert all(start >= AT_S + STEP_S for start in member.trends.panes)


def test_cases_without_a_finding_for_long_are_forgotten() -> None:
    member = Member()
    member.take(case("old", 1, START), 0)
    member.take(case("new", 1, START + timedelta(seconds=CASES_KEPT_S + STEP_S)), 1)
    assert set(member.trends.cases) == {"new"}
    assert b"old" not in b"".join(member.state)


def test_what_is_forgotten_does_not_hang_on_a_kill() -> None:
    far = case("new", 1, START + timedelta(seconds=KEPT_S + 2 * SIZE_S))
    for most in range(6):
        member = Member()
        member.take(case("old", 1, START), 0)
        member.take(far, 1, most=most)
        again = Member(member.state)
        again.take(far, 1)
        assert again.trends.newest_s == to_us(far.episode.last_seen) // 1_000_000
        assert again.publish() == counted([far])


# On the wire.


def test_shares_of_partitions_add_up() -> None:
    window = Window(AT_S, GROUP)
    shares = [trend_of(window, Counts(1, 5), 0), trend_of(window, Counts(2, 7), 4)]
    assert summed(shares) == {window: Counts(3, 12)}
    assert trend_key(window, 0) != trend_key(window, 4)


def test_a_trend_tells_its_window_and_the_constants_it_was_cut_by() -> None:
    trend = trend_of(Window(AT_S, GROUP), Counts(1, 5), 3)
    assert trend.window_end - trend.window_start == timedelta(seconds=trend.size_s) == timedelta(hours=1)
    assert trend.window_start == instant(AT_S * 1_000_000) == datetime(2026, 2, 4, tzinfo=UTC)
    assert (trend.step_s, trend.partition, trend.model, trend.severity) == (600, 3, "fraud", "high")
