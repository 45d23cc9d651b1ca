from typing import get_args

import pytest

from errata.contracts.cases import CaseStatus, RejectionReason
from errata.domain.catalogue.lifecycle import (
    OPEN_STATUSES,
    Move,
    Revision,
    allowed_moves,
    fold,
    move_patch,
    moved,
    patch_between,
    rejection_reason,
)
from errata.errors import IllegalMove, Misconfigured

STATUSES: tuple[CaseStatus, ...] = get_args(CaseStatus)
LEGAL: set[tuple[Move, CaseStatus]] = {
    ("ack", "new"),
    *(("resolve", status) for status in OPEN_STATUSES),
    *(("reject", status) for status in OPEN_STATUSES),
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("move", get_args(Move))
def test_every_pair_of_status_and_move_is_decided(move: Move, status: CaseStatus) -> None:
    target = {"ack": "triaged", "resolve": "resolved", "reject": "rejected"}[move]
    if (move, status) in LEGAL:
        assert moved(status, move) == target
        assert move in allowed_moves(status)
        return
    with pytest.raises(IllegalMove) as raised:
        moved(status, move)
    assert status in str(raised.value)
    assert all(allowed in str(raised.value) for allowed in allowed_moves(status))


def test_open_statuses_are_those_that_the_domain_model_names() -> None:
    assert set(OPEN_STATUSES) == {"new", "triaged", "verified", "in_remediation", "regressed"}
    assert set(STATUSES) - set(OPEN_STATUSES) == {"resolved", "closed", "rejected"}


@pytest.mark.parametrize("reason", get_args(RejectionReason))
def test_the_five_reasons_reject(reason: RejectionReason) -> None:
    assert rejection_reason(reason) == reason
    assert move_patch("new", "reject", reason, "") == {
        "status": "rejected",
        "resolution": {"kind": "rejected", "reason": reason},
    }


def test_a_sixth_reason_is_refused_without_being_quoted() -> None:
    with pytest.raises(Misconfigured, match="duplicate, false_positive") as raised:
        rejection_reason("secret-words")
    assert "secret-words" not in str(raised.value)


def test_a_rejection_without_a_reason_is_refused() -> None:
    with pytest.raises(Misconfigured, match="--reason"):
        move_patch("new", "reject", None, "because")


def test_a_resolution_keeps_its_note_and_an_ack_makes_none() -> None:
    assert move_patch("triaged", "resolve", None, "rolled back") == {
        "status": "resolved",
        "resolution": {"kind": "resolved", "note": "rolled back"},
    }
    assert move_patch("new", "ack", None, "mine") == {"status": "triaged"}


def _revision(rev: int, patch: dict[str, object]) -> Revision:
    return Revision("c", rev, rev, "errata", "", "", patch)


def test_patches_fold_to_the_newest_document() -> None:
    documents: list[dict[str, object]] = [{"a": 1, "b": [1]}, {"a": 1, "b": [1, 2], "c": "x"}, {"b": [1, 2], "c": "y"}]
    before: dict[str, object] = {}
    revisions = []
    for rev, document in enumerate(documents, 1):
        revisions.append(_revision(rev, patch_between(before, document)))
        before = document
        assert fold(revisions) == document
    assert fold(reversed(revisions)) != documents[-1], "the order of revisions must matter"


def test_a_patch_holds_only_what_changed() -> None:
    assert patch_between({"a": 1, "b": 2}, {"a": 1, "b": 3}) == {"b": 3}
    assert patch_between({"a": 1}, {"a": 1}) == {}
