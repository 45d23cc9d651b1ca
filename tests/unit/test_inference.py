"""Contract inference: types, room at the ends of ranges, policies, and that its own events keep it."""

from typing import Any

import pytest

from errata.contracts import Contract, PredictionEvent
from errata.contracts.models import FeatureContract
from errata.domain.inference import infer_contract
from errata.domain.profiles import content_hash
from errata.domain.validation import check_contract, check_event


def event(features: dict[str, Any], prediction: Any = "a", **fields: Any) -> PredictionEvent:
    return PredictionEvent.model_validate(
        {"event_id": "e", "time": "2026-01-05T00:00:00Z", "model": {"name": "m"}, "prediction": prediction}
        | {"features": features}
        | fields
    )


def inferred(values: list[Any]) -> FeatureContract:
    return infer_contract([event({"x": value}) for value in values], "m").features["x"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 3], "integer"),
        ([1, 2.5], "number"),
        ([True, False], "bool"),
        (["a", "b"], "category"),
        ([[1, 2.0], [3]], "vector"),
        ([1, 2, "n/a"], "integer"),
        ([None, None], "text"),
    ],
)
def test_types(values: list[Any], kind: str) -> None:
    assert inferred(values).type == kind


def test_an_integer_range_has_a_tenth_of_its_span_more_and_stays_whole() -> None:
    found = inferred(list(range(95)))
    assert found.range is not None
    assert (found.range.min, found.range.max) == (-10.0, 104.0)  # so that an age of 95 breaks nothing


def test_a_number_range_is_wider_by_a_tenth() -> None:
    found = inferred([0.0, 1.0])
    assert found.range is not None
    assert (found.range.min, found.range.max) == (-0.1, 1.1)


@pytest.mark.parametrize("values", [[7, 7], [-1.7e308, 1.7e308]])
def test_no_range_where_the_spread_is_unknown_or_beyond_numbers(values: list[float]) -> None:
    assert inferred(values).range is None


@pytest.mark.parametrize("values", [[5e-324, 1e-323], [1e9, 1e9 + 1.5], [-1e300, 1e300], [2**62, 2**62 + 10**6]])
def test_a_range_holds_its_own_values_however_large_or_small(values: list[float]) -> None:
    found = inferred(values).range
    assert found is not None
    assert found.min is not None
    assert found.max is not None
    assert found.min <= min(values) <= max(values) <= found.max


def test_64_texts_are_a_category_and_65_are_hashed() -> None:
    few, many = inferred([f"v{i}" for i in range(64)]), inferred([f"v{i}" for i in range(65)])
    assert (few.type, few.policy, len(few.categories or [])) == ("category", "keep", 64)
    assert (many.type, many.policy, many.categories) == ("text", "hash", None)


def test_what_nobody_ever_sent_is_hashed_should_it_come() -> None:
    assert inferred([None]).policy == "hash"


def test_required_only_when_every_event_has_it() -> None:
    events = [event({"a": 1, "b": 1, "c": 1}), event({"a": 2, "b": None})]
    features = infer_contract(events, "m").features
    assert {name: feature.required for name, feature in features.items()} == {"a": True, "b": False, "c": False}


@pytest.mark.parametrize(
    ("predictions", "kind", "classes"),
    [
        (["no", "yes", "no"], "class", ["no", "yes"]),
        ([True, False], "class", ["false", "true"]),
        ([0.5, 2], "number", None),
        ([[0.1, 0.9]], "vector", None),
    ],
)
def test_output(predictions: list[Any], kind: str, classes: list[str] | None) -> None:
    output = infer_contract([event({}, prediction) for prediction in predictions], "m").output
    assert output is not None
    assert (output.type, output.classes) == (kind, classes)


def test_only_live_events_of_the_model_and_tenant_count() -> None:
    events = [
        event({"x": 1}),
        event({"x": 900}, model={"name": "other"}),
        event({"x": 900}, tenant="acme"),
        event({"x": 900}, purpose="drill"),
        event({"x": 2}),
    ]
    assert infer_contract(events, "m") == infer_contract([events[0], events[4]], "m")
    with pytest.raises(ValueError, match="'absent'"):
        infer_contract(events, "absent")


def test_its_own_events_keep_it_and_stranger_ones_do_not() -> None:
    events = [event({"n": i, "f": i / 7, "c": "ab"[i % 2], "v": [i]}, "yn"[i % 2]) for i in range(30)]
    contract = infer_contract(events, "m")
    assert check_contract(contract) == []
    assert [check_event(one, contract) for one in events] == [[]] * 30
    strange = event({"n": 1.5, "f": 99.0, "c": "z", "w": 1}, "?", scores={"y": 1.5})
    assert [(v.pointer, v.reason) for v in check_event(strange, contract)] == [
        ("/features/c", "unseen_category"),
        ("/features/f", "range"),
        ("/features/n", "type"),
        ("/features/v", "missing"),
        ("/features/w", "extra"),
        ("/prediction", "unseen_class"),
        ("/scores/y", "scores"),
    ]


