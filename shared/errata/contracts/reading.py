"""Reading a message of our own topics back: a value is a message or a refusal that names the field, never its value."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from errata.contracts.base import Message
from errata.errors import Refused, RefusedDecode, RefusedSchema

M = TypeVar("M", bound=Message)

_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a bool"),
    ((int, float), "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "an object"),
)


def read_message(model: type[M], value: bytes | None) -> M | Refused:
    """The message in ``value``, or why it is none: class and JSON pointer of the first faulty field."""
    if value is None:
        return RefusedDecode("", f"no value; a record of this topic holds a {model.__name__}")
    try:
        return model.model_validate_json(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return RefusedDecode("", "not JSON")
    return RefusedSchema(_pointer(first["loc"]), _message(first))


def kind_of(value: object) -> str:
    """The kind of a value in words, for messages that must not show the value itself.

    >>> kind_of("secret"), kind_of(None), kind_of(3)
    ('a text', 'null', 'a number')
    """
    if value is None:
        return "null"
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "something else")


def _pointer(loc: tuple[int | str, ...]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in loc)


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "this field is required"
    said = str(error["msg"]).removeprefix("Value error, ")
    return f"{said}; it is {kind_of(error['input'])}"
