"""The audit receipt by receipt: the same sums as the audit of all at once, in bounded memory, and nothing too early."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.contracts import Receipt
from errata.domain.ledger import (
    HOUR_US,
    MAX_HOLES,
    Fault,
    Flow,
    Head,
    LedgerAuditor,
    audit,
    judged_from_us,
    replays_into,
)

FLOW = Flow("first", "middle", "second")
Sums = Counter[tuple[str, str, str, int]]


def receipt(stage: str, start: int, end: int, *, topic: str = "in", partition: int = 0, **given: Any) -> Receipt:
    part = {"topic": topic, "partition": partition, "from": start, "to": end, "delivered": given.pop("delivered", 0)}
    rest = {"instance": "0", "build": "1", "out": 0, "dlq": 0} | given
    return Receipt.model_validate({"stage": stage, "inputs": [part], **rest})


def sums(faults: Iterable[Fault]) -> Sums:
    """Records of each kind of fault in each chain: what does not depend on the order in which receipts come."""
    found: Sums = Counter()
    for fault in faults:
        found[fault.kind, fault.stage, fault.topic, fault.partition] += fault.records
    return found


def all_of(auditor: LedgerAuditor, receipts: Sequence[Receipt], waiting: int = 0) -> list[Fault]:
    """Everything an auditor tells of receipts that all come at 0 s."""
    faults = [fault for one in receipts for fault in auditor.take(one, 0.0)]
    faults += auditor.settle(10.0)
    for flow in auditor.flows:
        for now_s in (10.0, 20.0):
            faults += auditor.weigh(flow, auditor.owed(flow), waiting, 0, now_s)
    return faults


parts = st.tuples(st.sampled_from(["first", "second"]), st.integers(0, 2), st.integers(0, 40), st.integers(0, 9))


@st.composite
def books(draw: st.DrawFn) -> list[Receipt]:
    """Receipts of right chains, of which some are lost, some doubled, and some are none of theirs."""
    made: list[Receipt] = []
    for stage, topic in (("first", "in"), ("second", "middle")):
        for partition in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, 5))
            for size in draw(st.lists(st.integers(0, 6), max_size=8)):
                n = draw(st.integers(0, size))
                given = {"delivered": n, "out": draw(st.integers(0, n)) if stage == "first" else 0}
                made.append(receipt(stage, at, at + size, topic=topic, partition=partition, **given))
                at += size
    strays = draw(st.lists(parts, max_size=4))
    made += [
        receipt(stage, start, start + size, topic="in" if stage == "first" else "middle", partition=partition, dlq=1)
        for stage, partition, start, size in strays
    ]
    lost = draw(st.sets(st.integers(0, max(0, len(made) - 1)), max_size=3))
    doubled = [made[at] for at in draw(st.lists(st.integers(0, len(made) - 1), max_size=2))] if made else []
    return [one for at, one in enumerate(made) if at not in lost] + doubled


@given(books(), st.integers(0, 30), st.randoms(use_true_random=False))
def test_it_agrees_with_the_audit_of_all_at_once_in_every_order(made: list[Receipt], waiting: int, rng: Any) -> None:
    whole = audit(made, [FLOW], {"middle": waiting})
    shuffled = list(made)
    rng.shuffle(shuffled)
    assert sums(all_of(LedgerAuditor([FLOW]), shuffled, waiting)) == sums(whole.faults)


@pytest.mark.whole
@given(books(), st.lists(st.floats(0, 4), max_size=60), st.data())
def test_it_agrees_wherever_the_stream_is_cut_when_none_comes_too_late(
    made: list[Receipt], pauses: list[float], data: st.DataObject
) -> None:
    """Receipts wander by less than the time to settle; the auditor settles after each."""
    auditor, now_s, faults = LedgerAuditor(), 0.0, list[Fault]()
    delays = data.draw(st.lists(st.floats(0, 9), min_size=len(made), max_size=len(made)))
    pauses += [1.0] * len(made)
    times, at_s = [], 0.0
    for pause_s, delay_s in zip(pauses, delays, strict=False):
        at_s += pause_s
        times.append(at_s + delay_s)
    ordered = sorted(made, key=lambda one: (one.stage, one.inputs[0].from_))  # as they were written, but for delays
    for now_s, one in sorted(zip(times, ordered, strict=True), key=lambda pair: pair[0]):
        faults += auditor.settle(now_s)
        faults += auditor.take(one, now_s)
    faults += auditor.settle(now_s + 11.0)
    found, whole = sums(faults), sums(audit(made).faults)
    assert found == whole


def test_the_comparison_sees_a_difference() -> None:
    """Negative control: an auditor that a receipt never reached disagrees."""
    made = [receipt("first", 0, 4), receipt("first", 4, 9), receipt("first", 9, 12)]
    assert sums(all_of(LedgerAuditor(), [made[0], made[2]])) != sums(audit(made).faults)


def test_two_instances_pass_a_partition_between_them_and_their_receipts_come_in_any_order() -> None:
    auditor = LedgerAuditor(settle_s=10)
    hers = [receipt("first", 0, 10), receipt("first", 30, 40)]
    his = [receipt("first", 10, 30), receipt("first", 40, 50)]
    faults = [fault for at, one in enumerate([*his, *hers]) for fault in auditor.take(one, float(at))]
    assert faults + auditor.settle(100.0) == []


def test_a_gap_is_told_once_when_it_has_stayed_and_not_when_it_closes() -> None:
    auditor = LedgerAuditor(settle_s=10)
    assert auditor.take(receipt("first", 0, 10), 0.0) == []
    assert auditor.take(receipt("first", 15, 20), 5.0) == []
    assert auditor.take(receipt("first", 25, 30), 7.0) == []
    assert auditor.take(receipt("first", 20, 25), 9.0) == []  # one of the two closes
    assert auditor.settle(14.9) == []
    assert auditor.settle(15.0) == [Fault("gap", "first", "in", 0, 10, 5)]
    assert auditor.settle(1_000.0) == []
    assert auditor.take(receipt("first", 12, 13), 1_001.0) == []  # too late, but no duplicate
    assert auditor.settle(2_000.0) == []
    assert auditor.take(receipt("first", 12, 14), 2_001.0) == [Fault("overlap", "first", "in", 0, 12, 1)]


def test_what_comes_before_the_first_is_waited_for_from_then_on() -> None:
    auditor = LedgerAuditor(settle_s=10)
    auditor.take(receipt("first", 50, 60), 0.0)
    assert auditor.settle(100.0) == []
    auditor.take(receipt("first", 0, 10), 101.0)
    assert auditor.settle(110.0) == []
    assert auditor.settle(111.0) == [Fault("gap", "first", "in", 0, 10, 40)]


def test_memory_is_bounded_by_holes_and_none_of_them_is_lost() -> None:
    auditor, faults = LedgerAuditor(settle_s=10), list[Fault]()
    for at in range(MAX_HOLES + 20):
        faults += auditor.take(receipt("first", 10 * at, 10 * at + 9), 0.0)
        assert len(auditor._chains["first", "in", 0].spans) <= MAX_HOLES + 1
    faults += auditor.settle(10.0)
    assert [fault.at for fault in faults] == [10 * at + 9 for at in range(MAX_HOLES + 19)]


# Flows.


def flowing(put_out: int, delivered: int, *, whole: bool = True) -> LedgerAuditor:
    auditor = LedgerAuditor([FLOW], whole=whole, settle_s=10)
    auditor.take(receipt("first", 0, 99, out=put_out, delivered=99), 0.0)
    auditor.take(receipt("second", 0, 99, topic="middle", delivered=delivered), 0.0)
    return auditor


@pytest.mark.parametrize(
    ("waiting", "since", "records"), [(4, 0, 0), (3, 0, 1), (5, 0, -1), (5, 1, 0), (9, 2, -3), (3, 7, 1)]
)
def test_what_a_flow_owes_waits_or_is_told_when_it_has_stayed(waiting: int, since: int, records: int) -> None:
    auditor = flowing(10, 6)
    wanted = [Fault("imbalance", "second", "middle", -1, -1, records)] if records else []
    for now_s, told in ((0.0, []), (9.9, []), (10.0, wanted), (99.0, [])):
        assert auditor.weigh(FLOW, auditor.owed(FLOW), waiting, since, now_s) == told


def test_a_second_loss_is_told_for_itself_and_a_passing_one_not_at_all() -> None:
    auditor = flowing(10, 6)

    def weigh(waiting: int, now_s: float) -> list[int]:
        return [fault.records for fault in auditor.weigh(FLOW, auditor.owed(FLOW), waiting, 0, now_s)]

    assert [weigh(3, 0.0), weigh(3, 10.0)] == [[], [1]]
    assert [weigh(1, 11.0), weigh(3, 12.0), weigh(1, 20.0), weigh(1, 30.0)] == [[], [], [], [2]]
    assert [weigh(5, 31.0), weigh(5, 41.0)] == [[], [-4]]


def test_a_loss_behind_steady_traffic_is_found_by_a_quiet_moment() -> None:
    auditor = flowing(10, 6)
    assert auditor.weigh(FLOW, 4, 5, 3, 0.0) == []  # between 1 too many and 2 too few: nothing is certain
    assert auditor.weigh(FLOW, 4, 3, 0, 1.0) == []
    assert auditor.weigh(FLOW, 4, 3, 9, 11.0) == [Fault("imbalance", "second", "middle", -1, -1, 1)]


def test_a_ledger_whose_begin_has_expired_is_weighed_from_where_it_stands() -> None:
    auditor = flowing(10, 500, whole=False)
    owed = auditor.owed(FLOW)
    assert auditor.weigh(FLOW, owed, 2, 3, 0.0) == []
    assert auditor.weigh(FLOW, owed, 1, 0, 1.0) == []  # now it is known exactly: 491 from before
    assert auditor.weigh(FLOW, owed, 0, 0, 2.0) == []
    assert auditor.weigh(FLOW, owed, 0, 0, 12.0) == [Fault("imbalance", "second", "middle", -1, -1, 1)]


def test_a_flow_is_not_weighed_while_a_receipt_of_its_reader_may_come() -> None:
    auditor = flowing(10, 6)
    auditor.take(receipt("second", 120, 130, topic="middle"), 0.0)
    assert auditor.weigh(FLOW, auditor.owed(FLOW), 0, 0, 0.0) == []
    assert auditor.weigh(FLOW, auditor.owed(FLOW), 0, 0, 99.0) == []
    assert [fault.kind for fault in auditor.settle(99.0)] == ["gap"]
    assert auditor.weigh(FLOW, auditor.owed(FLOW), 0, 0, 99.0) == []
    assert auditor.weigh(FLOW, auditor.owed(FLOW), 0, 0, 109.0) == [Fault("imbalance", "second", "middle", -1, -1, 4)]


def test_replayed_letters_come_from_somewhere_when_a_receipt_says_so() -> None:
    replay = Receipt(stage=replays_into("middle"), instance="0", build="1", inputs=[], out=3, dlq=0)
    made = [receipt("first", 0, 9, out=2), receipt("second", 0, 9, topic="middle", delivered=5)]
    assert audit([*made, replay], [FLOW]).faults == all_of(LedgerAuditor([FLOW]), [*made, replay]) == []
    assert [fault.records for fault in audit(made, [FLOW]).faults] == [-3]


def test_a_reversed_part_is_too_many_dispositions_and_no_chain() -> None:
    odd = receipt("first", 10, 5, delivered=2)
    assert audit([odd]).faults == all_of(LedgerAuditor(), [odd]) == [Fault("disposition", "first", "in", 0, 10, 2)]


# Expired heads.


def test_receipts_are_judged_from_where_all_of_them_are_kept() -> None:
    whole = [Head(0, 5_000), Head(0, None)]
    assert judged_from_us(whole, now_us=10) == 0
    assert judged_from_us([*whole, Head(1, 7_000), Head(8, 6_000)], now_us=10) == 7_000
    day_us = 86_400_000_000
    assert judged_from_us([*whole, Head(12, None)], now_us=100 * day_us) == 70 * day_us


def test_a_head_that_expired_in_one_partition_alone_is_no_gap() -> None:
    """A chain that two instances had in turn; the second's first receipt is gone. Judged by all that is left it is."""
    times = [(1, receipt("first", 0, 10)), (3, receipt("first", 30, 40)), (4, receipt("first", 40, 50))]
    kept = [one for at, one in times if at >= judged_from_us([Head(0, 1), Head(1, 4)], now_us=9)]
    assert all_of(LedgerAuditor(whole=False), kept) == []
    assert [fault.kind for fault in all_of(LedgerAuditor(), [one for _, one in times])] == ["gap"]


