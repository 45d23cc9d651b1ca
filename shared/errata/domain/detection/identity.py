"""Exact removal of publishers' duplicates: the last 131,072 ids of a partition, at least.

Ids are kept as 64-bit keyed hashes in two generations of 131,072; when the newer is full the older goes. No Bloom
filter: a false positive would be a lost event. With 64 bits the chance of one is about 7·10⁻¹⁵ a check.

>>> import numpy as np
>>> seen = SeenIds()
>>> seen.step(np.array([7, 8, 7], np.uint64)).tolist()
[False, False, True]
>>> seen.step(np.array([8, 9], np.uint64)).tolist()
[True, False]
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

GENERATION = 131_072
BLOCK = 1_024  # ids a record of the changelog
BLOCKS = 2 * GENERATION // BLOCK

Hashes = NDArray[np.uint64]


@dataclass(slots=True)
class SeenIds:
    """The ids of one partition. ``ring`` holds both generations in order of arrival, ``taken`` how many ever came."""

    taken: int = 0
    ring: Hashes = field(default_factory=lambda: np.zeros(2 * GENERATION, np.uint64))
    newer: set[int] = field(default_factory=set)
    older: set[int] = field(default_factory=set)

    def step(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which ids were seen before, in this batch or an earlier one; new ones are remembered."""
        duplicate = np.zeros(len(hashes), np.bool_)
        done = 0
        while done < len(hashes):
            part = hashes[done : done + GENERATION - self.taken % GENERATION]
            duplicate[done : done + len(part)] = self._take(part)
            done += len(part)
        return duplicate

    def _take(self, hashes: Hashes) -> NDArray[np.bool_]:
        """A part that cannot fill the generation before its last id."""
        ids = hashes.tolist()
        fresh = set(ids)
        duplicate = np.zeros(len(ids), np.bool_)
        if len(fresh) < len(ids) or not fresh.isdisjoint(self.newer) or not fresh.isdisjoint(self.older):
            known: set[int] = set()
            for i, one in enumerate(ids):
                duplicate[i] = one in known or one in self.newer or one in self.older
                known.add(one)
            hashes = hashes[~duplicate]
            fresh = set(hashes.tolist())
        place = self.taken % (2 * GENERATION)
        self.ring[place : place + len(hashes)] = hashes
        self.newer |= fresh
        self.taken += len(hashes)
        if len(hashes) and self.taken % GENERATION == 0:
            self.older, self.newer = self.newer, set()
        return duplicate

    def blocks_since(self, taken: int) -> Iterator[tuple[int, Hashes]]:
        """The blocks of the ring that changed since ``taken`` ids, each whole."""
        first, last = taken // BLOCK, (self.taken - 1) // BLOCK
        for block in range(first, last + 1) if self.taken > taken else ():
            place = block % BLOCKS
            yield place, self.ring[place * BLOCK : (place + 1) * BLOCK]

    def rewind(self, taken: int, blocks: Mapping[int, Hashes]) -> None:
        """Back to ``taken`` ids, with the ring's blocks as they were then."""
        for place, ids in blocks.items():
            self.ring[place * BLOCK : (place + 1) * BLOCK] = ids
        self.taken = taken
        start = taken - taken % GENERATION
        self.newer = set(self._between(start, taken))
        self.older = set(self._between(max(0, start - GENERATION), start))

    def _between(self, first: int, last: int) -> list[int]:
        places = np.arange(first, last) % (2 * GENERATION)
        return [int(one) for one in self.ring[places]]
