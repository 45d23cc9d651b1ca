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

import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

GENERATION = 131_072
BLOCK = 1_024  # ids a record of the changelog
BLOCKS = 2 * GENERATION // BLOCK
PLACES = 1 << 18  # of a table: half of them stay empty, so that a search ends after two or three
EMPTY = 0
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SHIFT = np.uint64(64 - 18)  # leaves as many bits as there are places

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


def _own_memory(n: int) -> Hashes:
    """An empty array of ids on pages of its own: all there from the first event on, and gone with the array.

    A heap into whose gaps small things fall keeps growing as partitions with their megabytes come and go; and pages
    that came into being as ids do would look like a leak for the first 262,144 of each partition. Huge pages, where
    the kernel has them, are there in a fifth of the time, which a partition's first batch waits for.
    """
    pages = mmap.mmap(-1, n * np.dtype(np.uint64).itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not Linux, or a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(pages, np.uint64)
    array[:] = EMPTY
    return array


class IdTable:
    """A set of up to 131,072 ids, asked and filled by thousands at once: open addressing in one array.

    A tenth of the memory of a Python set, and a third of its time, most of which is waiting for memory.

    >>> table = IdTable()
    >>> table.add(np.array([7, 7 + PLACES], np.uint64))
    >>> table.has(np.array([7 + PLACES, 8, 7], np.uint64)).tolist()
    [True, False, True]
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = _own_memory(PLACES)

    def fill(self, ids: Hashes) -> None:
        """Hold these, which are distinct, and no others."""
        self.clear()
        self.add(ids)

    def clear(self) -> None:
        self.held[:] = EMPTY

    def has(self, ids: Hashes) -> NDArray[np.bool_]:
        """Which of the ids are held; none of them is `EMPTY`."""
        place = _first_place(ids)
        held = self.held[place]
        found: NDArray[np.bool_] = held == ids
        left = np.flatnonzero(~found & (held != EMPTY))
        while len(left):
            place[left] = _next_place(place[left])
            held = self.held[place[left]]
            hit = held == ids[left]
            found[left[hit]] = True
            left = left[~hit & (held != EMPTY)]
        return found

    def add(self, ids: Hashes) -> None:
        """Take distinct ids, none of them held or `EMPTY`."""
        place = _first_place(ids)
        while len(ids):
            free = self.held[place] == EMPTY
            self.held[place[free]] = ids[free]  # of two that want one place, one gets it
            left = self.held[place] != ids
            ids, place = ids[left], _next_place(place[left])


def _first_place(ids: Hashes) -> Places:
    """Spread by the high bits of a product with the golden ratio: ids in sequence do not crowd."""
    return (ids * GOLDEN >> SHIFT).astype(np.int64)


def _next_place(place: Places) -> Places:
    return (place + 1) & (PLACES - 1)


@dataclass(slots=True)
class SeenIds:
    """The ids of one partition. ``ring`` holds both generations in order of arrival, ``taken`` how many ever came.

    What a step overwrites is kept until `settle`, so that `undo` can take the steps since then back. The two
    ``tables`` hold a generation each in turn.
    """

    taken: int = 0
    ring: Hashes = field(default_factory=lambda: _own_memory(2 * GENERATION))
    tables: tuple[IdTable, IdTable] = field(default_factory=lambda: (IdTable(), IdTable()))
    overwritten: list[Hashes] = field(default_factory=list)

    @property
    def newer(self) -> IdTable:
        return self.tables[self.taken // GENERATION % 2]

    @property
    def older(self) -> IdTable | None:
        """None before the first generation is full."""
        return self.tables[(self.taken // GENERATION + 1) % 2] if self.taken >= GENERATION else None

    def step(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which ids were seen before, in this batch or an earlier one; new ones are remembered."""
        hashes = np.maximum(hashes, np.uint64(EMPTY + 1))
        duplicate = np.zeros(len(hashes), np.bool_)
        done = 0
        while done < len(hashes):
            part = hashes[done : done + GENERATION - self.taken % GENERATION]
            duplicate[done : done + len(part)] = self._take(part)
            done += len(part)
        return duplicate

    def _take(self, ids: Hashes) -> NDArray[np.bool_]:
        """A part that cannot fill the generation before its last id."""
        newer, older = self.newer, self.older
        duplicate = newer.has(ids)
        if older is not None:
            duplicate |= older.has(ids)
        ordered = np.sort(ids)
        if (ordered[1:] == ordered[:-1]).any():
            first = np.zeros(len(ids), np.bool_)
            first[np.unique(ids, return_index=True)[1]] = True
            duplicate |= ~first
        fresh = ids[~duplicate]
        place = self.taken % (2 * GENERATION)
        self.overwritten.append(self.ring[place : place + len(fresh)].copy())
        self.ring[place : place + len(fresh)] = fresh
        newer.add(fresh)
        self.taken += len(fresh)
        if len(fresh) and self.taken % GENERATION == 0:
            self.newer.clear()
        return duplicate

    def blocks_since(self, taken: int) -> Iterator[tuple[int, Hashes]]:
        """The blocks of the ring that changed since ``taken`` ids, each whole."""
        first, last = taken // BLOCK, (self.taken - 1) // BLOCK
        for block in range(first, last + 1) if self.taken > taken else ():
            place = block % BLOCKS
            yield place, self.ring[place * BLOCK : (place + 1) * BLOCK]

    def settle(self) -> None:
        """The steps so far stand."""
        self.overwritten.clear()

    def undo(self) -> None:
        """Take back the steps since `settle`."""
        for ids in reversed(self.overwritten):
            self.taken -= len(ids)
            place = self.taken % (2 * GENERATION)
            self.ring[place : place + len(ids)] = ids
        self.settle()
        self._tabulate()

    def rewind(self, taken: int, blocks: Mapping[int, Hashes]) -> None:
        """To ``taken`` ids, with the ring's blocks as they were then."""
        for place, ids in blocks.items():
            self.ring[place * BLOCK : (place + 1) * BLOCK] = ids
        self.taken = taken
        self.settle()
        self._tabulate()

    def _tabulate(self) -> None:
        start = self.taken - self.taken % GENERATION
        self.newer.fill(self._between(start, self.taken))
        if self.older is not None:
            self.older.fill(self._between(start - GENERATION, start))

    def _between(self, first: int, last: int) -> Hashes:
        return self.ring[np.arange(first, last) % (2 * GENERATION)]
