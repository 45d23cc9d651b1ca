"""Which dead letters are meant, which of them may be replayed, and what a replay carries.

A letter is open until a resolution of it is written: replayed or discarded. A replay is a new record in the place where
the refused one came from; if it is refused again that makes a new letter, one hop further.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from errata.contracts import DeadLetter, Resolution
from errata.contracts.strict import to_us

MAX_HOPS = 5
MIN_ID_CHARACTERS = 8

REPLAY_OF, HOPS = "replay_of", "hops"
_REKEYED = "errata-rekeyed"  # a patch may name another model, so such a record has yet to find its place

Kept = Literal["whole", "cut", "null", "missing"]
"""What there is of a payload: all, its beginning, a null as it came, or nothing since there was no key to seal it."""
Obstacle = Literal["settled", "hops", "cut", "missing"]
Headers = tuple[tuple[str, bytes], ...]

OBSTACLES: Mapping[Obstacle, str] = {
    "settled": "settled already; --force replays them once more",
    "hops": f"replayed {MAX_HOPS} times, each time refused again; mend the cause, or discard them",
    "cut": "longer than what is kept of a record, so only their beginning is there; publish them anew",
    "missing": "kept without their payload; publish them anew",
}
"""Why letters are not replayed, in words for a person."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Letters that fit every part given; an empty part fits all. An id fits by its first 8 characters or more."""

    stages: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()
    fingerprints: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    since_us: int | None = None

    @property
    def narrows(self) -> bool:
        """Whether it asks for less than everything."""
        return self != Selection()

    def takes(self, letter: DeadLetter) -> bool:
        return (
            (not self.stages or letter.stage in self.stages)
            and (not self.classes or letter.class_ in self.classes)
            and (not self.fingerprints or letter.fingerprint.startswith(self.fingerprints))
            and (not self.ids or letter.dead_letter_id.startswith(self.ids))
            and (self.since_us is None or to_us(letter.ts) >= self.since_us)
        )


def obstacle(letter: DeadLetter, kept: Kept, before: Resolution | None, *, force: bool) -> Obstacle | None:
    """Why a letter may not be replayed. ``before``: its resolution, if it has one; ``force`` goes past that alone."""
    if before is not None and not force:
        return "settled"
    if letter.hops >= MAX_HOPS:
        return "hops"
    if kept == "cut":
        return "cut"
    return "missing" if kept == "missing" else None


def resolution(
    letter: DeadLetter,
    action: Literal["replayed", "discarded"],
    before: Resolution | None,
    *,
    who: str,
    at: datetime,
    why: str,
    patched: bool = False,
) -> Resolution:
    """What became of a letter. Replays are counted on from the resolution before it."""
    replays = (before.replays if before else 0) + (action == "replayed")
    return Resolution(
        dead_letter_id=letter.dead_letter_id, action=action, who=who, at=at, why=why, replays=replays, patched=patched
    )


def replay_headers(original: Headers, letter: DeadLetter, *, patched: bool = False) -> Headers:
    """The headers of a replay: those of the refused record, with the letter it answers and one hop more."""
    dropped = {REPLAY_OF, HOPS} | ({_REKEYED} if patched else set())
    kept = tuple((name, content) for name, content in original if name not in dropped)
    return (*kept, (REPLAY_OF, letter.dead_letter_id.encode()), (HOPS, str(letter.hops + 1).encode()))


def hops_of(headers: Iterable[tuple[str, bytes]]) -> int:
    """How often a record was replayed, by its headers. A publisher's header of that name that is no such number is 0.

    >>> hops_of([("hops", b"2")]), hops_of([("hops", b"barley")]), hops_of([])
    (2, 0, 0)
    """
    for name, content in headers:
        if name == HOPS and content.isdigit() and len(content) < 4:
            return int(content)
    return 0


def merge_patch(target: Any, patch: Any) -> Any:
    """The target after a JSON merge patch (RFC 7386): null takes a field away, an object goes deeper.

    >>> merge_patch({"a": 1, "b": {"c": 2}}, {"a": None, "b": {"d": 3}})
    {'b': {'c': 2, 'd': 3}}
    """
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def patched_payload(payload: bytes | None, patch: Any) -> bytes:
    """A payload with a merge patch applied; fields keep their order. ``ValueError`` when it is no JSON object, or would
    hold a number that is not finite."""
    try:
        target = json.loads(payload or b"")
    except (ValueError, RecursionError):
        target = None
    if not isinstance(target, dict):
        raise ValueError("the payload is no JSON object")
    merged = merge_patch(target, patch)
    return json.dumps(merged, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
