import json
from typing import Any

import pytest
from tests.unit.anomaly_builder import finding

from errata.contracts import Finding
from errata.domain.diagnosis.rules import Facts, default_rules, load_rules
from errata.domain.diagnosis.taxonomy import default_taxonomy
from errata.errors import Misconfigured

TAXONOMY = default_taxonomy()
TAG = "data:quality:missing_values"
FACTS = Facts(
    findings=(
        finding("distribution_shift", "AGEP", "distribution", kind="number", median_ratio=12.0, expected=4.0),
        finding(
            "distribution_shift", "RELP", "distribution", kind="category", gone=["16"], top=[{"window_share": 0.4}]
        ),
        finding("contract_violation", "AGEP", "range", level="event", share=0.8, value=3, threshold=2, count=7),
        finding("error_rate", "outcome", "rate", error_rate=0.83, reference_error_rate=0.17, direction="up"),
    ),
    changes=(("deploy", 20.0), ("flag", 0.0)),
)


def rules(when: Any, **fields: Any) -> str:
    """YAML is a superset of JSON."""
    rule = {"id": "r", "when": when, "tag": TAG, "confidence": 0.5, **fields}
    return json.dumps({"version": "1.0.0", "rules": [rule]})


def witnesses(when: Any) -> list[str] | None:
    """``detector subject`` of the findings that made the condition hold; None when it does not."""
    hits = load_rules(rules(when), TAXONOMY).hits(FACTS)
    return [f"{found.detector} {found.subject}" for found in hits[0].witnesses] if hits else None


HELD: list[tuple[Any, list[str]]] = [
    ({"finding": {"detector": "error_rate"}}, ["error_rate outcome"]),
    ({"finding": {"subject": ["AGEP"], "reason": "range"}}, ["contract_violation AGEP"]),
    ({"finding": {"not_subject": ["AGEP", "outcome"]}}, ["distribution_shift RELP"]),
    ({"finding": {"level": "event", "grade": "failure", "count": {"min": 7, "max": 7}}}, ["contract_violation AGEP"]),
    ({"finding": {"detector": "contract_violation", "excess": {"min": 1.5}}}, ["contract_violation AGEP"]),
    ({"finding": {"evidence": {"kind": "number", "median_ratio": {"min": 2}}}}, ["distribution_shift AGEP"]),
    ({"finding": {"evidence": {"median_ratio": {"of": "expected", "min": 3, "max": 3}}}}, ["distribution_shift AGEP"]),
    ({"finding": {"evidence": {"gone": {"nonempty": True}}}}, ["distribution_shift RELP"]),
    ({"finding": {"evidence": {"top": {"any_item": {"window_share": {"above": 0.3}}}}}}, ["distribution_shift RELP"]),
    (
        {"finding": {"evidence": {"error_rate": {"complement_of": "reference_error_rate", "within": 0.01}}}},
        ["error_rate outcome"],
    ),
    (
        {"findings_at_least": {"detector": "distribution_shift", "subjects": 2}},
        ["distribution_shift AGEP", "distribution_shift RELP"],
    ),
    ({"findings_at_least": {"level": "event", "findings": 1}}, ["contract_violation AGEP"]),
    (
        {"same_subject": [{"detector": "distribution_shift"}, {"detector": "contract_violation"}]},
        ["distribution_shift AGEP", "contract_violation AGEP"],
    ),
    ({"change": {"kind": "deploy", "within_min": 20}}, []),
    ({"change": {"kind": ["config", "flag"], "within_min": 0}}, []),
    ({"none": [{"finding": {"detector": "latency_shift"}}]}, []),
    (
        {"any": [{"finding": {"detector": "latency_shift"}}, {"finding": {"detector": "error_rate"}}]},
        ["error_rate outcome"],
    ),
    (
        {"all": [{"change": {"kind": "deploy", "within_min": 60}}, {"finding": {"detector": "error_rate"}}]},
        ["error_rate outcome"],
    ),
]

NOT_HELD: list[Any] = [
    {"finding": {"detector": "latency_shift"}},
    {"finding": {"detector": "error_rate", "subject": "AGEP"}},
    {"finding": {"evidence": {"median_ratio": {"above": 12}}}},
    {"finding": {"evidence": {"median_ratio": {"below": 12}}}},
    {"finding": {"evidence": {"median_ratio": {"of": "not_there", "min": 0}}}},
    {"finding": {"evidence": {"not_there": {"max": 1e9}}}},
    {"finding": {"evidence": {"kind": {"min": 0}}}},
    {"finding": {"evidence": {"median_ratio": "12.0"}}},
    {"finding": {"evidence": {"gone": {"nonempty": False}}}},
    {"finding": {"evidence": {"top": {"any_item": {"window_share": {"above": 0.4}}}}}},
    {"finding": {"evidence": {"error_rate": {"complement_of": "not_there", "within": 1}}}},
    {"findings_at_least": {"detector": "distribution_shift", "subjects": 3}},
    {"findings_at_least": {"level": "event", "findings": 2}},
    {"same_subject": [{"detector": "error_rate"}, {"detector": "contract_violation"}]},
    {"change": {"kind": "deploy", "within_min": 19.9}},
    {"change": {"kind": "registry", "within_min": 1440}},
    {"none": [{"finding": {"detector": "latency_shift"}}, {"finding": {"detector": "error_rate"}}]},
    {"any": [{"finding": {"detector": "latency_shift"}}]},
    {"all": [{"finding": {"detector": "error_rate"}}, {"finding": {"detector": "latency_shift"}}]},
]