# When a fault arose: what a keeper that starts over says again must not look new.


def test_a_fault_has_the_record_time_of_the_receipt_that_shows_it() -> None:
    auditor = LedgerAuditor()
    auditor.take(receipt("first", 0, 10), 0.0, 1_000)
    (doubled,) = auditor.take(receipt("first", 5, 10), 0.0, 2_000)
    (too_many,) = auditor.take(receipt("first", 10, 20, delivered=11), 0.0, 3_000)
    auditor.take(receipt("first", 25, 30), 0.0, 4_000)
    auditor.take(receipt("first", 30, 90), 0.0, 5_000)
    (gap,) = auditor.settle(99.0)
    assert [fault.time_us for fault in (doubled, too_many, gap)] == [2_000, 3_000, 4_000]


@pytest.mark.parametrize("lost", [2, -2])
def test_an_imbalance_is_as_old_as_its_hour_in_whatever_order_its_receipts_are_read(lost: int) -> None:
    made = []
    for hour in range(40):
        owed = 7 + (lost if hour == 20 else 0)
        source = receipt("first", 10 * hour, 10 * hour + 10, out=owed)
        made += [(hour, source), (hour, receipt("second", 10 * hour, 10 * hour + 10, topic="middle", delivered=7))]
    auditor = LedgerAuditor([FLOW])
    for hour, one in sorted(made, key=lambda pair: pair[1].stage):
        auditor.take(one, 0.0, hour * HOUR_US + 5)
    assert auditor.weigh(FLOW, auditor.owed(FLOW), 0, 0, 0.0) == []
    (fault,) = auditor.weigh(FLOW, auditor.owed(FLOW), 0, 0, 10.0)
    assert (fault.records, fault.time_us) == (lost, 20 * HOUR_US)