def test_order_of_events_does_not_matter() -> None:
    events = [event({"b": i, "a": str(i % 3)}) for i in range(9)]
    assert infer_contract(events, "m").to_json() == infer_contract(events[::-1], "m").to_json()


def test_a_message_never_says_the_value() -> None:
    contract = Contract.model_validate(
        {
            "model": "m",
            "features": {
                "n": {"type": "integer", "range": {"min": 0, "max": 10}},
                "c": {"type": "category", "categories": ["a"]},
                "t": {"type": "number"},
            },
            "output": {"classes": ["a"]},
        }
    )
    found = check_event(event({"n": 424242, "c": "canary-one", "t": "canary-two"}, "canary-three"), contract)
    assert len(found) == 4
    assert not any("canary" in v.message or "424242" in v.message for v in found)


@pytest.mark.parametrize(
    ("feature", "place"),
    [
        ({"type": "integer", "range": {"min": 2, "max": 1}}, "/features/x/range"),
        ({"type": "category", "range": {"min": 1}}, "/features/x/range"),
        ({"type": "number", "categories": ["a"]}, "/features/x/categories"),
        ({"type": "category", "categories": ["a", "a"]}, "/features/x/categories"),
        ({"type": "integer", "policy": "bucket"}, "/features/x/bucket"),
        ({"type": "category", "policy": "bucket", "bucket": {"edges": [1]}}, "/features/x/policy"),
        ({"type": "integer", "policy": "bucket", "bucket": {"edges": [2, 1]}}, "/features/x/bucket/edges"),
        ({"type": "integer", "requierd": True}, "/features/x/requierd"),
        ({"type": "integer", "range": {"mim": 1}}, "/features/x/range/mim"),
    ],
)
def test_a_contract_that_cannot_be_meant(feature: dict[str, Any], place: str) -> None:
    contract = Contract.model_validate({"model": "m", "features": {"x": feature}})
    assert [v.pointer for v in check_contract(contract)] == [place]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"output": {"type": "number", "classes": ["a"]}}, "/output/classes"),
        ({"output": {"type": "number", "range": {"min": 2, "max": 1}}}, "/output/range"),
        ({"output": {"classes": ["a"]}, "policies": [{"id": "p", "forbidden": ["b"]}]}, "/policies/0/forbidden"),
        ({"slos": {"latency": {"max": 1}}}, "/slos/latency"),
        ({"policies": [{"id": "p", "forbiden": ["b"]}]}, "/policies/0/forbiden"),
    ],
)
def test_an_output_or_field_that_cannot_be_meant(fields: dict[str, Any], place: str) -> None:
    assert [v.pointer for v in check_contract(Contract.model_validate({"model": "m"} | fields))] == [place]


def test_the_hash_is_of_what_the_contract_says() -> None:
    contract = infer_contract([event({"x": 1}), event({"x": 2})], "m")
    assert contract.content_hash == content_hash(contract)
    assert content_hash(contract.model_copy(update={"content_hash": None})) == contract.content_hash
    assert content_hash(contract.model_copy(update={"version": 2})) != contract.content_hash


def test_an_event_without_an_answer_misses_nothing_and_a_fallback_does() -> None:
    contract = Contract.model_validate({"model": "m", "features": {"x": {"type": "number", "required": True}}})
    assert check_event(event({}, None, status={"code": "error"}), contract) == []
    wrong = event({"x": "a"}, None, status={"code": "error"})
    assert [v.reason for v in check_event(wrong, contract)] == ["type"]
    assert [v.reason for v in check_event(event({}, status={"code": "fallback"}), contract)] == ["missing"]


def test_a_text_is_measured_in_bytes() -> None:
    contract = Contract.model_validate({"model": "m", "features": {"x": {"type": "text"}}})
    assert check_event(event({"x": "é" * 2_048}), contract) == []
    assert [v.reason for v in check_event(event({"x": "é" * 2_049}), contract)] == ["type"]


def test_a_confidence_is_a_probability() -> None:
    contract = Contract.model_validate({"model": "m", "output": {"classes": ["a"]}})
    places = [
        check_event(event({}, **fields), contract)[0].pointer
        for fields in ({"confidence": 1.1}, {"scores": {"a": -0.1}}, {"scores": {"b": 0.1}})
    ]
    assert places == ["/confidence", "/scores/a", "/scores/b"]
    assert check_event(event({}, confidence=1, scores={"a": 0}), contract) == []
