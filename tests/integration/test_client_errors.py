"""What the Kafka adapter makes of each answer of a broker: the error says what its catcher must do, and that works.

The answers come from librdkafka's mock cluster, so nothing here is about what becomes of a transaction's records.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from threading import Thread, Timer
from time import monotonic
from types import NoneType
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, Message, Producer, TopicPartition
from tests.integration.mock_cluster import BROKER, FUNCTIONS, NO_BROKER, Api, MockCluster, library, mock_cluster

from errata.adapters.kafka import KafkaConsumer, KafkaProducer, KafkaTransport
from errata.adapters.kafka import connection as connection_module
from errata.adapters.kafka import producer as producer_module
from errata.adapters.kafka.connection import Connection
from errata.adapters.kafka.reader import Readers
from errata.errors import Aborted, ErrataError, Fenced, Misconfigured, StateDamaged, Unavailable
from errata.ports import Outgoing
from errata.runtime.worker import MAX_ABORTS_IN_A_ROW

pytestmark = pytest.mark.whole

JOIN_S = 15.0  # to wait at most for partitions, or for an error of a poll
PLACE = ("in", 0)
Outcome = type[ErrataError] | type[None]


def transport_on(mock: MockCluster) -> KafkaTransport:
    quick = {"session.timeout.ms": "6000", "heartbeat.interval.ms": "100", "reconnect.backoff.max.ms": "100"}
    return KafkaTransport({"bootstrap.servers": mock.address, **quick}, missing_offsets="earliest")


@dataclass
class Place:
    """A broker, and a member of a group of its own that holds partitions."""

    mock: MockCluster
    transport: KafkaTransport
    member: KafkaConsumer
    numbers: Iterator[int]

    def producer(self) -> KafkaProducer:
        return self.transport.producer(f"stage-{next(self.numbers)}")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with mock_cluster() as mock:
        mock.create_topic("in", 2)
        mock.create_topic("out", 2)
        mock.create_topic("never-written", 1)
        transport = transport_on(mock)
        member = transport.consumer("group", "in", instance="0")
        poll_until_assigned(member)
        yield Place(mock, transport, member, count())
        transport.close()


def poll_until_assigned(member: KafkaConsumer) -> None:
    deadline_s = monotonic() + JOIN_S
    while not member.assignment():
        member.poll(10, 0.05)
        assert monotonic() < deadline_s


def transact(producer: KafkaProducer, member: KafkaConsumer | None) -> None:
    """A transaction as a worker writes it; without a member, one of a tool that reads nothing."""
    producer.begin()
    producer.produce(Outgoing("out", b"k", b"v"))
    if member is not None:
        producer.send_offsets({PLACE: 1}, member)
    producer.commit()


def outcome(producer: KafkaProducer, member: KafkaConsumer | None) -> ErrataError | None:
    try:
        transact(producer, member)
    except ErrataError as error:
        return error
    return None


def test_the_functions_that_these_tests_rest_on_are_there() -> None:
    """Another release of the client may take them away: then the tests below cannot say anything."""
    missing = [name for name in FUNCTIONS if not hasattr(library(), f"rd_kafka_{name}")]
    assert missing == []


def test_without_an_error_the_transaction_commits(place: Place) -> None:
    """The control of all that follows: what fails there fails by the answer that was planted."""
    producer = place.producer()
    for _ in range(2):
        assert outcome(producer, place.member) is None


OFFSETS, END, PRODUCE, PARTITIONS, GROUP = (
    Api.TXN_OFFSET_COMMIT, Api.END_TXN, Api.PRODUCE, Api.ADD_PARTITIONS_TO_TXN, Api.ADD_OFFSETS_TO_TXN,
)  # fmt: skip
ANSWERS: list[tuple[Api, str, Outcome]] = [
    # The member was replaced by a rebalance: void, and the next transaction works.
    (OFFSETS, "ILLEGAL_GENERATION", Aborted),
    (OFFSETS, "UNKNOWN_MEMBER_ID", Aborted),
    (OFFSETS, "FENCED_INSTANCE_ID", Aborted),
    (PRODUCE, "MSG_SIZE_TOO_LARGE", Aborted),
    # What passes: the client tries again by itself, and nobody hears of it.
    (OFFSETS, "COORDINATOR_LOAD_IN_PROGRESS", NoneType),
    (OFFSETS, "NOT_COORDINATOR", NoneType),
    (OFFSETS, "_TRANSPORT", NoneType),
    (GROUP, "COORDINATOR_NOT_AVAILABLE", NoneType),
    (GROUP, "_TRANSPORT", NoneType),
    (PARTITIONS, "CONCURRENT_TRANSACTIONS", NoneType),
    (PARTITIONS, "_TRANSPORT", NoneType),
    (END, "COORDINATOR_LOAD_IN_PROGRESS", NoneType),
    (END, "NOT_COORDINATOR", NoneType),
    (END, "_TRANSPORT", NoneType),
    (PRODUCE, "NOT_LEADER_FOR_PARTITION", NoneType),
    (PRODUCE, "NOT_ENOUGH_REPLICAS", NoneType),
    # A newer producer of the id. Who has the instance the mock cannot tell, and then a restart finds it out.
    (END, "INVALID_PRODUCER_EPOCH", Unavailable),
    (END, "PRODUCER_FENCED", Unavailable),
    (PARTITIONS, "PRODUCER_FENCED", Unavailable),
    (PRODUCE, "INVALID_PRODUCER_EPOCH", Unavailable),
    # Neither to be tried again nor aborted: only a new process may go on.
    (PRODUCE, "OUT_OF_ORDER_SEQUENCE_NUMBER", Unavailable),
    (GROUP, "INVALID_TXN_STATE", Unavailable),
    (END, "INVALID_TXN_STATE", Unavailable),
    # A right that is missing is missing the next time too.
    (PRODUCE, "TOPIC_AUTHORIZATION_FAILED", Misconfigured),
    (PARTITIONS, "TOPIC_AUTHORIZATION_FAILED", Misconfigured),
    (GROUP, "GROUP_AUTHORIZATION_FAILED", Misconfigured),
    (OFFSETS, "GROUP_AUTHORIZATION_FAILED", Misconfigured),
    (END, "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", Misconfigured),
]


@pytest.mark.parametrize(("api", "name", "becomes"), ANSWERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_an_answer_within_a_transaction(place: Place, api: Api, name: str, becomes: Outcome) -> None:
    producer = place.producer()
    place.mock.answer(api, getattr(KafkaError, name))
    error = outcome(producer, place.member)
    assert place.mock.unsaid(api) == 0
    assert type(error) is becomes, error
    assert "\n" not in str(error)
    producer.abort()  # what the worker does next, whatever failed
    if becomes is Unavailable:
        with pytest.raises(Unavailable, match="start the process again"):
            producer.begin()
    elif becomes is not Misconfigured:  # that ends the process
        for _ in range(MAX_ABORTS_IN_A_ROW - 1):
            error = outcome(producer, place.member)
            if error is None:
                return
            assert isinstance(error, Aborted)  # after a refused record the client's numbers of records are off once
            producer.abort()
        pytest.fail(f"void again and again: {error}")


class Late:
    """A client that knows of a refused record before its report was read, or has another reason why all is void."""

    def __init__(self, producer: KafkaProducer, report: KafkaError | None, reason: KafkaError | None) -> None:
        self._producer = producer
        self._report = report
        self._reason = reason

    def begin_transaction(self) -> None:
        raise KafkaException(self._reason or KafkaError(KafkaError._STATE, "void", txn_requires_abort=True))

    def send_offsets_to_transaction(self, *_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE, "void", txn_requires_abort=True))

    def poll(self, _: float) -> int:
        if self._report is not None:
            self._producer._delivered(self._report, cast(Message, None))
        return 0


FORBIDDEN = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "no", txn_requires_abort=True)


@pytest.mark.parametrize(
    ("report", "reason", "becomes"),
    [(FORBIDDEN, None, Misconfigured), (None, FORBIDDEN, Misconfigured), (None, None, Aborted)],
)
def test_a_record_that_is_refused_is_told_by_the_offsets_too(
    place: Place, report: KafkaError | None, reason: KafkaError | None, becomes: type[Exception]
) -> None:
    producer = place.producer()
    real = producer._client
    producer.begin()
    producer._client = cast(Producer, Late(producer, report, reason))
    try:
        with pytest.raises(becomes):
            producer.send_offsets({PLACE: 1}, place.member)
    finally:
        producer._client = real
    producer.abort()


@pytest.mark.parametrize("name", ["INVALID_PRODUCER_EPOCH", "PRODUCER_FENCED"])
def test_a_fenced_producer_of_no_group_is_told_so(place: Place, name: str) -> None:
    producer = place.producer()
    place.mock.answer(Api.END_TXN, getattr(KafkaError, name))
    assert isinstance(outcome(producer, None), Fenced)
    producer.abort()
    with pytest.raises(Unavailable):
        producer.begin()


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("COORDINATOR_LOAD_IN_PROGRESS", NoneType),
        ("CONCURRENT_TRANSACTIONS", NoneType),
        ("_TRANSPORT", NoneType),
        ("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", Misconfigured),
        ("CLUSTER_AUTHORIZATION_FAILED", Misconfigured),
    ],
)
def test_an_answer_to_a_producer_that_begins(place: Place, name: str, becomes: Any) -> None:
    place.mock.answer(Api.INIT_PRODUCER_ID, getattr(KafkaError, name))
    if becomes is NoneType:
        assert outcome(place.producer(), None) is None
    else:
        with pytest.raises(becomes, match="this user may not"):
            place.producer()
    assert place.mock.unsaid(Api.INIT_PRODUCER_ID) == 0


def test_a_predecessor_whose_transaction_is_being_aborted_is_asked_for_again_by_a_new_client(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client would ask again after half a second; a new one asks at once."""
    made: list[Producer] = []
    connect = Connection.producer

    def producer(self: Connection, *arguments: Any) -> Producer:
        made.append(connect(self, *arguments))
        return made.pop()  # kept nowhere else, or the first one would live on and fence the second

    counted = Counter[str]()
    monkeypatch.setattr(Connection, "producer", lambda *arguments: counted.update(["made"]) or producer(*arguments))
    place.mock.answer(Api.INIT_PRODUCER_ID, KafkaError.CONCURRENT_TRANSACTIONS)
    assert outcome(place.producer(), place.member) is None
    assert counted["made"] == 2
    assert outcome(place.producer(), place.member) is None
    assert counted["made"] == 3  # where nothing is in the way one is enough


