"""The publisher's way into Kafka: librdkafka buffers, batches and retries in threads of its own; nobody waits for it.

Imported when a Kafka publisher is made and not before. Loads neither pydantic nor numpy: it lives in other people's
services.
"""

import ctypes
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from errata.errors import Misconfigured

__all__ = ["KafkaSender", "Loss", "Settle", "checked_prefix", "environment_properties", "sender_properties"]

VARIABLES = "ERRATA_KAFKA__"
NOT_OF_CLIENTS = {"replication"}  # read by `errata topics`, unknown to librdkafka
UNDERSCORED = {"log.level": "log_level"}  # the one property with an underscore

DEFAULTS: Mapping[str, str | int | bool] = {
    "client.id": "errata-publisher",
    "linger.ms": 10,
    "compression.type": "zstd",
    "enable.idempotence": True,
    "enable.metrics.push": False,
    "message.timeout.ms": 30_000,
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 32 * 1024,
    # An event of 1 MiB with its key has to pass here; the broker has the last word. batch.size (1,000,000 B) keeps
    # batches of smaller ones below the broker's limit all the same.
    "message.max.bytes": 2**20 + 2**16,
    "log_level": 0,  # what matters comes through error_cb and the reports, once a minute
}
FIXED: Mapping[str, str] = {"partitioner": "murmur2_random"}  # Java's placing; librdkafka's own differs

POLL_S = 0.2  # how soon the thread sees that it should end
PURGE_S = 0.5  # for the reports of what close gave up on
TELL_EVERY_S = 60.0
RENEW_PAUSE_S = 5.0  # between two producers when the broker refuses each of them for good

_LOG = logging.getLogger("errata.client")
_QUIET = logging.getLogger("errata.client.librdkafka")  # else librdkafka writes to the host's stderr

Loss = Literal["buffer_full", "timed_out", "refused", "closed"]
Settle = Callable[[Loss | None, str], None]
"""Told once for each event that was taken: None when it is delivered, else why not, in a word and in a few."""


def environment_properties(environment: Mapping[str, str]) -> dict[str, str]:
    """librdkafka's properties from ``ERRATA_KAFKA__*``: ``ERRATA_KAFKA__BOOTSTRAP_SERVERS`` is ``bootstrap.servers``.

    With ``_FILE`` behind the name the value is read from that file: secrets do not belong into an environment.
    """
    found: dict[str, str] = {}
    for variable in sorted(name for name in environment if name.startswith(VARIABLES)):
        name, value = variable.removeprefix(VARIABLES).lower(), environment[variable]
        if name.endswith("_file"):
            if variable.removesuffix("_FILE") in environment:
                raise Misconfigured(f"{variable}: given twice, as a value and as a file; keep one")
            name, value = name.removesuffix("_file"), _content(variable, Path(value))
        if name in NOT_OF_CLIENTS:
            continue
        name = name.replace("_", ".")
        found[UNDERSCORED.get(name, name)] = value
    return found


