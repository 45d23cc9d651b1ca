"""The taxonomy: what tags there are, what each means, how much harm it does, and where the field calls it what."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, get_args

from errata.contracts.anomalies import Layer, RootClass
from errata.domain.diagnosis.documents import (
    entries_of,
    number_of,
    only_keys,
    read_document,
    text_of,
    texts_of,
    version_of,
)
from errata.errors import Misconfigured

LAYERS: Final[tuple[Layer, ...]] = ("infrastructure", "data", "model", "integration")  # in the order they are ruled out
UNKNOWN_TAG: Final = "errata:diagnosis:unknown"

_TAG = re.compile(r"[a-z][a-z0-9_]*:[a-z][a-z0-9_]*:[a-z][a-z0-9_]*", re.ASCII)
_KEYS = ("tag", "definition", "examples", "synonyms", "harm", "layer", "root_class", "maps")
_MAPS = ("avid", "atlas", "gmf", "clears")


@dataclass(frozen=True, slots=True)
class TagDefinition:
    """One tag ``namespace:predicate:value``. ``harm`` is its weight 0..1; ``layer`` None: it speaks of no layer."""

    tag: str
    definition: str
    harm: float
    layer: Layer | None
    root_class: RootClass
    examples: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    maps: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Taxonomy:
    version: str
    tags: Mapping[str, TagDefinition]


def load_taxonomy(text: str) -> Taxonomy:
    """A taxonomy from YAML. Raises ``Misconfigured`` that names the tag and the key."""
    document = only_keys(read_document(text, "taxonomy"), ("version", "tags"), "taxonomy")
    tags: dict[str, TagDefinition] = {}
    for at, entry in enumerate(entries_of(document, "tags", "taxonomy")):
        definition = _definition(entry, at)
        if definition.tag in tags:
            raise Misconfigured(f"taxonomy: tag {definition.tag}: stands twice; remove one")
        tags[definition.tag] = definition
    return Taxonomy(version_of(document, "taxonomy"), tags)


@cache
def default_taxonomy() -> Taxonomy:
    """The taxonomy that comes with the package."""
    return load_taxonomy(resources.files(__package__).joinpath("taxonomy.yaml").read_text("utf-8"))


def _definition(entry: object, at: int) -> TagDefinition:
    fields = only_keys(entry, _KEYS, f"taxonomy: tags[{at}]")
    tag = text_of(fields, "tag", f"taxonomy: tags[{at}]")
    if _TAG.fullmatch(tag) is None:
        raise Misconfigured(f"taxonomy: tags[{at}].tag: not of the form namespace:predicate:value in lower case")
    where = f"taxonomy: tag {tag}"
    maps = only_keys(fields.get("maps", {}), _MAPS, f"{where}: maps")
    return TagDefinition(
        tag=tag,
        definition=text_of(fields, "definition", where),
        harm=number_of(fields.get("harm"), f"{where}: harm", 0, 1),
        layer=_one_of(fields, "layer", get_args(Layer), where) if fields.get("layer") is not None else None,
        root_class=_one_of(fields, "root_class", get_args(RootClass), where),
        examples=tuple(texts_of(fields.get("examples", []), f"{where}: examples")),
        synonyms=tuple(texts_of(fields.get("synonyms", []), f"{where}: synonyms")),
        maps=tuple((name, tuple(texts_of(maps[name], f"{where}: maps.{name}"))) for name in sorted(maps)),
    )


def _one_of(fields: dict[str, Any], key: str, allowed: tuple[str, ...], where: str) -> Any:
    value = text_of(fields, key, where)
    if value not in allowed:
        raise Misconfigured(f"{where}: {key}: write one of {', '.join(allowed)}")
    return value
