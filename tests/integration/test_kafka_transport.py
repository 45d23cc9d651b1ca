"""What the Kafka transport promises beyond the suite: names, places, restores, fences, and errors people can read."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from errata.adapters.kafka import KafkaConsumer, KafkaProducer, KafkaTransport, apply_topics
from errata.adapters.kafka import groups as groups_module
from errata.adapters.kafka import reader as reader_module
from errata.adapters.kafka.connection import Connection
from errata.adapters.kafka.consumer import PIECE
from errata.adapters.kafka.instances import fence
from errata.contracts.topics import DAY_S, Topic
from errata.errors import ErrataError, Fenced, HangingTransaction, Misconfigured, StateDamaged, Unavailable
from errata.ports import Consumer, Outgoing, Record
from errata_services.dev import servers
from errata_services.dev.servers import KafkaServer

pytestmark = pytest.mark.servers

ROUNDS, WAIT_S = 100, 0.1
TOPICS = {
    "log": Topic("log", "a test", "key", 2, DAY_S, None, ("t",), ("t",)),
    "state": Topic("state", "a test", "key", 2, None, None, ("t",), ("t",)),
}
LOG = ("log", 0)


class Place:
    """Topics under a prefix of their own, and transports on them."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        self.properties = dict(properties)
        self.prefix = f"t-{uuid4().hex}."
        self.transports: list[KafkaTransport] = []
        apply_topics(self.properties, self.prefix, topics=TOPICS, groups={"group": list(TOPICS)})

    def transport(self, more: Mapping[str, str] | None = None, **how: Any) -> KafkaTransport:
        made = KafkaTransport({**self.properties, **(more or {})}, topic_prefix=self.prefix, **how)
        self.transports.append(made)
        return made

    def close(self) -> None:
        for transport in self.transports:
            transport.close()


@pytest.fixture
def place(kafka_address: str) -> Iterator[Place]:
    made = Place({"bootstrap.servers": kafka_address})
    yield made
    made.close()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker of this module's own: with TLS and passwords, soon to clean logs and to end overdue transactions."""
    quick = {
        "log.cleaner.backoff.ms": "200",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "200",
    }
    with servers.kafka(tmp_path_factory.mktemp("kafka"), tls=True, sasl=True, properties=quick) as server:
        yield server


def write(transport: KafkaTransport, *values: str, topic: str = "log", key: bytes = b"k") -> None:
    producer = transport.producer(f"writer-{uuid4().hex}")
    producer.begin()
    for value in values:
        producer.produce(Outgoing(topic, key, value.encode(), partition=0))
    producer.commit()
    producer.close()


def begin_open(transport: KafkaTransport, value: str, at: int) -> KafkaProducer:
    """A transaction that stays open, with one record that the broker has at offset ``at``."""
    producer = transport.producer(f"open-{uuid4().hex}")
    producer.begin()
    producer.produce(Outgoing("log", b"k", value.encode(), partition=0))
    deadline_s = monotonic() + 10
    while transport.end_offset(LOG) <= at:
        assert monotonic() < deadline_s, "the record never reached the broker"
    return producer


def texts(records: Iterable[Record]) -> list[str]:
    return [(record.value or b"").decode() for record in records]


def drain(consumer: Consumer, most: int) -> list[Record]:
    records: list[Record] = []
    for _ in range(ROUNDS):
        records += consumer.poll(most - len(records), WAIT_S)
        if len(records) >= most:
            break
    return records


def until_assigned(*members: KafkaConsumer) -> None:
    for _ in range(ROUNDS):
        for member in members:
            member.poll(1, WAIT_S)
        if all(member.assignment() for member in members):
            return
    raise AssertionError("a member was given nothing")


