"""The audit of receipts: right books have no fault, and each kind of error is found with its place and its size."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.contracts import Receipt
from errata.domain.ledger import Fault, Flow, audit

FLOW = Flow("first", "middle", "second")
PARTITIONS = 3


def receipt(stage: str, parts: Sequence[tuple[str, int, int, int, int]], out: int, dlq: int = 0) -> Receipt:
    """``parts``: topic, partition, from, to, delivered."""
    inputs = [
        {"topic": topic, "partition": number, "from": start, "to": end, "delivered": n}
        for topic, number, start, end, n in parts
    ]
    return Receipt.model_validate(
        {"stage": stage, "instance": "0", "build": "1", "inputs": inputs, "out": out, "dlq": dlq}
    )


def books(seed: int, transactions: int = 12) -> list[Receipt]:
    """Two stages in step, transactions of one to three partitions, with marks of transactions between the records."""
    rng = random.Random(seed)
    at = {(topic, number): 0 for topic in ("in", "middle") for number in range(PARTITIONS)}
    made: list[Receipt] = []

    def take(topic: str, n: int) -> list[tuple[str, int, int, int, int]]:
        parts = []
        for number in rng.sample(range(PARTITIONS), rng.randint(1, PARTITIONS)):
            start = at[topic, number]
            at[topic, number] = start + n + rng.randint(0, 2)
            parts.append((topic, number, start, at[topic, number], n))
        return parts

    for _ in range(transactions):
        parts = take("middle", rng.randint(1, 5))
        out = sum(part[4] for part in parts)
        made.append(receipt("first", take("in", rng.randint(1, 9)), out))
        made.append(receipt("second", parts, 0))
    rng.shuffle(made)
    return made


@given(st.integers(0, 10_000))
def test_right_books_have_no_fault_in_any_order(seed: int) -> None:
    assert audit(books(seed), [FLOW]).faults == []


@given(st.integers(0, 10_000), st.data())
def test_a_receipt_that_is_lost_or_doubled_is_found(seed: int, data: st.DataObject) -> None:
    """Also the first or last of a partition: of these the chain cannot know, but the flow between the stages does."""
    right = books(seed)
    stray = data.draw(st.sampled_from(right))
    assert audit([one for one in right if one is not stray], [FLOW]).faults
    assert audit([*right, stray], [FLOW]).faults


def test_each_fault_has_its_place_and_size() -> None:
    first = receipt("first", [("in", 1, 0, 10, 9)], 4)
    gap = receipt("first", [("in", 1, 12, 20, 8)], 0)
    assert audit([gap, first]).faults == [Fault("gap", "first", "in", 1, 10, 2)]
    overlap = receipt("first", [("in", 1, 7, 20, 8)], 0)
    assert audit([overlap, first]).faults == [Fault("overlap", "first", "in", 1, 7, 3)]
    assert audit([first, receipt("first", [("in", 1, 2, 5, 3)], 0)]).faults == [
        Fault("overlap", "first", "in", 1, 2, 3)
    ]
    too_many = receipt("first", [("in", 1, 0, 10, 11)], 0)
    assert audit([too_many]).faults == [Fault("disposition", "first", "in", 1, 0, 1)]
    letters = receipt("first", [("in", 1, 0, 10, 9)], 0, dlq=12)
    assert audit([letters]).faults == [Fault("disposition", "first", "in", 1, 0, 3)]


@pytest.mark.parametrize(
    ("waiting", "later_out", "records"),
    [(4, 0, None), (3, 0, 1), (5, 0, -1), (5, 1, None), (9, 2, -3), (3, 7, 1)],
    ids=["all wait", "one lost", "one from nowhere", "one written since", "three from nowhere", "lost all the same"],
)
def test_what_was_put_out_arrived_or_waits(waiting: int, later_out: int, records: int | None) -> None:
    before = [receipt("first", [("in", 0, 0, 9, 9)], 10), receipt("second", [("middle", 0, 0, 6, 6)], 0)]
    later = [receipt("first", [("in", 0, 9, 12, 3)], later_out)]
    wanted = [] if records is None else [Fault("imbalance", "second", "middle", -1, -1, records)]
    assert audit(before, [FLOW], {"middle": waiting}, later).faults == wanted


def test_marks_of_transactions_are_no_gap() -> None:
    assert audit([receipt("first", [("in", 0, 0, 5, 3)], 0), receipt("first", [("in", 0, 5, 6, 0)], 0)]).faults == []


def test_accounts_are_sums() -> None:
    accounts = audit(books(7)).accounts
    assert [one.stage for one in accounts] == ["first", "second"]
    assert accounts[0].out == accounts[1].delivered
    assert accounts[0].receipts == 12
