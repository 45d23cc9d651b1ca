"""Keyed 64-bit hashes of ids, the same alone as in any batch.

A text is cut into 8-byte words; each word is mixed with the seed and its position, and words beyond the text's end add
nothing, so the width a batch is padded to never shows. Ids hold no NUL (decoders refuse it), so a word of zeros is
always padding.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from errata.domain.texts import byte_rows

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ALL = (1 << 64) - 1
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def seed_of(*parts: str) -> int:
    """A seed of 64 bits that names ``parts``; the cut between two parts counts.

    >>> seed_of("a", "bc") == seed_of("ab", "c")
    False
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")


def id_hashes(ids: Sequence[str], seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of each id under its own seed."""
    if not len(ids):
        return np.zeros(0, np.uint64)
    words = byte_rows(ids, 8).view("<u8").astype(np.uint64, copy=False)
    mixed = np.zeros(len(ids), np.uint64)
    for position in range(words.shape[1]):
        word = words[:, position]
        step = seeds + np.uint64(0x9E3779B97F4A7C15 * (position + 1) & _ALL)
        mixed ^= np.where(word != 0, _mix(word ^ _mix(step)), np.uint64(0))
    return _mix(mixed ^ seeds)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the input reaches every bit of the output."""
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    mixed: NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return mixed
