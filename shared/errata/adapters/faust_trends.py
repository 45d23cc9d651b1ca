"""Faust for one table: its consumer group, its table with a changelog and the recovery of that, and nothing else of it.

What Faust does by itself loses records, or takes some that were never committed. So three things are done here:

- The driver reads **committed records only**; Faust's own does so for its transactions alone.
- Nothing is **acknowledged** through Faust, which takes a record on which the body raised for done. Offsets are
  committed here, behind the state and the results that they stand for.
- The **seek after a rebalance** is done in the one task that also fetches, so that no record which was fetched before
  it is taken after it. A partition goes on where its state is, or from its beginning when it has none.

What the stage makes of a record is state, and what it publishes is absolute. So a record that comes again after a kill
changes nothing.
"""

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any, cast

import faust
from aiokafka.codec import has_zstd  # type: ignore[import-untyped]
from aiokafka.errors import IllegalStateError, KafkaError  # type: ignore[import-untyped]
from aiokafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]
from faust.tables.recovery import Recovery
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP, ConsumerMessage

from errata.domain.trends import partition_of_key
from errata.errors import ErrataError, Misconfigured, StateDamaged, Unavailable
from errata.ports import Headers, Outgoing, Record, TableStage

SESSION_S, HEARTBEAT_S = 6.0, 2.0  # Faust's own session of 60 s keeps the partitions of a killed member for a minute
REBALANCE_S = 15.0  # that the members have to join again
PUBLISH_EVERY_S = 1.0
TURN_S = 0.05  # of the loop that watches and publishes
READY_WITHIN_S = 60.0  # of a start or a rebalance, the restore included
STOP_WITHIN_S = 20.0
ANSWER_S = 20.0

_LOUD = (__name__, "faust", "mode", "aiokafka")  # mode logs each move of a service
_OTHERS = ("aiokafka", "asyncio", "faust", "mode")  # an error of theirs may be over at the next start
_SASL = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
# Of librdkafka's properties, those that have their like here. What else the user sets is for librdkafka's clients.
KNOWN = frozenset({
    "bootstrap.servers", "security.protocol", "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password",
    "ssl.ca.location", "ssl.ca.pem", "ssl.certificate.location", "ssl.key.location", "ssl.key.password",
    "enable.ssl.certificate.verification", "ssl.endpoint.identification.algorithm", "replication",
})  # fmt: skip


class _Fetched(ConsumerMessage):
    """A record, and the epoch in which it was fetched."""

    __slots__ = ("epoch",)
    epoch: int


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        made = super()._create_worker_consumer(transport)
        made._isolation_level = "read_committed"
        return made


class _Consumer(driver.Consumer):
    """Faust's consumer, reading committed records only and sought by `_App.starts`."""

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Not where Faust wants it: see `_wait_next_records`."""

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        app = cast(_App, self.app)
        if app.to_seek:
            await self._seek_to_starts()
        records, active = await super()._wait_next_records(timeout)
        if app.to_seek:
            records = {tp: found for tp, found in (records or {}).items() if tp.topic != app.source}
            await self._seek_to_starts()
        return records, active

    async def _seek_to_starts(self) -> None:
        app = cast(_App, self.app)
        rebalance = app.rebalancing_count
        await super().perform_seek()
        places = [tp for tp in self.assignment() if tp.topic == app.source]
        earliest = await self.earliest_offsets(*places) if places else {}
        ends = await self.highwaters(*places) if places else {}
        starts = {}
        for tp in places:
            committed, known = self._read_offset.get(tp), app.stage.position(tp.partition)
            first = int(earliest.get(tp) or 0)
            if known is not None and known > int(ends.get(tp) or 0):
                app.failure = StateDamaged(
                    f"trends_unreadable: the state is ahead of partition {tp.partition} of {tp.topic}, which was"
                    " made anew; run errata trends rebuild"
                )
                return
            starts[tp] = first if committed is None or known is None else max(first, min(committed, known))
        if starts:
            await self.seek_wait(starts)
        if app.rebalancing_count == rebalance:
            app.open({tp.partition: offset for tp, offset in starts.items()})

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        made = super()._to_message(tp, record)
        fetched = _Fetched(**{name: getattr(made, name) for name in _FIELDS})
        app = cast(_App, self.app)
        fetched.epoch = app.epoch
        app.fetched[made.partition] = made.offset + 1
        return fetched

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> bool:
        """Whether they are committed; not in a rebalance, after which the same records come again."""
        thread = self._thread
        marked = {driver.ensure_aiokafka_TP(tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        try:
            await thread.call_thread(thread._ensure_consumer().commit, marked)
        except (KafkaError, IllegalStateError):
            return False
        return True

    def ahead(self) -> dict[int, tuple[int, int]]:
        """The end of each partition, and the next offset that is fetched from it: behind the marks of transactions."""
        source = cast(_App, self.app).source
        assigned = self._thread._ensure_consumer()._subscription.subscription.assignment
        found = {}
        for tp in self.assignment():
            state = assigned.state_value(tp) if tp.topic == source and tp in assigned.tps else None
            if state is not None and state.highwater is not None and state.has_valid_position:
                found[tp.partition] = state.highwater, state.position
        return found


_FIELDS = (
    "topic", "partition", "offset", "timestamp", "timestamp_type", "headers", "key", "value", "checksum",
    "serialized_key_size", "serialized_value_size", "tp", "generation_id",
)  # fmt: skip


class _Producer(driver.Producer):
    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class _Transport(driver.Transport):
    Consumer = _Consumer
    Producer = _Producer


class _Table(faust.Table[bytes, bytes]):
    """A table that tells when its changelog is written."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unwritten: list[Any] = []

    def send_changelog(self, *args: Any, **options: Any) -> Any:
        sent = super().send_changelog(*args, **options)
        self.unwritten.append(sent)
        return sent

    async def written(self) -> None:
        """Wait until the broker has all changes; raises what kept one of them from it."""
        waiting, self.unwritten = self.unwritten, []
        for one in waiting:
            await one


