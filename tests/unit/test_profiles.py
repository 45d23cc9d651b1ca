"""References are exact: every count is the count one gets by hand."""

import random
from collections import Counter
from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.contracts import Contract, PredictionEvent, Reference
from errata.contracts.models import CategorySketch, NumberSketch, PresenceSketch
from errata.contracts.refusals import parse_prediction
from errata.contracts.topics import PREDICTIONS, model_key
from errata.domain.layouts import compile_layout
from errata.domain.profiles import build_reference, category_sketch, content_hash, latency_sketch, number_sketch
from errata.ports import Record
from errata_services.demo import stream

CONTRACT = Contract.model_validate(
    {
        "model": "m",
        "features": {
            "age": {"type": "integer", "required": True, "range": {"min": 0, "max": 100}},
            "plan": {"type": "category", "categories": ["a", "b", "c"]},
            "new": {"type": "bool"},
            "note": {"type": "text", "policy": "hash"},
        },
        "output": {"type": "class", "classes": ["no", "yes"]},
        "slos": {"latency_ms": {"p95": 50, "max": 90}},
        "policies": [{"id": "never-no", "forbidden": ["no"]}],
    }
)


def event(**fields: Any) -> PredictionEvent:
    return PredictionEvent.model_validate(
        {"event_id": "e", "time": "2026-01-05T00:00:00Z", "model": {"name": "m"}, "prediction": "yes"} | fields
    )


def reference(*events: PredictionEvent, contract: Contract | None = CONTRACT) -> Reference:
    return build_reference(events, contract, dataset="test")


def features(**values: Any) -> Reference:
    return reference(event(features=values))


@pytest.mark.parametrize("seed", range(6))
def test_bins_hold_exactly_the_values_between_their_edges(seed: int) -> None:
    draw = random.Random(seed)
    values = [draw.choice([draw.gauss(0, 1), float(draw.randint(0, 5))]) for _ in range(draw.randint(1, 500))]
    sketch = number_sketch(values)
    bounds = [float("-inf"), *sketch.edges, float("inf")]
    assert sketch.counts == [sum(low <= v < high for v in values) for low, high in pairwise(bounds)]
    assert sum(sketch.counts) == sketch.n == len(values)
    assert len(sketch.counts) <= 16
    assert sketch.edges == sorted(set(sketch.edges))
    assert all(sketch.counts)


def test_sixteen_even_bins_of_even_values() -> None:
    assert number_sketch(range(1_600)).counts == [100] * 16
    assert number_sketch([5.0] * 50).counts == [50]
    assert number_sketch([]).counts == [0]
    assert number_sketch([]).quantiles == {}


def test_quantiles_are_values_that_occurred() -> None:
    assert number_sketch(range(1, 101)).quantiles == {"p05": 5.0, "p50": 50.0, "p95": 95.0}


def test_64_most_frequent_categories_ties_by_name_and_the_rest() -> None:
    counts = Counter({f"v{i:03}": 2 for i in range(70)}) + Counter({"v069": 5})
    sketch = category_sketch(counts, missing=3)
    assert set(sketch.counts) == {*(f"v{i:03}" for i in range(63)), "v069"}
    assert (sketch.n, sketch.other, sketch.missing) == (145, 12, 3)


def test_latency_counts_strictly_above_p95_and_the_limit() -> None:
    sketch = latency_sketch(range(1, 101), 0, limit_ms=98)
    assert (sketch.p95_ms, sketch.over_p95, sketch.over_limit) == (95.0, 5, 2)
    assert latency_sketch([10.0] * 100, 0, limit_ms=10).over_p95 == 0
    assert latency_sketch([10.0] * 100, 0, limit_ms=10).over_limit == 0
    assert latency_sketch([10.0], 0, limit_ms=None).over_limit == 0


