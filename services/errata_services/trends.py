"""Trends: cases opened and findings in hopping windows, from ``errata.tagged.v1`` to ``errata.trends.v1``.

Nothing waits for this service and nothing is decided by it: what it keeps can be counted again from the topic at any
time. It is the one service that runs on Faust.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from errata import __version__
from errata.contracts import Heartbeat, TaggedCase
from errata.contracts.strict import to_us
from errata.contracts.topics import TAGGED, TRENDS, TRENDS_SERVICE, model_key, state_topic
from errata.contracts.trends import Trend
from errata.domain.trends import Counts, Group, PartitionTrends, Taken, Window, summed, trend_key, trend_of
from errata.errors import RefusalClass, Refused, StateDamaged
from errata.ports import Cipher, DeadInput, Outgoing, Record, StateChange, Transport
from errata.runtime.dead_letters import HandlerFailure, dead_letter
from errata.runtime.health import Health
from errata.runtime.heartbeats import read_record
from errata.runtime.service import Loop
from errata.runtime.telemetry import BatchReport, NoTelemetry, Telemetry, dead_by_class
from errata.settings import ServiceSettings
from errata_services.bootstrap import ServiceParts, table_worker

NAME = TRENDS_SERVICE
GROUP = f"errata.{NAME}"
STATE = state_topic(NAME)
TURNS_WITHIN_S = 5.0  # of the member's loop, or the process does not count as alive
COUNTED_PURPOSE = "live"  # drills and backfills are no failures of today


class Trends:
    """What is counted of the partitions that this process has.

    A record that is no message becomes a dead letter; so does one on which the counting itself fails. Errors of the
    machine (memory, files) pass through: the record is not taken then, and comes again.
    """

    def __init__(
        self, cipher: Cipher | None = None, telemetry: Telemetry | None = None, health: Health | None = None
    ) -> None:
        self._cipher = cipher
        self._telemetry: Telemetry = telemetry or NoTelemetry()
        self._health = health or Health(stage=NAME, instance="0", build=__version__)
        self._partitions: dict[int, PartitionTrends] = {}
        self._begin()

    def _begin(self) -> None:
        """Forget what the next results are to tell."""
        self._letters: list[Outgoing] = []
        self._dead: list[RefusalClass] = []
        self._consumed = 0
        self._dropped: Counter[str] = Counter()
        self._added: dict[Group, Counts] = {}
        self._newest_s: float | None = None
        self._began_s = time.monotonic()

    def restore(self, entries: Mapping[int, Mapping[bytes, bytes]]) -> None:
        """Take over these partitions. Raises ``StateDamaged`` for state that cannot be read."""
        restored = {}
        for partition, content in entries.items():
            try:
                restored[partition] = PartitionTrends.restored(partition, content)
            except (ValueError, KeyError, TypeError, IndexError):
                raise StateDamaged(
                    f"trends_unreadable: {STATE} partition {partition} holds what this version cannot read;"
                    " run errata trends rebuild"
                ) from None
        self._partitions = restored
        self._begin()

    def position(self, partition: int) -> int | None:
        found = self._partitions.get(partition)
        return None if found is None else found.next_offset

    def take(self, record: Record) -> list[StateChange]:
        mine = self._partitions[record.partition]
        self._consumed += 1
        try:
            content = read_record(TaggedCase, record)
            taken = self._count(mine, content, record)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            taken = self._refuse(mine, HandlerFailure(error), record)
        if taken.dropped:
            self._dropped[taken.dropped] += 1
        first = min((group.tag for group in taken.added), default="")  # metrics have no tags: each case counts once
        for group, counts in taken.added.items():
            if group.tag == first:
                self._added[group] = self._added.get(group, Counts()).plus(counts)
        return [StateChange(record.partition, key, value) for key, value in taken.changes]

    def _count(self, mine: PartitionTrends, content: TaggedCase | Heartbeat | Refused, record: Record) -> Taken:
        if isinstance(content, Refused):
            return self._refuse(mine, content, record)
        if isinstance(content, Heartbeat):
            self._telemetry.heartbeat(content.time.timestamp())
            self._dropped["heartbeat"] += 1
            return mine.skip(record.offset)
        if content.purpose != COUNTED_PURPOSE:
            self._dropped[content.purpose] += 1
            return mine.skip(record.offset)
        self._newest_s = max(self._newest_s or 0.0, to_us(content.episode.last_seen) / 1e6)
        return mine.take(content, record.offset)

    def _refuse(self, mine: PartitionTrends, refusal: Refused, record: Record) -> Taken:
        """A dead letter, again each time that the record comes; its id is always the same."""
        self._letters.append(dead_letter(NAME, __version__, DeadInput(record, refusal), self._cipher))
        self._dead.append(refusal.refusal_class)
        return mine.skip(record.offset)

    def results(self) -> list[Outgoing]:
        """Dead letters, and every window that may have changed with its absolute counts."""
        letters, self._letters = self._letters, []
        return letters + [one for mine in self._partitions.values() for one in _windows(mine)]

    # What the driver tells.

    def assigned(self, positions: Mapping[int, int]) -> None:
        self._health.started()
        self._health.assigned({(TAGGED, partition): offset for partition, offset in positions.items()})
        self._telemetry.rebalanced("assigned", len(positions))

    def lost(self) -> None:
        self._telemetry.rebalanced("revoked", 0)

    def lag(self, records: Mapping[int, int]) -> None:
        self._telemetry.lag({TAGGED: sum(records.values())})
        self._health.lag({(TAGGED, partition): n for partition, n in records.items()})

    def committed(self, positions: Mapping[int, int]) -> None:
        self._telemetry.batch(
            BatchReport(
                consumed={TAGGED: self._consumed},
                processing_s=time.monotonic() - self._began_s,
                commit_s=0.0,
                produced={},
                dead=dead_by_class(self._dead),
                dropped=dict(self._dropped),
                newest_event_s=self._newest_s,
            )
        )
        cases: Counter[tuple[str, str]] = Counter()
        findings: Counter[tuple[str, str]] = Counter()
        for group, counts in self._added.items():
            model = model_key(group.tenant, group.model).decode()
            cases[model, group.severity] += counts.cases_opened
            findings[model, group.detector] += counts.findings
        self._telemetry.trends(cases, findings)
        self._health.committed({(TAGGED, partition): offset for partition, offset in positions.items()})
        letters = self._letters
        self._begin()
        self._letters = letters  # of records that came meanwhile


def _windows(mine: PartitionTrends) -> Sequence[Outgoing]:
    found = []
    for window in mine.take_dirty():
        counts = mine.counts(window)
        if window.start_s < mine.horizon_s:
            value = None
        elif counts is not None:
            value = trend_of(window, counts, mine.partition).to_json()
        else:
            continue
        found.append(Outgoing(TRENDS, trend_key(window, mine.partition), value, partition=mine.partition))
    return found


def trends_loop(settings: ServiceSettings, parts: ServiceParts) -> tuple[Loop, Callable[[], None]]:
    """The service as a loop, and what is to be done between its turns."""
    stage = Trends(parts.cipher, parts.telemetry, parts.health)
    worker = table_worker(stage, settings, GROUP, TAGGED, STATE)

    def tick() -> None:
        if time.monotonic() - worker.turned_s < TURNS_WITHIN_S:
            parts.health.tick()

    return worker, tick


def read_trends(transport: Transport) -> dict[Window, Counts]:
    """What ``errata.trends.v1`` holds: every window that is kept, summed over the partitions."""
    newest: dict[bytes, Trend] = {}
    for number in range(transport.partitions(TRENDS)):
        for record in transport.read_from((TRENDS, number)):
            key = record.key or b""
            if record.value is None:
                newest.pop(key, None)
            else:
                newest[key] = Trend.model_validate_json(record.value)
    return summed(newest.values())
