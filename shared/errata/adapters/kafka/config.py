"""Properties of librdkafka for each kind of client: ours, with the user's over them.

What the guarantees rest on may not be set by the user and is refused by name; everything else may. The user gives one
set of properties for all clients, so those of consumers are kept from producers and the other way round.
"""

from collections.abc import Mapping
from typing import Literal

from errata.errors import Misconfigured

Kind = Literal["consumer", "reader", "picker", "producer", "admin"]
"""A reader reads partitions by hand, a picker single records of them."""

Properties = dict[str, str]

REPLICATION = "replication"  # ours, read by `errata topics`; librdkafka knows no such property
BOOTSTRAP = "bootstrap.servers"
TRANSACTION_TIMEOUT = "transaction.timeout.ms"
MESSAGE_TIMEOUT = "message.timeout.ms"

_COMMON: Properties = {
    "client.id": "errata",
    "enable.metrics.push": "false",
    "socket.keepalive.enable": "true",
    "reconnect.backoff.max.ms": "2000",
    "log_level": "0",  # it repeats itself at each attempt to connect; what matters comes through its error callback
}
_CONSUMER: Properties = {
    "session.timeout.ms": "10000",
    "heartbeat.interval.ms": "3000",
    "max.poll.interval.ms": "300000",
    "fetch.wait.max.ms": "100",
    # How long it rests when enough records wait. Its own default of 1 s lets a fast stage run dry.
    "fetch.queue.backoff.ms": "20",
    # The next batch waits here, not twenty: what lies longer has left the processor's caches when it is read, and new
    # memory for it costs more than to read it. 64 MiB bound it where records are large.
    "queued.min.messages": "5000",
    "queued.max.messages.kbytes": "65536",
    "max.partition.fetch.bytes": "262144",  # answers in pieces that the heap can use again
}
# Short: the broker answers a reader at the end of a partition only after this time, and a restore waits for it. It
# also waits for all there is: a rest whenever a batch is ready would make it longer.
_READER: Properties = {**_CONSUMER, "fetch.wait.max.ms": "10", "queued.min.messages": "100000"}
_PRODUCER: Properties = {
    TRANSACTION_TIMEOUT: "10000",
    "request.timeout.ms": "5000",
    "retry.backoff.ms": "20",
    "linger.ms": "0",
    "compression.type": "zstd",
    # Room for a record of MAX_RECORD_BYTES and its framing, below the topics' max.message.bytes of 1 MiB.
    "message.max.bytes": "1040000",
}
_DEFAULTS: Mapping[Kind, Properties] = {
    "consumer": _CONSUMER,
    "reader": _READER,
    # A picker wants a few records: what it would fetch ahead is thrown away. So it rests after each fetch, and a rest
    # from the last read is still on when the next begins.
    "picker": {
        **_READER,
        "queued.min.messages": "1",
        "max.partition.fetch.bytes": "65536",
        "fetch.queue.backoff.ms": "1",
    },
    "producer": _PRODUCER,
    "admin": {},
}
_READING: Properties = {
    "group.protocol": "classic",
    "partition.assignment.strategy": "cooperative-sticky",
    "isolation.level": "read_committed",
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "auto.offset.reset": "error",
    "allow.auto.create.topics": "false",
}
_FIXED: Mapping[Kind, Properties] = {
    "consumer": {**_READING, "enable.partition.eof": "false"},
    "reader": {**_READING, "enable.partition.eof": "true"},
    "picker": {**_READING, "enable.partition.eof": "true"},
    "producer": {
        "enable.idempotence": "true",
        "acks": "all",
        "partitioner": "murmur2_random",
    },
    "admin": {},
}

OURS = {
    "group.id": "the stage's name",
    "group.instance.id": "ERRATA_INSTANCE",
    "transactional.id": "the stage's name and ERRATA_INSTANCE",
    "enable.metrics.push": "telemetry stays off",
    **{
        name: f"always {value}"
        for fixed in _FIXED.values()
        for name, value in fixed.items()
        if name != "enable.partition.eof"
    },
    "enable.partition.eof": "the transport's own",
    "delivery.report.only.error": "a failure shows at commit",
    "request.required.acks": "always all",
    "group.remote.assignor": "the group protocol is classic",
}

CONSUMER_ONLY = frozenset({
    "session.timeout.ms", "heartbeat.interval.ms", "max.poll.interval.ms", "check.crcs", "group.protocol.type",
    "queued.min.messages", "queued.max.messages.kbytes", "fetch.wait.max.ms", "fetch.queue.backoff.ms",
    "fetch.message.max.bytes", "max.partition.fetch.bytes", "fetch.max.bytes", "fetch.min.bytes",
    "fetch.error.backoff.ms", "coordinator.query.interval.ms", "consume.callback.max.messages",
})  # fmt: skip
PRODUCER_ONLY = frozenset({
    TRANSACTION_TIMEOUT, MESSAGE_TIMEOUT, "delivery.timeout.ms", "request.timeout.ms", "linger.ms",
    "queue.buffering.max.ms", "queue.buffering.max.messages", "queue.buffering.max.kbytes",
    "queue.buffering.backpressure.threshold", "compression.type", "compression.codec", "compression.level",
    "batch.size", "batch.num.messages", "retries", "message.send.max.retries", "enable.gapless.guarantee",
    "sticky.partitioning.linger.ms", "max.in.flight", "max.in.flight.requests.per.connection",
})  # fmt: skip
_SPELLED = {"log.level": "log_level"}  # its only property with an underscore, which no variable can spell


def client_properties(kind: Kind, given: Mapping[str, str]) -> Properties:
    """Ours with the user's over them. Raises ``Misconfigured`` naming each property that may not be set."""
    user = {_SPELLED.get(name, name): value for name, value in given.items() if name != REPLICATION}
    refused = [f"{variable_of(name)}: may not be set ({OURS[name]}); leave it out" for name in user if name in OURS]
    if refused:
        raise Misconfigured("; ".join(sorted(refused)))
    if not user.get(BOOTSTRAP):
        raise Misconfigured(f"{variable_of(BOOTSTRAP)}: is missing; give host:port of one or more brokers")
    foreign: frozenset[str] = {
        "consumer": PRODUCER_ONLY,
        "reader": PRODUCER_ONLY,
        "picker": PRODUCER_ONLY,
        "producer": CONSUMER_ONLY,
        "admin": PRODUCER_ONLY | CONSUMER_ONLY,
    }[kind]
    properties = {**_COMMON, **_DEFAULTS[kind]}
    properties |= {name: value for name, value in user.items() if name not in foreign}
    if kind == "producer" and not {MESSAGE_TIMEOUT, "delivery.timeout.ms"} & properties.keys():
        # Below the transaction's: a message that waits longer than its transaction lives cannot be delivered any more.
        properties[MESSAGE_TIMEOUT] = str(transaction_timeout_ms(given) * 4 // 5)
    return {**properties, **_FIXED[kind]}


def transaction_timeout_ms(given: Mapping[str, str]) -> int:
    text = given.get(TRANSACTION_TIMEOUT, _PRODUCER[TRANSACTION_TIMEOUT])
    try:
        return int(text)
    except ValueError:
        raise Misconfigured(f"{variable_of(TRANSACTION_TIMEOUT)}: must be a whole number of milliseconds") from None


def variable_of(name: str) -> str:
    """How a user sets a property.

    >>> variable_of("sasl.password")
    'ERRATA_KAFKA__SASL_PASSWORD'
    """
    return f"ERRATA_KAFKA__{name.upper().replace('.', '_')}"
