"""Every topic says all there is to say about it, and what it says is true."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.contracts.schemas import schema_file, slug
from errata.contracts.topics import (
    OUTCOMES,
    PREDICTIONS,
    STAGES,
    TOPICS,
    Topic,
    dead_letter_topic,
    model_key,
    state_topic,
)

SCHEMAS = Path(__file__).parents[2] / "schemas"
GOOD = SCHEMAS / "examples" / "good"
NAME = re.compile(r"errata\.[a-z-]+(\.(v[1-9][0-9]*|dlq|resolutions|state|todo))?")


def gaps(topic: Topic) -> list[str]:
    """What a topic leaves unsaid."""
    takers = [dead_letter_topic(consumer) for consumer in topic.consumers if consumer in STAGES]
    found = []
    if not NAME.fullmatch(topic.name):
        found.append("name")
    found += [field for field in ("meaning", "key", "producers", "consumers") if not getattr(topic, field)]
    if topic.partitions < 1:
        found.append("partitions")
    if topic.retention_s is not None and topic.retention_s < 86_400:
        found.append("retention")
    # A changelog has no message and no dead letters: damage to it stops its stage, as nothing after it would be right.
    if topic.message is None and not topic.name.endswith(".state"):
        found.append("message")
    if topic.message is not None and not list(GOOD.glob(f"{slug(topic.message)}-*.json")):
        found.append("example")
    if topic.message is not None and takers and topic.dead_letters not in takers:
        found.append("dead letters")
    return found


@pytest.mark.parametrize("topic", TOPICS.values(), ids=lambda topic: topic.name)
def test_a_topic_is_complete(topic: Topic) -> None:
    assert gaps(topic) == []


@pytest.mark.parametrize(
    ("change", "gap"),
    [
        ({"name": "predictions"}, "name"),
        ({"name": "errata.Predictions.v1"}, "name"),
        ({"meaning": ""}, "meaning"),
        ({"key": ""}, "key"),
        ({"producers": ()}, "producers"),
        ({"consumers": ()}, "consumers"),
        ({"partitions": 0}, "partitions"),
        ({"retention_s": 60}, "retention"),
        ({"message": None}, "message"),
        ({"dead_letters": None}, "dead letters"),
        ({"dead_letters": dead_letter_topic("tagger")}, "dead letters"),
    ],
)
def test_a_gap_is_seen(change: dict[str, Any], gap: str) -> None:
    assert gaps(replace(TOPICS[PREDICTIONS], **change)) == [gap]


def test_names_are_keys_and_dead_letter_topics_exist() -> None:
    assert all(name == topic.name for name, topic in TOPICS.items())
    named = {topic.dead_letters for topic in TOPICS.values() if topic.dead_letters}
    assert named == {dead_letter_topic(stage) for stage in STAGES}
    assert named <= set(TOPICS)


def test_predictions_and_outcomes_share_their_partitions() -> None:
    assert TOPICS[PREDICTIONS].partitions == TOPICS[OUTCOMES].partitions
    assert TOPICS[PREDICTIONS].key == TOPICS[OUTCOMES].key


def test_state_is_compacted_and_read_by_its_writer_only() -> None:
    for stage in STAGES[:3]:
        topic = TOPICS[state_topic(stage)]
        assert topic.cleanup == "compact"
        assert topic.producers == topic.consumers == (stage,)


def test_dead_letters_outlive_what_they_came_from() -> None:
    for topic in TOPICS.values():
        if topic.dead_letters and topic.cleanup == "delete" and topic.key == "model":
            assert (TOPICS[topic.dead_letters].retention_s or 0) > (topic.retention_s or 0)


def test_chain_is_linked_by_topics() -> None:
    """Each stage's output is read by the next, so no stage needs to know another."""
    for before, after in itertools.pairwise(STAGES):
        between = [t.name for t in TOPICS.values() if before in t.producers and after in t.consumers]
        assert len(between) == 1, (before, after)


def test_topics_file_tells_the_same() -> None:
    entries = yaml.safe_load((SCHEMAS / "topics.yaml").read_text(encoding="utf-8"))["topics"]
    assert [entry["name"] for entry in entries] == list(TOPICS)
    for entry in entries:
        topic = TOPICS[entry["name"]]
        assert entry["schema"] == (schema_file(topic.message) if topic.message else None)
        assert (entry["partitions"], entry["retention_s"], entry["cleanup"]) == (
            topic.partitions,
            topic.retention_s,
            topic.cleanup,
        )
        assert tuple(entry["consumers"]) == topic.consumers


def test_model_key_keeps_tenants_apart() -> None:
    assert model_key("default", "fraud") != model_key("acme", "fraud")
    assert model_key("default", "fraud") == b"fraud"
