"""When to stop reading: too many dead letters from one place, or one bug of ours again and again.

A place is one partition of one input. Where almost nothing can be taken, something before us is broken, and each letter
more is one more to replay: reading stops, and the log keeps the rest. The limits are counted in records, never in time,
so that they mean the same at any speed; bugs are counted by a clock that is handed in.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

RUN = 100  # dead letters in a row that stop a place
WINDOW = 10_000  # records of a place that are looked back on,
MOST = 100  # and how many of them, 1 %, may be dead letters
BUG_MOST, BUG_WINDOW_S = 10, 60.0  # failures of one fingerprint that a stage bears in this time
MAX_FINGERPRINTS = 1_000  # told apart at once


@dataclass(frozen=True, slots=True)
class Trip:
    """Where a place has had too much: behind the dead letter at this index of its records, and why."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class PlaceCount:
    """What is known of a place: records taken, the numbers of its newest dead letters, and how many stand in a row.

    ``newest`` holds `MOST` numbers at most: with one letter more they are too many if they lie close enough.
    """

    taken: int = 0
    newest: tuple[int, ...] = ()
    in_a_row: int = 0

    def after(self, delivered: int, dead: Sequence[int]) -> tuple["PlaceCount", Trip | None]:
        """The count after so many more records, of which those at the indices ``dead`` (rising) are dead letters; and
        the first dead letter that is one too many.

        >>> PlaceCount().after(200, range(99))[1]
        >>> PlaceCount().after(200, range(100))[1]
        Trip(index=99, reason='100 dead letters in a row')
        """
        if not dead:
            return PlaceCount(self.taken + delivered, self.newest, 0 if delivered else self.in_a_row), None
        newest, in_a_row, last = deque(self.newest, maxlen=MOST), self.in_a_row, -1
        trip: Trip | None = None
        for index in dead:
            in_a_row = in_a_row + 1 if index == last + 1 else 1
            last = index
            number = self.taken + index
            crowded = len(newest) == MOST and number - newest[0] < WINDOW
            newest.append(number)
            if trip is None and in_a_row >= RUN:
                trip = Trip(index, f"{RUN} dead letters in a row")
            elif trip is None and crowded:
                trip = Trip(index, f"more than {MOST} dead letters among {WINDOW:,} records")
        if last != delivered - 1:
            in_a_row = 0
        return PlaceCount(self.taken + delivered, tuple(newest), in_a_row), trip


class BugCount:
    """Failures of the stage itself by fingerprint. Bounded: of too many fingerprints the longest unseen is dropped."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, fingerprint: str, now_s: float) -> bool:
        """One more; whether there were more than `BUG_MOST` within `BUG_WINDOW_S` up to now."""
        times = self._seen.setdefault(fingerprint, deque(maxlen=BUG_MOST + 1))
        self._seen.move_to_end(fingerprint)
        if len(self._seen) > MAX_FINGERPRINTS:
            self._seen.popitem(last=False)
        times.append(now_s)
        return len(times) > BUG_MOST and now_s - times[0] <= BUG_WINDOW_S
