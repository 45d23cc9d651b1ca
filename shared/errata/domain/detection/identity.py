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
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SHIFT = np.uint64(64 - 18)  # leaves as many bits of a product as there are places
NEXT = np.uint64(1 << 64 - 18)  # from a product of one place to the next, and from the last to the first
ENTRY = np.dtype(np.uint32)  # 14 bits of a product, then in 18 where the id stands among its generation's, from one on
TAG = np.uint32(1 << 18)  # the lowest bit of those 14
PLACE = np.uint32((1 << 18) - 1)
ONE = np.uint32(1)
EMPTY = 0

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
Entries = NDArray[np.uint32]


def _own_memory(size: int) -> NDArray[np.uint8]:
    """So many bytes, all zero, on pages of their own: all there from the first event on, and gone with the array.

    A heap into whose gaps small things fall keeps growing as partitions with their megabytes come and go; and pages
    that came into being as ids do would look like a leak for the first 262,144 of each partition. Huge pages, where
    the kernel has them, are there in a fifth of the time, which a partition's first batch waits for.
    """
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not Linux, or a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(pages, np.uint8)
    array[:] = 0
    return array


class IdTable:
    """Finds ids among the first so many of ``ids``, thousands at once: open addressing in one array of ``entries``.

    An entry is half as large as an id: it holds a part of it, and where the rest can be compared. With the ids a
    quarter of the memory of a Python set, and a third of its time, most of which is waiting for memory.

    >>> ids = np.array([7, 7 + PLACES, 8], np.uint64)
    >>> table = IdTable(ids, np.zeros(PLACES, ENTRY))
    >>> table.add(0, 2)
    >>> table.has(np.array([7 + PLACES, 8, 7], np.uint64)).tolist()
    [True, False, True]
    """

    __slots__ = ("entries", "ids")

    def __init__(self, ids: Hashes, entries: Entries) -> None:
        self.ids = ids
        self.entries = entries

    def fill(self, n: int) -> None:
        """Find the first ``n``, which are distinct, and no others."""
        self.clear()
        self.add(0, n)

    def clear(self) -> None:
        self.entries[:] = EMPTY

    def has(self, ids: Hashes) -> NDArray[np.bool_]:
        """Which of the ids are found."""
        found = np.zeros(len(ids), np.bool_)
        rows, product = np.arange(len(ids)), ids * GOLDEN
        while len(rows):
            entry = self.entries[_place(product)]
            (used,) = (entry != EMPTY).nonzero()
            rows, product, entry = rows[used], product[used], entry[used]
            (alike,) = (entry ^ product.astype(ENTRY) < TAG).nonzero()
            if len(alike):
                one = rows[alike]
                found[one] = self.ids[(entry[alike] & PLACE) - ONE] == ids[one]
                (left,) = (~found[rows]).nonzero()
                rows, product = rows[left], product[left]
            product = product + NEXT
        return found

    def add(self, first: int, last: int) -> None:
        """Find the ids from ``first`` to ``last``, which are distinct and not found yet, as well."""
        product = self.ids[first:last] * GOLDEN
        place = _place(product)
        entry = product.astype(ENTRY) & ~PLACE | np.arange(first + 1, last + 1, dtype=ENTRY)
        while len(entry):
            free = self.entries[place] == EMPTY
            self.entries[place[free]] = entry[free]  # of two that want one place, one gets it
            left = self.entries[place] != entry
            entry, place = entry[left], place[left] + 1 & PLACES - 1


def _place(product: Hashes) -> Places:
    """By the high bits of a product with the golden ratio: ids in sequence do not crowd."""
    return (product >> SHIFT).view(np.int64)


@dataclass(slots=True)
class SeenIds:
    """The ids of one partition. ``ring`` holds both generations in order of arrival, ``taken`` how many ever came.

    What a step overwrites is kept until `settle`, so that `undo` can take the steps since then back. The two
    ``tables`` find the ids of a half of the ring each.
    """

    taken: int = 0
    ring: Hashes = field(init=False)
    tables: tuple[IdTable, IdTable] = field(init=False)
    overwritten: list[Hashes] = field(default_factory=list)

    def __post_init__(self) -> None:
        ids = 2 * GENERATION * np.dtype(np.uint64).itemsize
        memory = _own_memory(ids + 2 * PLACES * ENTRY.itemsize)
        self.ring = memory[:ids].view(np.uint64)
        one, other = np.split(memory[ids:].view(ENTRY), 2)
        self.tables = IdTable(self.ring[:GENERATION], one), IdTable(self.ring[GENERATION:], other)

    @property
    def newer(self) -> IdTable:
        return self.tables[self.taken // GENERATION % 2]

    @property
    def older(self) -> IdTable | None:
        """None before the first generation is full."""
        return self.tables[(self.taken // GENERATION + 1) % 2] if self.taken >= GENERATION else None

    def step(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which ids were seen before, in this batch or an earlier one; new ones are remembered."""
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
        newer.add(place % GENERATION, place % GENERATION + len(fresh))
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
        self.newer.fill(self.taken % GENERATION)
        if self.older is not None:
            self.older.fill(GENERATION)
