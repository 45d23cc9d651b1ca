"""The demo's stream: failures where the plan says, room between them, no mark on any row, changes at their times."""

import json
from datetime import datetime, timedelta
from functools import cache
from itertools import islice, pairwise
from typing import Any

import pytest

from errata.contracts import ChangeEvent, PredictionEvent
from errata.contracts.strict import instant_us, to_us
from errata.domain.profiles import content_hash
from errata.domain.validation import check_contract, check_event
from errata_services.demo.stream import (
    BLOCK,
    CLEAN_ROWS,
    KINDS,
    MODEL,
    OTHER_MODEL,
    DemoPlan,
    Planted,
    contract,
    count,
    events,
    plan,
    reference_events,
    truth,
)

pytestmark = pytest.mark.whole

SEEDS = range(40)


@cache
def raw(seed: int, plant: bool = True, real_block: bool = True) -> list[bytes]:
    return list(events(plan(seed, plant=plant, real_block=real_block)))


def raw_predictions(seed: int, plant: bool = True, real_block: bool = True) -> list[bytes]:
    return [line for line in raw(seed, plant, real_block) if line.startswith(b'{"event_id"')]


@cache
def predictions(seed: int, plant: bool = True, real_block: bool = True) -> list[dict[str, Any]]:
    return list(map(json.loads, raw_predictions(seed, plant, real_block)))


def changes(seed: int, plant: bool = True) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw(seed, plant) if line.startswith(b'{"change_id"')]


def time_us(line: dict[str, Any]) -> int:
    return instant_us(line["time"])


@pytest.mark.parametrize("seed", SEEDS)
def test_one_failure_of_each_kind_with_room_around(seed: int) -> None:
    failures = plan(seed).failures
    assert sorted(f.kind for f in failures) == sorted(KINDS)
    assert all(600 <= f.rows <= 1_200 for f in failures)
    ends = [0, *(f.start + f.rows for f in failures)]
    starts = [*(f.start for f in failures), CLEAN_ROWS]
    assert all(start - end >= 2_000 for start, end in zip(starts, ends, strict=True))


def test_seeds_draw_order_places_and_lengths() -> None:
    plans = [plan(seed).failures for seed in SEEDS]
    assert {failures[-1].kind for failures in plans} == set(KINDS)
    assert len({tuple(f.start for f in failures) for failures in plans}) == len(plans)
    assert plan(3) == plan(3)


def test_the_same_plan_gives_the_same_bytes() -> None:
    first = [list(islice(events(plan(seed)), 3_000)) for seed in (11, 11, 12)]
    assert first[0] == first[1]
    assert first[0] != first[2]


def test_only_planted_rows_differ_from_the_unplanted_stream() -> None:
    planned = plan(7)
    kind_of = {place: f.kind for f in planned.failures for place in range(f.start, f.start + f.rows)}
    broken, sound = raw_predictions(7), raw_predictions(7, plant=False)
    assert len(broken) == len(sound) == 44_000
    differ = {place for place, (got, was) in enumerate(zip(broken, sound, strict=True)) if got != was}
    newborn = {place for place in kind_of if json.loads(sound[place])["features"]["AGEP"] == 0}
    assert kind_of.keys() - newborn <= differ <= kind_of.keys()  # 12 × 0 is 0
    for place, kind in kind_of.items():
        got, was = json.loads(broken[place]), json.loads(sound[place])
        assert got.keys() == was.keys()  # no mark
        expected = json.loads(json.dumps(was))
        if kind == "schl_absent":
            del expected["features"]["SCHL"]
        elif kind == "agep_times_12":
            expected["features"]["AGEP"] *= 12
        elif kind == "latency_times_3":
            expected["latency_ms"] = round(expected["latency_ms"] * 3, 3)
        else:
            expected["prediction"] = "employed" if was["prediction"] == "not_employed" else "not_employed"
            scores = was["scores"]
            expected["scores"] = {"employed": scores["not_employed"], "not_employed": scores["employed"]}
        assert got == expected


def test_one_event_a_second_and_the_real_part_thirty_days_later() -> None:
    times = [time_us(line) for line in predictions(7)]
    steps = {b - a for a, b in pairwise(times)}
    assert times[0] == instant_us("2025-03-03T08:00:00Z")
    assert steps == {1_000_000, 30 * 86_400 * 1_000_000 + 1_000_000}
    assert times[CLEAN_ROWS] - times[CLEAN_ROWS - 1] > 86_400 * 1_000_000


def test_lines_stand_in_the_order_of_their_times_and_are_counted() -> None:
    times = [time_us(json.loads(line)) for line in raw(7)]
    assert times == sorted(times)
    assert len(raw(7)) == count(plan(7))


