"""What every detector must pass: source and example, purity, silence on clean data, the exact record of a failure."""

import copy
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from tests.detectors.faults import FAULTS, Planted
from tests.detectors.streams import MODEL, Bare, Ran, clean, detect, records, run, stage

from errata.domain.detection.engine import DETECTORS, LABEL_DETECTORS
from errata.domain.detection.episodes import Signal
from errata.domain.detection.error_rate import ErrorRate, Labels
from errata.domain.detection.profile import Profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Detector, Wave

EVERY: dict[str, Detector | ErrorRate] = {d.id: d for d in DETECTORS} | {d.id: d for d in LABEL_DETECTORS}
every_detector = pytest.mark.parametrize("name", sorted(EVERY))


@cache
def planted(name: str) -> Planted:
    return FAULTS[name]()


@cache
def found(name: str, size: int = 5_000) -> Ran:
    return detect(planted(name).events, size)


def test_each_has_a_planted_failure() -> None:
    assert FAULTS.keys() == EVERY.keys()


@every_detector
def test_a_detector_stands_in_a_file_of_its_name_with_its_rule_and_an_example(name: str) -> None:
    module = importlib.import_module(type(EVERY[name]).__module__)
    text = inspect.getdoc(module) or ""
    assert module.__name__ == f"errata.domain.detection.{name}"
    assert ">>>" in text
    sourced = r"Rule: |(?:Page|Woolf|Siddiqi|Yurdakul|Lipton)[^.]*(?:19|20)\d\d"
    assert re.search(sourced, text)


@every_detector
def test_ids_and_versions(name: str) -> None:
    assert re.fullmatch(r"[a-z_]+", name)
    assert re.fullmatch(r"\d+", EVERY[name].version)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_clean_data_make_no_finding(seed: int) -> None:
    ran = detect(clean(4_000, seed))
    assert ran.findings == Counter()
    assert ran.moves == []


@every_detector
def test_a_planted_failure_is_found_at_its_exact_record(name: str) -> None:
    fault = planted(name)
    assert found(name).first(fault.detector, fault.subject) == fault.record


@every_detector
def test_no_failure_is_found_without_planting(name: str) -> None:
    """The control: the same clean stream, nothing planted, no finding of this detector."""
    assert not [key for key in detect_clean().findings if key[1] == name]


@cache
def detect_clean() -> Ran:
    return detect(clean(2_000))


@every_detector
def test_findings_name_model_subject_and_onset(name: str) -> None:
    fault = planted(name)
    finding = next(
        finding
        for _, said in found(name).moves
        for finding in said.findings
        if (finding.detector, finding.subject) == (fault.detector, fault.subject)
    )
    said = found(name).moves[0][1]
    assert said.model.name == MODEL
    assert finding.value >= finding.threshold
    assert finding.count > 0
    assert finding.onset <= said.time
    assert said.exemplars


@every_detector
@pytest.mark.parametrize("size", [97, 500])
def test_batches_of_any_size_find_the_same(name: str, size: int) -> None:
    assert found(name, size).outputs == found(name).outputs
    assert found(name, size).findings == found(name).findings


class Twice:
    """Steps a detector twice on the same wave and compares what it was given and what it says."""

    def __init__(self, inner: Detector) -> None:
        self.inner, self.id, self.version = inner, inner.id, inner.version
        self.signals = 0

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        before = snapshot(columns, state)
        first = self.inner.step(columns, state, reference)
        assert snapshot(columns, state) == before
        assert self.inner.step(columns, state, reference) == first
        self.signals += len(first)
        return first


def snapshot(columns: Wave, state: State) -> tuple[object, ...]:
    """All that a step is given, as plain values."""
    arrays = (state.fixed, state.cells, state.counts, state.first_us, state.milli_sums, columns.milli, columns.slots)
    p = columns.p
    rows = (p.latency_ms, p.predicted, p.confidence, p.numbers, p.categories, p.status, columns.time_us)
    slots = [(s.sample, s.controls, s.counter_samples, s.episodes.to_plain()) for s in state.slots if s]
    flags = (columns.flags.row.tobytes(), columns.flags.target.tobytes())
    return (*(a.tobytes() for a in (*arrays, *rows)), copy.deepcopy(slots), flags, len(columns.reached))


@pytest.mark.parametrize("name", [d.id for d in DETECTORS])
def test_a_step_is_pure(name: str) -> None:
    """It changes neither columns nor state, and says the same twice: no clock, no randomness, no memory of its own."""
    spies = [Twice(d) for d in DETECTORS if d.id == name]
    for _ in Bare(spies, ()).steps(records(planted(name).events), 700):
        pass
    assert spies[0].signals > 0


class ErrorRateTwice(ErrorRate):
    """Steps the bank on a copy of the state first: both must come to the same signals and the same state."""

    signals = 0

    def step(self, columns: Labels, state: State, reference: Sequence[Profile]) -> list[Signal]:
        fixed = state.fixed.copy()
        first = super().step(columns, state, reference)
        after, state.fixed[:] = state.fixed.copy(), fixed
        assert super().step(columns, state, reference) == first
        assert (state.fixed == after).all()
        self.signals += len(first)
        return first


def test_the_bank_is_pure_but_for_its_state() -> None:
    spy = ErrorRateTwice()
    for _ in Bare((), (spy,)).steps(records(planted("error_rate").events), 700):
        pass
    assert spy.signals > 0


class Counts:
    """Adds to the state at each step: what the purity check must refuse."""

    id, version = "counts", "1"

    def step(self, columns: Wave, state: State, reference: Sequence[Profile]) -> list[Signal]:
        state.milli_sums += 1
        return []


def test_an_impure_detector_fails_the_check() -> None:
    with pytest.raises(AssertionError):
        list(Bare([Twice(Counts())], ()).steps(records(clean(50)), 50))


def test_a_state_that_loses_its_cells_with_each_batch_fails_the_check_of_batches() -> None:
    """The control of the checks on batches: windows that start over with each batch see no shift."""

    def signals(size: int, forget: bool) -> list[str]:
        bare = Bare()
        names = []
        for _, judged in bare.steps(records(planted("distribution_shift").events), size):
            names += [move.spell["mover"] for _, move in judged.moves if move.state == "open"]
            if forget:
                bare.state.cells[:] = 0
        return names

    assert signals(97, False) == signals(5_000, False) == ["distribution_shift|colour"]
    assert signals(97, True) != signals(5_000, True)


def test_the_order_of_records_is_what_counts_not_their_number() -> None:
    """The control of exact records: a failure one record later is found one record later."""
    events = list(planted("bad_status").events)
    moved = [*clean(1, 9, name="x"), *events]
    ran = run(stage(), records(moved), 5_000)
    assert ran.first("bad_status", "timeout") == planted("bad_status").record + 1


def test_hashes_of_ids_choose_samples_not_batches() -> None:
    first, second = found("missing_values", 97), found("missing_values")
    rows = [[row.offset for row in said.exemplars] for _, said in first.moves]
    assert rows == [[row.offset for row in said.exemplars] for _, said in second.moves]
    assert all(len(set(offsets)) == len(offsets) <= 8 for offsets in rows)
    assert np.ptp(rows[-1]) > 8
