from datetime import timedelta

import pytest
from tests.unit.anomaly_builder import ONSET, change, enriched_anomaly, finding

from errata.contracts import ContextEntry, EnrichedAnomaly, Finding, TaggedCase
from errata.domain.diagnosis.rules import default_rules, load_rules
from errata.domain.diagnosis.tagging import diagnose
from errata.domain.diagnosis.taxonomy import default_taxonomy, load_taxonomy

TAXONOMY = default_taxonomy()
RULES = default_rules(TAXONOMY)
NO_RULES = load_rules('{version: "1.0.0", rules: []}', TAXONOMY)


def shift(subject: str, **evidence: object) -> Finding:
    return finding("distribution_shift", subject, "distribution", statistic="psi", direction="both", **evidence)


def errors(rate: float, reference: float = 0.17, **evidence: object) -> Finding:
    return finding(
        "error_rate",
        "outcome",
        "rate",
        statistic="cusum",
        error_rate=rate,
        reference_error_rate=reference,
        n=400,
        **evidence,
    )


def missing(subject: str, share: float) -> list[Finding]:
    return [
        finding("missing_values", subject, "share", share=share, reference_share=0.0),
        finding("contract_violation", subject, "missing"),
    ]


SLOW = finding("latency_shift", "latency_ms", "distribution", median_ratio=3.0)
DEPLOY = change("deploy", 20)

Episode = tuple[str, list[Finding], list[ContextEntry] | None, str, str]

EPISODES: list[Episode] = [
    ("SCHL absent", [*missing("SCHL", 1.0), errors(0.31)], None, "data:quality:missing_values", "data"),
    ("SCHL absent at times", [missing("SCHL", 0.05)[0]], None, "data:quality:missing_values", "data"),
    (
        "SCHL absent, deploy before",
        [*missing("SCHL", 1.0), errors(0.31)],
        [DEPLOY],
        "data:quality:missing_values",
        "data",
    ),
    (
        "AGEP x 12",
        [finding("contract_violation", "AGEP", "range"), shift("AGEP", kind="number", median_ratio=12.1), errors(0.4)],
        None,
        "data:quality:unit_or_scale",
        "data",
    ),
    ("AGEP / 12", [shift("AGEP", kind="number", median_ratio=0.083)], None, "data:quality:unit_or_scale", "data"),
    (
        "AGEP x 12, no medians",
        [finding("contract_violation", "AGEP", "range"), shift("AGEP", kind="number")],
        None,
        "data:quality:unit_or_scale",
        "data",
    ),
    (
        "AGEP x 12, judged by the range alone",
        [finding("contract_violation", "AGEP", "range", share=0.9)],
        None,
        "data:quality:unit_or_scale",
        "data",
    ),
    (
        "AGEP x 12, so far out that nothing is left to compare",
        [finding("contract_violation", "AGEP", "range", share=0.02, mean_ratio=18.8)],
        None,
        "data:quality:unit_or_scale",
        "data",
    ),
    (
        "placeholders far out of range",
        [finding("contract_violation", "AGEP", "range", share=0.02, mean_ratio=25_000.0)],
        None,
        "data:quality:out_of_range",
        "data",
    ),
    (
        "a number without its lowest bin",
        [shift("WAGP", kind="number", gone=["#0"], median_ratio=1.4)],
        None,
        "data:population:feature_shift",
        "data",
    ),
    (
        "some ages out of range",
        [finding("contract_violation", "AGEP", "range", share=0.03)],
        None,
        "data:quality:out_of_range",
        "data",
    ),
    ("latency x 3", [SLOW], None, "infrastructure:performance:latency_shift", "infrastructure"),
    (
        "latency x 3 over the limit",
        [finding("latency_limit", "latency_ms", "over_limit", level="event"), SLOW],
        None,
        "infrastructure:performance:latency_shift",
        "infrastructure",
    ),
    ("latency x 3, deploy before", [SLOW], [DEPLOY], "infrastructure:performance:latency_shift", "infrastructure"),
    ("latency x 3 and SCHL absent", [SLOW, *missing("SCHL", 1.0)], None, "data:quality:missing_values", "data"),
    ("swapped", [errors(0.83)], None, "model:output:inverted", "model"),
    (
        "swapped, answers shifted",
        [errors(0.83), shift("prediction", kind="category")],
        None,
        "model:output:inverted",
        "model",
    ),
    (
        "swapped, deploy before",
        [errors(0.83), shift("prediction", kind="category")],
        [DEPLOY],
        "deployment:release:regression",
        "deployment",
    ),
    ("bad release, mild", [errors(0.25)], [DEPLOY], "deployment:release:regression", "deployment"),
    ("bad release long ago", [errors(0.83)], [change("deploy", 600)], "model:output:inverted", "model"),
    ("bad flag", [errors(0.3)], [change("flag", 5)], "deployment:configuration:change", "deployment"),
    (
        "RELP 16 and 17 vanish",
        [shift("RELP", kind="category", gone=["16", "17"])],
        None,
        "data:population:category_vanished",
        "data",
    ),
    (
        "block of RELP 16 and 17",
        [
            shift("RELP", kind="category", gone=["0", "1"]),
            *(shift(name, kind="number", median_ratio=0.4) for name in ("AGEP", "MAR", "MIG")),
            errors(0.24, expected_error_rate=0.235),
            finding("confidence_shift", "confidence", "distribution"),
            *missing("ESP", 0.3)[:1],
        ],
        None,
        "data:population:covariate_shift",
        "data",
    ),
    ("one feature shifted", [shift("SEX", kind="category", gone=[])], None, "data:population:feature_shift", "data"),
    (
        "mix explains the errors",
        [shift("SEX"), errors(0.22, expected_error_rate=0.21)],
        None,
        "data:population:covariate_shift",
        "data",
    ),
    ("worse, inputs as before", [errors(0.25)], None, "model:performance:degraded", "model"),
    ("errors", [finding("bad_status", "error", "share")], None, "infrastructure:availability:errors", "infrastructure"),
    (
        "fallback",
        [finding("bad_status", "fallback", "share")],
        None,
        "integration:routing:fallback_served",
        "integration",
    ),
    (
        "NaN",
        [finding("invalid_output", "scores", "scores", level="event")],
        None,
        "model:output:invalid_output",
        "model",
    ),
    ("type", [finding("contract_violation", "AGEP", "type")], None, "data:schema:type_change", "data"),
    (
        "policy",
        [finding("policy_violation", "no-loans", "forbidden", level="event")],
        None,
        "model:output:policy_violation",
        "model",
    ),
    (
        "stuck",
        [shift("prediction", kind="category", top=[{"cell": "1", "window_share": 1.0}]), errors(0.4)],
        None,
        "model:output:constant",
        "model",
    ),
    (
        "thin evidence",
        [finding("confidence_shift", "confidence", "distribution")],
        None,
        "errata:diagnosis:unknown",
        "unknown",
    ),
    ("something new", [finding("plug_in", "x", "odd")], None, "errata:diagnosis:unknown", "unknown"),
]