def test_absent_and_null_are_missing_and_a_required_one_is_a_violation_too() -> None:
    built = reference(event(features={"age": None}), event(features={}), event(features={"age": 3, "plan": "a"}))
    assert (built.sketches["age"].n, built.sketches["age"].missing) == (1, 2)
    assert (built.sketches["plan"].n, built.sketches["plan"].missing) == (1, 2)
    assert built.violations == {"age": {"missing": 2}}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("age", 101, "range"),
        ("age", 3.0, "type"),
        ("age", True, "type"),
        ("plan", "z", "unseen_category"),
        ("plan", 1, "type"),
        ("new", "true", "type"),
        ("note", 7, "type"),
        ("other", 1, "extra"),
    ],
)
def test_what_breaks_the_contract_leaves_the_sketch_and_is_counted(name: str, value: Any, reason: str) -> None:
    built = features(**({"age": 5} | {name: value}))
    assert built.violations == {name: {reason: 1}}
    if name in built.sketches:
        assert (built.sketches[name].n, built.sketches[name].missing) == (0, 0)


def test_kinds_of_sketches() -> None:
    built = features(age=5, plan="a", new=True, note="private words")
    assert isinstance(built.sketches["age"], NumberSketch)
    assert isinstance(built.sketches["plan"], CategorySketch)
    new = built.sketches["new"]
    assert isinstance(new, CategorySketch)
    assert new.counts == {"true": 1}
    assert isinstance(built.sketches["note"], PresenceSketch)
    assert b"private words" not in built.to_json()


@pytest.mark.parametrize("policy", ["hash", "drop"])
def test_a_hidden_category_that_names_no_values_shows_none(policy: str) -> None:
    feature = {"type": "category", "policy": policy}
    contract = Contract.model_validate({"model": "m", "features": {"who": feature}})
    hidden = reference(event(features={"who": "canary"}), contract=contract)
    assert b"canary" not in hidden.to_json()
    assert hidden.sketches["who"].n == 1
    kept = contract.model_copy(
        update={"features": {"who": contract.features["who"].model_copy(update={"policy": "keep"})}}
    )
    assert b"canary" in reference(event(features={"who": "canary"}), contract=kept).to_json()


def test_output_statuses_policies_and_forbidden_classes() -> None:
    built = reference(
        event(prediction="yes", features={"age": 1}),
        event(prediction="no", features={"age": 1}),
        event(prediction="maybe", features={"age": 1}),
        event(prediction=None, status={"code": "timeout"}, features={"age": 1}),
    )
    assert isinstance(built.output, CategorySketch)
    assert (built.output.counts, built.output.missing) == ({"no": 1, "yes": 1}, 1)
    assert built.statuses == {"ok": 3, "timeout": 1}
    assert built.violations == {"never-no": {"policy": 1}, "prediction": {"unseen_class": 1}}


def test_confidence_is_that_of_the_predicted_class() -> None:
    built = reference(
        event(confidence=0.75, features={"age": 1}),
        event(scores={"yes": 0.25, "no": 0.75}, features={"age": 1}),
        event(scores={"yes": 1.5}, features={"age": 1}),
        event(features={"age": 1}),
    )
    assert built.confidence is not None
    assert (built.confidence.n, built.confidence.missing) == (2, 2)
    assert built.confidence.quantiles["p05"] == 0.25
    assert built.violations == {"scores": {"scores": 1}}


def test_error_counts_ground_truth_of_classes_only() -> None:
    built = reference(
        event(outcome={"value": "yes"}),
        event(outcome={"value": "no"}),
        event(outcome={"value": "no", "kind": "feedback"}),
        event(outcome={"value": None, "score": 0.1}),
        event(),
    )
    assert (built.error.outcomes, built.error.wrong) == (2, 1)


def test_bool_predictions_are_classes() -> None:
    contract = Contract.model_validate({"model": "m", "output": {"classes": ["false", "true"]}})
    built = reference(event(prediction=True, outcome={"value": False}), event(prediction=True), contract=contract)
    assert isinstance(built.output, CategorySketch)
    assert built.output.counts == {"true": 2}
    assert (built.error.outcomes, built.error.wrong) == (1, 1)
    assert built.violations == {}


def test_number_outputs_are_binned() -> None:
    contract = Contract.model_validate({"model": "m", "output": {"type": "number", "range": {"min": 0, "max": 9}}})
    built = reference(event(prediction=3), event(prediction=4.5), event(prediction=10), contract=contract)
    assert isinstance(built.output, NumberSketch)
    assert built.output.n == 2
    assert built.violations == {"prediction": {"range": 1}}


