"""``errata topics`` on a real broker: made, brought into line, refused, and checked by services."""

import json
from collections.abc import Mapping
from dataclasses import replace
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from typer.testing import CliRunner

from errata.adapters.kafka import GROUP_INPUTS, KafkaTransport, TopicChange, apply_topics, check_topics, plan_topics
from errata.contracts.topics import (
    ANOMALIES,
    DAY_S,
    PREDICTIONS,
    STAGES,
    TAGGED,
    TOPICS,
    TRENDS_SERVICE,
    Topic,
    state_topic,
)
from errata.errors import Misconfigured
from errata.ports import Outgoing
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.catalog_writer import GROUP
from errata_services.cli import app
from errata_services.enricher import Enricher
from errata_services.tagger import Tagger
from errata_services.trends import GROUP as TRENDS_GROUP

pytestmark = pytest.mark.servers


@pytest.fixture
def properties(kafka_address: str) -> dict[str, str]:
    return {"bootstrap.servers": kafka_address}


@pytest.fixture
def prefix() -> str:
    return f"topics-{uuid4().hex}."


def two(partitions: int = 2) -> dict[str, Topic]:
    """A topic that is kept a day and a compacted one of state."""
    return {
        "log": Topic("log", "a test", "key", partitions, DAY_S, TOPICS[ANOMALIES].message, ("t",), ("t",)),
        "state": Topic("state", "a test", "key", partitions, None, None, ("t",), ("t",)),
    }


def write(properties: Mapping[str, str], prefix: str, *records: Outgoing) -> None:
    transport = KafkaTransport(properties, topic_prefix=prefix)
    producer = transport.producer("writer")
    producer.begin()
    for record in records:
        producer.produce(record)
    producer.commit()
    transport.close()


def alter(properties: Mapping[str, str], name: str, partitions: int, config: Mapping[str, str]) -> None:
    admin = AdminClient(dict(properties))
    admin.create_topics([NewTopic(name, partitions, 1, config=dict(config))])[name].result(timeout=20)


def settled(properties: Mapping[str, str], prefix: str, topics: Mapping[str, Topic]) -> list[TopicChange]:
    """The plan, asked until the broker's own view has no topic missing that was made a moment ago."""
    for _ in range(50):
        changes = plan_topics(properties, prefix, topics=topics, groups={})
        if not any(change.action == "create" for change in changes):
            break
    return changes


def test_the_whole_registry_is_made_once_and_then_nothing_is_to_do(properties: dict[str, str], prefix: str) -> None:
    assert {change.action for change in plan_topics(properties, prefix)} == {"create", "offsets"}
    with pytest.raises(Misconfigured, match=r"errata\.predictions\.v1 is missing.*run errata topics"):
        check_topics(properties, prefix)
    done = apply_topics(properties, prefix)
    assert {change.topic for change in done if change.action == "create"} == set(TOPICS)
    assert plan_topics(properties, prefix) == []
    assert apply_topics(properties, prefix) == []
    assert check_topics(properties, prefix) == []
    transport = KafkaTransport(properties, topic_prefix=prefix)
    assert transport.partitions(PREDICTIONS) == TOPICS[PREDICTIONS].partitions
    member = transport.consumer("errata.tagger", "errata.enriched.v1", instance="0")
    for _ in range(100):
        member.poll(1, 0.1)
        if member.assignment():
            break
    places = {("errata.enriched.v1", number) for number in range(12)}
    assert member.assignment() == places
    assert member.committed(places) == {}  # it was given them, nobody committed them
    assert {place: member.position(place) for place in places} == dict.fromkeys(places, 0)
    transport.close()


def test_a_group_nobody_gave_an_offset_does_not_begin_by_chance(properties: dict[str, str], prefix: str) -> None:
    apply_topics(properties, prefix, topics=two(), groups={})
    transport = KafkaTransport(properties, topic_prefix=prefix)
    member = transport.consumer("nobody", "log", instance="0")
    with pytest.raises(Misconfigured, match=r"group nobody has no offset for log partition 0; run errata topics apply"):
        member.poll(1, 20.0)
    transport.close()


