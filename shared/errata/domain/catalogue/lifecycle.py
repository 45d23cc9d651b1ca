"""The life cycle of a case: what people may do to it, and how its revisions add up to its present state.

The chain moves ``episode.state`` and never ``status``; people move ``status`` and never what the chain wrote.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from errata.contracts.base import Fields
from errata.contracts.cases import CaseStatus, RejectionReason
from errata.errors import IllegalMove, Misconfigured

Move = Literal["ack", "resolve", "reject"]

OPEN_STATUSES: tuple[CaseStatus, ...] = ("new", "triaged", "verified", "in_remediation", "regressed")
REJECTION_REASONS: tuple[RejectionReason, ...] = get_args(RejectionReason)

_RULES: dict[Move, tuple[tuple[CaseStatus, ...], CaseStatus]] = {
    "ack": (("new",), "triaged"),
    "resolve": (OPEN_STATUSES, "resolved"),
    "reject": (OPEN_STATUSES, "rejected"),
}


@dataclass(frozen=True, slots=True)
class Revision:
    """One change of a case: who, when, why, what it became and what it was.

    ``patch`` sets top-level fields; None removes one. ``previous`` holds what a person's change replaced; the chain's
    own changes leave it empty, since the revision before says it. ``content_hash`` is of the machine's document.
    """

    case_id: str
    rev: int
    valid_from_us: int
    actor: str
    reason: str
    content_hash: str
    patch: Fields
    previous: Fields = field(default_factory=dict)


def allowed_moves(status: CaseStatus) -> tuple[Move, ...]:
    """What may be done to a case in this status.

    >>> allowed_moves("new"), allowed_moves("triaged"), allowed_moves("closed")
    (('ack', 'resolve', 'reject'), ('resolve', 'reject'), ())
    """
    return tuple(move for move, (sources, _) in _RULES.items() if status in sources)


def moved(status: CaseStatus, move: Move) -> CaseStatus:
    """The status after a move. Raises ``IllegalMove`` for one the life cycle does not have."""
    sources, target = _RULES[move]
    if status not in sources:
        allowed = ", ".join(allowed_moves(status)) or "none, the case is finished"
        raise IllegalMove(f"a case that is {status} cannot be moved by {move}; allowed: {allowed}")
    return target


def rejection_reason(text: str) -> RejectionReason:
    """One of the five reasons. Raises ``Misconfigured`` naming them for anything else."""
    if text not in REJECTION_REASONS:
        raise Misconfigured(f"--reason: not a reason to reject a case; write one of {', '.join(REJECTION_REASONS)}")
    return text


def move_patch(status: CaseStatus, move: Move, rejection: RejectionReason | None, note: str) -> Fields:
    """The fields a move sets: the status, and the resolution unless it is a mere acknowledgement."""
    patch: Fields = {"status": moved(status, move)}
    if move == "reject":
        if rejection is None:
            raise Misconfigured(f"--reason: a rejection needs one of {', '.join(REJECTION_REASONS)}")
        patch["resolution"] = {"kind": "rejected", "reason": rejection, **({"note": note} if note else {})}
    elif move == "resolve":
        patch["resolution"] = {"kind": "resolved", **({"note": note} if note else {})}
    return patch


def fold(revisions: Iterable[Revision]) -> Fields:
    """The state that revisions add up to, in their order.

    >>> first = Revision("c", 1, 0, "errata", "open", "h", {"status": "new", "title": "a"})
    >>> fold([first, Revision("c", 2, 0, "ann", "ack", "h", {"status": "triaged", "title": None})])
    {'status': 'triaged'}
    """
    state: Fields = {}
    for revision in revisions:
        state = folded(state, revision.patch)
    return state


def folded(state: Fields, patch: Fields) -> Fields:
    """``state`` with ``patch`` on top; a None removes its field."""
    merged = {**state, **patch}
    return {name: value for name, value in merged.items() if value is not None}


def patch_between(before: Fields, after: Fields) -> Fields:
    """The patch that turns ``before`` into ``after``.

    >>> patch_between({"a": 1, "b": 2}, {"b": 3, "c": 4})
    {'a': None, 'b': 3, 'c': 4}
    """
    names = sorted(before.keys() | after.keys())
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}
