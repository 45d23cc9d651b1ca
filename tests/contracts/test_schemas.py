"""``schemas/`` is what the code says; its examples are taken, and refused where they are meant to be."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from errata.contracts import ChangeEvent, DeadLetter, Message, Outcome, PredictionEvent, ReceiptInput
from errata.contracts.schemas import MESSAGES, asyncapi_document, documents, message_schema, schema_file, slug
from errata.contracts.topics import TOPICS

SCHEMAS = Path(__file__).parents[2] / "schemas"
GOOD = SCHEMAS / "examples" / "good"
BAD = SCHEMAS / "examples" / "bad"
EXPECTED: dict[str, dict[str, Any]] = json.loads((BAD / "expected.json").read_text(encoding="utf-8"))
REFUSALS = {"decode", "schema", "oversize", "clock"}


def differences(wanted: dict[str, str], folder: Path) -> list[str]:
    """What ``make schemas`` would change in a folder."""
    found = [
        f"{path.name} is not generated"
        for path in sorted((*folder.glob("*.schema.json"), *folder.glob("*.yaml")))
        if path.name not in wanted
    ]
    for name, text in wanted.items():
        path = folder / name
        if not path.exists():
            found.append(f"{name} is missing")
        elif path.read_text(encoding="utf-8") != text:
            found.append(f"{name} differs")
    return found


def message_of(name: str) -> type[Message]:
    """The message an example is of: the longest message name that its file name starts with."""
    named = [message for message in MESSAGES if name == slug(message) or name.startswith(f"{slug(message)}-")]
    assert named, f"no message is called like {name}"
    return max(named, key=lambda message: len(slug(message)))


def first_pointer(error: ValidationError, value: Any) -> str:
    """The JSON pointer of the first fault; what pydantic says of the branch of a union is no part of it."""
    fault = error.errors()[0]
    steps: list[str] = []
    part: Any
    for part in fault["loc"]:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]
        elif not (fault["type"] == "missing" and part == fault["loc"][-1]):
            continue
        steps.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{step}" for step in steps)


def validator(message: type[Message]) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / schema_file(message)).read_text(encoding="utf-8"))
    return Draft202012Validator(schema)


def test_generated_is_committed() -> None:
    assert differences(documents(), SCHEMAS) == [], "run `make schemas` and commit what it writes"


@pytest.mark.whole
def test_a_changed_field_a_lost_file_and_an_orphan_are_differences(tmp_path: Path) -> None:
    for name, text in documents().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert differences(documents(), tmp_path) == []

    class Later(ChangeEvent):
        reason: str | None = None

    changed = message_schema(Later) | {"title": "ChangeEvent"}
    assert changed["properties"].keys() - message_schema(ChangeEvent)["properties"].keys() == {"reason"}
    (tmp_path / "left-over.schema.json").write_text("{}", encoding="utf-8")
    (tmp_path / "topics.yaml").unlink()
    wanted = documents() | {"change-event.schema.json": json.dumps(changed)}
    assert differences(wanted, tmp_path) == [
        "left-over.schema.json is not generated",
        "change-event.schema.json differs",
        "topics.yaml is missing",
    ]


def test_every_published_message_has_a_schema() -> None:
    def leaves(message: type[Message]) -> set[type[Message]]:
        return {message}.union(*(leaves(child) for child in message.__subclasses__()))

    published = {
        message for message in leaves(Message) - {Message} if message.__module__.startswith("errata.contracts.")
    }
    assert published == set(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES, ids=slug)
def test_a_schema_is_itself_valid_and_names_itself(message: type[Message]) -> None:
    schema = json.loads((SCHEMAS / schema_file(message)).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:errata:schema:{slug(message)}:{MESSAGES[message]}"
    assert schema["title"] == message.__name__
    assert schema["additionalProperties"] is True


def test_fields_carry_their_names_on_the_wire() -> None:
    assert {"from", "to"} <= message_schema(ChangeEvent)["properties"].keys()
    assert "class" in message_schema(DeadLetter)["required"]
    assert "from" in ReceiptInput.model_json_schema()["required"]
    for message in MESSAGES:
        assert '"from_"' not in json.dumps(message_schema(message))
        assert '"class_"' not in json.dumps(message_schema(message))


def test_required_fields_are_those_of_the_domain() -> None:
    assert message_schema(PredictionEvent)["required"] == ["event_id", "time"]
    assert message_schema(Outcome)["required"] == ["outcome_id", "model", "observed_time"]


@pytest.mark.parametrize("path", sorted(GOOD.glob("*.json")), ids=lambda path: path.stem)
def test_a_good_example_is_taken(path: Path) -> None:
    message = message_of(path.stem)
    text = path.read_text(encoding="utf-8")
    parsed = message.model_validate_json(text)
    assert [error.message for error in validator(message).iter_errors(json.loads(text))] == []
    # what we write is as good as what we read
    written = parsed.to_json()
    assert [error.message for error in validator(message).iter_errors(json.loads(written))] == []
    assert message.model_validate_json(written) == parsed


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bad_example_is_refused_where_it_is_wrong(name: str) -> None:
    message = message_of(name)
    text = (BAD / f"{name}.json").read_text(encoding="utf-8")
    value = json.loads(text)
    with pytest.raises(ValidationError) as caught:
        message.model_validate(value) if "\\ud800" in text else message.model_validate_json(text)
    assert first_pointer(caught.value, value) == EXPECTED[name]["pointer"]
    assert EXPECTED[name]["class"] in REFUSALS


@pytest.mark.parametrize("name", EXPECTED)
def test_json_schema_refuses_what_it_can_express(name: str) -> None:
    value = json.loads((BAD / f"{name}.json").read_text(encoding="utf-8"))
    refused = not validator(message_of(name)).is_valid(value)
    assert refused == EXPECTED[name]["json_schema"]


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("prediction-event-no-model", {"model": {"name": "fraud"}}),
        ("prediction-event-no-model", {"purpose": "tick"}),
        ("prediction-event-neither-prediction-nor-status", {"prediction": False}),
        ("prediction-event-neither-prediction-nor-status", {"status": {"code": "error"}}),
        ("outcome-judges-nothing", {"predicted": "legit"}),
        ("outcome-judges-nothing", {"prediction_id": "tx-1"}),
        ("outcome-says-nothing", {"score": 0}),
        ("outcome-says-nothing", {"value": False}),
    ],
)
def test_conditions_are_lifted_by_what_they_ask_for(name: str, cure: dict[str, Any]) -> None:
    message = message_of(name)
    value = json.loads((BAD / f"{name}.json").read_text(encoding="utf-8")) | cure
    assert validator(message).is_valid(value)
    message.model_validate_json(json.dumps(value))


def test_every_message_has_examples_and_no_file_is_an_orphan() -> None:
    good = {path.stem for path in GOOD.iterdir()}
    bad = {path.stem for path in BAD.iterdir()} - {"expected"}
    assert {message_of(name) for name in good} == set(MESSAGES)
    assert {message_of(name) for name in bad} == set(MESSAGES)
    assert bad == set(EXPECTED)
    top = {path.name for path in SCHEMAS.iterdir()}
    assert top == set(documents()) | {"examples"}


def test_asyncapi_refers_only_to_what_is_there() -> None:
    document = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))
    assert document == asyncapi_document()
    assert document["asyncapi"] == "3.1.0"
    assert set(document["channels"]) == set(TOPICS)
    for reference in _references(document):
        assert _resolves(reference, document), f"{reference} leads nowhere"
    assert not _resolves("#/channels/errata.gone.v1", document)
    assert not _resolves("./gone.schema.json", document)


def test_asyncapi_has_an_operation_for_every_reader_and_writer() -> None:
    document = asyncapi_document()
    actions = {(operation["channel"]["$ref"], operation["action"]) for operation in document["operations"].values()}
    for topic in TOPICS.values():
        assert (f"#/channels/{topic.name}", "send") in actions
        assert (f"#/channels/{topic.name}", "receive") in actions
    assert len(document["operations"]) == sum(len(t.producers) + len(t.consumers) for t in TOPICS.values())
    for name, operation in document["operations"].items():
        assert operation["action"] in {"send", "receive"}, name
        channel = operation["channel"]["$ref"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"]), name


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [reference for part in value for reference in _references(part)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if "$ref" in value else []
    return own + [reference for part in value.values() for reference in _references(part)]


def _resolves(reference: str, document: Any) -> bool:
    if reference.startswith("./"):
        return (SCHEMAS / reference).is_file()
    for step in reference.removeprefix("#/").split("/"):
        if not isinstance(document, dict) or step not in document:
            return False
        document = document[step]
    return True
