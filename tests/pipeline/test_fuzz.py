"""Twenty thousand hostile inputs through the detector: each an event or a dead letter, once. A million are by hand."""

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.detectors.streams import START_US
from tests.faults import fuzz

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.contracts import Receipt
from errata.contracts.refusals import parse_change, parse_outcome, parse_prediction
from errata.contracts.topics import OUTCOMES, PREDICTIONS
from errata.domain.array_codec import pack_arrays
from errata.errors import Refused
from errata.ports import Outgoing, Record, StepResult
from errata.runtime.dead_letters import dead_letter
from errata.runtime.worker import Worker
from errata_services.anomaly_detector import AnomalyDetector

pytestmark = pytest.mark.whole

CONTROLLED = 1_000


def test_every_input_is_an_event_or_a_dead_letter_exactly_once() -> None:
    figures = fuzz.run(20_000, seed=7)
    assert figures.faults == []
    assert figures.kills >= 2
    found = figures.dispositions
    assert found.total() == 20_000 + found["rekeyed"]
    assert min(found[name] for name in ("event", "outcome", "duplicate", "rekeyed", "tick", "heartbeat")) > 0
    assert {name for name in found if name.startswith("dead")} == {
        "dead: clock", "dead: decode", "dead: oversize", "dead: schema",
    }  # fmt: skip
    assert figures.anomalies > 50  # the good among them were judged


def test_a_seed_names_its_inputs() -> None:
    first, again, other = (list(islice(fuzz.Fuzzer(seed), 300)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_most_kinds_come_early_and_all_come() -> None:
    kinds = {name for one in islice(fuzz.Fuzzer(5), 5_000) for name in one.kind.split(" + ")}
    every = {"plain", "duplicate", "wrong key", "wrong partition", "header", *fuzz._CHANGES, *fuzz._DAMAGES}
    assert kinds == every


# -- controls: what is broken on purpose is found ---------------------------------------------------------------------


class Swallows(AnomalyDetector):
    """Loses one of a batch's refusals."""

    def step(self, batch: Sequence[Record], prepared: None) -> StepResult:
        result = super().step(batch, prepared)
        del result.dead[3:4]
        return result


class Rereads(AnomalyDetector):
    """Takes a batch's last record twice."""

    def step(self, batch: Sequence[Record], prepared: None) -> StepResult:
        return super().step([*batch, batch[-1]], prepared)


class LettersOutside(Worker):
    """Writes dead letters in a transaction of their own, before the batch's."""

    def _transact(self, judged: Any) -> tuple[Receipt, list[Outgoing]]:
        self._producer.begin()
        for dead in judged.dead:
            self._producer.produce(dead_letter("anomaly-detector", "fuzz", dead, None))
        self._producer.commit()
        return super()._transact(judged)


class Fails(AnomalyDetector):
    """Has a bug: fails on an input of a certain kind."""

    def step(self, batch: Sequence[Record], prepared: None) -> StepResult:
        for record in batch:
            if b"perhaps" in (record.value or b""):
                raise KeyError("perhaps")
        return super().step(batch, prepared)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"stage": Swallows}, "the dead letter None"),
        ({"stage": Rereads}, "the receipts' count of duplicate"),
        ({"stage": Fails}, "the stage failed on"),
        ({"worker": LettersOutside}, "two dead letters"),
    ],
    ids=lambda value: next(iter(value.values())).__name__ if isinstance(value, dict) else "",
)
def test_control_what_is_broken_is_found(broken: dict[str, Any], told: str) -> None:
    assert any(told in fault for fault in fuzz.run(CONTROLLED, seed=1, **broken).faults)


def test_what_is_not_finite_in_a_state_is_seen() -> None:
    def value(meta: dict[str, Any], *numbers: float) -> bytes:
        arrays = {"a": np.array(numbers)}
        return pack_arrays(1, meta, arrays, lambda plain: json.dumps(plain).encode())

    assert fuzz.is_finite(value({"x": [1.5, None, "NaN"]}, 1.0, 2.0))
    assert not fuzz.is_finite(value({"x": [float("nan")]}, 1.0))
    assert not fuzz.is_finite(value({}, 1.0, float("inf")))


# -- whatever the bytes, no parser raises anything but a refusal ------------------------------------------------------

_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["2026-01-05T12:00:00Z", "tick", "heartbeat", "live", "ok", "ground_truth"]),
)  # fmt: skip
_NAMES = st.one_of(st.sampled_from(fuzz._FIELDS), st.sampled_from(["name", "code", "value"]), st.text(max_size=5))
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(_NAMES, inner, max_size=8)),
    max_leaves=25,
)
_RAW = st.one_of(
    st.binary(max_size=200),
    _JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(_NAMES, _JSON, max_size=12).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_RAW, st.sampled_from([PREDICTIONS, OUTCOMES]), st.sampled_from([b"loans", b"", None]))
def test_any_bytes_are_an_event_or_a_refusal_and_both_parsers_agree(raw: bytes, topic: str, key: bytes | None) -> None:
    record = Record(topic, 0, 0, START_US, key, raw)
    refused, event = fuzz.verdict(record)
    batch = MsgspecDecoder().decode([record], {})
    assert [(one.refusal.refusal_class, one.refusal.path) for one in batch.refused] == ([refused] if refused else [])
    assert (event is None) == bool(batch.refused)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(_RAW)
def test_no_parser_of_the_contract_raises_anything_else(raw: bytes) -> None:
    for parse in (parse_prediction, parse_outcome, parse_change):
        with suppress(Refused):
            parse(raw, record_time_us=START_US)
