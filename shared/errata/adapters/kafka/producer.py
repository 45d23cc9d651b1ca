"""A transactional producer. Once the end of a transaction is in doubt it is of no more use: the process starts anew."""

from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka._types import HeadersType

from errata.adapters.kafka.config import transaction_timeout_ms
from errata.adapters.kafka.connection import CLOSE_TIMEOUT_S, Connection, OfOneProcess, close_in_time
from errata.adapters.kafka.consumer import KafkaConsumer
from errata.adapters.kafka.failures import error_of, failure
from errata.errors import ErrataError, Fenced, Misconfigured, RefusedOversize, Unavailable
from errata.ports import Consumer, Offsets, Outgoing

MAX_RECORD_BYTES = 1_000_000
INIT_TIMEOUT_S = 30.0  # a predecessor's transaction is aborted meanwhile
FIRST_SLICE_S, INIT_SLICE_S = 0.1, 1.0  # each is twice the one before
CONNECT_S = 1.0
END_TIMEOUT_S = 10.0  # of commit, abort and offsets
LAST_ABORT_TIMEOUT_S = LAST_CLOSE_TIMEOUT_S = 2.0  # of one whose end is in doubt: its process ends and starts anew
FULL_QUEUE_POLL_S = 0.05
REPORT_S = 0.2
LATE_S = 2.0  # beyond its own time-out a call is waited for


