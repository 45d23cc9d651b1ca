"""What a consumer group has and who is in it, told without joining it."""

from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from errata.adapters.kafka.connection import ANSWER_TIMEOUT_S, BEGINS_HERE, Connection, close_in_time
from errata.adapters.kafka.failures import error_of
from errata.ports import Offsets
from errata.ports import TopicPartition as Place


def group_members(connection: Connection, admin: AdminClient, group: str) -> list[str]:
    """The instances in a group now, by its coordinator's word. A member that was killed stays for its session."""
    name = connection.full(group)
    try:
        found = admin.describe_consumer_groups([name], request_timeout=ANSWER_TIMEOUT_S)[name].result()
    except KafkaException as error:
        if error_of(error).code() == KafkaError.GROUP_ID_NOT_FOUND:
            return []
        raise connection.answered(admin, error, f"members of group {group}") from None
    return sorted(member.group_instance_id or member.member_id for member in found.members)


def group_offsets(connection: Connection, group: str, partitions: Iterable[Place]) -> Offsets:
    """What a group has committed, without offsets that it was only given to begin at. Asked by a consumer that joins
    nothing: an admin client crashes when the group was just given another coordinator (librdkafka#5040)."""
    asked = [connection.at(place) for place in sorted(partitions)]
    if not asked:
        return {}
    client = connection.consumer("reader", {"group.id": connection.full(group)})
    try:
        found = client.committed(asked, timeout=ANSWER_TIMEOUT_S)
        for partition in found:
            if partition.error is not None:
                raise KafkaException(partition.error)
    except KafkaException as error:
        raise connection.answered(client, error, f"offsets of group {group}") from None
    finally:
        close_in_time(client, group)
    bare = {connection.full(topic): topic for topic in {topic for topic, _ in partitions}}
    return {
        (bare[one.topic], one.partition): one.offset for one in found if one.offset >= 0 and one.metadata != BEGINS_HERE
    }