def delete_before(place: Place, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": place.properties["bootstrap.servers"]})
    for future in admin.delete_records([TopicPartition(place.prefix + "log", 0, offset)]).values():
        future.result(timeout=20)


def one_line(error: pytest.ExceptionInfo[ErrataError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


# Reading.


def test_twenty_thousand_records_come_in_order_and_whole(place: Place) -> None:
    transport = place.transport()
    producer = transport.producer("writer")
    for start in range(0, 20_000, 2_000):
        producer.begin()
        for number in range(start, start + 2_000):
            headers = (("n", str(number).encode()),) if number % 3 == 0 else ()
            producer.produce(Outgoing("log", b"k%d" % number, str(number).encode(), headers, number % 2))
        producer.commit()
    member = transport.consumer("group", "log", instance="0")
    records = drain(member, 20_000)
    for partition in range(2):
        mine = [record for record in records if record.partition == partition]
        assert [int(record.value or b"") for record in mine] == list(range(partition, 20_000, 2))
        assert [record.offset for record in mine] == sorted({record.offset for record in mine})
        # Beyond the last record there may be markers only.
        assert mine[-1].offset < member.position(("log", partition)) <= transport.end_offset(("log", partition))
    third = next(record for record in records if record.value == b"9")
    assert third[:2] == ("log", 1)
    assert (third.key, third.headers) == (b"k9", (("n", b"9"),))
    assert abs(third.timestamp_us - records[0].timestamp_us) < 60_000_000


def test_a_poll_gives_at_most_what_was_asked_and_does_not_wait_to_fill(place: Place) -> None:
    transport = place.transport()
    write(transport, *(str(number) for number in range(10)))
    member = transport.consumer("group", "log", instance="0")
    until = drain(member, 4)
    assert texts(until) == ["0", "1", "2", "3"]
    begun_s = monotonic()
    rest = member.poll(1_000, 30.0)
    assert monotonic() - begun_s < 15.0
    assert texts(rest) == [str(number) for number in range(4, 4 + len(rest))]


def test_what_takes_several_pieces_is_what_was_asked_for_of_two_topics(place: Place) -> None:
    transport = place.transport()
    write(transport, *(f"log {number}" for number in range(700)))
    write(transport, *(f"state {number}" for number in range(700)), topic="state")
    member = transport.consumer("group", "log", instance="0", side_inputs=["state"])
    came: list[Record] = []
    for most in (1, PIECE, PIECE + 1):
        records = drain(member, most)
        assert len(records) == most
        came += records
    came += drain(member, 1_400 - len(came))
    for topic in ("log", "state"):
        assert texts(one for one in came if one.topic == topic) == [f"{topic} {number}" for number in range(700)]
    assert {one.headers for one in came} == {()}


def test_names_at_the_broker_carry_the_prefix_and_records_do_not(place: Place) -> None:
    transport = place.transport()
    write(transport, "a")
    member = transport.consumer("group", "log", instance="0", side_inputs=["state"])
    producer = transport.producer("same")
    [record] = drain(member, 1)
    assert record.topic == "log"
    assert member.assignment() == {(topic, number) for topic in TOPICS for number in range(2)}
    producer.begin()
    producer.send_offsets({LOG: record.offset + 1}, member)
    producer.commit()
    admin = AdminClient({"bootstrap.servers": place.properties["bootstrap.servers"]})
    assert {place.prefix + name for name in TOPICS} <= set(admin.list_topics(timeout=10).topics)
    groups = {group.group_id for group in admin.list_consumer_groups(request_timeout=10).result().valid}
    assert place.prefix + "group" in groups
    other = Place(place.properties)
    other.transport().producer("same")  # the same id under another prefix is another producer
    producer.begin()
    producer.produce(Outgoing("log", b"k", b"b"))
    producer.commit()
    other.close()


def test_read_at_gives_none_for_what_is_not_there(place: Place) -> None:
    transport = place.transport()
    write(transport, "a", "b")  # 0, 1, and a marker at 2
    begin_open(transport, "aborted", at=3).abort()  # 3, marker at 4
    write(transport, *(str(number) for number in range(1_500)))  # 5 to 1504
    found = transport.read_at(LOG, [1, 2, 3, 4, 5, 1_504, 700, 9_999, -1, 1])
    assert [record and (record.value or b"").decode() for record in found] == [
        "b", None, None, None, "0", "1499", "695", None, None, "b",
    ]  # fmt: skip
    begin_open(transport, "open", at=1_506)
    end = transport.end_offset(LOG)
    assert transport.read_at(LOG, [end, end - 1, 1_504])[:2] == [None, None]
    delete_before(place, 5)
    assert [record and record.offset for record in transport.read_at(LOG, [1, 5])] == [None, 5]
    assert transport.read_at(LOG, []) == []
    with pytest.raises(Misconfigured, match="log has partitions 0 to 1, not 2"):
        transport.read_at(("log", 2), [0])
    with pytest.raises(Misconfigured, match="no topic nowhere on the cluster; run errata topics apply"):
        transport.read_at(("nowhere", 0), [0])


def test_compacted_records_are_gone_and_the_newest_of_a_key_stays(broker: KafkaServer) -> None:
    place = Place({"bootstrap.servers": broker.address})
    admin_set(
        place, "state", {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "100"}
    )
    transport, state = place.transport(), ("state", 0)
    for number in range(3):
        write(transport, str(number), topic="state", key=b"same")
    first = 0
    deadline_s = monotonic() + 60
    while transport.read_at(state, [first]) != [None]:
        assert monotonic() < deadline_s, "the broker compacts nothing"
        write(transport, "newest", topic="state", key=b"same")  # closes the segment before it
    records = list(transport.read_from(state))
    assert records[-1].value == b"newest"
    assert transport.read_at(state, [first, records[-1].offset]) == [None, records[-1]]
    place.close()


def admin_set(place: Place, topic: str, settings: Mapping[str, str]) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType  # type: ignore

    admin = AdminClient({"bootstrap.servers": place.properties["bootstrap.servers"]})
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, place.prefix + topic, incremental_configs=entries)
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(timeout=20)


@pytest.mark.parametrize("commit", [True, False])
def test_a_restore_waits_for_the_transaction_that_is_open_at_its_start(place: Place, commit: bool) -> None:
    transport = place.transport()
    write(transport, "before")
    producer = begin_open(transport, "open", at=2)
    reading, rest = transport.read_from(LOG), list[Record]()
    assert texts([next(reading)]) == ["before"]
    thread = threading.Thread(target=lambda: rest.extend(reading), daemon=True)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive(), "it ended before the transaction did"
    producer.commit() if commit else producer.abort()
    thread.join(20)
    assert not thread.is_alive()
    assert texts(rest) == (["open"] if commit else [])


def test_a_restore_behind_a_transaction_that_never_ends_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "HANGING_AFTER_S", 5.0)  # nobody looks for this one sooner than in 50 s
    writer = place.transport({"transaction.timeout.ms": "60000"})
    write(writer, "before")
    begin_open(writer, "hangs", at=2)
    with pytest.raises(Unavailable, match=r"^hanging_transaction: log partition 0 stands at 2, its end is 3") as error:
        list(place.transport({"transaction.timeout.ms": "1000"}).read_from(LOG))
    one_line(error)


def test_several_reads_at_once_do_not_disturb_each_other(place: Place) -> None:
    transport = place.transport()
    write(transport, *"abcdef")
    first, second = transport.read_from(LOG), transport.read_from(LOG, 2)
    assert texts([next(first), next(second), next(first)]) == ["a", "c", "b"]
    assert texts(transport.read_at(LOG, [4])) == ["e"]  # type: ignore[arg-type]
    second.close()  # type: ignore[attr-defined]
    assert texts(transport.read_from(LOG, 5)) == ["f"]
    assert texts(first) == ["c", "d", "e", "f"]


# Members.


def test_an_offset_that_left_the_log_stops_the_stage(place: Place) -> None:
    transport = place.transport()
    write(transport, *"abcdef")
    delete_before(place, 4)  # the group stands at 0
    member = transport.consumer("group", "log", instance="0")
    with pytest.raises(StateDamaged, match=r"^offset_out_of_range: log partition 0") as error:
        drain(member, 1)
    one_line(error)


def test_a_restarted_member_gets_its_partitions_back_and_nobody_else_is_disturbed(place: Place) -> None:
    told: list[object] = []
    transport = place.transport({"heartbeat.interval.ms": "500"})
    staying = transport.consumer("group", "log", instance="1", on_assign=told.append, on_revoke=told.append)
    first = transport.consumer("group", "log", instance="0")
    until_assigned(first, staying)
    before, calls = (first.assignment(), staying.assignment()), len(told)
    first.close()
    again = transport.consumer("group", "log", instance="0")
    until_assigned(again, staying)
    assert (again.assignment(), staying.assignment()) == before
    assert len(told) == calls


def test_a_member_that_leaves_hands_over_long_before_its_session_ends(place: Place) -> None:
    transport = place.transport({"heartbeat.interval.ms": "500", "session.timeout.ms": "60000"}, leave_on_close=True)
    leaving, staying = (
        transport.consumer("group", "log", instance="0"),
        transport.consumer("group", "log", instance="1"),
    )
    until_assigned(leaving, staying)
    leaving.close()
    for _ in range(ROUNDS):
        staying.poll(1, WAIT_S)
        if len(staying.assignment()) == 2:
            break
    assert staying.assignment() == {("log", 0), ("log", 1)}


def test_a_member_whose_callback_failed_is_of_no_more_use(place: Place) -> None:
    def fails(_: object) -> None:
        raise Unavailable("the restore failed")

    transport = place.transport()
    write(transport, "a")
    member = transport.consumer("group", "log", instance="0", on_assign=fails)
    with pytest.raises(Unavailable, match="the restore failed"):
        drain(member, 1)
    with pytest.raises(Unavailable, match="group: this member failed before; start the process again"):
        member.poll(1, WAIT_S)


def test_seek_in_the_assignment_callback_is_where_reading_begins(place: Place) -> None:
    transport = place.transport()
    write(transport, *"abc")
    members: list[KafkaConsumer] = []
    members.append(transport.consumer("group", "log", instance="0", on_assign=lambda _: members[0].seek(LOG, 2)))
    assert texts(drain(members[0], 1)) == ["c"]
    members[0].seek(LOG, 1)
    assert members[0].position(LOG) == 1


def test_statistics_tell_the_lag_by_the_names_of_the_stages(place: Place) -> None:
    found: list[dict[str, Any]] = []
    transport = place.transport({"statistics.interval.ms": "100"}, on_stats=found.append)
    write(transport, *"abc")
    member = transport.consumer("group", "log", instance="0")
    drain(member, 3)
    for _ in range(ROUNDS):
        member.poll(1, WAIT_S)
        logs = [one["topics"]["log"]["partitions"]["0"] for one in found if one["type"] == "consumer" and one["topics"]]
        if logs and logs[-1]["ls_offset"] == 4:
            break
    assert logs[-1]["ls_offset"] == 4  # three records and a marker
    assert logs[-1]["app_offset"] >= 3
    assert {name for one in found for name in one["topics"]} == {"log"}


# Fences. The coordinator gives an instance to whoever joined last, be it a request of the member itself that was sent
# before brokers froze and is handled after its later one.


SHORT = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "500"}  # the shortest that a broker grants