def case_of(episode: Episode, rules: object = None) -> TaggedCase:
    _, findings, changes, _, _ = episode
    return diagnose(enriched_anomaly(*findings, changes=changes), TAXONOMY, NO_RULES if rules is NO_RULES else RULES)


@pytest.mark.parametrize("episode", EPISODES, ids=[episode[0] for episode in EPISODES])
def test_the_root_of_an_episode(episode: Episode) -> None:
    case = case_of(episode)
    assert (case.tags[0].tag, case.root_class) == episode[3:]
    assert case.fingerprint.value[0] == episode[3]
    assert case.taxonomy_version == TAXONOMY.version


@pytest.mark.parametrize("episode", EPISODES, ids=[episode[0] for episode in EPISODES])
def test_without_rules_every_case_is_unknown(episode: Episode) -> None:
    case = case_of(episode, NO_RULES)
    assert case.root_class == "unknown"
    assert [tag.tag for tag in case.tags] == ["errata:diagnosis:unknown"]
    assert {layer.verdict for layer in case.rule_out} <= {"unknown", "ruled_out"}


@pytest.mark.parametrize("episode", EPISODES, ids=[episode[0] for episode in EPISODES])
def test_the_layer_of_the_root_is_implicated_and_no_signal_is_ruled_out(episode: Episode) -> None:
    case = case_of(episode)
    verdicts = {entry.layer: entry.verdict for entry in case.rule_out}
    assert list(verdicts) == ["infrastructure", "data", "model", "integration"]
    layer = TAXONOMY.tags[case.tags[0].tag].layer
    assert layer is None or verdicts[layer] == "implicated"


def test_no_tag_is_made_up_when_the_taxonomy_has_no_unknown() -> None:
    bare = load_taxonomy('{version: "2.0.0", tags: []}')
    case = diagnose(enriched_anomaly(errors(0.83)), bare, load_rules('{version: "1.0.0", rules: []}', bare))
    assert (case.tags, case.root_class, case.taxonomy_version) == ([], "unknown", "2.0.0")
    assert case.severity.terms["harm"] == 0.5


