"""The versions of messages on the wire: a header may say which one a record is of.

``schema: <name>/<major>.<minor>``. A message's major is that of its topic (``.v1``). A later minor only adds fields, so
it is read; another major is not.
"""

import re
from functools import cache, lru_cache

from errata.contracts.base import Message
from errata.contracts.topics import TOPICS
from errata.errors import RefusedSchema

Headers = tuple[tuple[str, bytes], ...]

SCHEMA_HEADER = "schema"
_STATED = re.compile(rb"([a-z-]{1,64})/(\d{1,9})\.(\d{1,9})")
_TOPIC_MAJOR = re.compile(r"\.v([1-9]\d*)$")


def slug(message: type[Message]) -> str:
    """The name of a message in headers, file names and schema ids.

    >>> from errata.contracts.events import PredictionEvent
    >>> slug(PredictionEvent)
    'prediction-event'
    """
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in message.__name__).lstrip("-")


@cache
def schema_of(topic: str) -> tuple[bytes, int] | None:
    """Name and major of the message of a topic; None for a topic that has no version.

    >>> schema_of("errata.outcomes.v1")
    (b'outcome', 1)
    """
    found = _TOPIC_MAJOR.search(topic)
    message = TOPICS[topic].message if topic in TOPICS else None
    return None if found is None or message is None else (slug(message).encode(), int(found[1]))


def refused_version(topic: str, headers: Headers) -> RefusedSchema | None:
    """Why a record cannot be read by what its header says of its schema; None if it can.

    A header of the same name in another form, or that names another message, is not ours: the value decides.
    """
    for name, value in headers:
        if name == SCHEMA_HEADER and (fault := _fault(topic, value)) is not None:
            return RefusedSchema("", fault)
    return None


@lru_cache(maxsize=256)
def _fault(topic: str, value: bytes) -> str | None:
    stated, known = _STATED.fullmatch(value), schema_of(topic)
    if not (stated and known and stated[1] == known[0]) or int(stated[2]) == known[1]:
        return None
    return f"the header says major {int(stated[2])} of this schema; major {known[1]} is read here"
