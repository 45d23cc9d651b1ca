"""What was sent to a release gives what it gave then: columns, refusals, anomalies."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.golden_corpus import FILES, GOLDEN, anomalies, outputs, read_records, read_tables, record

from errata.contracts.schemas import MESSAGES
from errata.contracts.topics import CHANGES, LEDGER, OUTCOMES, PREDICTIONS, TOPICS
from errata.contracts.versions import refused_version, schema_of, slug

CORPORA = sorted(GOLDEN.glob("*/corpus"))
RELEASES = [path.parent.name for path in CORPORA]


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=CORPORA, ids=RELEASES)
def corpus(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


def test_every_release_has_its_corpus() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == RELEASES
    assert all({path.name for path in folder.iterdir()} == set(FILES) for folder in CORPORA)


def test_every_line_gives_the_columns_or_the_refusal_of_then(corpus: Path) -> None:
    given, wanted = read_records(corpus / "inputs.jsonl"), read_lines(corpus / "recorded.jsonl")
    found = json.loads(json.dumps(outputs(read_tables(corpus), given)))
    ordered = [one for one in given if one.topic != CHANGES] + [one for one in given if one.topic == CHANGES]
    assert len(found) == len(wanted) == len(ordered)
    differing = [(one.value, a, b) for one, a, b in zip(ordered, found, wanted, strict=True) if a != b]
    assert differing == []


def test_the_stream_gives_the_anomalies_of_then(corpus: Path) -> None:
    wanted = read_lines(corpus / "anomalies.jsonl")
    assert anomalies(read_tables(corpus), read_records(corpus / "stream.jsonl")) == wanted


def test_the_corpus_holds_every_kind_of_thing(corpus: Path) -> None:
    recorded = read_lines(corpus / "recorded.jsonl")
    kinds = Counter(next(iter(one.keys() & {"row", "refused", "tick", "beat", "outcome", "skipped", "change"}))
                    for one in recorded)  # fmt: skip
    assert min(kinds[name] for name in ("row", "refused", "tick", "beat", "outcome", "skipped", "change")) > 0
    assert {one["refused"] for one in recorded if "refused" in one} >= {"decode", "schema", "clock"}
    assert {one["row"][2] for one in recorded if "row" in one} == {"live", "drill", "backfill"}
    assert len(recorded) > 300
    said = read_lines(corpus / "anomalies.jsonl")
    states = {one["episode"]["state"] for one in said if "episode" in one}
    assert states >= {"open", "update"}
    assert any("heartbeat_id" in one for one in said)


@pytest.mark.parametrize("change", ["value", "table"])
def test_another_reading_of_an_old_line_is_seen(corpus: Path, change: str) -> None:
    """Negative control: an event that says something else, and a contract that means something else."""
    given, tables = read_records(corpus / "inputs.jsonl"), read_tables(corpus)
    if change == "value":
        at = next(n for n, one in enumerate(given) if b'"amount": 1.5' in (one.value or b""))
        given[at] = given[at]._replace(value=(given[at].value or b"").replace(b"1.5", b"1.25"))
    else:
        tables = [one for one in tables if one.model != "fraud"]
    wanted = read_lines(corpus / "recorded.jsonl")
    found = json.loads(json.dumps(outputs(tables, given)))
    differing = sum(a != b for a, b in zip(found, wanted, strict=True))
    assert differing == 1 if change == "value" else differing > 1


def test_a_corpus_is_recorded_once(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        record(CORPORA[0])
    record(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (CORPORA[-1] / name).read_bytes(), name


# -- the header that says of which version a record is ----------------------------------------------------------------


def stated(text: bytes, topic: str = PREDICTIONS) -> bool:
    return refused_version(topic, (("x", b"prediction-event/2.0"), ("schema", text))) is not None


def test_majors_are_those_of_the_topics() -> None:
    versioned = {topic.name: schema_of(topic.name) for topic in TOPICS.values() if topic.message is not None}
    assert versioned[PREDICTIONS] == (b"prediction-event", 1)
    assert versioned[LEDGER] is None
    for name, known in versioned.items():
        message = TOPICS[name].message
        if known is not None and message is not None:
            assert known == (slug(message).encode(), MESSAGES[message]), name
    assert schema_of("somebody.elses.v1") is None


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (b"prediction-event/1.0", False),
        (b"prediction-event/1.7", False),
        (b"prediction-event/1.999999999", False),
        (b"prediction-event/2.0", True),
        (b"prediction-event/0.1", True),
        (b"prediction-event/2", False),
        (b"outcome/2.0", False),
        (b"PREDICTION-EVENT/2.0", False),
        (b"avro:7", False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_an_unknown_major_is_refused_and_an_unknown_minor_is_not(text: bytes, refused: bool) -> None:
    assert stated(text) is refused


def test_an_outcome_of_another_major_is_refused_on_its_topic() -> None:
    assert stated(b"outcome/2.0", OUTCOMES)
    assert not stated(b"outcome/1.3", OUTCOMES)
    refusal = refused_version(OUTCOMES, (("schema", b"outcome/2.0"),))
    assert refusal is not None
    assert (refusal.refusal_class, refusal.path) == ("schema", "")
    assert refusal.message == "the header says major 2 of this schema; major 1 is read here"
