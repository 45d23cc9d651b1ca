"""Policy violations: each output that a rule of the contract forbids opens a case."""

from tests.detectors.streams import clean, detect, each


def test_a_forbidden_output_opens_at_its_record() -> None:
    ran = detect(each(clean(300), (91,), lambda event: event.update(prediction="never", scores={})))
    assert ran.opened() == [(91, "policy_violation", "no-never")]
    assert ran.moves[0][1].reason == "forbidden_output"


def test_without_the_policy_the_same_output_is_allowed() -> None:
    events = each(clean(300), (91,), lambda event: event.update(prediction="never", scores={}))
    assert detect(events, policies=[]).moves == []


def test_each_policy_is_a_subject_of_its_own() -> None:
    policies = [{"id": "no-never", "forbidden": ["never"]}, {"id": "no-at-all", "forbidden": ["never", "no"]}]
    ran = detect(each(clean(2), (0, 1), lambda event: event.update(prediction="never", scores={})), policies=policies)
    assert [(at, said.subject) for at, said in ran.moves] == [(0, "no-at-all"), (0, "no-never")]
