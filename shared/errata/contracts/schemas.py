"""The published schemas: what ``schemas/`` holds, made from the messages and the topic registry, and a comparison.

Nothing is written here: ``documents()`` gives texts by file name. Whether a new schema still takes what an old one took
is answered by ``breaking_changes``.
"""

import json
from collections.abc import Iterator
from typing import Any, Literal

import yaml

from errata import __version__
from errata.contracts.anomalies import Anomaly, EnrichedAnomaly, TaggedCase
from errata.contracts.base import Message
from errata.contracts.cases import FailureCase
from errata.contracts.events import ChangeEvent, MetricPoint, Outcome, PredictionEvent
from errata.contracts.heartbeats import Heartbeat
from errata.contracts.models import Contract, Reference
from errata.contracts.runtime import DeadLetter, Receipt, Resolution
from errata.contracts.strict import MAX_FEATURES
from errata.contracts.topics import STAGES, TOPICS, Topic
from errata.contracts.trends import Trend
from errata.contracts.versions import slug as slug

Schema = dict[str, Any]
Mode = Literal["validation", "serialization"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI = "3.1.0"
KAFKA_BINDING = "0.5.0"
MAX_MESSAGE_BYTES = 1024 * 1024

# The major of a message's schema. It goes up with each change that `breaking_changes` reports, and so does its topic's.
MESSAGES: dict[type[Message], int] = {
    PredictionEvent: 1,
    Outcome: 1,
    ChangeEvent: 1,
    MetricPoint: 1,
    Contract: 1,
    Reference: 1,
    Heartbeat: 1,
    Anomaly: 1,
    EnrichedAnomaly: 1,
    TaggedCase: 1,
    FailureCase: 1,
    DeadLetter: 1,
    Resolution: 1,
    Trend: 1,
    Receipt: 1,
}

# What `Instant` takes, but for days and hours that do not exist: a pattern cannot count them.
_INSTANT_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"


def _given(field: str) -> Schema:
    """The field is there and is not null: null means absent in every message."""
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


# Requirements that hang together, which pydantic checks in code and so leaves out of its schema.
_CONDITIONS: dict[type[Message], list[Schema]] = {
    PredictionEvent: [
        {
            "if": {"required": ["purpose"], "properties": {"purpose": {"const": "tick"}}},
            "else": {"allOf": [_given("model"), {"anyOf": [_given("prediction"), _given("status")]}]},
        }
    ],
    Outcome: [
        {"anyOf": [_given("prediction_id"), _given("predicted")]},
        {"anyOf": [_given("value"), _given("score")]},
    ],
}


def schema_file(message: type[Message]) -> str:
    return f"{slug(message)}.schema.json"


def message_schema(message: type[Message], major: int = 1, mode: Mode = "validation") -> Schema:
    """The JSON Schema 2020-12 of a message, with the requirements that pydantic leaves to code."""
    schema = message.model_json_schema(by_alias=True, mode=mode)
    for node in _nodes(schema):
        if node.get("format") == "date-time":
            node["pattern"] = _INSTANT_PATTERN
    if message is PredictionEvent:
        schema["properties"]["features"]["maxProperties"] = MAX_FEATURES
    if message in _CONDITIONS:
        schema["allOf"] = _CONDITIONS[message]
    head = {"$schema": DIALECT, "$id": f"urn:errata:schema:{slug(message)}:{major}", "title": message.__name__}
    return head | {name: part for name, part in schema.items() if name not in head}


def documents() -> dict[str, str]:
    """Every generated file of ``schemas/``, by its name in there. The same code gives the same bytes."""
    texts: dict[str, str] = {}
    for message, major in MESSAGES.items():
        read = message_schema(message, major)
        written = message_schema(message, major, "serialization")
        texts[schema_file(message)] = _json(read)
        if written != read:
            texts[f"{slug(message)}.written.schema.json"] = _json(written)
    texts["topics.yaml"] = _yaml(topics_document())
    texts["asyncapi.yaml"] = _yaml(asyncapi_document())
    return texts


def topics_document() -> dict[str, Any]:
    return {"topics": [_topic_entry(topic) for topic in TOPICS.values()]}


def asyncapi_document() -> dict[str, Any]:
    """AsyncAPI of the whole chain: one channel a topic, one operation for each process that writes or reads it."""
    operations: dict[str, Any] = {}
    for topic in TOPICS.values():
        for producer in topic.producers:
            operations[_operation_id(producer, "send", topic)] = _operation(producer, "send", topic)
        for consumer in topic.consumers:
            operations[_operation_id(consumer, "receive", topic)] = _operation(consumer, "receive", topic)
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "errata",
            "version": __version__,
            "description": "From the predictions of ML models in production to a catalogue of failure cases.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in TOPICS.values()},
        "operations": operations,
    }