def test_a_reader_asks_once_for_each_topic_that_is_new_to_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look once a second by itself, and a restart reads three topics."""
    asked: list[str] = []
    introduce = Readers._introduce

    def noted(self: Readers, one: Any, topic: str) -> None:
        before = set(one.topics)
        introduce(self, one, topic)
        asked.extend(one.topics - before)

    monkeypatch.setattr(Readers, "_introduce", noted)
    for topic in ("new", "newer"):
        place.mock.create_topic(topic, 1)
        producer = place.producer()
        producer.begin()
        producer.produce(Outgoing(topic, b"k", b"v"))
        producer.commit()
    for topic in ("new", "newer", "new"):
        assert [record.value for record in place.transport.read_from((topic, 0))] == [b"v"]
    assert asked == ["new", "newer"]


@pytest.fixture
def led(place: Place) -> Iterator[str]:
    """A topic of which the client has been told that nobody leads it."""
    topic = f"led-{next(place.numbers)}"
    place.mock.create_topic(topic, 1)
    assert place.transport.end_offset((topic, 0)) == 0
    place.mock.lead(topic, 0, NO_BROKER)
    connection_module._ask_for_leader(place.transport._admin.client(), topic, JOIN_S)
    yield topic
    place.mock.lead(topic, 0, BROKER)


def test_a_partition_that_nobody_leads_for_a_moment_is_asked_for_until_somebody_does(place: Place, led: str) -> None:
    back = Timer(0.5, place.mock.lead, (led, 0, BROKER))
    back.start()
    assert place.transport.end_offset((led, 0)) == 0
    back.join()


def test_an_admin_client_would_remember_for_minutes_that_nobody_led(
    place: Place, led: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the client says by itself after the election, and what our asking makes of it."""
    with monkeypatch.context() as without:
        without.setattr(connection_module, "MOVED", frozenset())
        place.mock.lead(led, 0, BROKER)
        with pytest.raises(Unavailable, match="No leaders found"):
            place.transport.end_offset((led, 0))
    assert place.transport.end_offset((led, 0)) == 0


