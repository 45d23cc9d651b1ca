from datetime import timedelta
from typing import Any

import pytest
from tests.pipeline.case_builder import START_US, drift, tagged

from errata.contracts import FailureCase
from errata.contracts.strict import instant
from errata.domain.catalogue.cases import case_of
from errata.domain.catalogue.text import clean, duration_text, headline, main_finding, number_text, page


def _case(**changes: Any) -> FailureCase:
    return case_of(tagged(**changes), "CASE-1", instant(START_US), None, 1)


def _finding(detector: str, subject: str, reason: str = "share", **evidence: Any) -> dict[str, Any]:
    return {**drift(subject), "detector": detector, "reason": reason, "evidence": evidence}


SENTENCES = [
    (drift(), "RELP lost 2 of its 18 values (16, 17)."),
    (_finding("distribution_shift", "RELP", gone=["16"]), "RELP lost 1 of its values (16)."),
    (
        _finding("distribution_shift", "AGEP", kind="number", gone=["#3"]),
        "AGEP is distributed differently than before (PSI 0.55, limit 0.25).",
    ),
    (_finding("distribution_shift", "AGEP", median_ratio=12.0), "AGEP is about 12 times what it was."),
    (_finding("distribution_shift", "AGEP", median_ratio=0.1), "AGEP is about 0.1 times what it was."),
    (
        _finding("distribution_shift", "RELP", new_share=0.25),
        "RELP has values never seen before in 25 % of the events.",
    ),
    (
        _finding("distribution_shift", "SEX"),
        "SEX is distributed differently than before (PSI 0.55, limit 0.25).",
    ),
    (
        _finding("missing_values", "SCHL", share=0.02, reference_share=0.004),
        "SCHL is missing in 500 events, usually in 0.4 % of them.",
    ),
    (
        _finding("missing_values", "SCHL", share=0.02, reference_share=0.0),
        "SCHL is missing in 500 events, usually never.",
    ),
    (_finding("missing_values", "SCHL"), "SCHL is missing in 500 events."),
    (_finding("contract_violation", "AGEP", "range"), "AGEP is out of its range in 500 events."),
    (_finding("contract_violation", "AGEP", "odd"), "AGEP breaks the contract (odd) in 500 events."),
    (_finding("bad_status", "timeout"), "500 predictions ended with status timeout."),
    (_finding("invalid_output", "confidence", "range"), "The confidence is invalid (range) in 500 events."),
    (_finding("policy_violation", "no-vip"), "The output breaks policy no-vip in 500 events."),
    (_finding("latency_shift", "latency_ms", median_ratio=3.04), "Latency is 3 times what it was."),
    (_finding("latency_shift", "latency_ms", "tail"), "Latency is higher than it was."),
    (_finding("latency_limit", "latency_ms"), "Latency is over its limit of 0.25 ms in 500 events."),
    (_finding("confidence_shift", "confidence", direction="down"), "The model is lower in confidence than before."),
    (
        _finding("error_rate", "outcome", error_rate=0.83, reference_error_rate=0.17),
        "The error rate rose from 17 % to 83 %.",
    ),
    (_finding("error_rate", "outcome", error_rate="many"), "The error rate rose."),
    (_finding("of_tomorrow", "x"), "x: psi reached 0.55, limit 0.25."),
]


@pytest.mark.parametrize(("finding", "sentence"), SENTENCES)
def test_each_detector_has_its_sentence(finding: dict[str, Any], sentence: str) -> None:
    assert headline(_case(findings=[finding])) == sentence


def test_the_finding_of_the_fingerprint_speaks_and_the_others_are_counted() -> None:
    early = {**drift("AGEP"), "onset": instant(START_US) - timedelta(hours=1)}
    case = _case(findings=[early, drift("RELP"), drift("SEX")])
    assert headline(case) == "RELP lost 2 of its 18 values (16, 17), with 2 other signals."
    other = _case(findings=[drift("SEX"), early], fingerprint={"value": ["t", "d", "nobody", "up"]})
    found = main_finding(other)
    assert found is not None
    assert found.subject == "AGEP", "without the fingerprint's finding the earliest onset speaks"


