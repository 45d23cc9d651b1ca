"""The breaker of a stage on Kafka: stops reading a partition of which almost everything is a dead letter.

It stays stopped until a person says otherwise: by `PoisonGuard.ask_back`, which a service does at SIGUSR1, or by a
restart. What is then read is counted anew, so that a partition that is still bad stops again after as many letters. A
partition that moves to another member begins anew there too. Nothing is lost: the log keeps what is not read.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import structlog

from errata.domain.poison import BUG_MOST, BUG_WINDOW_S, BugCount, PlaceCount, Trip
from errata.errors import BrokenStage
from errata.ports import DeadInput, Record, TopicPartition, columns_of, runs_of
from errata.runtime.dead_letters import fingerprint
from errata.runtime.health import Health
from errata.runtime.telemetry import Telemetry


class PoisonGuard:
    """Counts dead letters by place, and failures of the stage by fingerprint, for one member.

    For each batch `look` says where it has too much, and `committed` counts it. After that `check` raises
    ``BrokenStage`` when the stage fails by the same bug too often.
    """

    def __init__(self, stage: str, telemetry: Telemetry, health: Health) -> None:
        self._stage = stage
        self._telemetry = telemetry
        self._health = health
        self._counts: dict[TopicPartition, PlaceCount] = {}
        self._pending: dict[TopicPartition, PlaceCount] | None = None
        self._tripped: dict[TopicPartition, str] = {}
        self._stopped: dict[TopicPartition, str] = {}
        self._bugs = BugCount()
        self._broken = ""  # the fingerprint that came too often
        self._asked = False

    @property
    def stopped(self) -> set[TopicPartition]:
        """The places that are not read, whoever has them now."""
        return set(self._stopped)

    def look(self, records: Sequence[Record], dead: Iterable[DeadInput]) -> dict[TopicPartition, int]:
        """The offset of the last record that may be taken of each place that has too many dead letters with this batch.
        Changes nothing that counts."""
        self._pending, self._tripped = None, {}
        refused: dict[TopicPartition, set[int]] = defaultdict(set)
        for one in dead:
            refused[one.record.topic, one.record.partition].add(one.record.offset)
        if not refused:
            return {}
        offsets = columns_of(records)[2]
        of_place: dict[TopicPartition, list[int]] = {}
        for place, start, end in runs_of(records):
            of_place.setdefault(place, []).extend(offsets[start:end])
        last: dict[TopicPartition, int] = {}
        self._pending = {}
        for place, numbers in of_place.items():
            indices = [bisect_left(numbers, offset) for offset in sorted(refused.get(place, ()))]  # offsets ascend
            count = self._counts.get(place, PlaceCount())
            trip: Trip | None
            self._pending[place], trip = count.after(len(numbers), indices)
            if trip is not None:
                last[place] = numbers[trip.index]
                self._tripped[place] = trip.reason
        return last

    def committed(
        self, delivered: Mapping[TopicPartition, int], dead: Sequence[DeadInput], now_s: float
    ) -> set[TopicPartition]:
        """The batch that was last looked at is committed; the places that are to be stopped now.

        ``delivered``: its records by place. ``now_s`` is monotonic, in seconds."""
        self._note_bugs(dead, now_s)
        if self._pending is None:
            for place, records in delivered.items():
                self._counts[place] = self._counts.get(place, PlaceCount()).after(records, ())[0]
            return set()
        self._counts.update(self._pending)
        tripped, self._pending, self._tripped = self._tripped, None, {}
        for place, reason in tripped.items():
            self._stopped[place] = reason
            del self._counts[place]
            structlog.get_logger().error(
                "partition is not read any more; mend what comes, then send SIGUSR1 or restart",
                topic=place[0],
                partition=place[1],
                reason=reason,
            )
        return set(tripped)

    def check(self) -> None:
        """Raises ``BrokenStage`` when one bug came too often."""
        if self._broken:
            raise BrokenStage(
                f"{self._stage} fails by a bug of its own: more than {BUG_MOST} dead letters of class handler with"
                f" fingerprint {self._broken} within {BUG_WINDOW_S:.0f} s; errata dlq list --fingerprint {self._broken}"
                " shows them; run a build that has it mended, then replay them"
            )

    def _note_bugs(self, dead: Iterable[DeadInput], now_s: float) -> None:
        for one in dead:
            if one.refusal.refusal_class == "handler":
                mark = fingerprint(one.refusal)
                if self._bugs.note(mark, now_s):
                    self._broken = mark

    def ask_back(self) -> None:
        """Have all stopped places read again, from the next batch on. May be called from a signal handler."""
        self._asked = True

    def back(self) -> set[TopicPartition]:
        """The places to be read again because somebody asked for it."""
        if not self._asked:
            return set()
        self._asked = False
        places = self.stopped
        self._stopped.clear()
        return places

    def revoked(self, places: Iterable[TopicPartition]) -> None:
        """These places are another member's now. One that was stopped stays so, should it come back."""
        for place in places:
            self._counts.pop(place, None)

    def tell(self, assigned: set[TopicPartition]) -> None:
        """Say which of the assigned places are not read."""
        held: Mapping[TopicPartition, str] = {at: why for at, why in self._stopped.items() if at in assigned}
        self._telemetry.poisoned(Counter(topic for topic, _ in held))
        self._health.poisoned(held)
