"""What all messages share: strict types, frozen values, one canonical form on the wire."""

import json
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from errata.contracts.strict import Instant, Text

__all__ = [
    "Fields",
    "FiniteNumber",
    "Instant",
    "Message",
    "NonNegative",
    "Part",
    "Share",
    "Text",
    "canonical",
]

FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Fields = dict[str, Any]


class Part(BaseModel):
    """A nested object of a message: frozen, strict, finite numbers only.

    Unknown fields are kept, so that a reader of an older minor version loses nothing.
    """

    model_config = ConfigDict(
        # Texts of messages are ids and times, no two alike: keeping 16,384 of them, as pydantic would, is 1.5 MB by
        # which each service grows for hours, and saves nothing.
        cache_strings="keys",
        defer_build=True,
        frozen=True,
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        populate_by_name=True,
        protected_namespaces=(),
    )


class Message(Part):
    """A message that crosses a process boundary."""

    def to_json(self) -> bytes:
        """The canonical bytes of this message: sorted keys, no blanks, UTF-8, nulls left out."""
        return canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True))


def complete_messages() -> None:
    """Build what checks all messages now. Else each is built when it is first made, and a service is slow to tell of
    its first failure."""
    waiting: list[type[Part]] = [Part]
    while waiting:
        one = waiting.pop()
        one.model_rebuild()  # does nothing where it is complete
        waiting += one.__subclasses__()


def canonical(value: object) -> bytes:
    """Canonical JSON of plain data.

    >>> canonical({"b": 1, "a": ["é"]})
    b'{"a":["\\xc3\\xa9"],"b":1}'
    """
    return _encode(value).encode()


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a message holds plain data only, not {type(value).__name__}")


_encode = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
).encode
