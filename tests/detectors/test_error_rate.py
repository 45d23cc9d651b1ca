"""The bank of CUSUMs against scalar code, the rule of chains, and exact alarms of a fixed stream."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.detectors.bank import Cusum, bank, first_firing, reference_rate, run_bank
from tests.detectors.streams import MODEL, contract, detect, outcome, reference, run, stage
from tests.detectors.streams import records as records_of

from errata.contracts.models import ErrorSketch
from errata.domain.detection.episodes import Signal
from errata.domain.detection.error_rate import ALARM, UNIT, ErrorRate, Labels, path
from errata.domain.detection.profile import Profile, compile_profile
from errata.domain.detection.state import BANK, CUSUM, LAST_ALARM, RUN, RUN_WRONG, SUM, State, bank_increments
from errata.domain.layouts import compile_layout

P0 = 0.1


@cache
def profile(model: str) -> Profile:
    """A model whose reference is wrong at exactly 10 %."""
    normal = reference().model_copy(update={"error": ErrorSketch(outcomes=10_000, wrong=1_000), "model": model})
    return compile_profile(compile_layout("default", model, contract(), normal))


def state_of(models: int) -> State:
    state = State()
    for number in range(models):
        state.add("default", f"m{number}", "live", 0, profile(f"m{number}"))
    return state


def labels(slots: Sequence[int], wrong: Sequence[bool], first_record: int) -> Labels:
    """Columns of outcomes in order of receipt, of several models, as the engine hands them in."""
    slot = np.array(slots, np.int64)
    record = np.arange(first_record, first_record + len(slot))
    order = np.lexsort((record, slot))
    slot, record = slot[order], record[order]
    return Labels(
        slot=slot,
        starts=np.flatnonzero(np.append(True, np.diff(slot) != 0)),
        record=record,
        record_time_us=record * 1_000,
        time_us=record * 1_000,
        wrong=np.array(wrong, np.bool_)[order],
        window=np.zeros(len(slot), np.int64),
        id_hash=record.astype(np.uint64),
        row=lambda i: (int(record[i]), "errata.outcomes.v1", 0, int(record[i]), f"p-{record[i]}"),
    )


def stepped(state: State, slots: Sequence[int], wrong: Sequence[bool], cuts: Sequence[int]) -> list[Signal]:
    """Signals of a stream cut at these places."""
    detector, found = ErrorRate(), list[Signal]()
    places = sorted({0, len(slots), *(cut for cut in cuts if 0 < cut < len(slots))})
    for start, end in pairwise(places):
        found += detector.step(labels(slots[start:end], wrong[start:end], start), state, state.tables.profiles)
    return found


# -- increments and paths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p0", [0.001, 0.05, 0.1729, 0.4, 0.8])
def test_increments_are_log_likelihood_ratios_in_integers(p0: float) -> None:
    expected = [[cusum.down, cusum.up] for cusum in bank(p0)]
    assert bank_increments(p0) == expected
    assert BANK == (1.3, 1.6, 2.2, 3.5)
    for (down, up), factor in zip(expected, BANK, strict=True):
        p1 = min(0.95, factor * p0)
        assert p1 == 0.95 or up == round(UNIT * math.log(factor))
        assert (1 - p0) * down + p0 * up < 0 < (1 - p1) * down + p1 * up


def test_without_a_rate_nothing_moves() -> None:
    assert bank_increments(float("nan")) == [[0, 0]] * 4


@pytest.mark.whole
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-9, 9)), min_size=1, max_size=60), st.data())
def test_paths_are_those_of_the_recursion(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    names, groups = np.unique([group for group, _ in rows], return_inverse=True)
    before = data.draw(st.lists(st.integers(0, 20), min_size=len(names), max_size=len(names)))
    first = np.searchsorted(groups, groups)
    found = path(groups, np.array([x for _, x in rows]), first, np.array(before))
    sums, expected = list(before), []
    for group, (_, x) in zip(groups.tolist(), rows, strict=True):
        sums[group] = max(0, sums[group] + x)
        expected.append(sums[group])
    assert found.tolist() == expected


# -- the bank ---------------------------------------------------------------------------------------------------------

# Stretches of outcomes: (model, share of wrong ones in percent, length).
STRETCHES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0, 5, 10, 20, 40, 70, 100]), st.integers(1, 150)),
    min_size=1,
    max_size=8,
)


def stream_of(stretches: Sequence[tuple[int, int, int]], seed: int) -> tuple[list[int], list[bool]]:
    draw = np.random.default_rng(seed)
    slots = [model for model, _, length in stretches for _ in range(length)]
    wrong = [bool(one) for _, percent, length in stretches for one in draw.random(length) < percent / 100]
    order = np.argsort(np.arange(len(slots)) + draw.integers(0, 30, len(slots)), kind="stable")  # models mixed a little
    return [slots[i] for i in order], [wrong[i] for i in order]


@settings(max_examples=40, deadline=None)
@given(STRETCHES, st.lists(st.integers(0, 1_200), max_size=6), st.integers(0, 99))
def test_the_bank_is_that_of_scalar_code(stretches: list[tuple[int, int, int]], cuts: list[int], seed: int) -> None:
    slots, wrong = stream_of(stretches, seed)
    state = state_of(3)
    found = stepped(state, slots, wrong, cuts)
    expected: list[tuple[int, int]] = []
    for model in range(3):
        places = [i for i, slot in enumerate(slots) if slot == model]
        sums = run_bank([wrong[i] for i in places], P0)
        expected += [(model, places[number]) for cusum in sums for number in cusum.fired]
        for f, cusum in enumerate(sums):
            fixed = state.fixed[model, CUSUM + 8 * f :]
            assert (fixed[SUM], fixed[RUN]) == (cusum.sum, cusum.run)
            assert fixed[RUN_WRONG] == sum(wrong[i] for i in places[cusum.run :])
            assert not cusum.alarms or fixed[LAST_ALARM] == cusum.last_alarm
    assert sorted((signal.slot, signal.record) for signal in found) == sorted(expected)


@settings(max_examples=25, deadline=None)
@given(STRETCHES, st.lists(st.integers(0, 1_200), max_size=20), st.integers(0, 99))
def test_cuts_change_neither_state_nor_signals(
    stretches: list[tuple[int, int, int]], cuts: list[int], seed: int
) -> None:
    slots, wrong = stream_of(stretches, seed)
    one, other = state_of(3), state_of(3)
    first, second = stepped(one, slots, wrong, ()), stepped(other, slots, wrong, cuts)
    assert (one.fixed == other.fixed).all()

    def shown(signals: Sequence[Signal]) -> list[tuple[object, ...]]:
        told = ((s.record, s.slot, s.value, s.onset_us, s.count, tuple(s.evidence.items()), s.time_us) for s in signals)
        return sorted(told, key=str)

    assert shown(first) == shown(second)


def test_a_bank_that_forgets_its_sums_differs() -> None:
    """The control of the cuts."""
    slots, wrong = stream_of([(0, 25, 400)], 4)
    one, other = state_of(1), state_of(1)
    detector = ErrorRate()
    whole = stepped(one, slots, wrong, ())
    parts: list[Signal] = []
    for start in range(0, 400, 40):
        other.fixed[:, CUSUM + SUM :: 8] = 0
        part = labels(slots[start : start + 40], wrong[start : start + 40], start)
        parts += detector.step(part, other, other.tables.profiles)
    assert whole
    assert len(parts) != len(whole)


# -- chains -----------------------------------------------------------------------------------------------------------


def alarms_and_fired(wrong: Sequence[bool]) -> tuple[int, list[int]]:
    sums: list[Cusum] = run_bank(wrong, P0)
    state = state_of(1)
    found = stepped(state, [0] * len(wrong), wrong, (97,))
    return sum(len(cusum.alarms) for cusum in sums), sorted(signal.record for signal in found)


def test_a_short_burst_alarms_and_fires_nothing() -> None:
    alarms, fired = alarms_and_fired([False] * 200 + [True] * 15 + [False] * 300)
    assert alarms > 0
    assert fired == []


def test_short_bursts_far_apart_never_fire() -> None:
    alarms, fired = alarms_and_fired(([False] * 300 + [True] * 15) * 6)
    assert alarms >= 6
    assert fired == []


def test_a_long_burst_fires_at_the_first_alarm_that_spans_fifty() -> None:
    alarms, fired = alarms_and_fired([False] * 200 + [True] * 120)
    assert alarms > len(fired) > 0
    assert 200 + 49 <= fired[0] < 200 + 49 + 15


def test_bursts_close_together_are_one_chain() -> None:
    """The next run starts at most fifty outcomes after the last alarm."""
    assert alarms_and_fired([False] * 200 + [True] * 15 + [False] * 30 + [True] * 15)[1]
    assert not alarms_and_fired([False] * 200 + [True] * 15 + [False] * 120 + [True] * 15)[1]


def test_an_alarm_shows_the_chain() -> None:
    state = state_of(1)
    wrong = [False] * 200 + [True] * 120
    signal = stepped(state, [0] * 320, wrong, ())[0]
    n = int(signal.evidence["n"])
    assert n >= 50
    assert signal.onset_us == (signal.record - n + 1) * 1_000
    assert signal.evidence["error_rate"] == 1.0
    assert signal.evidence["reference_error_rate"] == P0
    assert signal.value >= signal.threshold == ALARM / UNIT


# -- exact records ----------------------------------------------------------------------------------------------------


def carried(n: int, change: int, rate: float, seed: int = 11) -> list[bool]:
    """Labels wrong at the reference's 10 %, from ``change`` on at ``rate``."""
    draw = np.random.default_rng(seed).random(n)
    return [bool(one < (0.1 if i < change else rate)) for i, one in enumerate(draw)]