def test_without_a_contract_outputs_count_and_features_do_not() -> None:
    built = reference(event(features={"x": 1}), event(prediction="no"), contract=None)
    assert isinstance(built.output, CategorySketch)
    assert built.output.n == 2
    assert (built.sketches, built.violations, built.model) == ({}, {}, "m")


def test_only_live_events_of_the_model_count() -> None:
    others = [event(purpose="drill"), event(tenant="acme"), event(model={"name": "other"})]
    assert reference(event(), *others).to_json() == reference(event()).to_json()
    with pytest.raises(ValueError, match="no live prediction"):
        reference(*others)


def test_the_hash_and_the_id_follow_from_the_content() -> None:
    first, again, other = reference(event()), reference(event()), reference(event(), event())
    assert first.to_json() == again.to_json()
    assert first.content_hash == content_hash(first)
    assert first.content_hash != other.content_hash
    assert first.reference_id != other.reference_id
    stamped = build_reference([event()], CONTRACT, dataset="test", created=datetime(2026, 1, 5, tzinfo=UTC))
    assert stamped.content_hash != first.content_hash
    assert content_hash(Reference.model_validate_json(stamped.to_json())) == stamped.content_hash


def test_the_order_of_events_does_not_matter() -> None:
    events = [event(features={"age": i, "plan": "abc"[i % 3]}, latency_ms=i / 2) for i in range(50)]
    assert reference(*events).to_json() == reference(*events[::-1]).to_json()


def test_an_event_without_an_answer_misses_nothing() -> None:
    built = reference(event(features={"age": 1}), event(prediction=None, status={"code": "timeout"}))
    assert (built.sketches["age"].n, built.sketches["age"].missing, built.violations) == (1, 0, {})
    fallen_back = reference(event(status={"code": "fallback"}))
    assert fallen_back.violations == {"age": {"missing": 1}}


def test_an_output_of_the_wrong_type_counts_once_with_the_scores() -> None:
    contract = Contract.model_validate({"model": "m", "output": {"type": "number"}})
    built = reference(event(prediction="a", confidence=3.0, outcome={"value": "b"}), contract=contract)
    assert built.violations == {"scores": {"scores": 1}}
    assert built.error.outcomes == 0
    assert built.output is not None
    assert built.output.n == 0


def test_counts_are_those_of_the_columns_that_detectors_see() -> None:
    rules = stream.contract()
    lines = list(islice(stream.reference_events(), 600))
    built = build_reference([parse_prediction(line, record_time_us=None) for line in lines], rules, dataset=None)
    key = model_key(rules.tenant, rules.model)
    layout = compile_layout(rules.tenant, rules.model, rules, built)
    at_us = 2_000_000_000_000_000
    records = [Record(PREDICTIONS, 0, i, at_us, key, line) for i, line in enumerate(lines)]
    rows = MsgspecDecoder().decode(records, {key: layout}).predictions

    def binned(values: Any, sketch: Any) -> list[int]:
        places = np.searchsorted(np.array(sketch.edges), values, side="right")
        return [int(count) for count in np.bincount(places, minlength=len(sketch.counts))]

    assert len(rows) == 600
    assert binned(rows.numbers, built.sketches["AGEP"]) == built.sketches["AGEP"].counts  # type: ignore[union-attr]
    assert built.latency_ms is not None
    assert built.confidence is not None
    assert binned(rows.latency_ms, built.latency_ms) == built.latency_ms.counts
    assert binned(rows.confidence, built.confidence) == built.confidence.counts
    codes = rows.categories.reshape(600, -1).astype(int)
    for column, name in enumerate(layout.categories):
        sketch = built.sketches[name]
        assert isinstance(sketch, CategorySketch)
        expected = [sketch.counts[value] for value in sorted(sketch.counts)] + [sketch.other]
        assert np.bincount(codes[:, column], minlength=len(expected)).tolist() == expected
    assert (int((rows.wrong >= 0).sum()), int((rows.wrong == 1).sum())) == (built.error.outcomes, built.error.wrong)