def test_the_leaders_of_a_topic_are_asked_for_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of its partitions: a look-up that has two seconds would be over by then."""
    topic, asked = f"led-{next(place.numbers)}", list[str]()
    places = [(topic, number) for number in range(12)]
    place.mock.create_topic(topic, len(places))
    place.transport.end_offsets(places)
    ask = connection_module._ask_for_leader
    for _, number in places:
        place.mock.lead(topic, number, NO_BROKER)
    ask(place.transport._admin.client(), topic, JOIN_S)

    def elected(client: Any, name: str, timeout_s: float) -> None:
        asked.append(name)
        for _, number in places:
            place.mock.lead(topic, number, BROKER)
        ask(client, name, timeout_s)

    monkeypatch.setattr(connection_module, "_ask_for_leader", elected)
    assert place.transport.end_offsets(places) == dict.fromkeys(places, 0)
    assert asked == [topic]


def test_a_partition_that_nobody_leads_is_said_after_a_while(place: Place, led: str) -> None:
    with pytest.raises(Unavailable, match=f"offsets of {led} partition 0: .*No leaders found"):
        place.transport.end_offsets([(led, 0)], timeout_s=0.5)


def test_a_leader_that_does_not_know_yet_how_far_it_may_answer_is_asked_again(place: Place) -> None:
    code = KafkaError.OFFSET_NOT_AVAILABLE
    place.mock.answer(Api.LIST_OFFSETS, code, code)
    assert place.transport.end_offset(("never-written", 0)) == 0
    assert place.mock.unsaid(Api.LIST_OFFSETS) == 0


@pytest.fixture
def written(place: Place) -> str:
    """A topic with one record, which the admin client and a reader know."""
    topic = f"written-{next(place.numbers)}"
    place.mock.create_topic(topic, 1)
    producer = place.producer()
    producer.begin()
    producer.produce(Outgoing(topic, b"k", b"v"))
    producer.commit()
    assert len(list(place.transport.read_from((topic, 0)))) == 1
    return topic


def test_a_restore_from_a_leader_that_is_silent_for_a_while_reads_all(
    place: Place, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "ANSWER_SLICE_S", 0.3)
    place.mock.answer_late(Api.LIST_OFFSETS, 1.0)
    assert [record.value for record in place.transport.read_from((written, 0))] == [b"v"]
    assert place.mock.unsaid(Api.LIST_OFFSETS) == 0


def test_a_restore_would_take_a_silent_leader_for_an_empty_partition(
    place: Place, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the client's own answer, which has no error, and what a restore would make of it."""
    monkeypatch.setattr(connection_module, "ANSWER_SLICE_S", 0.3)
    monkeypatch.setattr(connection_module, "_told", lambda future: future.result().offset)
    place.mock.answer_late(Api.LIST_OFFSETS, 1.0)
    assert place.transport.end_offset((written, 0)) == OFFSET_INVALID
    place.mock.answer_late(Api.LIST_OFFSETS, 1.0)
    assert list(place.transport.read_from((written, 0))) == []


