"""A topic made anew, with its group at the beginning: for state that can be counted again from the input."""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic, sleep

from confluent_kafka import KafkaException

from errata.adapters.kafka.admin import SETTLE_PAUSE_S, SETTLE_TIMEOUT_S, _set_offsets, apply_topics
from errata.adapters.kafka.connection import ANSWER_TIMEOUT_S, Connection, metadata, partition_counts
from errata.contracts.topics import TOPICS
from errata.errors import Unavailable


def remake_state(
    properties: Mapping[str, str],
    topic_prefix: str,
    *,
    state: str,
    group: str,
    inputs: Sequence[str],
    between: Callable[[], None] = lambda: None,
) -> None:
    """Delete a group's state and make it empty, the group at the earliest of its inputs; ``between`` is done while the
    state is away. Raises ``Misconfigured`` when the group has running members. Stopped halfway, do it again."""
    connection = Connection(dict(properties), topic_prefix)
    _set_offsets(connection, group, [(name, number) for name in inputs for number in range(TOPICS[name].partitions)])
    admin = connection.admin()
    if state in partition_counts(connection, metadata(connection, admin)):
        futures = admin.delete_topics([connection.full(state)], request_timeout=ANSWER_TIMEOUT_S)
        try:
            for future in futures.values():
                future.result()
        except KafkaException as error:
            raise connection.answered(admin, error, f"delete {state}") from None
    between()
    deadline_s = monotonic() + SETTLE_TIMEOUT_S
    while state in partition_counts(connection, metadata(connection, connection.admin())):
        if monotonic() > deadline_s:
            raise Unavailable(f"{state}: is not deleted after {SETTLE_TIMEOUT_S:g} s; do it again")
        sleep(SETTLE_PAUSE_S)
    apply_topics(properties, topic_prefix, topics={state: TOPICS[state]}, groups={})
