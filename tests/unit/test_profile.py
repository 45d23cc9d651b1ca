"""What detection compiles of a contract and a reference: channels, counters, thresholds, admission, limits."""

import math
from typing import Any

import pytest
from tests.detectors.streams import MODEL, contract, reference

from errata.contracts.models import ErrorSketch
from errata.domain.detection.profile import (
    FEATURE_KINDS,
    NEVER,
    Counter,
    Profile,
    compile_profile,
    padded_edges,
    reference_error_rate,
)
from errata.domain.layouts import compile_layout


def profile(with_reference: bool = True, changes: dict[str, Any] | None = None, **known: Any) -> Profile:
    """The profile of the test model; ``changes`` of its contract, ``known`` of its reference."""
    normal = reference().model_copy(update=known) if with_reference else None
    return compile_profile(compile_layout("default", MODEL, contract(**(changes or {})), normal))


def counter(made: Profile, detector: str, subject: str, reason: str) -> Counter:
    (found,) = [c for c in made.counters if (c.detector, c.subject, c.reason) == (detector, subject, reason)]
    return found


def test_channels_are_what_a_reference_can_compare() -> None:
    made = profile()
    judged = [(channel.detector, channel.subject) for channel in made.channels if channel]
    assert judged == [
        ("distribution_shift", "age"),
        ("distribution_shift", "amount"),
        ("latency_shift", "latency_ms"),
        ("confidence_shift", "confidence"),
        ("distribution_shift", "colour"),
        ("distribution_shift", "owner"),
        ("distribution_shift", "prediction"),
    ]


def test_hidden_and_text_features_have_no_channel() -> None:
    names = {channel.subject for channel in profile().channels if channel}
    assert {"city", "note"} & names == set()


def test_cells_of_channels_lie_one_after_the_other() -> None:
    made = profile()
    at = 0
    for base, channel in zip(made.cell_base, made.channels, strict=True):
        assert base == at
        at += channel.cells if channel else 0
    assert made.cells == at


def test_merged_references_keep_every_event_and_expect_five() -> None:
    for channel in profile().channels:
        if channel is not None:
            assert int(channel.reference.sum()) == sum(channel.raw_reference)
            assert (channel.reference * 500 / channel.reference.sum() >= 5).all()
            assert len(channel.merged) == channel.cells


def test_labels_show_only_what_the_contract_keeps() -> None:
    shown = {channel.subject: bool(channel.labels) for channel in profile().channels if channel}
    assert shown == {
        "age": False, "amount": True, "latency_ms": True, "confidence": True, "colour": True, "owner": False,
        "prediction": True,
    }  # fmt: skip


def test_counters_stand_where_their_kind_and_feature_say() -> None:
    made = profile()
    for kind in FEATURE_KINDS:
        for place, name in enumerate(made.layout.features):
            assert made.counters[made.counter_of(kind, place)].subject == name
    assert made.counters[made.singles].reason == "extra"
    assert [c.subject for c in made.counters[made.singles + 1 : made.singles + 5]] == [
        "error", "timeout", "fallback", "missing_response",
    ]  # fmt: skip


def test_thresholds_follow_the_references_shares() -> None:
    made = profile(statuses={"ok": 9_400, "error": 500, "timeout": 100})
    assert counter(made, "bad_status", "error", "status").threshold == 54
    assert counter(made, "bad_status", "timeout", "status").threshold == 21
    assert counter(made, "bad_status", "fallback", "status").threshold == 10
    assert counter(made, "bad_status", "error", "status").reference_share == 0.05
    assert counter(made, "latency_shift", "latency_ms", "tail").threshold == 54


def test_a_model_without_a_reference_is_judged_by_single_events_only() -> None:
    made = profile(with_reference=False)
    assert {c.threshold for c in made.counters} == {NEVER}
    assert all(channel is None for channel in made.channels)
    assert counter(made, "invalid_output", "prediction", "unseen_class").admitted
    assert math.isnan(made.error_rate)


def test_a_reference_of_fewer_than_a_hundred_judges_no_share() -> None:
    assert counter(profile(events=99), "bad_status", "error", "status").threshold == NEVER
    assert counter(profile(events=100), "bad_status", "error", "status").threshold < NEVER


