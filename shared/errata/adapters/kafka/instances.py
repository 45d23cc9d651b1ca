"""Who has an instance of a group, by its coordinator's word: another process, or a lost request of this one.

A static member is fenced when the coordinator gave its instance another member id: to a newer process, or to this
client itself. Brokers that were silent for longer than ``session.timeout.ms`` find two requests to join when they wake,
since the client sent the second on a new connection, and handle them in any order. What the coordinator tells of a
member does not show whose it is; not even the client id, which stays that of the first who had the instance. But
nobody sends heartbeats for a lost request: it leaves the group when its session ends, and a process stays.
"""

from time import monotonic, sleep
from typing import cast

from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription  # type: ignore[attr-defined]  # exported all the same

from errata.adapters.kafka.connection import ANSWER_TIMEOUT_S, Connection
from errata.errors import ErrataError, Fenced, Unavailable

ASK_AGAIN_S = 0.5
SESSIONS = 2  # a session begins when the join is done, which takes a while when others have to join, too


def fence(connection: Connection, group: str, instance: str, *, own_member: str, doing: str) -> ErrataError:
    """What being fenced means: ``Fenced`` when another member still has the instance two session time-outs from now.

    Else ``Unavailable``: nobody has it, or ``own_member`` has it, or it cannot be told. A process that starts again
    then takes the instance over at once; should another have it after all, that one is asked the same.
    """
    admin, deadline_s = connection.admin(), monotonic() + SESSIONS * connection.session_timeout_s()
    while True:
        try:
            found = _described(admin, connection.full(group))
        except KafkaException as error:
            why = connection.answered(admin, error, f"members of group {group}")
            return Unavailable(f"{doing}: fenced, and who has instance {instance} cannot be told ({why}); start again")
        holder = next((member.member_id for member in found.members if member.group_instance_id == instance), None)
        if holder is None or monotonic() > deadline_s:
            break
        sleep(ASK_AGAIN_S)
    if holder in (None, own_member) or found.state != ConsumerGroupState.STABLE:
        return Unavailable(f"{doing}: fenced, but no other process has instance {instance}; start again")
    return Fenced(
        f"{doing}: a newer process has taken over instance {instance}; two processes of a stage need two values of"
        " ERRATA_INSTANCE"
    )


def _described(admin: AdminClient, group: str) -> ConsumerGroupDescription:
    asked = admin.describe_consumer_groups([group], request_timeout=ANSWER_TIMEOUT_S)
    return cast(ConsumerGroupDescription, asked[group].result())