def test_a_persons_title_goes_first() -> None:
    case = _case().model_copy(update={"title": "Census changed its codes"})
    assert headline(case) == "Census changed its codes"


def test_a_drill_is_called_one_and_a_slice_is_named() -> None:
    case = _case(purpose="drill", slice="SEX=2")
    assert headline(case).startswith("(drill) RELP lost")
    assert page(case).title == "CASE-1  census version 7, slice SEX=2"


def test_a_page_says_when_why_and_what_stood_before_the_onset() -> None:
    shown = page(_case(seq=2, state="close", minutes=40))
    text = "\n".join((*shown.when, *shown.why, *shown.context, *shown.rows, *shown.next))
    assert "onset      2026-01-05 00:00:00 UTC" in text
    assert "last seen  2026-01-05 00:40:00 UTC (40 minutes later, 502 events concerned)" in text
    assert "tag        data:population:category_vanished (rule category-vanished, confidence 0.9)" in text
    assert "infrastructure: ruled out; latency and statuses against the reference: no such finding" in text
    assert "deploy: 6 → 7 (change d1), 20 minutes before the onset" in text
    assert "exemplar p-11: said employed; was unemployed; AGEP=[30,45), RELP=nothing" in text
    assert "control p-2: not kept (out_of_retention)" in text
    assert "errata cases ack CASE-1" in text
    assert shown.findings[0].measured == "psi 0.55"


def test_a_change_after_the_onset_is_called_so() -> None:
    late = {
        "name": "deploy",
        "value": {"change_id": "d2", "to": "8", "actor": "ann"},
        "source": "errata.changes.v1",
        "observed_at": instant(START_US) + timedelta(hours=2),
    }
    assert page(_case(context=[late])).context == ("deploy: 8 (by ann, change d2), 2 hours after the onset",)


def test_a_gap_in_the_context_is_shown_as_a_gap() -> None:
    entries = [
        {"name": "changes", "source": "context", "missing": "unavailable"},
        {"name": "changes", "source": "errata.changes.v1", "value": []},
    ]
    assert page(_case(context=entries)).context == (
        "changes: not known (unavailable)",
        "changes: looked for, none in the time before the onset",
    )


def test_a_finished_case_asks_for_nothing() -> None:
    assert page(_case().model_copy(update={"status": "resolved"})).next == ("Nothing: the case is resolved.",)


HOSTILE = "[bold]x[/] \x1b]0;owned\x07\r\n\u202egnp.exe\u2028\ufeff"


def test_no_foreign_text_reaches_a_terminal_as_it_is() -> None:
    case = _case(
        model={"name": HOSTILE, "version": HOSTILE},
        findings=[{**drift(HOSTILE), "statistic": HOSTILE, "detector": HOSTILE}],
        tags=[{"tag": HOSTILE, "rule_id": HOSTILE, "confidence": 0.5}],
        rows=[{"role": "exemplar", "prediction_id": HOSTILE, "values": {HOSTILE: {HOSTILE: HOSTILE}}, "raw_ref": "r"}],
        context=[{"name": HOSTILE, "value": {HOSTILE: HOSTILE}, "source": "s"}],
    )
    shown = page(case)
    findings = [text for line in shown.findings for text in (line.detector, line.subject, line.measured)]
    lines = [shown.title, shown.headline, *shown.when, *shown.why, *shown.context, *shown.rows, *shown.next, *findings]
    assert all(not set(line) & set("\x1b\x07\r\n\u202e\u2028\ufeff") for line in lines)
    assert "[bold]x[/] \\x1b" in shown.title, "the text itself stays readable"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é 漢", "plain é 漢"), ("a\tb", "a\\x09b"), ("\x9b31m", "\\x9b31m"), ("x" * 200, "x" * 159 + "…")],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_lengths_and_numbers_read_well() -> None:
    lengths = [timedelta(0), timedelta(seconds=90), timedelta(hours=1), timedelta(hours=47), timedelta(days=30)]
    assert [duration_text(length) for length in lengths] == ["0 seconds", "90 seconds", "1 hour", "47 hours", "30 days"]
    assert [number_text(value) for value in (0, -1.5, 12_345.6, 1e-7)] == ["0", "-1.5", "12,346", "1e-07"]
