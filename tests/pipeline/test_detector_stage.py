"""The detector's stage: batches, restores, rollbacks, purposes, lateness, ticks, storms, duplicates, secrets."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.detectors.streams import (
    MINUTE_US,
    MODEL,
    SECOND_US,
    START_US,
    Event,
    Ran,
    clean,
    detect,
    each,
    outcome,
    records,
    reference,
    run,
    stage,
    step,
    tick,
    time_us,
    transport,
)
from tests.memory import counted, resident_mb

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts.strict import instant, rfc3339
from errata.contracts.topics import PREDICTIONS, REFERENCES, TOPICS
from errata.domain.array_codec import unpack_arrays
from errata.domain.columns import Batch
from errata.domain.detection import state as at
from errata.domain.detection.identity import SeenIds
from errata.ports import Record, StepResult
from errata.runtime.changelog import TABLE_KEY
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import publish_tables

OTHER = "other"
HOUR_US = 60 * MINUTE_US
MB_OF_IDS = 4  # of one partition


def put(**fields: Any) -> Callable[[Event], None]:
    return lambda event: event.update(fields)


def feature(**values: Any) -> Callable[[Event], None]:
    return lambda event: event["features"].update(values)


def failed(event: Event) -> None:
    event["status"] = {"code": "error"}
    del event["prediction"], event["scores"]


def wrong(event: Event) -> None:
    event["outcome"]["value"] = "no" if event["prediction"] == "yes" else "yes"


def shifted(events: Sequence[Event], by_us: int) -> list[Event]:
    """The same events, happened later."""
    moved = each(events, (), put())
    for event, old in zip(moved, events, strict=True):
        event["time"] = clean(1, start_us=time_us(old) + by_us)[0]["time"]
    return moved


@cache
def rich() -> list[Record]:
    """Two models and three purposes with faults of every kind, duplicates, late and future events, ticks, outcomes."""
    mine = clean(2_000)
    mine = each(mine, range(300, 420), feature(amount=None))
    mine = each(mine, range(900, 1_300, 3), put(latency_ms=900.0))
    mine = each(mine, range(950, 1_000), failed)
    mine = each(mine, (1_010, 1_020, 1_400), put(prediction="never"))
    mine = each(mine, range(1_500, 1_700), feature(age=500))
    mine = each(mine, range(1_100, 1_800), wrong)
    mine = each(mine, range(20, 60), put(purpose="drill", prediction="maybe"))
    mine = each(mine, range(60, 100), put(purpose="backfill"))
    mine = each(mine, range(1_200, 1_900, 5), lambda event: event["features"].update(age="old"))
    other = each(clean(2_000, 2, model=OTHER, name="f"), range(100, 400), feature(amount=990.0))
    late = clean(12, 3, name="late", start_us=START_US - HOUR_US)
    stream: list[Event] = []
    for i, event in enumerate(mine):
        stream.append(event)
        stream += [other[i]] if i < len(other) else []
        stream += [late[i // 200]] if i % 200 == 199 and i // 200 < len(late) else []
        stream += [mine[i - 40]] if i % 83 == 60 else []  # a publisher's duplicate
        stream += [outcome(i, i % 2 == 0, model=OTHER)] if 100 < i < 300 else []
        stream += [tick(time_us(event) + SECOND_US)] if i % 150 == 149 else []
    return records(stream)


def put_time(event: Event, by_us: int) -> Event:
    return shifted([event], by_us)[0]


@cache
def whole(size: int, n: int | None = None) -> Ran:
    return run(stage(models=(MODEL, OTHER)), rich()[:n], size)


def lasting(ran: Ran) -> dict[bytes, bytes]:
    """Entries by key; of tables in force what is in force, for the offsets of it are those of a batch."""
    return {key: value for key, value in ran.entries.items() if key != TABLE_KEY}


def test_the_rich_stream_is_rich() -> None:
    ran = whole(5_000)
    detectors = {finding.detector for _, said in ran.moves for finding in said.findings}
    assert detectors >= {
        "bad_status", "contract_violation", "distribution_shift", "error_rate", "invalid_output", "latency_limit",
        "latency_shift", "missing_values", "policy_violation",
    }  # fmt: skip
    assert {said.episode.state for _, said in ran.moves} >= {"open", "update", "close"}
    assert {said.purpose for _, said in ran.moves} == {"live", "drill"}
    assert {said.model.name for _, said in ran.moves} == {MODEL, OTHER}
    assert ran.dropped["duplicate"] > 20
    assert ran.late > 5


@pytest.mark.parametrize("size", [pytest.param(7, marks=pytest.mark.whole), 500])
def test_batches_of_any_size_give_the_same_bytes(size: int) -> None:
    ran, expected = whole(size), whole(5_000)
    assert ran.outputs == expected.outputs
    assert lasting(ran) == lasting(expected)
    assert (ran.dropped, ran.late, ran.findings) == (expected.dropped, expected.late, expected.findings)


@pytest.mark.whole
def test_batches_of_one_give_the_same_bytes() -> None:
    n = 700
    ran, expected = whole(1, n), whole(5_000, n)
    assert expected.outputs
    assert ran.outputs == expected.outputs
    assert lasting(ran) == lasting(expected)


class Forgetful(AnomalyDetector):
    """Loses the counts of its open windows with every batch."""

    def step(self, batch: Sequence[Record], prepared: None) -> StepResult:
        self.state.counts[:] = 0
        return super().step(batch, prepared)


def test_a_stage_that_forgets_its_counts_fails_the_same_check() -> None:
    n = 1_000
    one, other = (run(stage(Forgetful, (MODEL, OTHER)), rich()[:n], size) for size in (20, 5_000))
    assert one.outputs != other.outputs
    assert lasting(one) != lasting(other)


# -- restore and rollback ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "boundary", [300, *(pytest.param(at, marks=pytest.mark.whole) for at in range(900, 3_900, 600)), 3_900]
)
def test_a_stage_restored_at_any_boundary_goes_on_the_same(boundary: int) -> None:
    stream = rich()
    assert boundary < len(stream)
    before = run(stage(models=(MODEL, OTHER)), stream[:boundary], 500)
    again = AnomalyDetector(transport((MODEL, OTHER)), decoder())
    again.restore(0, before.entries)
    ran = run(again, stream[boundary:], 700, before, boundary)
    assert ran.outputs == whole(5_000).outputs
    assert lasting(ran) == lasting(whole(5_000))


def decoder() -> Any:
    from errata.adapters.decode_msgspec import MsgspecDecoder

    return MsgspecDecoder(b"0" * 32)


def test_a_stage_restored_without_its_entries_goes_on_otherwise() -> None:
    stream, boundary = rich(), 1_650
    before = run(stage(models=(MODEL, OTHER)), stream[:boundary], 500)
    assert run(stage(models=(MODEL, OTHER)), stream[boundary:], 700, before).outputs != whole(5_000).outputs


def test_rollback_then_step_gives_the_same() -> None:
    detector, stream, ran = stage(models=(MODEL, OTHER)), rich(), Ran()
    for start in range(0, len(stream), 640):
        batch = stream[start : start + 640]
        first = step(detector, batch)
        detector.rollback()
        second = step(detector, batch)
        assert [out.value for out in first.outputs] == [out.value for out in second.outputs]
        assert first.changes == second.changes
        detector.rollback()
        run(detector, batch, 640, ran, start)
    assert ran.outputs == whole(5_000).outputs
    assert lasting(ran) == lasting(whole(5_000))


def limits_wrong(detector: AnomalyDetector) -> list[at.Slot]:
    """Slots of which the state says another limit than their samples have."""
    of_samples = {slot.index: (at.limit_of(slot.sample), at.limit_of(slot.wrong_sample)) for slot in detector.slots}
    return [slot for slot in detector.slots if tuple(detector.state.limits[slot.index]) != of_samples[slot.index]]


def test_limits_of_samples_are_those_of_the_rows_held() -> None:
    """Through windows that end, rollbacks, a restore, another reference and slots that leave."""
    log, stream, seen = transport((MODEL, OTHER)), rich(), set()
    detector = AnomalyDetector(log, decoder())
    detector.restore(0, {})
    ran = Ran()
    for start in range(0, len(stream), 170):
        step(detector, stream[start : start + 170])
        assert not limits_wrong(detector)
        if start % 340:
            detector.rollback()
            assert not limits_wrong(detector)
        run(detector, stream[start : start + 170], 170, ran, start)
        assert not limits_wrong(detector)
        seen |= {tuple(row < at.LARGEST_HASH for row in detector.state.limits[slot.index]) for slot in detector.slots}
    assert seen == {(False, False), (True, False), (False, True), (True, True)}
    again = AnomalyDetector(log, decoder())
    again.restore(0, ran.entries)
    assert not limits_wrong(again)
    np.testing.assert_array_equal(sorted(again.state.limits.tolist()), sorted(detector.state.limits.tolist()))
    again.state.remove(again.slots[0])
    again.state.compact()
    assert not limits_wrong(again)
    publish_tables(log, {REFERENCES: reference(seed=2000)})
    run(again, records(clean(30, 9, start_us=time_us(clean(1)[0]) + 3 * HOUR_US)), 30)
    assert not limits_wrong(again)
    again.state.limits[again.slots[0].index] -= np.uint64(1)  # the control
    assert limits_wrong(again) == again.slots[:1]


def test_a_revoked_partition_leaves_nothing_behind() -> None:
    detector = stage()
    run(detector, records(clean(200)), 200)
    assert detector.slots
    detector.revoke(0)
    assert detector.slots == []
    detector.restore(0, {})
    assert run(detector, records(clean(200)), 200).dropped["duplicate"] == 0


@counted
def test_a_partition_without_events_takes_no_memory() -> None:
    detector = stage()
    run(detector, records(clean(200)), 200)
    before_mb = resident_mb(kind="Anonymous")
    for partition in range(1, 12):
        detector.restore(partition, {})
    assert resident_mb(kind="Anonymous") - before_mb < MB_OF_IDS
    held = [SeenIds() for _ in range(11)]  # the control: what they take with their first event
    assert resident_mb(kind="Anonymous") - before_mb > len(held) * MB_OF_IDS * 0.9


# -- another reference ------------------------------------------------------------------------------------------------


def fixed(detector: AnomalyDetector, purpose: str = "live", model: str = MODEL) -> Any:
    return detector.state.fixed[detector.state.by_key["default", model, purpose]]


def test_another_reference_starts_windows_over_and_keeps_episodes() -> None:
    log = transport()
    detector = AnomalyDetector(log, decoder())
    detector.restore(0, {})
    events = each(clean(700), range(100, 130), feature(amount=None))
    ran = run(detector, records(events[:300]), 300)
    assert ran.opened()
    assert fixed(detector)[at.FILL] == 300
    publish_tables(log, {REFERENCES: reference(seed=2000)})
    run(detector, records(events[300:310], lambda e: time_us(e) + SECOND_US), 10, ran, 300)
    assert fixed(detector)[at.FILL] == 10
    assert fixed(detector)[at.EVENTS] == 310
    slot = detector.slots[0]
    assert slot.episodes.current is not None
    assert slot.profile.reference_hash == reference(seed=2000).content_hash
    _, meta, _ = unpack_arrays(ran.entries[b'["slot","default","loans","live"]'])
    assert meta["reference"] == reference(seed=2000).content_hash


def test_the_same_reference_again_changes_nothing_but_the_window() -> None:
    """The control: without a new entry the window goes on."""
    detector = stage()
    run(detector, records(clean(300)), 100)
    assert fixed(detector)[at.FILL] == 300


def test_entries_under_another_reference_restore_with_fresh_windows() -> None:
    before = run(stage(), records(clean(300)), 300)
    log = transport()
    publish_tables(log, {REFERENCES: reference(seed=2000)})
    again = AnomalyDetector(log, decoder())
    again.restore(0, before.entries)
    assert (fixed(again)[at.FILL], fixed(again)[at.EVENTS]) == (0, 300)


# -- ticks ------------------------------------------------------------------------------------------------------------


def after_tick(n: int, wait_us: int, purpose: str = "live", change: Callable[[Event], object] = bool) -> Any:
    """A detector that saw n events and then a tick ``wait_us`` after the first of them."""
    detector = stage()
    events = each(clean(n), range(n), put(purpose=purpose))
    events = each(events, range(n), change)
    ran = run(detector, records([*events, tick(START_US + wait_us)]), 5_000)
    return ran, fixed(detector, purpose)


def test_a_tick_closes_and_judges_a_hundred_after_a_quarter_of_an_hour() -> None:
    ran, slot = after_tick(100, 15 * MINUTE_US, change=feature(amount=990.0))
    assert (slot[at.FILL], slot[at.WINDOWS], slot[at.UNJUDGED]) == (0, 1, 0)
    assert ran.opened() == [(100, "distribution_shift", "amount")]
    window = ran.moves[0][1].window
    assert window is None or window.n == 100
    assert [said.window.n for _, said in ran.of("update") if said.window] == [100]


@pytest.mark.parametrize(("n", "wait_us"), [(100, 15 * MINUTE_US - SECOND_US), (99, 15 * MINUTE_US)])
def test_a_tick_too_early_or_of_too_few_closes_nothing(n: int, wait_us: int) -> None:
    ran, slot = after_tick(n, wait_us, change=feature(amount=990.0))
    assert (slot[at.FILL], slot[at.WINDOWS]) == (n, 0)
    assert ran.moves == []


def test_a_tick_closes_a_small_window_after_a_day_unjudged_and_counts_it() -> None:
    ran, slot = after_tick(99, 24 * HOUR_US, change=feature(amount=990.0))
    assert (slot[at.FILL], slot[at.WINDOWS], slot[at.UNJUDGED]) == (0, 1, 1)
    assert ran.moves == []


def test_an_unjudged_window_is_no_quiet_one() -> None:
    events = each(clean(599), range(500), feature(amount=None))
    quiet = [put_time(e, 2 * HOUR_US) for e in clean(50, 4, name="q")]
    detector = stage()
    stream = [*events, tick(START_US + 30 * HOUR_US), *(put_time(e, 31 * HOUR_US) for e in quiet)]
    ran = run(detector, records([*stream, tick(START_US + 60 * HOUR_US, "2")]), 5_000)
    assert fixed(detector)[at.UNJUDGED] == 2
    assert ran.of("open")
    assert ran.of("close") == []


def test_ticks_do_not_touch_backfills() -> None:
    _, slot = after_tick(120, 48 * HOUR_US, "backfill")
    assert slot[at.FILL] == 120


def test_a_tick_closes_a_window_of_outcomes() -> None:
    detector = stage()
    events = [outcome(i, False) for i in range(150)]
    run(detector, records([*events, tick(START_US + HOUR_US)]), 60)
    assert (fixed(detector)[at.OUT_FILL], fixed(detector)[at.OUT_WINDOWS]) == (0, 1)


# -- purposes ---------------------------------------------------------------------------------------------------------


def test_drills_and_backfills_never_move_live_statistics() -> None:
    live = clean(1_200)
    drills = each(clean(600, 5, name="d"), range(600), put(purpose="drill"))
    drills = each(drills, range(600), feature(amount=990.0, colour=None))
    past = each(clean(600, 6, name="b"), range(600), put(purpose="backfill"))
    past = each(past, range(600), feature(amount=990.0))
    mixed: list[Event] = []
    for i, event in enumerate(live):
        mixed += [event, *drills[i : i + 1], *past[i : i + 1]]
    alone, together = stage(), stage()
    one, both = run(alone, records(live), 500), run(together, records(mixed), 500)
    assert one.moves == []
    assert {said.purpose for _, said in both.moves} == {"drill", "backfill"}
    assert len({said.episode.id for _, said in both.moves}) == 2
    a, b = (d.state.slot(d.state.by_key["default", MODEL, "live"]) for d in (alone, together))
    for name in ("cells", "counts"):
        mine, theirs = getattr(alone.state, name), getattr(together.state, name)
        part = alone.state.cells_of(a) if name == "cells" else alone.state.counters_of(a)
        other = together.state.cells_of(b) if name == "cells" else together.state.counters_of(b)
        assert (mine[part] == theirs[other]).all()
    assert (alone.state.fixed[a.index] == together.state.fixed[b.index]).all()


def test_heartbeats_leave_no_trace_in_the_state() -> None:
    beats = each(clean(50), range(50), put(purpose="heartbeat"))
    detector = stage()
    ran = run(detector, records(beats), 50)
    assert (ran.dropped, ran.entries, len(ran.outputs)) == ({}, {}, 50)
    assert detector.slots == []


# -- lateness and clocks ----------------------------------------------------------------------------------------------


def test_late_events_stay_out_of_windows() -> None:
    late = [put_time(e, -11 * MINUTE_US - 200 * SECOND_US) for e in clean(30, 3, name="late")]
    late = each(late, range(30), feature(amount=None))
    detector = stage()
    ran = run(detector, records([*clean(200), *late]), 5_000)
    assert ran.late == 30
    assert (fixed(detector)[at.FILL], fixed(detector)[at.LATE], fixed(detector)[at.EVENTS]) == (200, 30, 230)
    assert ran.moves == []


def test_events_less_than_ten_minutes_behind_are_not_late() -> None:
    early = [put_time(e, -5 * MINUTE_US) for e in clean(30, 3, name="late")]
    early = each(early, range(30), feature(amount=None))
    ran = detect([*clean(200), *early])
    assert ran.late == 0
    assert ran.opened() == [(209, "missing_values", "amount")] or ran.opened()[0][1] == "missing_values"


def test_an_invalid_output_of_a_late_event_opens() -> None:
    late = each([put_time(clean(1, 3, name="late")[0], -30 * MINUTE_US)], (0,), put(prediction="maybe"))
    ran = detect([*clean(200), *late, *clean(20, 4, name="x", start_us=START_US + 300 * SECOND_US)])
    assert ran.opened() == [(200, "invalid_output", "prediction")]
    assert ran.late == 1


@pytest.mark.parametrize("rows", [3, 20])
def test_late_events_are_judged_the_same_in_any_batches(rows: int) -> None:
    late = [put_time(e, -30 * MINUTE_US) for e in clean(rows, 3, name="late")]
    late = each(late, range(rows), put(prediction="maybe"))
    fresh = each(clean(700), (100, 101, 150), put(prediction="maybe"))
    stream = records([*fresh[:150], *late, *fresh[150:]])
    one, other = (run(stage(), stream, size) for size in (40, 5_000))
    assert one.outputs == other.outputs
    assert lasting(one) == lasting(other)


def test_events_from_the_future_are_clamped_to_when_they_came() -> None:
    events = clean(20)
    ahead = each(events, (10,), put(time=clean(1, start_us=START_US + HOUR_US)[0]["time"]))
    received = {event["event_id"]: time_us(event) for event in events}
    detector = stage()
    ran = run(detector, records(ahead, lambda event: received[event["event_id"]]), 20)
    assert (ran.clamped, ran.late) == (1, 0)
    assert fixed(detector)[at.MAX_US] == START_US + 19 * SECOND_US


@pytest.mark.parametrize(("ahead_us", "clamped"), [(5 * MINUTE_US, 0), (5 * MINUTE_US + 1, 1), (24 * HOUR_US, 1)])
def test_an_outcome_from_the_future_is_clamped_to_when_it_came(ahead_us: int, clamped: int) -> None:
    at_us = START_US + 20 * SECOND_US
    late = outcome(20, True) | {"observed_time": rfc3339(instant(at_us + ahead_us))}
    received = {id(late): at_us}
    events = [*(outcome(i, False) for i in range(20)), late]
    detector = stage()
    ran = run(detector, records(events, lambda event: received.get(id(event), time_us(event))), 7)
    assert (ran.clamped, int(fixed(detector)[at.CLAMPED])) == (clamped, clamped)
    assert int(fixed(detector)[at.OUT_LAST_US]) == (at_us if clamped else at_us + ahead_us)


def test_what_a_batch_tells_of_its_newest_event_is_not_of_the_future() -> None:
    """It goes into the position record and into the age of events."""
    events = clean(3)
    ahead = each(events, (1,), put(time=clean(1, start_us=START_US + HOUR_US)[0]["time"]))
    result = step(stage(), records(ahead, lambda _: START_US + 2 * SECOND_US))
    assert result.max_event_time_us == START_US + 2 * SECOND_US


def test_a_clock_four_minutes_ahead_is_believed() -> None:
    events = clean(20)
    detector = stage()
    ran = run(detector, records(events, lambda event: time_us(event) - 4 * MINUTE_US), 20)
    assert ran.clamped == 0


# -- storms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 5_000])
def test_a_storm_emits_eight_findings_a_window_and_counts_exactly(size: int) -> None:
    storm = each(clean(2_000), range(2_000), failed)
    ran = detect(storm, size)
    assert ran.findings[MODEL, "bad_status", "event"] == 8 * 4
    assert ran.findings[MODEL, "bad_status", "window"] == 4
    assert ran.opened() == [(0, "bad_status", "error")]
    assert len({said.episode.id for _, said in ran.moves}) == 1
    last = ran.moves[-1][1]
    assert last.episode.count == 2_000
    assert len(last.exemplars) == 8


def test_a_storm_on_some_events_is_counted_exactly_too() -> None:
    rows = np.flatnonzero(np.random.default_rng(8).random(2_000) < 0.37).tolist()
    ran = detect(each(clean(2_000), rows, failed))
    assert ran.moves[-1][1].episode.count == len(rows)


# -- duplicates -------------------------------------------------------------------------------------------------------


def doubled() -> list[Record]:
    """Twelve missing amounts among 300, each event sent twice: in a batch of 600 and, by offset, across batches."""
    events = each(clean(300), range(50, 59), feature(amount=None))
    return records([*events, *events])


@pytest.mark.parametrize("size", [600, 200, 7])
def test_duplicates_within_and_across_batches_are_counted_and_left_out(size: int) -> None:
    detector = stage()
    ran = run(detector, doubled(), size)
    assert ran.dropped == {"duplicate": 300}
    assert fixed(detector)[at.EVENTS] == 300
    assert ran.moves == []


class Gullible(AnomalyDetector):
    """Believes that every event is a new one."""

    def _distinct(self, batch: Batch) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], ...]:
        return np.ones(len(batch.predictions), np.bool_), np.ones(len(batch.outcomes), np.bool_)


def test_without_removal_the_duplicates_make_a_false_case() -> None:
    ran = run(stage(Gullible), doubled(), 600)
    assert ran.dropped == {}
    assert [name for _, *name in ran.opened()] == [["missing_values", "amount"]]


def test_duplicates_are_known_after_a_restore() -> None:
    stream = records([*clean(300), *clean(300)])
    before = run(stage(), stream[:300], 100)
    again = stage()
    again.restore(0, before.entries)
    assert run(again, stream[300:], 100).dropped == {"duplicate": 300}


def test_an_outcome_sent_twice_counts_once() -> None:
    detector = stage()
    ran = run(detector, records([outcome(i % 80, False) for i in range(160)]), 50)
    assert ran.dropped == {"duplicate": 80}
    assert fixed(detector)[at.OUT_FILL] == 80


# -- what is no event -------------------------------------------------------------------------------------------------


def test_every_record_has_one_disposition() -> None:
    events = clean(20)
    stream = records([*events, *events[:5], tick(START_US + HOUR_US)])
    broken = [Record(r.topic, 0, 100 + i, r.timestamp_us, r.key, b'{"x":') for i, r in enumerate(stream[:4])]
    result = step(stage(), [*stream, *broken])
    assert len(result.dead) == 4
    assert result.dropped == {"duplicate": 5}
    assert {dead.record.offset for dead in result.dead} == {100, 101, 102, 103}


# -- secrets ----------------------------------------------------------------------------------------------------------

SECRETS = [f"canary-{i:03d}-7f3a" for i in range(200)]


def leaky() -> list[Event]:
    """Secrets in features of every policy, in good and in broken places, across all kinds of failure."""
    events = clean(2_000)
    for i, secret in enumerate(SECRETS):
        events[i]["features"][("city", "owner", "note", "colour", "age")[i % 5]] = secret
        events[600 + i]["features"] |= {"note": secret, "city": secret, "owner": secret, "extra": secret}
        events[900 + i]["features"]["city"] = secret
        events[900 + i]["latency_ms"] = 2_000.0
        events[1_100 + i]["features"] |= {"note": secret, "amount": 999.0}
    return each(events, range(620, 640), put(prediction="never"))


def test_no_feature_value_leaves_in_any_output_or_state() -> None:
    ran = detect(leaky(), 500)
    assert {finding.detector for _, said in ran.moves for finding in said.findings} >= {
        "contract_violation", "latency_limit", "policy_violation", "distribution_shift",
    }  # fmt: skip
    said = b"\n".join([*(value or b"" for _, value in ran.outputs), *ran.entries.values(), *ran.entries])
    assert [secret for secret in SECRETS if secret.encode() in said] == []


def test_the_search_for_secrets_would_find_one() -> None:
    """The control: an id of an event is no feature and does leave, as the reference to its row."""
    events = each(clean(30), range(30), feature(amount=None))
    for i in range(30):
        events[i]["prediction_id"] = SECRETS[i]
    said = b"".join(value or b"" for _, value in detect(events).outputs)
    assert any(secret.encode() in said for secret in SECRETS)


def test_hidden_categories_are_numbered_not_named() -> None:
    """A shift of a feature that its policy hides says which cells moved, not what they are called."""
    ran = detect(each(clean(500), range(500), feature(owner="delft")))
    assert ran.opened() == [(499, "distribution_shift", "owner")]
    said = json.dumps([json.loads(value or b"")["findings"] for _, value in ran.outputs])
    assert "#3" in said
    assert "delft" not in said
    named = detect(each(clean(500), range(500), feature(colour="red")))
    assert "red" in json.dumps([finding.evidence for finding in named.moves[0][1].findings])


def test_a_shape_no_contract_could_allow_breaks_no_model_without_a_contract() -> None:
    event = {"event_id": "e", "time": "2026-01-05T12:00:00Z", "model": {"name": "nobody"}, "prediction": "ok"}
    raw = json.dumps({**event, "features": {"nested": {"a": 1}, "plain": 1}}).encode()
    detector = AnomalyDetector(MemoryTransport(TOPICS), MsgspecDecoder())
    batch = [Record(PREDICTIONS, 0, 0, 1_767_614_400_000_000, b"nobody", raw)]
    result = detector.step(batch, None)
    assert (result.dead, result.outputs, result.dropped) == ([], [], {})