@pytest.mark.parametrize("plant", [True, False])
def test_the_deploy_and_its_decoys(plant: bool) -> None:
    seed = 7
    last = plan(seed).failures[-1]
    onset = datetime.fromisoformat("2025-03-03T08:00:00+00:00") + timedelta(seconds=last.start)
    end = onset + timedelta(seconds=last.rows - 1)
    found = [(c["subject"], datetime.fromisoformat(c["time"])) for c in changes(seed, plant)]
    assert found == [
        (MODEL, datetime.fromisoformat("2025-02-28T08:00:00+00:00")),
        (MODEL, onset - timedelta(minutes=20)),
        (OTHER_MODEL, onset - timedelta(minutes=15)),
        (MODEL, end + timedelta(minutes=10)),
    ]
    assert raw(seed, plant)[0].startswith(b'{"change_id"')
    day_before = [at for subject, at in found if subject == MODEL and onset - timedelta(days=1) <= at <= onset]
    assert day_before == [onset - timedelta(minutes=20)]


def test_truth_names_first_and_last_of_each_failure() -> None:
    told = truth(plan(7))
    assert [t.kind for t in told] == [*(f.kind for f in plan(7).failures), "relp_vanished"]
    by_time = {time_us(line): line for line in predictions(7)}
    for t in told:
        if t.kind == "schl_absent":
            assert "SCHL" not in by_time[to_us(t.first)]["features"]
            assert "SCHL" not in by_time[to_us(t.last)]["features"]
            assert "SCHL" in by_time[to_us(t.first) - 1_000_000]["features"]
            assert "SCHL" in by_time[to_us(t.last) + 1_000_000]["features"]
    assert time_us(predictions(7)[-1]) == to_us(told[-1].last)
    assert [t.kind for t in truth(plan(7, plant=False))] == ["relp_vanished"]


def test_without_the_real_block_nobody_is_in_group_quarters_after_the_clean_part() -> None:
    rows = predictions(7, real_block=False)[CLEAN_ROWS:]
    assert len(rows) == 20_000 - len(BLOCK)
    assert not any(row["features"]["RELP"] in ("16", "17") for row in rows)
    times = [time_us(row) for row in rows]
    assert {b - a for a, b in pairwise(times)} == {1_000_000}
    assert any(row["features"]["RELP"] in ("16", "17") for row in predictions(7)[CLEAN_ROWS:])


def test_all_lines_are_good_and_only_planted_rows_break_the_contract() -> None:
    rules = contract()
    found = set()
    for line in predictions(7)[::23]:
        found |= {(v.pointer, v.reason) for v in check_event(PredictionEvent.model_validate(line), rules)}
    assert found == {("/features/SCHL", "missing"), ("/features/AGEP", "range")}
    for line in predictions(7, plant=False)[::23]:
        assert check_event(PredictionEvent.model_validate(line), rules) == []
    for change in changes(7):
        ChangeEvent.model_validate(change)


def test_simulated_latency_has_its_median_and_never_reaches_the_limit() -> None:
    latencies = sorted(line["latency_ms"] for line in predictions(7, plant=False))
    assert latencies[22_000] == pytest.approx(40, rel=0.02)
    assert latencies[int(44_000 * 0.95)] == pytest.approx(91, rel=0.03)
    slo = contract().slos
    assert slo is not None
    assert slo.latency_ms is not None
    assert slo.latency_ms.max is not None
    assert 3 * latencies[-1] < slo.latency_ms.max


def test_the_reference_is_of_2015_and_keeps_the_contract() -> None:
    found = [json.loads(line) for line in reference_events()]
    assert len({line["event_id"] for line in found}) == 10_000
    assert all(line["event_id"].startswith("census-2015-") for line in found)
    assert max(time_us(line) for line in found) < time_us(changes(7)[0])
    rules = contract()
    assert all(check_event(PredictionEvent.model_validate(line), rules) == [] for line in found[::10])


def test_the_contract_is_sound_and_hides_what_is_personal() -> None:
    rules = contract()
    assert check_contract(rules) == []
    assert rules.content_hash == content_hash(rules)
    assert len(rules.features) == 16
    policies = {feature.policy for feature in rules.features.values()}
    assert policies == {"keep", "hash", "drop", "bucket"}


def test_a_plan_of_ones_own_may_plant_one_kind_twice() -> None:
    twice = DemoPlan(1, (Planted("schl_absent", 3_000, 700), Planted("schl_absent", 8_700, 700)))
    rows = [line for line in islice(events(twice), 10_000) if line.startswith(b'{"event_id"')]
    absent = [place for place, row in enumerate(rows) if b'"SCHL"' not in row]
    assert absent == [*range(3_000, 3_700), *range(8_700, 9_400)]
