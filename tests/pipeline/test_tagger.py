import json

import pytest
from tests.unit.anomaly_builder import CASE_ID, change, enriched_anomaly, finding

from errata.contracts import EnrichedAnomaly, TaggedCase
from errata.contracts.strict import to_us
from errata.contracts.topics import ENRICHED, TAGGED
from errata.domain.diagnosis.rules import load_rules
from errata.domain.diagnosis.taxonomy import default_taxonomy, load_taxonomy
from errata.errors import Misconfigured
from errata.ports import Outgoing, Record, StepResult
from errata_services.tagger import Tagger

SWAPPED = enriched_anomaly(
    finding("error_rate", "outcome", "rate", error_rate=0.83, reference_error_rate=0.17), changes=[change("deploy", 20)]
)
SLOW = enriched_anomaly(finding("latency_shift", "latency_ms", "tail", median_ratio=3.0))


def step(tagger: Tagger, *values: EnrichedAnomaly | bytes | None) -> StepResult:
    batch = [
        Record(ENRICHED, 0, at, 0, b"", value.to_json() if isinstance(value, EnrichedAnomaly) else value)
        for at, value in enumerate(values)
    ]
    return tagger.step(batch, tagger.prepare(batch))  # type: ignore[func-returns-value]


def cases(outputs: list[Outgoing]) -> list[TaggedCase]:
    return [TaggedCase.model_validate_json(output.value or b"") for output in outputs]


def test_the_output_is_keyed_by_case_and_carries_the_diagnosis() -> None:
    result = step(Tagger(), SWAPPED)
    (output,) = result.outputs
    assert (output.topic, output.key) == (TAGGED, CASE_ID.encode())
    (case,) = cases(result.outputs)
    assert (case.root_class, case.tags[0].tag) == ("deployment", "deployment:release:regression")
    assert case.fingerprint.value == ["deployment:release:regression", "error_rate", "outcome", "up"]
    assert result.max_event_time_us == to_us(SWAPPED.episode.last_seen)
    before = json.loads(SWAPPED.to_json())
    after = json.loads(output.value or b"")
    assert {name: after[name] for name in before} == before


def test_without_rules_every_case_is_unknown() -> None:
    taxonomy = default_taxonomy()
    tagger = Tagger(taxonomy, load_rules('{version: "1.0.0", rules: []}', taxonomy))
    found = cases(step(tagger, SWAPPED, SLOW).outputs)
    assert [case.root_class for case in found] == ["unknown", "unknown"]
    assert [case.root_class for case in cases(step(Tagger(), SWAPPED, SLOW).outputs)] == [
        "deployment",
        "infrastructure",
    ]


def test_a_record_that_is_no_enriched_anomaly_is_dead_and_takes_nothing_along() -> None:
    body = json.loads(SLOW.to_json())
    body["findings"][0]["value"] = "s3cret"
    result = step(Tagger(), b"\xff", SLOW, json.dumps(body).encode(), None, b"[]")
    said = [(one.record.offset, one.refusal.refusal_class, one.refusal.path) for one in result.dead]
    assert said == [(0, "decode", ""), (2, "schema", "/findings/0/value"), (3, "decode", ""), (4, "schema", "")]
    assert "s3cret" not in "".join(str(one.refusal) for one in result.dead)
    assert len(result.outputs) == 1


def test_how_records_are_cut_into_batches_changes_nothing() -> None:
    tagger = Tagger()
    together = step(tagger, SWAPPED, SLOW, SWAPPED).outputs
    tagger.commit()
    apart = [output for value in (SWAPPED, SLOW, SWAPPED) for output in step(Tagger(), value).outputs]
    assert together == apart


def test_a_taxonomy_that_lacks_a_tag_of_the_rules_stops_the_start() -> None:
    with pytest.raises(Misconfigured, match="rule latency-shift: tag: not in the taxonomy"):
        Tagger(load_taxonomy('{version: "1.0.0", tags: []}'))