@pytest.mark.parametrize(("when", "wanted"), HELD)
def test_a_condition_holds_by_these_findings(when: Any, wanted: list[str]) -> None:
    assert witnesses(when) == wanted


@pytest.mark.parametrize("when", NOT_HELD)
def test_a_condition_does_not_hold(when: Any) -> None:
    assert witnesses(when) is None


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (None, "rule r: when: is nothing; write a mapping"),
        ({}, "rule r: when: has 0 words"),
        ({"all": [], "any": []}, "rule r: when: has 2 words"),
        ({"eval": "1"}, "rule r: when: unknown key eval; use one of all, any, change"),
        ({"all": []}, "rule r: when.all: is empty; write a list"),
        ({"all": {"finding": {}}}, "rule r: when.all: is a mapping; write a list"),
        (
            {"all": [{"any": [{"finding": {"detectr": "x"}}]}]},
            "rule r: when.all[0].any[0].finding: unknown key detectr",
        ),
        ({"finding": {"detector": 4}}, "when.finding.detector: is a number; write a list of texts"),
        ({"finding": {"detector": []}}, "when.finding.detector: is empty"),
        ({"finding": {"value": {}}}, "when.finding.value: has no test"),
        ({"finding": {"value": 4}}, "when.finding.value: is a number; write a mapping"),
        (
            {"finding": {"evidence": {"x": {"min": "2"}}}},
            "when.finding.evidence.x.min: is a text; write a finite number",
        ),
        ({"finding": {"evidence": {"x": {"mni": 2}}}}, "when.finding.evidence.x: unknown key mni"),
        ({"finding": {"evidence": {"x": {"of": "y"}}}}, "when.finding.evidence.x.of: says no bound"),
        ({"finding": {"evidence": {"x": {"within": 1}}}}, "when.finding.evidence.x.within: stands alone"),
        (
            {"finding": {"evidence": {"x": {"complement_of": "y"}}}},
            "evidence.x.within: is nothing; write a finite number",
        ),
        ({"finding": {"evidence": {"x": {"nonempty": 1}}}}, "evidence.x.nonempty: is a number; write true or false"),
        ({"finding": {"evidence": {}}}, "when.finding.evidence: is a mapping; write a mapping from a figure"),
        ({"findings_at_least": {"subjects": -1}}, "when.findings_at_least.subjects: is out of range"),
        ({"same_subject": [{"detectr": "x"}]}, "when.same_subject[0]: unknown key detectr"),
        ({"change": {"kind": "deply", "within_min": 1}}, "when.change.kind: write one or more of deploy, flag"),
        ({"change": {"kind": "deploy"}}, "when.change.within_min: is nothing; write a finite number"),
    ],
)
def test_what_is_wrong_in_a_condition_is_named(when: Any, said: str) -> None:
    with pytest.raises(Misconfigured) as error:
        load_rules(rules(when), TAXONOMY)
    assert said in str(error.value)
    assert str(error.value).startswith("rules: rule r: when")


GOOD: dict[str, Any] = {"finding": {"detector": "error_rate"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (rules(GOOD, tag="data:quality:misssing"), "rules: rule r: tag: not in the taxonomy 1.0.0"),
        (rules(GOOD, confidence=1.1), "rules: rule r: confidence: is out of range; write a number from 0 to 1"),
        (rules(GOOD, confidence="high"), "rules: rule r: confidence: is a text"),
        (rules(GOOD, id=""), "rules: rules[0]: id is a text; write a text that is not empty"),
        (rules(GOOD, priority=1), "rules: rules[0]: unknown key priority"),
        ('{"version": "1.0.0"}', "rules: rules is nothing; write a list (it may be empty: [])"),
        ('{"version": "1.0.0", "rules": [4]}', "rules: rules[0]: is a number; write a mapping"),
        ("version: '1.0.0'\nrules: &r []\nmore: *r\n", "line 3: aliases"),
    ],
)
def test_what_is_wrong_in_a_rule_is_named(text: str, said: str) -> None:
    with pytest.raises(Misconfigured) as error:
        load_rules(text, TAXONOMY)
    assert said in str(error.value)


def test_two_rules_of_one_id_are_refused() -> None:
    rule = json.loads(rules(GOOD))["rules"][0]
    with pytest.raises(Misconfigured, match="rule r: the id stands twice"):
        load_rules(json.dumps({"version": "1.0.0", "rules": [rule, rule]}), TAXONOMY)


def test_a_message_never_repeats_a_value() -> None:
    for when in ({"finding": {"value": {"min": "s3cret"}}}, {"change": {"kind": "s3cret", "within_min": 1}}, "s3cret"):
        with pytest.raises(Misconfigured) as error:
            load_rules(rules(when), TAXONOMY)
        assert "s3cret" not in str(error.value)


def test_the_rules_of_the_package_fit_its_taxonomy_and_use_known_detectors_only() -> None:
    every_detector = (
        "contract_violation",
        "missing_values",
        "bad_status",
        "invalid_output",
        "policy_violation",
        "latency_limit",
        "latency_shift",
        "distribution_shift",
        "confidence_shift",
        "error_rate",
    )
    found = default_rules(TAXONOMY)
    assert found.rules
    assert found.hits(Facts(())) == []
    assert found.hits(Facts(tuple(_nameless(name) for name in every_detector))) != []


def _nameless(detector: str) -> Finding:
    return finding(detector, "x", "share")