class KafkaProducer(OfOneProcess):
    """See ``errata.ports.Producer``.

    librdkafka does not know when a commit or abort without an answer takes effect; a later one could hit the next
    transaction. So after ``Unavailable`` every further `begin` raises ``Unavailable`` too.
    """

    def __init__(self, connection: Connection, transactional_id: str, partitions_of: Callable[[str], int]) -> None:
        super().__init__()
        self._connection = connection
        self._id = transactional_id
        self._partitions_of = partitions_of
        self._undelivered: KafkaError | None = None  # of this transaction
        self._member: KafkaConsumer | None = None  # whose offsets it sends
        self._transaction_timeout_s = transaction_timeout_ms(connection.properties) / 1_000
        self._open = self._in_doubt = self._hangs = self._closed = False
        self._began_s = 0.0
        self._client: Producer = connection.producer(transactional_id, self._delivered)
        self._init()

    def begin(self) -> None:
        self._check()
        if self._open:
            raise RuntimeError("a transaction is open already; commit or abort it first")
        if self._in_doubt:
            raise Unavailable(f"{self._id}: the end of its last transaction is in doubt; start the process again")
        self._began_s = monotonic()
        try:
            self._client.poll(0)  # raises what was fatal since the last transaction
            self._client.begin_transaction()
        except KafkaException as error:
            raise self._failure(error, "begin") from None
        self._open, self._undelivered = True, None

    def produce(self, record: Outgoing) -> None:
        self._check_open()
        key, value, headers = record.key, record.value, record.headers
        size = len(key or b"") + len(value or b"") + sum(len(name) + len(content) for name, content in headers)
        if size > MAX_RECORD_BYTES:
            # librdkafka would refuse it and commit the rest: the record would be lost with its offset committed.
            raise RefusedOversize("", f"a record for {record.topic} is larger than {MAX_RECORD_BYTES:,} bytes")
        count = self._partitions_of(
            record.topic
        )  # librdkafka would wait for a topic that is missing until time runs out
        partition = -1 if record.partition is None else record.partition
        if partition >= count:
            raise Misconfigured(f"{record.topic} has partitions 0 to {count - 1}, not {partition}")
        self._enqueue(record, partition)

    def send_offsets(self, offsets: Offsets, consumer: Consumer) -> None:
        self._check_open()
        if not isinstance(consumer, KafkaConsumer):
            raise Misconfigured("offsets go into a transaction with a consumer of the same transport")
        self._member = consumer
        positions = [self._connection.at(place, offset) for place, offset in sorted(offsets.items())]
        try:
            self._send_in_time(positions, consumer.group_metadata())
        except KafkaException as error:
            raise self._failure(error, "offsets") from None

    def commit(self) -> None:
        self._check_open()
        try:
            self._client.commit_transaction(END_TIMEOUT_S)
        except KafkaException as error:
            raise self._failure(error, "commit") from None
        self._open = False

    def abort(self) -> None:
        """End the open transaction without effect. When its end is in doubt already that has been told: best effort."""
        self._check()
        if not self._open:
            return
        self._open = False
        if self._hangs:
            return
        try:
            self._client.abort_transaction(LAST_ABORT_TIMEOUT_S if self._in_doubt else END_TIMEOUT_S)
        except KafkaException as error:
            if not self._in_doubt:
                raise self._failure(error, "abort") from None

    def close(self) -> None:
        self.check_process()
        if self._closed:
            return
        if self._open:
            self._in_doubt = True  # whatever comes of the abort, nobody waits long for it
            self.abort()
        self._closed = True
        if not self._hangs:  # it would wait for that call
            close_in_time(self._client, self._id, LAST_CLOSE_TIMEOUT_S if self._in_doubt else CLOSE_TIMEOUT_S)

    def _send_in_time(self, positions: list[TopicPartition], member: Any) -> None:
        """Raises ``Unavailable`` when the client does not come back.

        librdkafka forgets the time-out when the group's coordinator goes away at the wrong moment (its issue 5456), and
        then waits for ever. The thread that it holds is left to it: the process is about to end.
        """
        failed: list[Exception] = []

        def send() -> None:
            try:
                self._client.send_offsets_to_transaction(positions, member, END_TIMEOUT_S)
            except Exception as error:
                failed.append(error)

        sending = Thread(target=send, name="errata-kafka-offsets", daemon=True)
        sending.start()
        sending.join(END_TIMEOUT_S + LATE_S)
        if sending.is_alive():
            self._hangs = True
            raise self._doubt(f"{self._id}: offsets: no answer within {END_TIMEOUT_S + LATE_S:g} s")
        if failed:
            raise failed[0]

    def _enqueue(self, record: Outgoing, partition: int) -> None:
        topic, headers = self._connection.full(record.topic), cast(HeadersType, list(record.headers))
        while True:
            try:
                self._client.produce(topic, record.value, record.key, partition, headers=headers)
                return
            except BufferError:  # more than librdkafka holds at once: wait for what is on its way
                if monotonic() - self._began_s > self._transaction_timeout_s:
                    raise self._doubt(f"{self._id}: Kafka took nothing more until the transaction's time-out") from None
                with suppress(KafkaException):  # what is fatal the next attempt says too
                    self._client.poll(FULL_QUEUE_POLL_S)
            except KafkaException as error:
                if error_of(error).fatal():
                    raise self._failure(error, f"write to {record.topic}") from None
                raise failure(error_of(error), f"{self._id}: write to {record.topic}") from None

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        """Called for records that could not be written. Those that an abort takes back have no reason of their own."""
        if error is not None and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            self._undelivered = error

    def _init(self) -> None:
        """Fence the predecessor and abort what it left open. In slices, so that a wrong password is told at once.

        librdkafka asks again only after half a second where nobody answers yet, and where the broker says that it has
        begun to abort a transaction of the predecessor. A killed service would wait for both. So it is asked when the
        connection stands, and asked again by a new client, whose first request goes out at once.
        """
        deadline_s, slice_s = monotonic() + INIT_TIMEOUT_S, FIRST_SLICE_S
        self._connect()
        while True:
            try:
                self._client.init_transactions(slice_s)
                return
            except KafkaException as error:
                why = self._connection.answered(self._client, error, f"transactions of {self._id}")
                if not error_of(error).retriable() or monotonic() > deadline_s or isinstance(why, Misconfigured):
                    raise why from None
                if error_of(error).code() == KafkaError.CONCURRENT_TRANSACTIONS:
                    del self._client  # it is gone before the next one asks, which it would fence
                    self._client = self._connection.producer(self._id, self._delivered)
                    self._connect()
                slice_s = min(2 * slice_s, INIT_SLICE_S)

    def _connect(self) -> None:
        """Wait until a broker answers; not for long: whoever needs it says why there is none."""
        with suppress(KafkaException):
            self._client.list_topics(timeout=CONNECT_S)

    def _failure(self, exception: KafkaException, doing: str) -> ErrataError:
        """The error of errata; all but an abortable one puts the transaction's end in doubt."""
        error = error_of(exception)
        found = failure(error, f"{self._id}: {doing}")
        if error.txn_requires_abort():
            # All is void, or records are missing: some reasons for that go away by no retry.
            why = self._reason_of(error)
            known = failure(why, f"{self._id}: write") if why is not None else found
            return known if isinstance(known, Misconfigured) else found
        if isinstance(found, Fenced) and monotonic() - self._began_s > self._transaction_timeout_s:
            # The broker fences an expired transaction as it does a replaced producer.
            limit = f"{self._transaction_timeout_s:g} s"
            return self._doubt(f"{self._id}: {doing}: the transaction took longer than {limit} and was aborted")
        self._in_doubt = True
        if isinstance(found, Fenced) and self._member is not None:
            # By a rival, which joins the group right behind; or by a lost request of our own for the same id.
            return self._member.fence(f"{self._id}: {doing}")
        if error.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
            return self._connection.answered(self._client, exception, f"{self._id}: {doing}")
        return found

    def _reason_of(self, error: KafkaError) -> KafkaError | None:
        """Why a transaction is void."""
        if self._undelivered is None and error.code() == KafkaError._STATE:
            with suppress(KafkaException):
                self._client.poll(REPORT_S)  # the report of a record may be behind by an instant
        if self._undelivered is not None or error.code() != KafkaError._STATE:
            return self._undelivered
        try:
            self._client.begin_transaction()  # which cannot be, and says what came before
        except KafkaException as before:
            return error_of(before)
        return None

    def _doubt(self, message: str) -> Unavailable:
        self._in_doubt = True
        return Unavailable(message)

    def _check(self) -> None:
        self.check_process()
        if self._closed:
            raise RuntimeError(f"the producer {self._id} is closed")

    def _check_open(self) -> None:
        self._check()
        if not self._open:
            raise RuntimeError("no transaction is open; begin one first")