class _Recovery(Recovery):
    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        await super().on_recovery_completed(generation_id)
        cast(_App, self.app).restored(generation_id)


class _App(faust.App):
    """Faust's app with the state of one rebalance: closed, recovered and to be sought, open."""

    def __init__(self, name: str, stage: TableStage, source: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.stage = stage
        self.source = source
        self.epoch = 0  # of what is fetched; it moves with each seek
        self.fetched: dict[int, int] = {}  # the next offset behind what was handed on, by partition
        self.failure: BaseException | None = None
        self.is_open = self.recovered = self.revoking = False
        self.on_restored: Callable[[], None] = lambda: None

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Any:
        return _Transport(self.conf.broker_producer, self)

    def on_rebalance_start(self) -> None:
        """In the consumer's thread, before anything else of a rebalance."""
        self.is_open = self.recovered = False
        self.revoking = True
        super().on_rebalance_start()

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self.revoking = False
        await super()._on_partitions_assigned(assigned, generation_id)

    def restored(self, generation_id: int) -> None:
        """A recovery has ended; it may be that of an assignment that is over."""
        if generation_id == self.consumer_generation_id and not self.revoking:
            self.on_restored()
            self.recovered = True

    @property
    def to_seek(self) -> bool:
        return self.recovered and not self.is_open

    def open(self, starts: Mapping[int, int]) -> None:
        self.epoch += 1
        self.fetched = dict(starts)
        self.is_open = True
        self.stage.assigned(starts)

    def takes(self, message: ConsumerMessage) -> bool:
        return self.is_open and isinstance(message, _Fetched) and message.epoch == self.epoch


class FaustWorker:
    """A member of the group on a thread of its own. ``run_once`` waits, and raises what ended the member.

    ``topic`` is read, ``state`` is the changelog of the table, with as many partitions; both must be there. Names are
    without ``topic_prefix``. ``properties`` are librdkafka's; of those, servers, TLS and SASL are taken.
    """

    def __init__(
        self,
        stage: TableStage,
        properties: Mapping[str, str],
        *,
        topic_prefix: str,
        group: str,
        topic: str,
        state: str,
        partitions: int,
        publish_every_s: float = PUBLISH_EVERY_S,
    ) -> None:
        if not has_zstd():
            raise Misconfigured("run trends: the zstd codec is missing; install errata[trends]")
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._stage = stage
        self._properties = dict(properties)
        self._prefix = topic_prefix
        self._group = topic_prefix + group
        self._topic = topic
        self._state = topic_prefix + state
        self._partitions = partitions
        self._publish_every_s = publish_every_s
        self._credentials = credentials_of(properties)
        self._ended = threading.Event()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._turned_s = time.monotonic()
        self._taken = 0
        self._uncommitted: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run, name="errata-faust", daemon=True)
        self._thread.start()

    # From the main thread.

    @property
    def turned_s(self) -> float:
        """When the member's loop last turned, monotonic, in seconds."""
        return self._turned_s

    def run_once(self, timeout_s: float = 0.0) -> int:
        """Wait for the member's end; how many records it took since the last call. Raises what ended it."""
        if self._ended.wait(timeout_s):
            raise told(self._error) from None
        taken, self._taken = self._taken, 0
        return taken

    def close(self) -> None:
        """Publish what is counted, commit, and leave the group."""
        self._stopping.set()
        self._thread.join(STOP_WITHIN_S)

    # In the thread of the member.

    def _run(self) -> None:
        try:
            with TemporaryDirectory(prefix="errata-trends-") as folder:
                asyncio.run(self._member(folder))
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()

    async def _member(self, folder: str) -> None:
        self._lock = asyncio.Lock()
        self._app = app = self._made(folder)
        starting = asyncio.ensure_future(app.start())
        turning = asyncio.ensure_future(self._turn())
        not_open_s = time.monotonic()
        published_s = 0.0
        try:
            while not (self._stopping.is_set() or self._error or app.failure or app.crashed):
                now_s = time.monotonic()
                if starting.done() and starting.exception() is not None:
                    raise starting.exception() or RuntimeError
                if app.is_open:
                    not_open_s = now_s
                elif now_s - not_open_s > READY_WITHIN_S:
                    raise Unavailable(f"trends: no partitions, or not restored, within {READY_WITHIN_S:g} s")
                if app.is_open and now_s - published_s >= self._publish_every_s:
                    await self._publish()
                    self._stage.lag(self._lags())
                    published_s = time.monotonic()
                await asyncio.sleep(TURN_S)
            self._error = self._error or app.failure or app.crash_reason
            if self._error is None and app.is_open:
                await self._publish()
        finally:
            with suppress(Exception, asyncio.CancelledError):
                await asyncio.wait_for(app.stop(), STOP_WITHIN_S / 2)
            starting.cancel()
            turning.cancel()

    async def _turn(self) -> None:
        """Tell that the loop turns; apart from publishing, which may wait for a broker."""
        with suppress(asyncio.CancelledError):
            while self._error is None:
                try:
                    self._check_awake()
                except Unavailable as error:
                    self._error = error
                self._turned_s = time.monotonic()
                await asyncio.sleep(TURN_S)

    def _made(self, folder: str) -> _App:
        servers = self._properties.get("bootstrap.servers", "").split(",")
        app = _App(
            self._group,
            self._stage,
            self._prefix + self._topic,
            broker=[f"kafka://{server.strip()}" for server in servers if server.strip()],
            broker_credentials=self._credentials,
            broker_client_id="errata",
            broker_session_timeout=SESSION_S,
            broker_heartbeat_interval=HEARTBEAT_S,
            broker_rebalance_timeout=REBALANCE_S,
            broker_request_timeout=ANSWER_S,
            broker_commit_interval=3_600.0,
            consumer_auto_offset_reset="earliest",
            producer_request_timeout=ANSWER_S,
            store="memory://",
            datadir=folder,
            topic_allow_declare=False,
            topic_disable_leader=True,
            topic_partitions=self._partitions,
            web_enabled=False,
            autodiscover=False,
            stream_wait_empty=False,
            table_standby_replicas=0,
        )
        raw: dict[str, Any] = {
            **dict.fromkeys(("key_type", "value_type"), bytes),
            **dict.fromkeys(("key_serializer", "value_serializer"), "raw"),
            "allow_empty": True,
            "acks": False,
        }
        source = app.topic(app.source, **raw)
        changelog = app.topic(
            self._state, partitions=self._partitions, compacting=True, internal=True, maxsize=131_072, **raw
        )
        table = _Table(
            app, name="state", key_type=bytes, value_type=bytes, partitions=self._partitions, changelog_topic=changelog
        )
        app.tables.add(table)
        self._table = table
        app.on_restored = self._on_restored
        app.tables._recovery = _Recovery(app, app.tables, beacon=app.tables.beacon)  # type: ignore[attr-defined]
        app.on_partitions_revoked.connect(self._on_revoked)
        app.agent(source, name="count")(self._body)
        return app

    def _on_restored(self) -> None:
        """The table is what its changelog says, of the partitions that are ours."""
        app, table = self._app, self._table
        ours = {tp.partition for tp in app.consumer.assignment() if tp.topic == app.source}
        entries: dict[int, dict[bytes, bytes]] = {number: {} for number in ours}
        held = table.data.data
        for key in list(held):
            number = partition_of_key(key)
            if number in entries:
                entries[number][key] = held[key]
            else:
                del held[key]  # of a partition that another member has now
        self._uncommitted.clear()
        try:
            self._stage.restore(entries)
        except Exception as error:
            self._error = error
            raise

    async def _on_revoked(self, *_: Any, **__: Any) -> None:
        """The last word on the partitions that go; what comes after the next recovery begins anew."""
        self._stage.lost()
        with suppress(Exception):  # what is not published now comes again, to whoever has the partition then
            await self._publish()

    async def _body(self, stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            if self._error is not None or not self._app.takes(message):
                continue
            try:
                self._check_awake()
                for change in self._stage.take(record_of(message, self._topic)):
                    if change.value is not None:
                        self._table[change.key] = change.value
                    elif change.key in self._table:
                        del self._table[change.key]
            except Exception as error:
                self._error = error  # the record is not committed: it comes again
                continue
            self._uncommitted[message.partition] = message.offset + 1
            self._taken += 1

    async def _publish(self) -> None:
        """State, then results, then the offsets that they stand for."""
        async with self._lock:
            positions, self._uncommitted = self._uncommitted, {}
            results = self._stage.results()
            if not positions and not results:
                return
            await self._table.written()
            sent = [await self._send(one) for one in results]
            for one in sent:
                await one
            app = self._app
            offsets = {TP(app.source, number): offset for number, offset in positions.items()}
            if not offsets:
                return
            if await cast(_Consumer, app.consumer).commit_offsets(offsets):
                self._stage.committed(positions)
            elif app.is_open:
                self._uncommitted = positions | self._uncommitted

    def _check_awake(self) -> None:
        """Raises ``Unavailable`` after a standstill for which the group may have given the partitions to another."""
        quiet_s = time.monotonic() - self._turned_s
        if self._app.is_open and quiet_s > SESSION_S:  # before, nothing is taken: a slow start is no harm
            raise Unavailable(f"trends: stood still for {quiet_s:.0f} s, longer than its session of {SESSION_S:g} s")

    def _lags(self) -> dict[int, int]:
        """Records that wait, by partition; a mark of a transaction at the end is none."""
        lags = {}
        for number, (end, fetching) in cast(_Consumer, self._app.consumer).ahead().items():
            taken = self._stage.position(number)
            waits = taken is not None and taken < self._app.fetched.get(number, 0)
            lags[number] = max(0, end - (taken or 0 if waits else fetching))
        return lags

    async def _send(self, one: Outgoing) -> Any:
        return await self._app.producer.send(
            self._prefix + one.topic, one.key, one.value, one.partition, None, list(one.headers)
        )


def record_of(message: Any, topic: str) -> Record:
    headers: Headers = tuple((name, bytes(value or b"")) for name, value in _pairs(message.headers))
    timestamp_us = round((message.timestamp or 0.0) * 1_000) * 1_000
    return Record(topic, message.partition, message.offset, timestamp_us, message.key, message.value, headers)


def _pairs(headers: Any) -> list[tuple[str, bytes]]:
    return list(headers.items()) if isinstance(headers, Mapping) else list(headers or ())


def credentials_of(properties: Mapping[str, str]) -> Any:
    """TLS and SASL as Faust has them. Raises ``Misconfigured`` for a mechanism that is not offered here."""
    protocol = properties.get("security.protocol", "plaintext").lower()
    context = _tls(properties) if protocol in ("ssl", "sasl_ssl") else None
    if not protocol.startswith("sasl"):
        return None if context is None else faust.SSLCredentials(context)
    mechanism = properties.get("sasl.mechanism", properties.get("sasl.mechanisms", "PLAIN")).upper()
    if mechanism not in _SASL:
        raise Misconfigured(f"ERRATA_KAFKA__SASL_MECHANISM: trends takes {', '.join(_SASL)}")
    return faust.SASLCredentials(
        username=properties.get("sasl.username"),
        password=properties.get("sasl.password"),
        ssl_context=context,
        mechanism=mechanism,
    )


def _tls(properties: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=properties.get("ssl.ca.location"), cadata=properties.get("ssl.ca.pem")
        )
        certificate = properties.get("ssl.certificate.location")
        if certificate is not None:
            context.load_cert_chain(certificate, properties.get("ssl.key.location"), properties.get("ssl.key.password"))
    except (OSError, ValueError) as error:
        raise Misconfigured("ERRATA_KAFKA__SSL_…: a certificate or key cannot be read; name PEM files") from error
    if properties.get("ssl.endpoint.identification.algorithm", "https") == "none":
        context.check_hostname = False
    if properties.get("enable.ssl.certificate.verification", "true") == "false":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def told(error: BaseException | None) -> Exception:
    """What a member's end means to its process: most begin again where the state is, a bug passes through as it is."""
    if isinstance(error, ErrataError):
        return error
    passes = isinstance(error, MemoryError | OSError) or type(error).__module__.partition(".")[0] in _OTHERS
    if error is None or passes or not isinstance(error, Exception):
        kind = "its loop ended" if error is None else type(error).__name__
        return Unavailable(f"trends: the member failed ({kind}); it begins again where its state is")
    return error