def lost_join(place: Place) -> None:
    """Somebody joins as instance 0 and is not heard of again: killed, so that it does not leave the group."""
    code = (
        "import sys\n"
        "from errata.adapters.kafka import KafkaTransport\n"
        "properties, prefix = dict(one.split('=') for one in sys.argv[2:]), sys.argv[1]\n"
        "member = KafkaTransport(properties, topic_prefix=prefix).consumer('group', 'log', instance='0')\n"
        "while not member.assignment(): member.poll(1, 0.1)\n"
        "print('joined', flush=True)\n"
        "while True: member.poll(1, 0.1)\n"
    )
    given = [f"{name}={value}" for name, value in {**place.properties, **SHORT}.items()]
    with subprocess.Popen([sys.executable, "-c", code, place.prefix, *given], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"joined\n"
        process.kill()


def test_a_member_is_not_fenced_by_a_request_that_nobody_stands_behind(place: Place) -> None:
    """As when brokers that were frozen handle a first request to join after the second."""
    member = place.transport(SHORT).consumer("group", "log", instance="0")
    until_assigned(member)
    lost_join(place)
    with pytest.raises(Unavailable, match=r"group: fenced, but no other process has instance 0; start again$") as error:
        drain(member, 1)
    one_line(error)


def test_a_member_is_fenced_by_one_that_stays(place: Place) -> None:
    """Negative control; the newer goes on."""
    member = place.transport(SHORT).consumer("group", "log", instance="0")
    until_assigned(member)
    rival = place.transport(SHORT).consumer("group", "log", instance="0")
    until_assigned(rival)
    with pytest.raises(Fenced, match="a newer process has taken over instance 0; two processes of a stage") as error:
        drain(member, 1)
    one_line(error)
    assert rival.poll(1, WAIT_S) == []
    assert rival.assignment() == {("log", 0), ("log", 1)}


def test_a_member_that_cannot_ask_who_fenced_it_starts_again() -> None:
    connection = Connection({"bootstrap.servers": "127.0.0.1:1"})
    assert isinstance(fence(connection, "group", "0", own_member="", doing="poll"), Unavailable)


@pytest.mark.parametrize(("rival", "becomes"), [(False, Unavailable), (True, Fenced)])
def test_a_producer_is_fenced_by_a_process_that_has_its_instance_only(
    place: Place, rival: bool, becomes: type[ErrataError]
) -> None:
    """Another with its id alone may be a lost request of its own; a rival joins the group right behind it."""
    ours, theirs = place.transport(SHORT), place.transport(SHORT)
    producer, member = ours.producer("same"), ours.consumer("group", "log", instance="0")
    until_assigned(member)
    producer.begin()
    producer.send_offsets({LOG: 0}, member)
    producer.commit()
    theirs.producer("same")
    if rival:
        until_assigned(theirs.consumer("group", "log", instance="0"))
    producer.begin()
    producer.produce(Outgoing("log", b"k", b"late", partition=0))
    with pytest.raises(ErrataError) as error:
        end(producer)
    assert type(error.value) is becomes, one_line(error)


# Transactions.


def test_a_transaction_that_outlived_its_time_is_no_fence(broker: KafkaServer) -> None:
    place = Place({"bootstrap.servers": broker.address})
    transport = place.transport({"transaction.timeout.ms": "1000"})
    producer = transport.producer("slow")
    producer.begin()
    producer.produce(Outgoing("log", b"k", b"late", partition=0))
    deadline_s = monotonic() + 60
    while transport.end_offset(LOG) < 2:  # until the broker has aborted it and written so
        assert monotonic() < deadline_s, "the broker does not end the transaction"
    with pytest.raises(Unavailable, match=r"slow: commit: the transaction took longer than 1 s") as error:
        producer.commit()
    one_line(error)
    producer.abort()
    with pytest.raises(Unavailable, match="in doubt; start the process again"):
        producer.begin()
    assert texts(transport.read_from(LOG)) == []
    place.close()


def test_records_that_cannot_be_written_are_refused_before_anything_is_lost(place: Place) -> None:
    transport = place.transport()
    producer = transport.producer("writer")
    for record, message in (
        (Outgoing("log", None, b"x" * 1_000_001, partition=0), "larger than 1,000,000 bytes"),
        (Outgoing("nowhere", None, b"x"), "no topic nowhere on the cluster"),
        (Outgoing("log", None, b"x", partition=2), "log has partitions 0 to 1, not 2"),
    ):
        producer.begin()
        producer.produce(Outgoing("log", b"k", b"beside it", partition=0))
        with pytest.raises(ErrataError, match=message):
            producer.produce(record)
        producer.abort()
    producer.begin()
    producer.produce(Outgoing("log", None, os.urandom(1_000_000), partition=0))
    producer.commit()
    assert [len(record.value or b"") for record in transport.read_from(LOG)] == [1_000_000]


def test_clients_refuse_to_be_used_behind_a_fork(place: Place) -> None:
    transport = place.transport()
    producer, member = transport.producer("writer"), transport.consumer("group", "log", instance="0")
    transport.read_at(LOG, [0])
    uses = [
        producer.begin,
        lambda: member.poll(1),
        lambda: transport.read_at(LOG, [0]),
        lambda: transport.end_offset(LOG),
    ]
    assert [refused_in_a_child(use) for use in uses] == [True] * len(uses)
    producer.begin()  # the parent goes on
    producer.abort()


def refused_in_a_child(use: Any) -> bool:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            use()
        except RuntimeError as error:
            code = 0 if "make it after the fork" in str(error) else 2
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


# Connections.


def sasl(broker: KafkaServer, mechanism: str, password: str) -> dict[str, str]:
    return {
        "bootstrap.servers": broker.sasl_address,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": mechanism,
        "sasl.username": broker.username,
        "sasl.password": password,
        "ssl.ca.location": str(broker.ca_file),
    }


def round_trip(properties: Mapping[str, str]) -> list[str]:
    place = Place(properties)
    transport = place.transport()
    write(transport, "a", "b")
    read = texts(drain(transport.consumer("group", "log", instance="0"), 2))
    read += texts(transport.read_from(LOG))
    place.close()
    return read


def test_records_travel_over_tls(broker: KafkaServer) -> None:
    tls = {
        "bootstrap.servers": broker.tls_address,
        "security.protocol": "SSL",
        "ssl.ca.location": str(broker.ca_file),
    }
    assert round_trip(tls) == ["a", "b", "a", "b"]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_records_travel_with_a_password(broker: KafkaServer, mechanism: str) -> None:
    assert round_trip(sasl(broker, mechanism, broker.password)) == ["a", "b", "a", "b"]


def test_a_wrong_password_is_told_in_one_line_without_it(broker: KafkaServer) -> None:
    transport = KafkaTransport(sasl(broker, "SCRAM-SHA-512", "s3cret-guess"))
    for use in (lambda: transport.partitions("log"), lambda: transport.producer("x")):
        begun_s = monotonic()
        with pytest.raises(Misconfigured, match=r"^Kafka refuses this client .*ERRATA_KAFKA__SASL_PASSWORD") as error:
            use()
        assert monotonic() - begun_s < 20
        assert "s3cret-guess" not in one_line(error)
    transport.close()


def test_a_certificate_nobody_vouches_for_is_told(broker: KafkaServer) -> None:
    transport = KafkaTransport({"bootstrap.servers": broker.tls_address, "security.protocol": "SSL"})
    with pytest.raises(
        Misconfigured, match=r"^the TLS connection to Kafka fails .*ERRATA_KAFKA__SSL_CA_LOCATION"
    ) as error:
        transport.producer("x")
    one_line(error)
    transport.close()


def test_a_broker_that_is_not_there_is_told_with_its_address(tmp_path: Path) -> None:
    transport = KafkaTransport({"bootstrap.servers": "127.0.0.1:1"})
    with pytest.raises(Unavailable, match=r"no answer from Kafka at 127\.0\.0\.1:1 .*Connection refused") as error:
        transport.partitions("log")
    one_line(error)
    transport.close()


def end(producer: KafkaProducer) -> None:
    """As the worker does: an abort behind a commit that failed."""
    try:
        producer.commit()
    except ErrataError:
        producer.abort()
        raise


def test_leaders_that_were_elected_anew_are_asked_for(broker: KafkaServer) -> None:
    """An admin client would go on for minutes with the leaders it knew, as it does after an election of any kind."""
    place = Place({"bootstrap.servers": broker.address})
    transport = place.transport()
    write(transport, "a")
    assert transport.end_offset(LOG) > 0
    broker.restart()
    deadline_s = monotonic() + 30
    found = None
    while found is None:
        with suppress(Unavailable):
            found = transport.end_offset(LOG)
        assert monotonic() < deadline_s, "it does not find the leader"
    assert found == 2  # the record and its marker
    assert texts(transport.read_from(LOG)) == ["a"]
    place.close()


def test_a_silent_broker_is_never_taken_for_an_empty_one(broker: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for offsets, the client may answer without an error that there are none: nothing would be restored."""
    for module in (reader_module, groups_module):
        monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 1.0)
    place = Place({"bootstrap.servers": broker.address})
    transport = place.transport()
    write(transport, "a", "b")
    asked: dict[str, Callable[[], object]] = {
        "all": lambda: texts(transport.read_from(LOG, timeout_s=1.0)),
        "some": lambda: texts(record for record in transport.read_at(LOG, [1]) if record is not None),
        "end": lambda: transport.end_offsets([LOG], timeout_s=1.0)[LOG],
        "begin": lambda: transport.begin_offsets([LOG], timeout_s=1.0)[LOG],
        "group": lambda: transport.group_offsets("group", [LOG]),
    }
    there = {what: ask() for what, ask in asked.items()}
    assert there == {"all": ["a", "b"], "some": ["b"], "end": 3, "begin": 0, "group": {}}
    broker.freeze()
    try:
        for what, ask in asked.items():
            with pytest.raises(Unavailable, match="no answer from Kafka"):
                pytest.fail(f"{what}: {ask()}")
    finally:
        broker.thaw()
    assert {what: ask() for what, ask in asked.items()} == there
    place.close()


def test_a_restore_behind_a_transaction_waits_for_brokers_that_are_silent(
    broker: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot end it, so it says nothing that nobody did; the stage that reads comes back when they do."""
    monkeypatch.setattr(reader_module, "HANGING_AFTER_S", 3.0)
    place = Place({"bootstrap.servers": broker.address})
    writer = place.transport({"transaction.timeout.ms": "60000"})
    write(writer, "before")
    begin_open(writer, "open", at=2)
    reading = place.transport({"transaction.timeout.ms": "1000"}).read_from(LOG)
    assert texts([next(reading)]) == ["before"]
    broker.freeze()
    try:
        with pytest.raises(Unavailable, match="no answer from Kafka") as error:
            list(reading)
    finally:
        broker.thaw()
    one_line(error)
    assert not isinstance(error.value, HangingTransaction)
    place.close()


def test_a_broker_that_dies_in_a_transaction_ends_the_producer(broker: KafkaServer) -> None:
    """Last: it stops the broker of this module."""
    place = Place({"bootstrap.servers": broker.address})
    producer = begin_open(place.transport(), "sent", at=0)
    broker.kill()
    with pytest.raises(Unavailable) as error:
        end(producer)
    one_line(error)
    with pytest.raises(Unavailable, match="start the process again"):
        producer.begin()
    place.close()
