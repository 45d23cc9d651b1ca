"""The hash of an id depends on the id and its seed alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.domain.hashing import id_hashes, seed_of

_IDS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40), max_size=8
)


def hashes(ids: list[str], seed: int) -> list[int]:
    return [int(one) for one in id_hashes(ids, np.full(len(ids), seed, np.uint64))]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_IDS, st.integers(0, 2**64 - 1))
def test_a_hash_does_not_depend_on_its_batch(ids: list[str], seed: int) -> None:
    assert hashes(ids, seed) == [hashes([one], seed)[0] for one in ids]


def test_different_ids_and_seeds_give_different_hashes() -> None:
    ids = (
        [f"id-{at}" for at in range(20_000)]
        + ["a" * n for n in range(1, 60)]
        + ["aaaaaaaabbbbbbbb", "bbbbbbbbaaaaaaaa"]
    )
    assert len(set(hashes(ids, 7))) == len(ids)
    assert not set(hashes(ids, 7)) & set(hashes(ids, 8))


def test_each_row_has_its_own_seed() -> None:
    both = id_hashes(["a", "a"], np.array([1, 2], np.uint64))
    assert [int(one) for one in both] == [hashes(["a"], 1)[0], hashes(["a"], 2)[0]]


def test_the_hash_stays_what_it_is() -> None:
    """State holds these hashes: another value here would make every id new once."""
    assert seed_of("errata", "default") == seed_of("errata", "default") != seed_of("erratadefault")
    assert hashes(["event-1", "é"], 42) == [6433285593505668939, 7564655593486623536]


def test_bits_are_spread() -> None:
    values = id_hashes([str(at) for at in range(4_096)], np.zeros(4_096, np.uint64))
    ones = [int(((values >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)]
    assert min(ones) > 1_850
    assert max(ones) < 2_246
