"""What makes a comparison of two detecting stages worth its name: whatever one has and the other has not is told."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.benchmarks import run
from tests.benchmarks.bench_kafka import FAUST, NAIVE, OURS, QUIX, _missed, _speed_rows
from tests.benchmarks.kafka_findings import Findings, differences
from tests.benchmarks.kafka_lap import BAD_SHARE, PLANTED, SHIFTED, make_lap, tables
from tests.benchmarks.kafka_naive import Rules, shifted
from tests.benchmarks.kafka_rig import Taken
from tests.benchmarks.stages import name_of

from errata.domain.detection.statistics import CHI2_1E6, PSI_MIN, WINDOW, drift_figures

pytestmark = pytest.mark.whole

FOUND = Findings({"m|bad_status|error": [12, 3], "m|missing_values|age": [40, 2]}, refused=5, duplicates=7)


def test_equal_findings_differ_in_nothing() -> None:
    assert differences(FOUND, deepcopy(FOUND)) == []


@pytest.mark.parametrize(
    "broken",
    [
        Findings({"m|bad_status|error": [12, 3]}, 5, 7),
        Findings({**FOUND.signals, "m|bad_status|error": [11, 3]}, 5, 7),
        Findings({**FOUND.signals, "m|bad_status|error": [12, 2]}, 5, 7),
        Findings({**FOUND.signals, "n|bad_status|error": [1, 1]}, 5, 7),
        Findings(FOUND.signals, 4, 7),
        Findings(FOUND.signals, 5, 8),
    ],
    ids=["a finding lost", "an event lost", "a window lost", "a finding too many", "a refusal lost", "a double"],
)
def test_whatever_is_lost_or_too_many_is_told_either_way_round(broken: Findings) -> None:
    assert len(differences(FOUND, broken)) == 1
    assert len(differences(broken, FOUND)) == 1


def test_a_planted_fault_that_was_not_counted_exactly_is_missed() -> None:
    lap = make_lap(2)
    whole = Findings(refused=lap.refused, duplicates=lap.duplicates)
    for (model, signal), events in lap.planted.items():
        whole.add(model, signal, events)
    assert _missed(whole, lap) == []
    for name in whole.signals:
        short = deepcopy(whole)
        short.signals[name][0] -= 1
        assert len(_missed(short, lap)) == 1
        del short.signals[name]
        assert len(_missed(short, lap)) == 1


def test_a_lap_holds_what_it_says() -> None:
    lap = make_lap(4)
    clean = len(lap.events) - lap.refused - lap.duplicates
    assert clean == 4 * WINDOW * len(PLANTED)
    planted = [*((number, signal) for number, (signal, _) in PLANTED.items()), SHIFTED]
    assert {(name_of(number), signal) for number, signal in planted} == set(lap.planted)
    assert 0 < lap.refused + lap.duplicates < 6 * BAD_SHARE * clean
    assert make_lap(4) == lap


def test_a_peer_that_cannot_be_run_misses_its_goal() -> None:
    """Its row stays, with the reason: it is never silently left out."""
    taken = {name: [Taken(1_000, cpu_s, 1.0, {})] for name, cpu_s in ((OURS, 0.006), (NAIVE, 0.014), (QUIX, 0.015))}
    goals = run.read_goals(run.HERE / "goals.toml")
    rows = _speed_rows(taken, [2.5], {FAUST: "faust.txt: its environment cannot be made"})
    (missing,) = run.failing(rows, goals)
    assert FAUST in missing.name
    assert "faust.txt" in missing.detail
    straw = _speed_rows(taken, [1.5], {FAUST: "not there"})
    assert [row.name for row in run.failing(straw, goals) if "straw" in row.name]


def test_the_plain_rules_fire_from_their_thresholds_on() -> None:
    contract, reference = tables()[0]
    rules = Rules(contract, reference)
    rules.counts.update({"missing_values|m0_age": rules.most - 1, "bad_status|error": 1})
    assert rules.end_window() == {"bad_status|error": 1}
    rules.counts.update({"missing_values|m0_age": rules.most})
    assert rules.end_window() == {"missing_values|m0_age": 10}


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 5_000)), min_size=2, max_size=16))
def test_the_plain_formulas_are_those_of_the_detector(cells: list[tuple[int, int]]) -> None:
    window, reference = (np.array(counts) for counts in zip(*cells, strict=True))
    if window.sum() == 0:
        return
    g, psi, se = (float(figure[0]) for figure in drift_figures(window, reference, np.array([0])))
    wanted = g >= CHI2_1E6[len(cells) - 2] and psi - 2 * se >= PSI_MIN
    near = abs(g - CHI2_1E6[len(cells) - 2]) < 1e-4 or abs(psi - 2 * se - PSI_MIN) < 1e-4
    assert near or shifted(window.tolist(), reference.tolist()) == wanted
