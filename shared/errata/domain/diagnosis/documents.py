"""Reading the YAML people write taxonomies and rules in: plain data only, of bounded size and depth."""

import math
import re
from collections.abc import Collection
from typing import Any, Final

import yaml

from errata.errors import Misconfigured

MAX_DOCUMENT_BYTES: Final = 256 * 1024
MAX_DOCUMENT_DEPTH: Final = 24

_MAP, _LIST = yaml.MappingStartEvent, yaml.SequenceStartEvent


def read_document(text: str, what: str) -> dict[str, Any]:
    """The top-level mapping of a YAML text, or ``Misconfigured``.

    An alias is refused, as a few nested ones unfold to gigabytes; so is a key given twice, as the first would be lost.
    """
    if len(text.encode("utf-8", "replace")) > MAX_DOCUMENT_BYTES:
        raise Misconfigured(f"{what}: over {MAX_DOCUMENT_BYTES // 1024} KiB; split it or leave out what is not used")
    try:
        _check_events(text, what)
        _check_keys(yaml.compose(text, Loader=yaml.SafeLoader), what)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Misconfigured(f"{what}: not YAML{_at(getattr(error, 'problem_mark', None))}") from None
    except (ValueError, OverflowError):
        raise Misconfigured(f"{what}: a date or number that does not exist; put quotes around texts") from None
    if not isinstance(document, dict):
        raise Misconfigured(f"{what}: the top level is {kind_of(document)}; write a mapping with version and entries")
    return document


def _check_events(text: str, what: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise Misconfigured(f"{what}{_at(event.start_mark)}: aliases (*name) are refused; write it out")
        if isinstance(event, _MAP | _LIST):
            depth += 1
            if depth > MAX_DOCUMENT_DEPTH:
                raise Misconfigured(f"{what}: nested deeper than {MAX_DOCUMENT_DEPTH}; write it flatter")
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            depth -= 1


def _check_keys(node: yaml.Node | None, what: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, what)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise Misconfigured(f"{what}{_at(key.start_mark)}: a key is not a text; write a plain word")
            if key.value in seen:
                raise Misconfigured(f"{what}{_at(key.start_mark)}: a key stands twice; remove one")
            seen.add(key.value)
            _check_keys(value, what)


def _at(mark: Any) -> str:
    return f", line {mark.line + 1}" if mark is not None else ""


def kind_of(value: object) -> str:
    """The kind of a value in words, for messages that do not repeat it."""
    for kind, name in ((bool, "a bool"), (int | float, "a number"), (str, "a text"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "a mapping" if isinstance(value, dict) else "nothing" if value is None else "a date or other value"


def only_keys(entry: object, allowed: Collection[str], where: str) -> dict[str, Any]:
    """``entry`` as a mapping that has no other keys than these."""
    if not isinstance(entry, dict):
        raise Misconfigured(f"{where}: is {kind_of(entry)}; write a mapping with {', '.join(sorted(allowed))}")
    for key in entry:
        if key not in allowed:
            raise Misconfigured(f"{where}: unknown key {key!s}; use one of {', '.join(sorted(allowed))}")
    return entry


def text_of(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise Misconfigured(
            f"{where}: {key} is {kind_of(value)}; write a text that is not empty (quote it if in doubt)"
        )
    return value


def texts_of(value: object, where: str) -> list[str]:
    if not isinstance(value, list):
        raise Misconfigured(f"{where}: is {kind_of(value)}; write a list of texts")
    for item in value:
        if not isinstance(item, str):
            raise Misconfigured(f"{where}: an entry is {kind_of(item)}; write texts (put quotes around numbers)")
    return value


def number_of(value: object, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Misconfigured(f"{where}: is {kind_of(value)}; write a finite number")
    if not low <= value <= high:
        raise Misconfigured(f"{where}: is out of range; write a number from {low:g} to {high:g}")
    return float(value)


def entries_of(document: dict[str, Any], key: str, what: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise Misconfigured(f"{what}: {key} is {kind_of(value)}; write a list (it may be empty: [])")
    return value


def version_of(document: dict[str, Any], what: str) -> str:
    version = text_of(document, "version", what)
    if re.fullmatch(r"\d{1,6}\.\d{1,6}\.\d{1,6}", version, re.ASCII) is None:
        raise Misconfigured(f'{what}: version is not of the form "1.0.0"')
    return version