def _content(variable: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise Misconfigured(f"{variable}: the file cannot be read; name a text file this user may read") from None


def checked_prefix(prefix: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,100}", prefix):
        raise Misconfigured("ERRATA_TOPIC_PREFIX: at most 100 letters, digits and ._- , such as acme.")
    return prefix


def sender_properties(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Our defaults, then each layer over the one before; a value None is left out. Raises ``Misconfigured``."""
    properties: dict[str, Any] = dict(DEFAULTS)
    for layer in layers:
        properties.update((name, value) for name, value in layer.items() if value is not None)
    if not properties.get("bootstrap.servers"):
        raise Misconfigured(
            f"{VARIABLES}BOOTSTRAP_SERVERS is not set; set it or give bootstrap_servers, such as localhost:9092"
        )
    return {**properties, **FIXED}


class KafkaSender:
    """A producer of one process and the thread that hears its reports.

    ``send`` hands over and returns at once. Every event that was taken is settled exactly once, at ``close`` at the
    latest. A sender belongs to the process that made it; a forked child makes another and lets this one lie.
    """

    def __init__(self, properties: Mapping[str, Any], settle: Settle) -> None:
        self._properties = dict(properties)
        self._settle = settle
        self._fatal = False
        self._renewals = 0
        self._purged: Loss = "refused"  # a fatal error makes librdkafka purge of itself
        self._told_s: float | None = None
        self._stop = threading.Event()
        self._over = threading.Event()
        self._producer: Producer | None = self._new_producer()
        _SENDERS.add(self)
        self._thread = threading.Thread(target=self._serve, name="errata-publisher", daemon=True)
        self._thread.start()

    def send(self, topic: str, key: bytes | None, value: bytes) -> tuple[Loss, str] | None:
        """None when the event was taken, else why not."""
        producer = self._producer
        if producer is None or self._stop.is_set():
            return "closed", ""
        try:
            producer.produce(topic, value, key)
        except BufferError:
            return "buffer_full", ""
        except KafkaException as error:
            return "refused", _name(error.args[0])
        return None

    def flush(self, timeout_s: float) -> bool:
        producer = self._producer
        return producer is None or self._left(producer, timeout_s) == 0

    def close(self, timeout_s: float) -> None:
        """Deliver what is there; what is not delivered within ``timeout_s`` is settled as closed."""
        if self._stop.is_set():
            return
        self._stop.set()
        producer, self._producer = self._producer, None
        if producer is not None:
            self._left(producer, timeout_s)
            self._give_up(producer, "closed")
        del producer
        # The thread lets go of the producer last: ending one joins librdkafka's threads, which may hang in a look-up
        # of a host's name.
        self._over.set()
        self._thread.join(PURGE_S)

    def abandon(self) -> None:
        """In a forked child: the parent's producer is never ended there.

        Its threads do not exist there and would be waited for, and its connections are still the parent's.
        """
        if self._producer is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._producer))

    def _new_producer(self) -> Producer:
        callbacks = {"on_delivery": self._delivered, "error_cb": self._troubled}
        try:
            return Producer({**self._properties, **callbacks}, logger=_QUIET)
        except (KafkaException, TypeError, ValueError) as error:
            raise Misconfigured(f"settings of the Kafka publisher: {_without_values(error)}") from None

    def _serve(self) -> None:
        producer = self._producer
        while producer is not None and not self._stop.is_set():
            try:
                producer.poll(POLL_S)
                if self._fatal:
                    producer = self._renewed(producer)
            except KafkaException as error:
                self._troubled(error.args[0])
            except Exception as error:  # nothing may end this thread: no report would be heard any more
                _LOG.warning("errata publisher: %s in its thread", type(error).__name__)
                self._stop.wait(POLL_S)
        self._over.wait()

    def _left(self, producer: Producer, timeout_s: float) -> int:
        """Serve reports until none is due or the time is over; the number of events without one."""
        try:
            return producer.flush(max(timeout_s, 0.0))
        except KafkaException as error:  # a fatal error is raised where it is met, be it on the host's thread
            self._troubled(error.args[0])
            return len(producer)

    def _renewed(self, old: Producer) -> Producer:
        """A new producer in place of one that can never send again."""
        self._give_up(old, "refused")
        if self._stop.wait(RENEW_PAUSE_S if self._renewals else 0.0):
            return old
        self._renewals += 1
        new = self._new_producer()
        self._fatal = False
        self._producer = new
        return new

    def _give_up(self, producer: Producer, why: Loss) -> None:
        if len(producer) == 0:
            return
        self._purged = why
        producer.purge()
        for _ in range(self._left(producer, PURGE_S)):
            self._settle(why, "")

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._settle(None, "")
        elif error.code() == KafkaError._MSG_TIMED_OUT:
            self._settle("timed_out", "")
        elif error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            self._settle(self._purged, "")
        else:
            self._settle("refused", _name(error))

    def _troubled(self, error: KafkaError) -> None:
        """What is wrong with the connection, once a minute; librdkafka goes on trying by itself."""
        if error.fatal():
            self._fatal = True
        now_s = time.monotonic()
        if self._told_s is None or now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            _LOG.warning("errata publisher: %s", " ".join(error.str().split()))


def _name(error: Any) -> str:
    return str(error.name()) if isinstance(error, KafkaError) else type(error).__name__


def _without_values(error: Exception) -> str:
    """The message of a refused configuration: the property stays, what was given for it may be a secret."""
    first = error.args[0] if error.args else ""
    text = first.str() if isinstance(first, KafkaError) else str(first)
    text = re.sub(r'value "[^"]*"', "value", text)
    return " ".join(re.sub(r'(property "[^"]*").*', r"\1", text, flags=re.DOTALL).split())


_SENDERS: "WeakSet[KafkaSender]" = WeakSet()


def _abandon_all() -> None:
    for sender in list(_SENDERS):
        sender.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
