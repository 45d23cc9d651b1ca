"""What 0.1.0 wrote can still be read, and its messages come back byte for byte."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.contracts import ChangeEvent, Message, Outcome, PredictionEvent, Reference
from errata.contracts.schemas import MESSAGES, breaking_changes, message_schema, schema_file, slug

GOLDEN = Path(__file__).parent / "golden"
RELEASES = sorted(path.name for path in GOLDEN.iterdir())
GOLDEN_MESSAGES = sorted(GOLDEN.glob("*/messages/*.json"))
GOLDEN_SCHEMAS = sorted(GOLDEN.glob("*/schemas/*.schema.json"))

Schema = dict[str, Any]
Change = Callable[[Schema], object]


def major(schema: Schema) -> int:
    return int(schema["$id"].rsplit(":", 1)[1])


def unannounced(old: Schema, new: Schema) -> list[str]:
    """Breaking changes that no new major announces."""
    return breaking_changes(old, new) if major(old) == major(new) else []


def current(name: str) -> Schema:
    for message, number in MESSAGES.items():
        if schema_file(message) == name:
            return message_schema(message, number)
    raise AssertionError(f"{name} was published and is gone")


def message_of(name: str) -> type[Message]:
    named = [message for message in MESSAGES if name.startswith(slug(message))]
    return max(named, key=lambda message: len(slug(message)))


@pytest.mark.parametrize("path", GOLDEN_SCHEMAS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_no_breaking_change_without_a_new_major(path: Path) -> None:
    old = json.loads(path.read_text(encoding="utf-8"))
    assert unannounced(old, current(path.name)) == []


@pytest.mark.parametrize("path", GOLDEN_MESSAGES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_golden_message_comes_back_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()
    assert message_of(path.stem).model_validate_json(data).to_json() == data


def test_golden_files_cover_every_message_of_every_release() -> None:
    assert RELEASES == ["0.1.0"]
    for release in RELEASES:
        messages = {message_of(path.stem) for path in (GOLDEN / release / "messages").iterdir()}
        schemas = {path.name for path in (GOLDEN / release / "schemas").iterdir()}
        assert messages == set(MESSAGES)
        assert schemas == {schema_file(message) for message in MESSAGES}


def test_bytes_that_are_not_canonical_do_not_come_back() -> None:
    data = (GOLDEN / "0.1.0" / "messages" / "change-event-deploy.json").read_bytes()
    assert ChangeEvent.model_validate_json(data + b"\n").to_json() != data + b"\n"
    assert ChangeEvent.model_validate_json(data.replace(b",", b", ", 1)).to_json() == data


def test_fields_of_a_later_minor_are_kept() -> None:
    data = (GOLDEN / "0.1.0" / "messages" / "change-event-deploy.json").read_bytes()
    later = data.replace(b'{"', b'{"a_later_field":[1,{"b":null}],"', 1)
    assert b'"a_later_field":[1,' in ChangeEvent.model_validate_json(later).to_json()


def test_a_schema_is_compatible_with_itself() -> None:
    for message in MESSAGES:
        assert breaking_changes(message_schema(message), message_schema(message)) == []


def _drop(schema: Schema, name: str) -> None:
    del schema["properties"][name]


def _rename(schema: Schema, name: str, to: str) -> None:
    schema["properties"][to] = schema["properties"].pop(name)


PREDICTION_BREAKS: list[tuple[Change, str]] = [
    (lambda s: _drop(s, "latency_ms"), "/latency_ms: is gone or was renamed"),
    (lambda s: _rename(s, "scores", "votes"), "/scores: is gone or was renamed"),
    (lambda s: s["required"].append("tenant"), "/tenant: is now required"),
    (lambda s: s["$defs"]["ModelRef"]["required"].append("version"), "/model/version: is now required"),
    (lambda s: s["properties"]["purpose"]["enum"].remove("drill"), "/purpose: values removed: drill"),
    (lambda s: s["properties"]["event_id"].update(maxLength=64), "/event_id: maxLength tightened from 200 to 64"),
    (lambda s: s["properties"]["event_id"].update(minLength=2), "/event_id: minLength tightened from 1 to 2"),
    (lambda s: s["properties"]["source"].update(anyOf=[{"type": "string"}]), "/source: null is no longer taken"),
    (lambda s: s["properties"]["prediction"]["anyOf"].pop(0), "/prediction: boolean is no longer taken"),
    (lambda s: s["properties"]["prediction"]["anyOf"].pop(3), "/prediction: string is no longer taken"),
    (
        lambda s: s["properties"]["prediction"]["anyOf"][4].update(maxItems=16),
        "/prediction: maxItems tightened from 4096 to 16",
    ),
    (lambda s: s["properties"]["type"].update(pattern="^errata"), "/type: pattern was added or changed"),
    (
        lambda s: s["properties"]["features"].update(maxProperties=10),
        "/features: maxProperties tightened from 2000 to 10",
    ),
    (
        lambda s: s["properties"]["scores"].update(additionalProperties={"type": "integer"}),
        "/scores/*: number is no longer taken",
    ),
    (
        lambda s: s["properties"]["features"].update(additionalProperties={"type": "number"}),
        "/features/*: any value is no longer taken",
    ),
    (lambda s: s.update(additionalProperties=False), "/*: unknown fields are no longer taken"),
    (
        lambda s: s["properties"]["purpose"].update(default="drill"),
        "/purpose: default changed, which changes what old messages mean",
    ),
    (
        lambda s: s["allOf"].append({"required": ["confidence"]}),
        "/: a condition between fields was added or changed",
    ),
    (
        lambda s: s["$defs"]["Status"]["properties"]["code"].update(const="ok"),
        "/status/code: values removed: error, timeout, fallback, missing_response",
    ),
]


@pytest.mark.parametrize(("change", "expected"), PREDICTION_BREAKS, ids=[text for _, text in PREDICTION_BREAKS])
def test_a_breaking_change_is_named(change: Change, expected: str) -> None:
    old = message_schema(PredictionEvent)
    new = copy.deepcopy(old)
    change(new)
    assert breaking_changes(old, new) == [expected]
    assert unannounced(old, new) == [expected]
    assert unannounced(old, new | {"$id": "urn:errata:schema:prediction-event:2"}) == []


PREDICTION_WIDENINGS: list[Change] = [
    lambda s: s["properties"].update(region={"type": "string"}),
    lambda s: s["required"].remove("time"),
    lambda s: s["properties"]["purpose"]["enum"].append("shadow"),
    lambda s: s["properties"]["event_id"].update(maxLength=400),
    lambda s: s["properties"]["event_id"].pop("minLength"),
    lambda s: s["properties"].update(tenant={"default": "default"}),
    lambda s: s["allOf"].clear(),
    lambda s: s["properties"]["prediction"]["anyOf"].append({"type": "object"}),
    # an integer is a number, so nothing is lost
    lambda s: s["properties"]["prediction"]["anyOf"].pop(1),
    lambda s: s["properties"]["type"].update(description="another text", title="Other"),
]


@pytest.mark.parametrize("change", PREDICTION_WIDENINGS)
def test_a_widening_is_no_break(change: Change) -> None:
    old = message_schema(PredictionEvent)
    new = copy.deepcopy(old)
    change(new)
    assert new != old
    assert breaking_changes(old, new) == []


def test_a_branch_of_a_union_is_compared_with_its_like() -> None:
    old = message_schema(Reference)
    new = copy.deepcopy(old)
    del new["$defs"]["CategorySketch"]["properties"]["other"]
    assert any(line.startswith("/sketches/*") for line in breaking_changes(old, new))


def test_all_breaks_are_told_at_once() -> None:
    old = message_schema(Outcome)
    new = copy.deepcopy(old)
    _drop(new, "rationale")
    new["required"].append("kind")
    assert breaking_changes(old, new) == ["/rationale: is gone or was renamed", "/kind: is now required"]
