"""State is bounded: the least recently seen model goes first, with a tombstone, whatever the batches were."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.detectors.streams import MODEL, SECOND_US, START_US, clean, each, records, tick, time_us, transport

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts import Anomaly
from errata.contracts.topics import TOPICS
from errata.domain.array_codec import unpack_arrays
from errata.domain.detection.keeping import BASE_BYTES, DAY_US, Departed, Keeper, Limits
from errata.domain.detection.profile import compile_profile
from errata.domain.detection.state import slot_bytes
from errata.domain.layouts import compile_layout
from errata.ports import Record, StateChange
from errata.runtime.telemetry import NoTelemetry
from errata_services.anomaly_detector import DEPARTED, SLOT, AnomalyDetector

ONE = slot_bytes(compile_profile(compile_layout("default", "m", None, None)))  # a model without a contract
TEN = Limits(state_bytes=BASE_BYTES + 10 * ONE + 9 * ONE // 10)


class Counts(NoTelemetry):
    def __init__(self) -> None:
        self.evictions: dict[str, int] = {}
        self.held: list[tuple[int, int]] = []

    def evicted(self, slots_by_reason: Any) -> None:
        for reason, n in slots_by_reason.items():
            self.evictions[reason] = self.evictions.get(reason, 0) + n

    def state_held(self, held_bytes: int, limit_bytes: int) -> None:
        self.held.append((held_bytes, limit_bytes))


@dataclass
class Run:
    """A detector on one partition, and what a changelog would hold of it."""

    limits: Limits
    models: Sequence[str] = ()
    kind: type[AnomalyDetector] = AnomalyDetector
    entries: dict[bytes, bytes] = field(default_factory=dict)
    outputs: list[bytes | None] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    tombstones: list[int] = field(default_factory=list)  # of each transaction

    def __post_init__(self) -> None:
        self.tables = transport(self.models) if self.models else MemoryTransport(TOPICS)
        self.restart()

    def restart(self) -> None:
        self.stage = self.kind(self.tables, MsgspecDecoder(b"0" * 32), limits=self.limits, telemetry=self.counts)
        self.stage.restore(0, dict(self.entries))

    def feed(self, stream: Sequence[Record], size: int = 5_000) -> "Run":
        for start in range(0, len(stream), size):
            batch = stream[start : start + size]
            self.stage.prepare(batch)
            result = self.stage.step(batch, None)
            self.stage.commit()
            self.outputs += [output.value for output in result.outputs]
            self.book(result.changes)
        return self

    def book(self, changes: Sequence[StateChange]) -> None:
        self.tombstones.append(sum(change.value is None for change in changes))
        for change in changes:
            if change.value is None:
                self.entries.pop(change.key, None)
            else:
                self.entries[change.key] = change.value

    @property
    def kept(self) -> list[str]:
        return sorted(unpack_arrays(value)[1]["slot"][1] for key, value in self.entries.items() if key.startswith(SLOT))

    def said(self) -> list[Anomaly]:
        return [Anomaly.model_validate_json(value or b"") for value in self.outputs]


def many(models: int, rounds: int = 1) -> list[Record]:
    """An event of each of so many models, again and again, a second apart."""
    names = [f"m{i:03d}" for i in range(models)] * rounds
    events = clean(len(names))
    return records(each(events, range(len(events)), lambda event: event["model"].update(name=names.pop(0))))


def test_the_least_recently_seen_goes_first_with_a_tombstone() -> None:
    run = Run(TEN).feed(many(10))
    assert len(run.kept) == 10
    run.feed(many(11)[10:])
    assert run.kept == [f"m{i:03d}" for i in range(1, 11)]
    assert run.tombstones[-1] == 1
    assert run.counts.evictions == {"bound": 1}
    held, limit = run.counts.held[-1]
    assert held == BASE_BYTES + 10 * ONE <= limit
    assert sorted(slot.model for slot in run.stage.slots) == run.kept


class Boundless(AnomalyDetector):
    """The control: lets nobody go."""

    def _judge_all(self, *given: Any) -> Any:
        self._keeper = Keeper(Limits())
        return super()._judge_all(*given)


def test_without_the_bound_the_state_grows() -> None:
    assert len(Run(TEN, kind=Boundless).feed(many(40)).kept) == 40


@pytest.mark.whole
@pytest.mark.parametrize("size", [3, 33])
def test_evictions_do_not_depend_on_batches(size: int) -> None:
    stream = many(40, 3)
    whole, cut = Run(TEN).feed(stream), Run(TEN).feed(stream, size)
    assert len(whole.kept) == 10
    assert cut.entries == whole.entries
    assert cut.outputs == whole.outputs
    assert cut.counts.evictions == whole.counts.evictions
    assert whole.counts.evictions["bound"] > 50


@pytest.mark.whole
def test_evictions_are_the_same_after_restarts() -> None:
    stream = many(40, 3)
    run = Run(TEN)
    for start in range(0, len(stream), 11):
        run.feed(stream[start : start + 11])
        run.restart()
    assert run.entries == Run(TEN).feed(stream).entries


@pytest.mark.whole
def test_a_rolled_back_batch_evicts_nobody() -> None:
    stream = many(40, 3)
    run = Run(TEN).feed(stream[:60])
    kept = run.kept
    run.stage.step(stream[60:90], None)
    run.stage.rollback()
    assert sorted(slot.model for slot in run.stage.slots) == kept
    run.feed(stream[60:])
    assert run.entries == Run(TEN).feed(stream).entries


def failing() -> list[Record]:
    """A model that fails, thirty others so that it is evicted, and then its failure again."""
    first = each(clean(60), range(20, 60), lambda event: event["features"].update(amount=None))
    later = clean(600, 5, name="l", start_us=START_US + 200 * SECOND_US)
    later = each(later, range(100, 400), lambda event: event["features"].update(amount=None))
    others = clean(30, 3, name="o", start_us=START_US + 100 * SECOND_US)
    names = iter(range(30))
    others = each(others, range(30), lambda event: event["model"].update(name=f"m{next(names):03d}"))
    return records([*first, *others, *later])


def limit_of(run: Run) -> int:
    return BASE_BYTES + slot_bytes(run.stage.slots[0].profile) + 10 * ONE


@pytest.mark.parametrize("size", [5_000, 64])
def test_an_open_episode_of_an_evicted_model_is_closed_and_the_next_is_marked(size: int) -> None:
    limits = Limits(state_bytes=limit_of(Run(TEN, (MODEL,)).feed(failing()[:1])))
    run = Run(limits, (MODEL,)).feed(failing(), size)
    states = [(one.episode.state, one.evidence.get("given_up"), one.evidence.get("warm_up")) for one in run.said()]
    assert states[0] == ("open", None, None)
    assert ("close", "bound", None) in states
    reopened = [one for one in run.said() if one.episode.state == "open"]
    assert len({one.episode.id for one in reopened}) == 2
    assert reopened[1].evidence["warm_up"] == "bound"
    assert run.outputs == Run(limits, (MODEL,)).feed(failing()).outputs


def test_without_an_eviction_nothing_is_marked() -> None:
    run = Run(Limits(), (MODEL,)).feed(failing())
    assert not any({"given_up", "warm_up"} & set(one.evidence) for one in run.said())


def test_the_mark_goes_with_the_first_judged_window() -> None:
    limits = Limits(state_bytes=limit_of(Run(TEN, (MODEL,)).feed(failing()[:1])))
    run = Run(limits, (MODEL,)).feed(failing())
    marks = [one.evidence.get("warm_up") for one in run.said() if one.episode.id == run.said()[-1].episode.id]
    assert (marks[0], marks[-1]) == ("bound", None)
    (slot,) = [slot for slot in run.stage.slots if slot.model == MODEL]
    assert slot.episodes.warm_up == ""


# -- 14 days ----------------------------------------------------------------------------------------------------------


def at(days: float, n: int, first: int = 0) -> list[Record]:
    """One event of each of ``n`` models, so many days after the start."""
    names = iter(range(first, first + n))
    events = clean(n, start_us=START_US + int(days * DAY_US), name=f"d{days}-{first}")
    return records(each(events, range(n), lambda event: event["model"].update(name=f"m{next(names):03d}")))


def test_fourteen_days_without_an_event_end_a_slot() -> None:
    run = Run(Limits()).feed([*at(0, 5), *at(13.9, 2, 3)])
    assert len(run.kept) == 5
    run.feed(at(14.2, 1, 9))
    assert run.kept == ["m003", "m004", "m009"]
    assert run.counts.evictions == {"ttl": 3}


def test_a_tick_lets_time_pass_too() -> None:
    run = Run(Limits()).feed(at(0, 5))
    run.feed(records([tick(START_US + 13 * DAY_US)]))
    assert len(run.kept) == 5
    run.feed(records([tick(START_US + 15 * DAY_US)]))
    assert run.kept == []


def test_a_transaction_writes_at_most_five_hundred_tombstones_of_expired_slots() -> None:
    stream = [*at(0, 900), *at(15, 1, 950)]
    run = Run(Limits()).feed(stream[:900]).feed(stream[900:])
    assert run.tombstones[-1] == 500
    assert [slot.model for slot in run.stage.slots] == ["m950"]  # all are gone at once; what is left is their records
    run.restart()
    run.feed(at(15.01, 1, 951))
    assert run.tombstones[-1] == 400
    assert run.kept == ["m950", "m951"]


def returning() -> Iterator[Record]:
    for day in (0, 3, 10, 16, 20, 25, 31, 40, 60):
        yield from at(day, 20 + day % 7, day % 5)
        yield from records([tick(START_US + day * DAY_US + 3_600 * SECOND_US, f"t{day}")])


@pytest.mark.parametrize("size", [3, 64])
def test_expiry_does_not_depend_on_batches_or_restarts(size: int) -> None:
    stream = list(returning())
    whole, cut = Run(Limits()).feed(stream), Run(Limits())
    for start in range(0, len(stream), size):
        cut.feed(stream[start : start + size])
        cut.restart()
    assert cut.entries == whole.entries
    assert cut.outputs == whole.outputs
    assert whole.counts.evictions["ttl"] > 20


def test_a_model_that_is_gone_for_good_has_its_case_closed() -> None:
    events = each(clean(60), range(20, 60), lambda event: event["features"].update(amount=None))
    run = Run(Limits(), (MODEL,)).feed(records([*events, tick(time_us(events[-1]) + 15 * DAY_US)]), 7)
    said = run.said()
    assert [one.episode.state for one in said][-1] == "close"
    assert said[-1].evidence["given_up"] == "ttl"
    assert run.kept == []


def test_a_slot_that_comes_back_in_the_batch_in_which_it_expired_begins_anew() -> None:
    run = Run(Limits()).feed([*at(0, 1), *at(20, 1)])
    ((_, meta, _),) = [unpack_arrays(value) for key, value in run.entries.items() if key.startswith(SLOT)]
    assert meta["episodes"]["warm_up"] == "ttl"
    assert DEPARTED in run.entries


def test_who_departed_is_remembered_whatever_the_order() -> None:
    rows = [(key, key * 7 % 5_003) for key in range(5_000)]
    one, other = Departed(), Departed()
    for start in range(0, len(rows), 250):
        one.add({key: (seen_us, "ttl") for key, seen_us in rows[start : start + 250]})
    other.add({key: (seen_us, "ttl") for key, seen_us in rows})
    assert one.held == other.held
    assert Departed.of_arrays(one.to_arrays()).held == one.held
    assert len(one.held) == 4_096


@pytest.mark.whole
def test_memory_of_slots_that_left_is_given_back() -> None:
    stream = many(150)
    run = Run(TEN).feed(stream, 50)
    assert len(run.stage.state.slots) <= 128
    assert run.entries == Run(TEN).feed(stream).entries