def test_default_admission() -> None:
    made = profile()
    admitted = {(c.detector, c.reason) for c in made.counters if c.admitted}
    assert admitted == {
        ("bad_status", "status"), ("invalid_output", "unseen_class"), ("invalid_output", "range"),
        ("invalid_output", "scores"), ("policy_violation", "forbidden_output"),
    }  # fmt: skip


def test_a_bad_status_that_the_reference_knows_opens_nothing_alone() -> None:
    made = profile(statuses={"ok": 9_999, "error": 1})
    assert not counter(made, "bad_status", "error", "status").admitted
    assert counter(made, "bad_status", "timeout", "status").admitted


@pytest.mark.parametrize(
    ("kind", "rule", "found", "admitted"),
    [
        ("invalid_output", "count", ("invalid_output", "scores", "scores"), False),
        ("policy_violation", "count", ("policy_violation", "no-never", "forbidden_output"), False),
        ("contract_violation", "open", ("contract_violation", "amount", "range"), True),
        ("latency_over_limit", "if_reference_has_none", ("latency_limit", "latency_ms", "over_limit"), True),
        ("bad_status", "open", ("bad_status", "error", "status"), True),
    ],
)
def test_the_contract_says_what_one_event_may_open(
    kind: str, rule: str, found: tuple[str, str, str], admitted: bool
) -> None:
    assert counter(profile(changes={"admission": {kind: rule}}), *found).admitted is admitted


def test_missing_values_are_never_admitted_alone() -> None:
    every = dict.fromkeys(("contract_violation", "invalid_output", "bad_status", "latency_over_limit"), "open")
    assert not any(c.admitted for c in profile(changes={"admission": every}).counters if c.reason in ("share", "tail"))


def test_limits_come_from_the_contract() -> None:
    made = profile()
    assert made.latency_limit_ms == 400
    assert made.latency_p95_ms == (reference().latency_ms or reference().confidence).p95_ms  # type: ignore[union-attr]
    amount, age = made.place["amount"], made.place["age"]
    assert (made.low[amount], made.high[amount], made.high[age]) == (0, 1000, 120)
    assert profile(changes={"slos": {"latency_ms": {"p95": 300}}}).latency_limit_ms == 300
    assert profile(changes={"slos": {"latency_ms": {"p95": 300, "max": 350}}}).latency_limit_ms == 350
    assert profile(changes={"slos": None}).latency_limit_ms == math.inf


def test_required_is_by_feature() -> None:
    made = profile()
    assert [name for name, must in zip(made.layout.features, made.required, strict=True) if must] == ["colour"]


def test_forbidden_outputs_are_codes_of_classes() -> None:
    made = profile()
    assert made.forbidden == ((made.layout.classes["never"],),)


@pytest.mark.parametrize(
    ("wrong", "outcomes", "p0"),
    [
        (1_000, 10_000, 0.1),
        (1_000, 9_999, 1_000 / 9_999 + 2 * math.sqrt(1_000 / 9_999 * (1 - 1_000 / 9_999) / 9_999)),
        (0, 10_000, 1 / 10_002),
        (0, 100, 1 / 102),
    ],
)
def test_the_rate_of_the_bank(wrong: int, outcomes: int, p0: float) -> None:
    assert reference_error_rate(wrong, outcomes) == pytest.approx(p0)
    made = profile(error=ErrorSketch(outcomes=outcomes, wrong=wrong))
    assert made.error_rate == pytest.approx(p0)


def test_a_reference_without_labels_has_no_rate() -> None:
    assert math.isnan(reference_error_rate(0, 0))


def test_edges_are_padded_with_what_nothing_exceeds() -> None:
    assert padded_edges((1.0, 2.0)).tolist() == [1.0, 2.0, *[math.inf] * 13]


def test_hashes_name_contract_and_reference() -> None:
    made = profile()
    assert (made.contract_hash, made.reference_hash) == (contract().content_hash, reference().content_hash)
    assert profile(with_reference=False).reference_hash is None
