"""The cut of a batch into cells, flags and samples, against plain loops."""

from bisect import bisect_right

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from errata.domain.detection.profile import padded_edges
from errata.domain.detection.waves import Pairs, best, ragged, search_bins

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
EDGES = st.lists(NUMBERS, max_size=15, unique=True).map(sorted)


@given(st.lists(EDGES, min_size=1, max_size=4), st.data())
def test_bins_are_those_of_bisect(channels: list[list[float]], data: st.DataObject) -> None:
    """A value on an edge belongs to the bin above it, as in a reference's sketch."""
    values, places = [], []
    for place, edges in enumerate(channels):
        for value in [*edges, *data.draw(st.lists(NUMBERS, max_size=10))]:
            values.append(value)
            places.append(place)
    table = np.stack([padded_edges(tuple(edges)) for edges in channels])
    found = search_bins(np.array(values, np.float64), np.array(places, np.int64), table)
    assert found.tolist() == [bisect_right(channels[p], v) for v, p in zip(values, places, strict=True)]


def test_a_full_table_of_edges_has_sixteen_bins() -> None:
    table = np.arange(15, dtype=np.float64)[None, :]
    values = np.array([-1.0, *range(15), 99.0])
    assert search_bins(values, np.zeros(17, np.int64), table).tolist() == [0, *range(1, 16), 15]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ragged_rows_and_places(widths: list[int]) -> None:
    rows, places = ragged(np.array(widths, np.int64))
    expected = [(row, place) for row, width in enumerate(widths) for place in range(width)]
    assert list(zip(rows.tolist(), places.tolist(), strict=True)) == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6)), max_size=80, unique=True))
def test_best_are_the_eight_smallest_of_each_group(rows: list[tuple[int, int]]) -> None:
    groups = np.array([group for group, _ in rows], np.int64)
    hashes = np.array([number for _, number in rows], np.uint64)
    found = sorted((rows[int(place)] for place in best(groups, hashes)) if rows else [])
    mine = {group: sorted(row for row in rows if row[0] == group)[:8] for group, _ in rows}
    assert found == sorted(row for chosen in mine.values() for row in chosen)


def test_best_does_not_depend_on_the_order() -> None:
    draw = np.random.default_rng(5)
    groups, hashes = draw.integers(0, 4, 200), draw.permutation(200).astype(np.uint64)
    order = draw.permutation(200)
    first, second = best(groups, hashes), best(groups[order], hashes[order])
    assert sorted(hashes[first].tolist()) == sorted(hashes[order][second].tolist())


def test_pairs_between_rows() -> None:
    pairs = Pairs(np.array([0, 0, 2, 5, 7]), np.array([1, 2, 3, 4, 5]))
    assert pairs.between(0, 1).target.tolist() == [1, 2]
    assert pairs.between(1, 7).target.tolist() == [3, 4]
    assert pairs.between(8, 9).target.tolist() == []
