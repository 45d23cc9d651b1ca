"""From the tagger's message to the catalogue's case. The chain's fields and people's fields never mix."""

import hashlib
from datetime import datetime

from errata.contracts import FailureCase, TaggedCase, canonical
from errata.contracts.base import Fields
from errata.contracts.cases import AdmittedBy

PEOPLES_FIELDS = ("status", "title", "owner", "priority", "substatus", "resolution")
_CATALOGUE_FIELDS = frozenset(FailureCase.model_fields) - frozenset(TaggedCase.model_fields)
DEFAULT_TENANT = "default"


def case_of(
    tagged: TaggedCase, short_id: str, opened_at: datetime, closed_at: datetime | None, rev: int
) -> FailureCase:
    """The machine's document of a case as of one ``episode.seq``. ``status`` and people's fields keep their defaults.
    Its onset is the episode's, not that of the finding that moved it last.

    A tagged message that carries fields of the catalogue among its unknown ones does not get to set them.
    """
    machine = {name: value for name, value in dict(tagged).items() if name not in _CATALOGUE_FIELDS}
    policy = tagged.evidence.get("admitted_by")
    return FailureCase.model_validate(
        {
            **machine,
            "case_id": tagged.episode.id,
            "short_id": short_id,
            "opened_at": opened_at,
            "onset": tagged.episode.onset,
            "last_seen": tagged.episode.last_seen,
            "closed_at": closed_at,
            "rev": rev,
            "admitted_by": AdmittedBy(policy=policy if isinstance(policy, str) else "default", version="1"),
        }
    )


def supersedes(seq: int, partial: bool, held_seq: int, held_partial: bool) -> bool:
    """Whether a message of a case takes the place of what is held: the newer ``seq`` does, and of one ``seq`` the
    message that lacks nothing takes the place of one that does. So the order they come in changes nothing.

    >>> supersedes(2, True, 1, False), supersedes(1, False, 1, True), supersedes(1, True, 1, False)
    (True, True, False)
    """
    return (seq, not partial) > (held_seq, not held_partial)


def closed_at(tagged: TaggedCase) -> datetime | None:
    """When the episode closed: the record time of its closing seq, None while it is open."""
    return tagged.time if tagged.episode.state == "close" else None


def without_peoples_fields(document: Fields) -> Fields:
    return {name: value for name, value in document.items() if name != "rev" and name not in PEOPLES_FIELDS}


def content_hash(document: Fields) -> str:
    """SHA-256 of the canonical bytes; equal content makes no revision."""
    return hashlib.sha256(canonical(document)).hexdigest()


def shown_case(document: Fields, edits: Fields, rev: int) -> FailureCase:
    """The case as people see it: the machine's document with people's edits on top."""
    own = {name: value for name, value in edits.items() if name in PEOPLES_FIELDS and value is not None}
    return FailureCase.model_validate_json(canonical({**document, **own, "rev": rev}))


def short_id(tenant: str, number: int) -> str:
    """What people call a case.

    >>> short_id("default", 7), short_id("fraud", 142)
    ('CASE-7', 'FRAUD-142')
    """
    return f"{'CASE' if tenant == DEFAULT_TENANT else tenant.upper()}-{number}"


def search_text(case: FailureCase) -> str:
    """What a text search looks into, in lower case: ids, model, slice, tags, subjects, detectors and reasons."""
    words = [case.short_id, case.case_id, case.tenant, case.model.name, case.model.version or "", case.slice]
    words += [case.root_class, case.severity.level, *(tag.tag for tag in case.tags)]
    for finding in case.findings:
        words += [finding.detector, finding.subject, finding.reason]
    return " ".join(dict.fromkeys(word.lower() for word in words if word))