def _topic_entry(topic: Topic) -> dict[str, Any]:
    return {
        "name": topic.name,
        "meaning": topic.meaning,
        "key": topic.key,
        "partitions": topic.partitions,
        "cleanup": topic.cleanup,
        "retention_s": topic.retention_s,
        "timestamps": topic.timestamps,
        "schema": schema_file(topic.message) if topic.message else None,
        **({"others": [schema_file(other) for other in topic.others]} if topic.others else {}),
        "producers": list(topic.producers),
        "consumers": list(topic.consumers),
        "dead_letters": topic.dead_letters,
    }


def _channel(topic: Topic) -> dict[str, Any]:
    configuration: dict[str, Any] = {"cleanup.policy": [topic.cleanup], "max.message.bytes": MAX_MESSAGE_BYTES}
    if topic.retention_s is not None:
        configuration["retention.ms"] = topic.retention_s * 1000
    return {
        "address": topic.name,
        "description": topic.meaning,
        "messages": {
            _message_name(topic): _channel_message(topic),
            **{other.__name__: _payload(other) for other in topic.others},
        },
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": configuration,
                "bindingVersion": KAFKA_BINDING,
            }
        },
    }


def _channel_message(topic: Topic) -> dict[str, Any]:
    key = {"type": "string", "description": topic.key}
    bindings = {"kafka": {"key": key, "bindingVersion": KAFKA_BINDING}}
    if topic.message is None:
        return {"name": _message_name(topic), "contentType": "application/octet-stream", "bindings": bindings}
    return {**_payload(topic.message), "bindings": bindings}


def _payload(message: type[Message]) -> dict[str, Any]:
    return {
        "name": slug(message),
        "title": message.__name__,
        # AsyncAPI knows no newer dialect, and our schemas use nothing newer but `$defs`, which is a plain pointer.
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-07",
            "schema": {"$ref": f"./{schema_file(message)}"},
        },
    }


def _operation(process: str, action: str, topic: Topic) -> dict[str, Any]:
    channel = f"#/channels/{topic.name}"
    operation: dict[str, Any] = {
        "action": action,
        "title": f"{process} {'writes' if action == 'send' else 'reads'} {topic.name}",
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{name}"} for name in _message_names(topic)],
    }
    if action == "receive" and process in STAGES:
        group = {"type": "string", "enum": [f"errata.{process}"]}
        operation["bindings"] = {"kafka": {"groupId": group, "bindingVersion": KAFKA_BINDING}}
    return operation


def _operation_id(process: str, action: str, topic: Topic) -> str:
    return f"{process.replace(' ', '-')}.{action}.{topic.name}"


def _message_names(topic: Topic) -> list[str]:
    return [_message_name(topic), *(other.__name__ for other in topic.others)]


def _message_name(topic: Topic) -> str:
    return topic.message.__name__ if topic.message else "StateBlock"