def test_tags_that_are_not_sure_enough_are_shown_without_a_root() -> None:
    rules = load_rules(
        '{version: "1.0.0", rules: [{id: r, when: {finding: {detector: error_rate}}, '
        "tag: model:performance:degraded, confidence: 0.49}]}",
        TAXONOMY,
    )
    case = diagnose(enriched_anomaly(errors(0.83)), TAXONOMY, rules)
    assert [tag.tag for tag in case.tags] == ["errata:diagnosis:unknown", "model:performance:degraded"]
    assert case.root_class == "unknown"


def test_of_equally_sure_tags_the_one_of_the_earlier_layer_is_the_root() -> None:
    rule = "{{id: {0}, when: {{finding: {{detector: error_rate}}}}, tag: {1}, confidence: 0.7}}"
    tags = ("model:performance:degraded", "data:quality:sentinel", "infrastructure:availability:errors")
    listed = ", ".join(rule.format(f"r{at}", tag) for at, tag in enumerate(tags))
    rules = load_rules(f'{{version: "1.0.0", rules: [{listed}]}}', TAXONOMY)
    case = diagnose(enriched_anomaly(errors(0.83)), TAXONOMY, rules)
    assert [tag.tag for tag in case.tags] == list(reversed(tags))
    assert case.root_class == "infrastructure"


def test_two_failures_at_once_keep_both_tags() -> None:
    case = diagnose(enriched_anomaly(SLOW, *missing("SCHL", 1.0)), TAXONOMY, RULES)
    assert {"data:quality:missing_values", "infrastructure:performance:latency_shift"} <= {tag.tag for tag in case.tags}


def test_the_fingerprint_names_the_finding_that_made_the_root() -> None:
    early = errors(0.31).model_copy(update={"onset": ONSET - timedelta(minutes=1)})
    case = diagnose(enriched_anomaly(early, *missing("SCHL", 1.0)[:1]), TAXONOMY, RULES)
    assert case.fingerprint.value == ["data:quality:missing_values", "missing_values", "SCHL", "up"]
    unknown = diagnose(enriched_anomaly(*missing("SCHL", 1.0)[:1], early), TAXONOMY, NO_RULES)
    assert unknown.fingerprint.value == ["errata:diagnosis:unknown", "error_rate", "outcome", "up"]


def test_a_layer_nobody_could_see_is_not_ruled_out() -> None:
    def verdicts(anomaly: EnrichedAnomaly) -> dict[str, str]:
        return {entry.layer: entry.verdict for entry in diagnose(anomaly, TAXONOMY, RULES).rule_out}

    seen = enriched_anomaly(*missing("SCHL", 1.0))
    ruled_out = {"infrastructure": "ruled_out", "data": "implicated", "model": "ruled_out", "integration": "ruled_out"}
    assert verdicts(seen) == ruled_out
    blind = {
        "infrastructure": seen.model_copy(update={"reference_hash": None}),
        "model": seen.model_copy(update={"rows": []}),
        "integration": seen.model_copy(
            update={"context": [ContextEntry(name="changes", source="context", missing="unavailable")]}
        ),
    }
    for layer, anomaly in blind.items():
        assert verdicts(anomaly)[layer] == "unknown"
    silent = [row.model_copy(update={"values": {}}) for row in seen.rows]
    assert verdicts(seen.model_copy(update={"rows": silent}))["infrastructure"] == "unknown"
    assert verdicts(seen.model_copy(update={"context": [DEPLOY]}))["integration"] == "unknown"


def test_every_field_of_the_anomaly_stays() -> None:
    anomaly = enriched_anomaly(
        *missing("SCHL", 1.0), evidence={"events": 900}, slice="SEX=1", note="of a later version"
    )
    case = diagnose(anomaly, TAXONOMY, RULES).model_dump(mode="json", by_alias=True)
    before = anomaly.model_dump(mode="json", by_alias=True)
    assert {name: case[name] for name in before} == before
    assert before["note"] == "of a later version"


def test_the_same_anomaly_gives_the_same_bytes() -> None:
    anomaly = enriched_anomaly(*max((episode[1] for episode in EPISODES), key=len))
    again = EnrichedAnomaly.model_validate_json(anomaly.to_json())
    first = diagnose(anomaly, TAXONOMY, RULES).to_json()
    taxonomy = default_taxonomy()
    assert diagnose(again, taxonomy, default_rules(taxonomy)).to_json() == first
    assert TaggedCase.model_validate_json(first).to_json() == first