@pytest.mark.whole
@pytest.mark.parametrize(("rate", "opened"), [(0.2, 1_311), (0.5, 1_046)])
def test_a_change_opens_at_its_exact_outcome(rate: float, opened: int) -> None:
    wrong = carried(1_400, 1_000, rate)
    assert first_firing(wrong) == opened
    events = [outcome(i, one) for i, one in enumerate(wrong)]
    ran = run(stage(), records_of(events), 300)
    assert ran.opened() == [(opened, "error_rate", "outcome")]
    assert all(row.topic == "errata.outcomes.v1" for row in ran.moves[0][1].exemplars)


def test_no_change_opens_nothing() -> None:
    events = [outcome(i, one) for i, one in enumerate(carried(1_200, 1_200, 0.1))]
    assert detect(events).moves == []


def test_a_model_without_labels_in_its_reference_is_not_judged_by_them() -> None:
    normal = reference().model_copy(update={"error": ErrorSketch()})
    state = State()
    state.add("default", MODEL, "live", 0, compile_profile(compile_layout("default", MODEL, contract(), normal)))
    assert stepped(state, [0] * 300, [True] * 300, ()) == []
    assert (state.fixed[0, CUSUM + SUM :: 8] == 0).all()


def test_the_reference_of_the_streams_is_wrong_at_a_tenth() -> None:
    assert reference_rate() == pytest.approx(0.1, abs=0.01)