def _json(document: Schema) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class _Plain(yaml.SafeDumper):
    """YAML without anchors: a repeated part is written again, so that a reader need not jump."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(document: dict[str, Any]) -> str:
    body = yaml.dump(document, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    return f"# Generated by `make schemas`. Do not edit.\n{body}"


def _nodes(value: Any) -> Iterator[Schema]:
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _nodes(part)
    elif isinstance(value, list):
        for part in value:
            yield from _nodes(part)


# Compatibility: may a reader of `new` still read every message that was valid by `old`?

_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


def breaking_changes(old: Schema, new: Schema) -> list[str]:
    """What ``new`` no longer takes of what ``old`` took, one line each, with the JSON pointer of the field.

    Knows the forms that ``message_schema`` writes. A field that is gone is a break although unknown fields are kept:
    its readers would find nothing. So is a changed default: it changes what old messages mean.

    >>> text = {"type": "object", "properties": {"id": {"type": "string", "maxLength": 9}}}
    >>> breaking_changes(text, {"type": "object", "properties": {"id": {"type": "string", "maxLength": 8}}})
    ['/id: maxLength tightened from 9 to 8']
    >>> breaking_changes(text, {**text, "required": ["id"]})
    ['/id: is now required']
    """
    return _Comparison(old, new).breaks(old, new, "")


class _Comparison:
    """Compares two schemas, each with its own ``$defs``."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old_root = old
        self._new_root = new

    def breaks(self, old: Schema, new: Schema, pointer: str) -> list[str]:
        """Each form of the old node must be taken by one form of the new one."""
        old_forms = _forms(old, self._old_root)
        new_forms = _forms(new, self._new_root)
        found: list[str] = []
        for form in old_forms:
            tries = [self._form_breaks(form, other, pointer) for other in new_forms if _may_take(form, other)]
            if not tries:
                found.append(f"{pointer or '/'}: {_kind(form)} is no longer taken")
            elif all(tries):
                found.extend(sorted(tries, key=len)[0])
        return found

    def _form_breaks(self, old: Schema, new: Schema, pointer: str) -> list[str]:
        where = pointer or "/"
        return [
            *(f"{where}: {text}" for text in (*_bounds_tightened(old, new), *_values_removed(old, new))),
            *self._fields(old, new, pointer),
            *self._members(old, new, pointer),
        ]

    def _fields(self, old: Schema, new: Schema, pointer: str) -> list[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        found = [f"{pointer}/{name}: is gone or was renamed" for name in before if name not in after]
        required = set(new.get("required", ())) - set(old.get("required", ()))
        found += [f"{pointer}/{name}: is now required" for name in sorted(required)]
        for name in before:
            if name in after:
                found += self.breaks(before[name], after[name], f"{pointer}/{name}")
                found += _default_changed(before[name], after[name], f"{pointer}/{name}")
        return found

    def _members(self, old: Schema, new: Schema, pointer: str) -> list[str]:
        found: list[str] = []
        for keyword, step in (("items", "*"), ("additionalProperties", "*")):
            before, after = old.get(keyword, True), new.get(keyword, True)
            if after is True:
                continue
            if after is False:
                if before is not False:
                    found.append(f"{pointer}/{step}: unknown fields are no longer taken")
            elif before is not False:
                found += self.breaks({} if before is True else before, after, f"{pointer}/{step}")
        return found


def _forms(node: Schema, root: Schema) -> list[Schema]:
    """The alternatives of a node, with references followed."""
    if "$ref" in node:
        name = str(node["$ref"]).removeprefix("#/$defs/")
        return _forms(root["$defs"][name], root)
    for keyword in ("anyOf", "oneOf"):
        if keyword in node:
            return [form for part in node[keyword] for form in _forms(part, root)]
    return [node]


def _kind(form: Schema) -> str:
    return str(form.get("type", "any value"))


def _may_take(old: Schema, new: Schema) -> bool:
    before, after = old.get("type"), new.get("type")
    return after is None or before == after or (before == "integer" and after == "number")


def _bounds_tightened(old: Schema, new: Schema) -> Iterator[str]:
    for names, sign in ((_LOWER_BOUNDS, 1), (_UPPER_BOUNDS, -1)):
        for name in names:
            if name in new and (name not in old or sign * new[name] > sign * old[name]):
                yield f"{name} tightened from {old.get(name, 'none')} to {new[name]}"
    for name in ("pattern", "format", "propertyNames"):
        if name in new and new[name] != old.get(name):
            yield f"{name} was added or changed"
    if any(condition not in old.get("allOf", []) for condition in new.get("allOf", [])):
        yield "a condition between fields was added or changed"


def _values_removed(old: Schema, new: Schema) -> Iterator[str]:
    before, after = _values(old), _values(new)
    if after is None:
        return
    if before is None:
        yield "only listed values are taken now"
        return
    gone = [value for value in before if value not in after]
    if gone:
        yield f"values removed: {', '.join(map(str, gone))}"


def _values(form: Schema) -> list[Any] | None:
    if "const" in form:
        return [form["const"]]
    values: list[Any] | None = form.get("enum")
    return values


def _default_changed(old: Schema, new: Schema, pointer: str) -> list[str]:
    changed = "default" in old and ("default" not in new or old["default"] != new["default"])
    return [f"{pointer}: default changed, which changes what old messages mean"] if changed else []
