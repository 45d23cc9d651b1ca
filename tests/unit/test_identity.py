"""Removal of duplicates: exact over the last 131,072 ids, whatever the batches, and after a rewind."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.memory import counted, resident_mb

from errata.adapters.allocator import trim
from errata.domain.detection.identity import (
    BLOCK,
    BLOCKS,
    EMPTY,
    ENTRY,
    GENERATION,
    GOLDEN,
    PLACE,
    PLACES,
    IdTable,
    SeenIds,
)

Hashes = NDArray[np.uint64]


def ids(first: int, last: int) -> Hashes:
    return np.arange(first, last, dtype=np.uint64)


def filled(n: int) -> SeenIds:
    seen = SeenIds()
    assert not seen.step(ids(1, n + 1)).any()
    return seen


def held(table: IdTable | None) -> set[int]:
    """The ids that a table finds, from its entries."""
    if table is None:
        return set()
    entries = table.entries[table.entries != EMPTY]
    return set(table.ids[(entries & PLACE) - 1].tolist())


def memory_of(seen: SeenIds) -> tuple[int, set[int], set[int]]:
    return seen.taken, held(seen.newer), held(seen.older)


def blocks_of(seen: SeenIds) -> dict[int, Hashes]:
    """What a changelog holds of it: each block of the ring that was ever written."""
    return {place: block.copy() for place, block in seen.blocks_since(0)}


def test_every_one_of_the_last_131_072_is_known() -> None:
    n = 3 * GENERATION + 777
    assert filled(n).step(ids(n - GENERATION + 1, n + 1)).all()


def test_an_id_is_forgotten_two_generations_later() -> None:
    """The negative control of the test above: memory is bounded, so what is old enough counts as new."""
    assert not filled(3 * GENERATION).step(ids(1, GENERATION)).any()


def test_rotation_inside_a_batch() -> None:
    seen = filled(GENERATION - 3)
    batch = np.array([5, 9_000_001, 9_000_002, 9_000_003, 9_000_004, 9_000_002, 5, 9_000_004], np.uint64)
    assert seen.step(batch).tolist() == [True, False, False, False, False, True, True, True]
    assert seen.taken == GENERATION + 1
    assert len(held(seen.newer)) == 1


def test_a_duplicate_takes_no_place() -> None:
    seen = filled(10)
    seen.step(ids(1, 11))
    assert seen.taken == 10


def test_batches_of_any_size_remember_the_same() -> None:
    stream = np.random.default_rng(3).integers(1, 200_000, 400_000).astype(np.uint64)
    whole, parts = SeenIds(), SeenIds()
    first = whole.step(stream)
    second = np.concatenate([parts.step(part) for part in np.array_split(stream, 613)])
    assert (first == second).all()
    assert first.any()
    assert not first.all()
    assert memory_of(whole) == memory_of(parts)
    assert (whole.ring == parts.ring).all()


def test_a_table_is_a_set_also_when_all_ids_want_one_place() -> None:
    """The last one: the search goes on at the beginning."""
    back = pow(int(GOLDEN), -1, 2**64)
    crowd = np.array([((PLACES - 1 << 46) + n) * back % 2**64 for n in range(300)], np.uint64)
    table = IdTable(crowd[::2], np.zeros(PLACES, ENTRY))
    for first, last in pairwise((0, 1, 40, 40, 99, 150)):
        table.add(first, last)
    assert held(table) == set(crowd[::2].tolist())
    assert table.has(crowd).tolist() == [True, False] * 150


def test_the_id_zero_is_an_id() -> None:
    seen = SeenIds()
    assert seen.step(np.array([0, 5, 0], np.uint64)).tolist() == [False, False, True]
    assert seen.step(np.array([0], np.uint64)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=60), st.lists(st.integers(0, 60), max_size=5), st.integers(0, 20))
def test_any_cut_agrees_with_a_set(stream: list[int], cuts: list[int], room: int) -> None:
    """Near the end of a generation, so that rotations fall anywhere: nothing among the last ids may be forgotten."""
    seen = nearly_full(room)
    places = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    found: list[bool] = []
    for start, end in pairwise(places):
        found += seen.step(np.array([10**9 + one for one in stream[start:end]], np.uint64)).tolist()
    expected = [one in stream[:place] for place, one in enumerate(stream)]
    assert found == expected


def nearly_full(room: int) -> SeenIds:
    """As if a generation but ``room`` ids had come; the ids themselves do not matter here."""
    seen = SeenIds()
    seen.taken = GENERATION - room
    return seen


@pytest.mark.parametrize("taken", [0, 1, BLOCK, GENERATION - 1, GENERATION, GENERATION + 5, 2 * GENERATION + 5])
def test_rewind_is_the_state_of_then(taken: int) -> None:
    then = filled(taken)
    again = SeenIds()
    again.step(ids(7_000_000, 7_000_100))
    again.rewind(taken, blocks_of(then))
    assert memory_of(again) == memory_of(then)
    batch = np.concatenate([ids(max(1, taken - 50), taken + 50), ids(7_000_000, 7_000_010)])
    assert again.step(batch).tolist() == then.step(batch).tolist()


@pytest.mark.parametrize("settled", [0, 1, BLOCK, GENERATION - 1, GENERATION, 2 * GENERATION - 3, 2 * GENERATION + 5])
@pytest.mark.parametrize("sizes", [(1,), (7, BLOCK, 3), (GENERATION + 9,), (5, 2 * GENERATION, 11)])
def test_steps_that_were_not_settled_can_be_taken_back(settled: int, sizes: tuple[int, ...]) -> None:
    """Also through the end of a generation, and where the ring has come round."""
    seen = filled(settled)
    seen.settle()
    before, ring = memory_of(seen), seen.ring.copy()
    at = settled + 1
    for size in sizes:
        seen.step(ids(max(1, at - 2), at + size))
        at += size
    seen.undo()
    assert memory_of(seen) == before
    assert (seen.ring == ring).all()
    seen.undo()
    assert memory_of(seen) == before


def test_what_is_settled_is_not_taken_back() -> None:
    """The control of the test above, and why a commit has to settle: else a later undo goes too far."""
    seen = filled(10)
    seen.settle()
    seen.step(ids(11, 21))
    seen.settle()
    seen.step(ids(21, 31))
    seen.undo()
    assert (seen.taken, seen.overwritten) == (20, [])
    assert seen.step(ids(1, 31)).tolist() == [True] * 20 + [False] * 10


@counted
def test_its_memory_is_there_from_the_start() -> None:
    """Pages that come into being as ids do look like a leak for the first 262,144 of them in a partition."""
    trim()  # what earlier tests freed would serve as memory that is there already
    before_mb = resident_mb(kind="Anonymous")
    kept = [SeenIds() for _ in range(10)]
    first_mb = resident_mb(kind="Anonymous") - before_mb
    arrays_mb = len(kept) * (kept[0].ring.nbytes + sum(table.entries.nbytes for table in kept[0].tables)) / 2**20
    assert first_mb > 0.9 * arrays_mb
    for seen in kept:
        seen.step(ids(1, 3 * GENERATION))
        seen.settle()
    trim()
    assert resident_mb(kind="Anonymous") - before_mb - first_mb < 0.1 * arrays_mb
    del seen, kept
    assert resident_mb(kind="Anonymous") - before_mb < 0.1 * arrays_mb


def test_changed_blocks_are_enough_to_follow() -> None:
    """A changelog that got only what changed gives the same ring, through a wrap of it."""
    seen, kept = SeenIds(), dict[int, Hashes]()
    at = 1
    for size in (1, BLOCK - 1, 3, GENERATION, 5 * BLOCK + 7, GENERATION, 11):
        before = seen.taken
        seen.step(ids(at, at + size))
        at += size
        changed = {place: block.copy() for place, block in seen.blocks_since(before)}
        assert len(changed) <= size // BLOCK + 2
        assert max(changed) < BLOCKS
        kept |= changed
    again = SeenIds()
    again.rewind(seen.taken, kept)
    assert memory_of(again) == memory_of(seen)


def test_a_step_without_news_changes_no_block() -> None:
    seen = filled(2_000)
    seen.step(ids(1, 2_001))
    assert list(seen.blocks_since(2_000)) == []


def test_without_the_blocks_a_rewind_knows_nothing() -> None:
    """The negative control of the rewinds: it is the blocks that carry the ids."""
    again = SeenIds()
    again.rewind(100, {})
    assert not again.step(ids(1, 101)).any()
