"""The topics that errata needs against those the cluster has: a plan, its execution, the check at a service's start.

What is missing is made and settings that differ are set. What would break the routing of keys or state is refused, and
then nothing at all is done.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, sleep
from typing import Any, Literal, TypeVar

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, but not in the way mypy wants
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.cimpl import NewPartitions, NewTopic

from errata.adapters.kafka import config
from errata.adapters.kafka.connection import (
    ANSWER_TIMEOUT_S,
    BEGINS_HERE,
    Connection,
    close_in_time,
    earliest_offsets,
    latest_offsets,
    metadata,
    partition_counts,
)
from errata.adapters.kafka.failures import error_of
from errata.contracts.topics import (
    ANOMALIES,
    CHANGES,
    ENRICHED,
    OUTCOMES,
    PREDICTIONS,
    STAGES,
    TAGGED,
    TOPICS,
    TRENDS_SERVICE,
    Topic,
)
from errata.errors import ErrataError, Misconfigured, Unavailable
from errata.ports import Offsets
from errata.ports import TopicPartition as Place

_DETECTOR, _ENRICHER, _TAGGER, _WRITER = (f"errata.{stage}" for stage in STAGES)
GROUP_INPUTS: Mapping[str, Sequence[str]] = {
    _DETECTOR: (PREDICTIONS, OUTCOMES),
    _ENRICHER: (ANOMALIES, CHANGES),
    _TAGGER: (ENRICHED,),
    _WRITER: (TAGGED,),
    f"errata.{TRENDS_SERVICE}": (TAGGED,),
}
"""What each group reads with offsets of its own; topics that are read without a group have none."""

MAX_REPLICATION = 3
SETTLE_TIMEOUT_S = 15.0  # until every broker knows a topic that was made
SETTLE_PAUSE_S = 0.1

CLEANUP, TIMESTAMPS, MIN_INSYNC = "cleanup.policy", "message.timestamp.type", "min.insync.replicas"
_STATE: Mapping[str, str] = {
    "min.cleanable.dirty.ratio": "0.1",
    "segment.bytes": str(64 * 2**20),
    "segment.ms": str(3_600_000),
    "max.compaction.lag.ms": str(6 * 3_600_000),
    "delete.retention.ms": str(24 * 3_600_000),
}

T = TypeVar("T")
Action = Literal["create", "grow", "set", "offsets", "refuse", "warn"]


@dataclass(frozen=True, slots=True)
class TopicChange:
    """One line of a plan. ``refuse`` stops the whole plan, ``warn`` is for people to mend."""

    action: Action
    topic: str
    what: str


@dataclass(slots=True)
class _Cluster:
    """What is there, under bare names; ``configs`` of our topics only."""

    brokers: int
    counts: Mapping[str, int]
    replicas: Mapping[str, int]
    configs: Mapping[str, Mapping[str, str]]


@dataclass(slots=True)
class _Plan:
    changes: list[TopicChange] = field(default_factory=list)
    create: list[NewTopic] = field(default_factory=list)
    grow: list[NewPartitions] = field(default_factory=list)
    configs: dict[str, dict[str, str]] = field(default_factory=dict)
    offsets: dict[str, list[Place]] = field(default_factory=dict)

    def note(self, action: Action, topic: str, what: str) -> None:
        self.changes.append(TopicChange(action, topic, what))


def plan_topics(
    properties: Mapping[str, str],
    topic_prefix: str = "",
    *,
    topics: Mapping[str, Topic] = TOPICS,
    groups: Mapping[str, Sequence[str]] = GROUP_INPUTS,
) -> list[TopicChange]:
    """What `apply_topics` would do. Nothing is changed."""
    connection = Connection(dict(properties), topic_prefix)
    return _plan(connection, connection.admin(), topics, groups).changes


def apply_topics(
    properties: Mapping[str, str],
    topic_prefix: str = "",
    *,
    topics: Mapping[str, Topic] = TOPICS,
    groups: Mapping[str, Sequence[str]] = GROUP_INPUTS,
) -> list[TopicChange]:
    """Bring the cluster to the registry, and give groups that have none an offset: the earliest of each partition.

    Returns what was done. Raises ``Misconfigured`` before anything is done when a part of the plan is refused.
    """
    connection = Connection(dict(properties), topic_prefix)
    admin = connection.admin()  # held in a name: one that is collected takes its requests with it
    plan = _plan(connection, admin, topics, groups)
    refused = [change for change in plan.changes if change.action == "refuse"]
    if refused:
        raise Misconfigured("; ".join(f"{change.topic}: {change.what}" for change in refused))
    _execute(connection, admin, plan)
    return plan.changes


def check_topics(
    properties: Mapping[str, str], topic_prefix: str = "", *, topics: Mapping[str, Topic] = TOPICS
) -> list[str]:
    """For services at their start: differences that do no harm, to be warned of.

    Raises ``Misconfigured`` with every topic that is missing, or whose partitions, cleanup policy or timestamp type
    differ: state would be routed wrongly or lost, or record times would not be the log's.
    """
    connection = Connection(dict(properties), topic_prefix)
    admin = connection.admin()
    cluster = _look(connection, admin, topics)
    replication = _replication(connection, cluster.brokers)
    faults: list[str] = []
    warnings: list[str] = []
    for name, topic in topics.items():
        if name not in cluster.counts:
            faults.append(f"{name} is missing")
            continue
        if cluster.counts[name] != topic.partitions:
            faults.append(f"{name} has {cluster.counts[name]} partitions, not {topic.partitions}")
        for setting, wanted, found in _differences(topic, cluster.configs[name], replication):
            deadly = setting in (CLEANUP, TIMESTAMPS)
            (faults if deadly else warnings).append(f"{name} has {setting}={found}, not {wanted}")
        if cluster.replicas[name] != replication:
            warnings.append(f"{name} is replicated {cluster.replicas[name]} times, not {replication}")
    if faults:
        raise Misconfigured("topics: " + "; ".join(faults) + "; run errata topics plan, then apply")
    return warnings


def topic_settings(topic: Topic, replication: int) -> dict[str, str]:
    """The configuration of a topic at the broker."""
    settings = {
        CLEANUP: topic.cleanup,
        TIMESTAMPS: topic.timestamps,
        "max.message.bytes": str(2**20),
        MIN_INSYNC: str(max(1, replication - 1)),
        "unclean.leader.election.enable": "false",
    }
    if topic.retention_s is not None:
        settings["retention.ms"] = str(topic.retention_s * 1_000)
    elif topic.message is None:
        settings |= _STATE
    return settings


# The plan.


def _plan(
    connection: Connection, admin: AdminClient, topics: Mapping[str, Topic], groups: Mapping[str, Sequence[str]]
) -> _Plan:
    cluster = _look(connection, admin, topics)
    replication = _replication(connection, cluster.brokers)
    plan = _Plan()
    if replication > cluster.brokers:
        variable = config.variable_of(config.REPLICATION)
        plan.note("refuse", "cluster", f"{variable}={replication}, but it has {cluster.brokers} brokers")
    for name, topic in topics.items():
        if name in cluster.counts:
            _plan_existing(plan, connection, admin, topic, cluster, replication)
            continue
        settings = topic_settings(topic, replication)
        plan.create.append(NewTopic(connection.full(name), topic.partitions, replication, config=settings))
        kept = "compacted" if topic.retention_s is None else f"kept {topic.retention_s // 86_400} days"
        plan.note("create", name, f"{topic.partitions} partitions, replicated {replication} times, {kept}")
    for group, inputs in groups.items():
        _plan_offsets(plan, connection, group, inputs, topics, cluster)
    return plan


def _plan_existing(
    plan: _Plan, connection: Connection, admin: AdminClient, topic: Topic, cluster: _Cluster, replication: int
) -> None:
    name, count = topic.name, cluster.counts[topic.name]
    if count > topic.partitions:
        plan.note(
            "refuse", name, f"has {count} partitions, not {topic.partitions}, and Kafka takes none away; make it anew"
        )
    elif count < topic.partitions:
        places = [(name, number) for number in range(count)]
        if any(latest_offsets(connection, admin, places).values()):
            what = f"has {count} partitions, not {topic.partitions}, and data: its keys would move; make it anew"
            plan.note("refuse", name, what)
        else:
            plan.grow.append(NewPartitions(connection.full(name), topic.partitions))
            plan.note("grow", name, f"{count} to {topic.partitions} partitions; it is empty")
    for setting, wanted, found in _differences(topic, cluster.configs[name], replication):
        plan.configs.setdefault(name, {})[setting] = wanted
        plan.note("set", name, f"{setting}: {found} to {wanted}")
    if cluster.replicas[name] != replication:
        what = f"is replicated {cluster.replicas[name]} times, not {replication}; kafka-reassign-partitions changes it"
        plan.note("warn", name, what)


def _plan_offsets(
    plan: _Plan,
    connection: Connection,
    group: str,
    inputs: Sequence[str],
    topics: Mapping[str, Topic],
    cluster: _Cluster,
) -> None:
    places = [(name, number) for name in inputs for number in range(topics[name].partitions)]
    there = [place for place in places if place[0] in cluster.counts]
    committed = _settled(partial(_committed, connection, group, there), passing=(Unavailable,))
    missing = [place for place in places if place not in committed]
    if not missing:
        return
    plan.offsets[group] = missing
    for name in inputs:
        count = sum(1 for place in missing if place[0] == name)
        if count:
            plan.note("offsets", name, f"group {group} begins at the earliest of {count} partitions")


def _differences(topic: Topic, found: Mapping[str, str], replication: int) -> list[tuple[str, str, str]]:
    """Settings that differ: name, wanted, found."""
    wanted = topic_settings(topic, replication)
    return [(name, value, found.get(name, "unset")) for name, value in wanted.items() if found.get(name) != value]


def _replication(connection: Connection, brokers: int) -> int:
    text = connection.properties.get(config.REPLICATION, "auto")
    if text == "auto":
        return min(MAX_REPLICATION, brokers)
    if not text.isdecimal() or int(text) < 1:
        raise Misconfigured(f"{config.variable_of(config.REPLICATION)}: must be auto or a whole number from 1")
    return int(text)


# The cluster.


def _look(connection: Connection, admin: AdminClient, topics: Iterable[str]) -> _Cluster:
    found = metadata(connection, admin)
    counts = partition_counts(connection, found)
    there = [name for name in topics if name in counts]
    replicas = {
        name: len(next(iter(found.topics[connection.full(name)].partitions.values())).replicas) for name in there
    }
    return _Cluster(len(found.brokers), counts, replicas, _configs(connection, admin, there))


def _configs(connection: Connection, admin: AdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, connection.full(name)) for name in names]
    futures = admin.describe_configs(resources, request_timeout=ANSWER_TIMEOUT_S)
    found: dict[str, dict[str, str]] = {}
    for resource, future in futures.items():
        entries = _answer(connection, admin, f"settings of {resource.name}", future.result)
        found[resource.name.removeprefix(connection.prefix)] = {
            name: entry.value for name, entry in entries.items() if entry.value is not None
        }
    return found


def _committed(connection: Connection, group: str, places: Sequence[Place]) -> set[Place]:
    """Places for which the group has an offset. Asked by a consumer that joins nothing: an admin client crashes when
    the group was just given another coordinator (librdkafka#5040)."""
    if not places:
        return set()
    client = connection.consumer("reader", {"group.id": connection.full(group)})
    try:
        found = client.committed([connection.at(place) for place in places], timeout=ANSWER_TIMEOUT_S)
        for partition in found:
            if partition.error is not None:
                raise KafkaException(partition.error)
    except KafkaException as error:
        raise connection.answered(client, error, f"offsets of group {group}") from None
    finally:
        close_in_time(client, group)
    return {(one.topic.removeprefix(connection.prefix), one.partition) for one in found if one.offset >= 0}


# The execution.


def _execute(connection: Connection, admin: AdminClient, plan: _Plan) -> None:
    if plan.create:
        _all(connection, admin, "create", admin.create_topics(plan.create, request_timeout=ANSWER_TIMEOUT_S))
    if plan.grow:
        _all(connection, admin, "grow", admin.create_partitions(plan.grow, request_timeout=ANSWER_TIMEOUT_S))
    for name, settings in plan.configs.items():
        entries = [
            ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
            for setting, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, connection.full(name), incremental_configs=entries)
        futures = admin.incremental_alter_configs([resource], request_timeout=ANSWER_TIMEOUT_S)
        for future in futures.values():
            _answer(connection, admin, f"settings of {name}", future.result)
    _settled(partial(_led, connection, admin, plan.create))
    for group, places in plan.offsets.items():
        _settled(partial(_set_offsets, connection, group, places))


def _led(connection: Connection, admin: AdminClient, made: Sequence[NewTopic]) -> None:
    """Raises ``Unavailable`` unless each partition of the topics has a leader."""
    topics = metadata(connection, admin).topics
    for new in made:
        partitions = topics[new.topic].partitions.values() if new.topic in topics else []
        if sum(1 for partition in partitions if partition.leader >= 0) < new.num_partitions:
            bare = new.topic.removeprefix(connection.prefix)
            raise Unavailable(f"{bare}: was made, but not all of its partitions have a leader; apply again")


def _set_offsets(connection: Connection, group: str, places: list[Place]) -> Offsets:
    admin = connection.admin()  # one that once saw a topic without leaders remembers it for long
    starts = earliest_offsets(connection, admin, places)
    marked = [
        TopicPartition(connection.full(topic), number, starts[topic, number], metadata=BEGINS_HERE)
        for topic, number in places
    ]
    request = ConsumerGroupTopicPartitions(connection.full(group), marked)
    futures = admin.alter_consumer_group_offsets([request], request_timeout=ANSWER_TIMEOUT_S)
    doing = f"offsets of group {group}"
    try:
        answer = next(iter(futures.values())).result()
    except KafkaException as error:
        if error_of(error).code() == KafkaError.UNKNOWN_MEMBER_ID:
            raise Misconfigured(f"{doing}: the group has running members; stop them, then apply again") from None
        raise connection.answered(admin, error, doing) from None
    for partition in answer.topic_partitions:
        if partition.error is not None:
            raise connection.answered(admin, KafkaException(partition.error), doing)
    return starts


def _settled(act: Callable[[], T], passing: tuple[type[ErrataError], ...] = (Misconfigured, Unavailable)) -> T:
    """A topic is made before every broker knows it, and a group's coordinator loads: ask again until they do."""
    deadline_s = monotonic() + SETTLE_TIMEOUT_S
    while True:
        try:
            return act()
        except passing:
            if monotonic() > deadline_s:
                raise
            sleep(SETTLE_PAUSE_S)


def _all(connection: Connection, admin: AdminClient, doing: str, futures: Mapping[str, Future[Any]]) -> None:
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as error:
            if error_of(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:  # two of us at once: one was first
                bare = name.removeprefix(connection.prefix)
                raise connection.answered(admin, error, f"{doing} {bare}") from None


def _answer(connection: Connection, admin: AdminClient, doing: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except KafkaException as error:
        raise connection.answered(admin, error, doing) from None