def test_a_leader_that_stays_silent_is_said(place: Place, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "ANSWER_SLICE_S", 0.3)
    place.mock.answer_late(Api.LIST_OFFSETS, 2.0)
    before = place.transport._admin.client()
    with pytest.raises(Unavailable, match=f"offsets of {written} partition 0: no answer from Kafka"):
        place.transport.end_offsets([(written, 0)], timeout_s=0.5)
    assert place.transport._admin.client() is not before  # which may have lost all brokers for good


def test_a_broker_that_is_away_for_a_moment_costs_nothing(place: Place) -> None:
    producer = place.producer()
    producer.begin()
    producer.produce(Outgoing("out", b"k", b"v"))
    place.mock.set_down()
    back = Timer(0.3, place.mock.set_up)
    back.start()
    producer.send_offsets({PLACE: 1}, place.member)
    producer.commit()
    back.join()
    assert outcome(producer, place.member) is None


def test_offsets_without_an_answer_hold_nobody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client itself would wait until the broker is back: that is the control."""
    monkeypatch.setattr(producer_module, "END_TIMEOUT_S", 1.0)
    producer, client = place.producer(), place.producer()._client
    client.begin_transaction()
    producer.begin()
    place.mock.set_down()
    positions, member = [TopicPartition("in", 0, 1)], place.member.group_metadata()

    def send() -> None:
        with suppress(KafkaException):  # it has no answer to give; when it says so is the point
            client.send_offsets_to_transaction(positions, member, 1.0)

    alone = Thread(target=send, daemon=True)
    alone.start()
    try:
        began_s = monotonic()
        with pytest.raises(Unavailable, match="no answer within 3 s"):
            producer.send_offsets({PLACE: 1}, place.member)
        producer.abort()
        producer.close()
        assert monotonic() - began_s < 5
        assert alone.is_alive()
    finally:
        place.mock.set_up()
    alone.join(JOIN_S)
    assert not alone.is_alive()


def test_a_commit_without_an_answer_leaves_the_end_in_doubt(place: Place) -> None:
    """It takes the 12 s that a commit and the abort behind it may take."""
    producer = place.producer()
    producer.begin()
    producer.send_offsets({PLACE: 1}, place.member)  # nothing is left to be written: only the end gets no answer
    place.mock.set_down()
    try:
        with pytest.raises(Unavailable, match="no answer from Kafka"):
            producer.commit()
        producer.abort()  # best effort: its failure is not told once more
        with pytest.raises(Unavailable, match="in doubt"):
            producer.begin()
    finally:
        place.mock.set_up()


def test_an_abort_without_an_answer_is_not_waited_for_when_the_producer_closes(place: Place) -> None:
    """It takes 12 s: those of the abort, and what a client gets to close whose process is about to end."""
    producer = place.producer()
    producer.begin()
    producer.send_offsets({PLACE: 1}, place.member)
    place.mock.set_down()
    try:
        with pytest.raises(Unavailable, match="no answer from Kafka"):
            producer.abort()
        began_s = monotonic()
        producer.close()
        assert monotonic() - began_s < 5  # of a client that nothing is known against, 15
    finally:
        place.mock.set_up()


# -- members of a group; each error ends its member, so each has a broker of its own ----------------------------------

POLLED: list[tuple[Api, str, Outcome]] = [
    (Api.FETCH, "TOPIC_AUTHORIZATION_FAILED", Misconfigured),
    (Api.FETCH, "OFFSET_OUT_OF_RANGE", StateDamaged),
    (Api.FETCH, "NOT_LEADER_FOR_PARTITION", NoneType),
    (Api.FETCH, "_TRANSPORT", NoneType),
    (Api.JOIN_GROUP, "GROUP_AUTHORIZATION_FAILED", Misconfigured),
    (Api.JOIN_GROUP, "COORDINATOR_LOAD_IN_PROGRESS", NoneType),
    (Api.FIND_COORDINATOR, "COORDINATOR_NOT_AVAILABLE", NoneType),
    (Api.OFFSET_FETCH, "COORDINATOR_LOAD_IN_PROGRESS", NoneType),
    (Api.OFFSET_FETCH, "UNSTABLE_OFFSET_COMMIT", NoneType),
    (Api.OFFSET_FETCH, "GROUP_AUTHORIZATION_FAILED", Misconfigured),
    (Api.HEARTBEAT, "REBALANCE_IN_PROGRESS", NoneType),
    (Api.HEARTBEAT, "UNKNOWN_MEMBER_ID", NoneType),
    (Api.HEARTBEAT, "FENCED_INSTANCE_ID", Unavailable),  # who fenced it the mock cannot tell
]


@pytest.mark.parametrize(("api", "name", "becomes"), POLLED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_an_answer_to_a_member(api: Api, name: str, becomes: Outcome) -> None:
    with mock_cluster() as mock:
        mock.create_topic("in", 2)
        transport = transport_on(mock)
        written = transport.producer("source")
        written.begin()
        for value in (b"1", b"2"):
            written.produce(Outgoing("in", None, value, partition=0))
        written.commit()
        # The client drops an answer to a fetch that it has overtaken itself; what is wrong for good is said again.
        times = 3 if api is Api.FETCH and becomes is not NoneType else 1
        mock.answer(api, *[getattr(KafkaError, name)] * times)
        try:
            assert type(polled(mock, transport, api, fails=becomes is not NoneType)) is becomes
            assert mock.unsaid(api) < times
        finally:
            transport.close()


def polled(mock: MockCluster, transport: KafkaTransport, api: Api, *, fails: bool) -> ErrataError | None:
    """Poll a new member until it fails, if it is to, or has met the error and read both records."""
    read: list[bytes | None] = []
    deadline_s = monotonic() + JOIN_S
    try:
        member = transport.consumer("group", "in", instance="0")
        while fails or len(read) < 2 or mock.unsaid(api) or not member.assignment():
            read += [record.value for record in member.poll(10, 0.05)]
            assert monotonic() < deadline_s, f"read {len(read)}, unsaid {mock.unsaid(api)}"
        for _ in range(5):  # what was told right after
            member.poll(10, 0.02)
    except ErrataError as error:
        return error
    assert read[:2] == [b"1", b"2"]
    return None