def test_settings_that_differ_are_shown_checked_and_set(properties: dict[str, str], prefix: str) -> None:
    alter(properties, prefix + "log", 2, {"cleanup.policy": "compact", "retention.ms": "5000"})
    alter(properties, prefix + "state", 2, {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"})
    topics = two()
    whats = {(change.topic, change.what) for change in settled(properties, prefix, topics)}
    assert ("log", "cleanup.policy: compact to delete") in whats
    assert ("log", "message.timestamp.type: CreateTime to LogAppendTime") in whats
    assert ("log", "retention.ms: 5000 to 86400000") in whats
    assert ("state", "min.cleanable.dirty.ratio: 0.5 to 0.1") in whats
    with pytest.raises(Misconfigured) as fault:
        check_topics(properties, prefix, topics=topics)
    assert "log has cleanup.policy=compact, not delete" in str(fault.value)
    assert "log has message.timestamp.type=CreateTime, not LogAppendTime" in str(fault.value)
    assert "retention.ms" not in str(fault.value)  # that is a warning, when nothing is worse
    assert "state" not in str(fault.value)
    apply_topics(properties, prefix, topics=topics, groups={})
    assert plan_topics(properties, prefix, topics=topics, groups={}) == []
    assert check_topics(properties, prefix, topics=topics) == []
    longer = {**topics, "log": replace(topics["log"], retention_s=2 * DAY_S)}
    assert check_topics(properties, prefix, topics=longer) == ["log has retention.ms=86400000, not 172800000"]


def test_an_empty_topic_grows_and_one_with_data_does_not(properties: dict[str, str], prefix: str) -> None:
    apply_topics(properties, prefix, topics=two(1), groups={})
    write(properties, prefix, Outgoing("state", b"k", b"v", partition=0))
    plan = {change.topic: change for change in plan_topics(properties, prefix, topics=two(), groups={})}
    assert plan["log"] == TopicChange("grow", "log", "1 to 2 partitions; it is empty")
    assert plan["state"].action == "refuse"
    with pytest.raises(Misconfigured, match=r"state: has 1 partitions, not 2, and data: its keys would move"):
        apply_topics(properties, prefix, topics=two(), groups={})
    transport = KafkaTransport(properties, topic_prefix=prefix)
    assert transport.partitions("log") == 1  # nothing at all was done
    with pytest.raises(Misconfigured, match="log has 1 partitions, not 2"):
        check_topics(properties, prefix, topics=two())
    apply_topics(properties, prefix, topics={"log": two()["log"]}, groups={})
    assert check_topics(properties, prefix, topics={"log": two()["log"]}) == []
    with pytest.raises(Misconfigured, match="has 2 partitions, not 1, and Kafka takes none away"):
        apply_topics(properties, prefix, topics={"log": two(1)["log"]}, groups={})
    transport.close()


def test_a_group_begins_at_the_earliest_and_what_it_committed_stays(properties: dict[str, str], prefix: str) -> None:
    topics, groups = two(), {"group": ("log",)}
    apply_topics(properties, prefix, topics=topics, groups={})
    write(properties, prefix, *(Outgoing("log", b"k", str(number).encode(), partition=0) for number in range(5)))
    [change] = apply_topics(properties, prefix, topics=topics, groups=groups)
    assert change == TopicChange("offsets", "log", "group group begins at the earliest of 2 partitions")
    transport = KafkaTransport(properties, topic_prefix=prefix)
    member = transport.consumer("group", "log", instance="0")
    values: list[bytes | None] = []
    for _ in range(100):
        values += [record.value for record in member.poll(10, 0.1)]
        if len(values) == 5:
            break
    assert values == [b"0", b"1", b"2", b"3", b"4"]
    producer = transport.producer("writer")
    producer.begin()
    producer.send_offsets({("log", 0): 3}, member)
    producer.commit()
    assert apply_topics(properties, prefix, topics=topics, groups=groups) == []
    assert member.committed([("log", 0)]) == {("log", 0): 3}
    transport.close()


def test_more_replicas_than_brokers_are_refused(properties: dict[str, str], prefix: str) -> None:
    with pytest.raises(Misconfigured, match=r"ERRATA_KAFKA__REPLICATION=3, but it has 1 brokers"):
        apply_topics({**properties, "replication": "3"}, prefix, topics=two(), groups={})
    with pytest.raises(Misconfigured, match="ERRATA_KAFKA__REPLICATION: must be auto or a whole number"):
        plan_topics({**properties, "replication": "many"}, prefix, topics=two(), groups={})


def test_every_group_gets_offsets_of_what_its_stage_reads() -> None:
    stages = (AnomalyDetector, Enricher, Tagger)
    read = {f"errata.{stage.name}": (stage.input, *stage.side_inputs) for stage in stages}
    read |= {GROUP: (TAGGED,), TRENDS_GROUP: (TAGGED,)}
    assert read == GROUP_INPUTS
    assert set(read) == {f"errata.{service}" for service in (*STAGES, TRENDS_SERVICE)}
    assert all(len({TOPICS[name].partitions for name in names}) == 1 for names in read.values())


def test_command_line_plans_applies_and_says_when_nothing_is_to_do(
    kafka_address: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_KAFKA__BOOTSTRAP_SERVERS", kafka_address)
    monkeypatch.setenv("ERRATA_TOPIC_PREFIX", prefix)
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner().invoke
    planned = run(app, ["topics", "plan"])
    assert planned.exit_code == 0, planned.output
    assert "errata.predictions.v1" in planned.output
    assert "12 partitions, replicated 1 times, kept 7 days" in planned.output
    applied = run(app, ["topics", "apply", "--json"])
    assert applied.exit_code == 0, applied.output
    assert {
        "action": "create",
        "topic": state_topic("tagger"),
        "what": "12 partitions, replicated 1 times, compacted",
    } in (json.loads(applied.output))
    assert "Nothing to do" in run(app, ["topics", "plan"]).output
    assert json.loads(run(app, ["topics", "plan", "--json"]).output) == []
