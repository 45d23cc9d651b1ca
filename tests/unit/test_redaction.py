import json
from typing import Any

import pytest

from errata.contracts import Contract, Outcome, PredictionEvent, canonical
from errata.contracts.models import Bucket
from errata.domain.governance.redaction import bucket_of, pseudonym, redact_event, redact_features, redact_outcome

KEY = b"a key of thirty-two bytes, or so"


def contract(**fields: Any) -> Contract:
    features = {
        "kept": {"type": "text"},
        "hashed": {"type": "text", "policy": "hash"},
        "dropped": {"type": "text", "policy": "drop"},
        "age": {"type": "number", "policy": "bucket", "bucket": {"edges": [18, 30, 45, 65]}},
        "no_edges": {"type": "number", "policy": "bucket"},
        "vector": {"type": "vector"},
        "hidden_vector": {"type": "vector", "policy": "hash"},
    }
    return Contract.model_validate({"model": "m", "features": features, **fields})


def test_each_policy_does_what_it_says() -> None:
    said = redact_features({"kept": "a", "hashed": "b", "dropped": "c", "age": 44.5}, contract(), KEY)
    assert said == {"kept": "a", "hashed": pseudonym("hashed", "b", KEY), "age": "[30,45)"}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(-1e300, "<18"), (17.999, "<18"), (18, "[18,30)"), (45.0, "[45,65)"), (65, ">=65"), (10**30, ">=65")],
)
def test_a_number_falls_into_one_bucket(value: float, wanted: str) -> None:
    assert redact_features({"age": value}, contract(), KEY) == {"age": wanted}


def test_edges_out_of_order_and_fractions_make_the_same_buckets() -> None:
    assert bucket_of(0.5, Bucket(edges=[1, 0.25])) == "[0.25,1)"


@pytest.mark.parametrize("value", ["44", True, "x" * 5000, float("inf")])
def test_what_is_no_number_never_shows_in_a_bucket(value: object) -> None:
    (said,) = redact_features({"age": value}, contract(), KEY).values()
    assert said.startswith("hmac:")


def test_a_bucket_without_edges_hides_the_number() -> None:
    assert redact_features({"no_edges": 44}, contract(), KEY)["no_edges"].startswith("hmac:")


def test_undeclared_features_are_denied_by_default() -> None:
    features = {"new_text": "a", "new_number": 4, "new_bool": True, "new_list": ["a"], "new_object": {"a": "b"}}
    wanted = {"new_text": pseudonym("new_text", "a", KEY)}
    assert redact_features(features, contract(), KEY) == wanted
    assert redact_features(features, None, KEY) == wanted


def test_vectors_leave_only_if_kept_and_objects_never() -> None:
    features = {"vector": [1, 2.5], "hidden_vector": [1], "kept": {"deep": "a"}}
    assert redact_features(features, contract(), KEY) == {"vector": [1, 2.5]}
    assert redact_features({"vector": [{"deep": "a"}]}, contract(), KEY) == {}


def test_a_missing_value_is_seen_to_be_missing() -> None:
    features = {"hashed": None, "age": None, "dropped": None}
    assert redact_features(features, contract(), KEY) == {"hashed": None, "age": None}


def test_pseudonyms_join_equal_values_of_one_field_under_one_key() -> None:
    one = pseudonym("f", "Zoë", KEY)
    assert one == pseudonym("f", " Zoe\u0308 ", KEY)
    assert pseudonym("f", 1, KEY) == pseudonym("f", 1.0, KEY)
    assert len({one, pseudonym("g", "Zoë", KEY), pseudonym("f", "Zoë", b"other"), pseudonym("f", "Zoe", KEY)}) == 4
    assert len(one) == len("hmac:") + 32


def test_field_and_value_do_not_run_together() -> None:
    assert pseudonym("ab", "c", KEY) != pseudonym("a", "bc", KEY)


def test_evidence_none_keeps_nothing() -> None:
    event = an_event({"kept": "a"})
    assert redact_event(event, contract(evidence="none"), KEY) == {}
    assert redact_event(event, contract(), KEY)["features"] == {"kept": "a"}


def an_event(features: dict[str, Any], **fields: Any) -> PredictionEvent:
    plain = {"event_id": "e", "time": "2026-01-05T12:00:00Z", "model": {"name": "m"}, "prediction": "1"}
    return PredictionEvent.model_validate_json(json.dumps({**plain, "features": features, **fields}))


def test_an_event_keeps_what_the_case_needs_and_nothing_else() -> None:
    event = an_event(
        {"kept": "a", "dropped": "b"},
        segments={"kept": "s", "region": "north", "dropped": "t"},
        latency_ms=3.5,
        status={"code": "error", "error_type": "for alice@example.org"},
        scores={"1": 0.9},
        confidence=0.9,
        source="s",
        traceparent="t",
    )
    assert redact_event(event, contract(), KEY) == {
        "features": {"kept": "a"},
        "segments": {"kept": "s", "region": pseudonym("region", "north", KEY)},
        "latency_ms": 3.5,
        "status": "error",
        "prediction": "1",
        "scores": {"1": 0.9},
        "confidence": 0.9,
    }


def test_free_text_in_place_of_a_class_is_hashed() -> None:
    event = an_event({}, prediction="Dear Ms Miller, " + "x" * 200)
    assert redact_event(event, None, KEY)["prediction"].startswith("hmac:")
    assert redact_event(an_event({}, prediction="approve"), None, KEY)["prediction"] == "approve"


CANARIES = [f"canary-{number:04d}-{number * 7919 % 10007}" for number in range(1000)]


def a_tenth(at: int) -> list[str]:
    return CANARIES[at::10]


def canary_outputs(policy_of_secret: str) -> bytes:
    """All that redaction puts out for 1,000 secrets, ten places with a hundred each."""
    secret: dict[str, Any] = {"type": "text", "policy": policy_of_secret, "bucket": {"edges": [0]}}
    terms = Contract.model_validate(
        {"model": "m", "features": {"text": secret, "number": secret, "list": secret, "object": secret}}
    )
    said: list[object] = []
    for values in zip(*(a_tenth(at) for at in range(10)), strict=True):
        features = {
            "text": values[0],
            "number": values[1],  # a text where a number belongs
            "list": [values[2]],
            "object": {"deep": {"er": values[3]}},
            "undeclared": values[4],
            "undeclared_list": [values[5], {"a": values[5]}],
        }
        segments = {"text": values[6], "region": values[7]}
        event = an_event(features, segments=segments, status={"code": "error", "error_type": values[8]})
        outcome = Outcome.model_validate_json(
            json.dumps(
                {
                    "outcome_id": "o",
                    "model": {"name": "m"},
                    "observed_time": "2026-01-05T12:00:00Z",
                    "predicted": "1",
                    "value": "0",
                    "segments": segments,
                    "rationale": values[9],
                }
            )
        )
        for known in (terms, None):
            said += [redact_event(event, known, KEY), redact_outcome(outcome, known, KEY)]
            said += [redact_features(features, known, KEY)]
    return canonical(said)


@pytest.mark.parametrize("policy", ["hash", "drop", "bucket"])
def test_none_of_a_thousand_secrets_leaves(policy: str) -> None:
    said = canary_outputs(policy)
    assert [secret for secret in CANARIES if secret.encode() in said] == []


def test_the_search_for_secrets_would_find_them() -> None:
    said = canary_outputs("keep")
    assert all(secret.encode() in said for at in (0, 1, 2, 6) for secret in a_tenth(at))
