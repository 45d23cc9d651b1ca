"""librdkafka's errors as errata's: what their catcher must do, in one line, with the reason the client last gave."""

import logging
import re
from time import monotonic
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from errata.adapters.kafka.config import variable_of
from errata.errors import Aborted, ErrataError, Fenced, Misconfigured, StateDamaged, Unavailable

FENCED = frozenset({
    KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.FENCED_INSTANCE_ID,
})  # fmt: skip
REFUSED = frozenset({
    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
})  # fmt: skip
UNKNOWN_PLACE = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION,
})  # fmt: skip
# A leader moved, was elected anew, does not answer or does not know yet how far it may answer, or there was none when
# the client last asked who it is (_NOENT: what an admin client says from memory, until somebody makes it ask again).
MOVED = frozenset({
    KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.OFFSET_NOT_AVAILABLE, KafkaError._NOENT, KafkaError._TIMED_OUT,
})  # fmt: skip
# Told while the client tries again by itself.
PASSING = frozenset({
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE,
    KafkaError._TIMED_OUT_QUEUE, KafkaError._WAIT_COORD, KafkaError._UNKNOWN_BROKER,
})  # fmt: skip

_PROPERTY = re.compile(r'"([a-z][a-z_.]+)"|(?:^|\s|`)([a-z]+(?:\.[a-z_]+)+)')
_NOISE = re.compile(r" \((?:after|in state) [^)]*\)")
_MAX_REASON = 300  # characters
LOG_AGAIN_S = 60.0

_LOG = logging.getLogger("errata.kafka")


class Diagnosis:
    """Why the brokers do not answer, as the clients of one transport last said it."""

    def __init__(self) -> None:
        self._last: KafkaError | None = None
        self._told: dict[int, float] = {}  # code: when, in seconds of the monotonic clock

    def note(self, error: KafkaError) -> None:
        """The error callback of every client. It comes at each attempt to connect, and is logged once in a while."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self._last is None:
            self._last = error  # "all brokers are down" says less than what came before it
        now_s = monotonic()
        if now_s - self._told.get(error.code(), -LOG_AGAIN_S) >= LOG_AGAIN_S:
            self._told[error.code()] = now_s
            _LOG.warning("Kafka: %s", _reason(error))

    def unreachable(self, doing: str, servers: str) -> ErrataError:
        """Nobody answered in time: a wrong password or certificate is the user's to mend, anything else may pass."""
        last = self._last
        if last is not None and last.code() == KafkaError._AUTHENTICATION:
            return Misconfigured(
                f"Kafka refuses this client ({_reason(last)}); check {variable_of('sasl.username')},"
                f" {variable_of('sasl.password')} and {variable_of('sasl.mechanism')}"
            )
        if last is not None and last.code() == KafkaError._SSL and "certificate" in last.str():
            return Misconfigured(
                f"the TLS connection to Kafka fails ({_reason(last)}); check {variable_of('ssl.ca.location')} and the"
                " host name"
            )
        why = f" ({_reason(last)})" if last is not None else ""
        return Unavailable(f"{doing}: no answer from Kafka at {servers}{why}; is it up, and is the address right?")


def error_of(exception: KafkaException) -> KafkaError:
    error = exception.args[0]
    return error if isinstance(error, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def failure(error: KafkaError, doing: str, *, instance: str = "") -> ErrataError:
    """The error of errata for one of librdkafka that nobody may go past."""
    if error.txn_requires_abort() and error.code() not in REFUSED:
        return Aborted(f"{doing}: the transaction is void ({_reason(error)})")
    if error.code() in FENCED or _says_fenced(error):
        return Fenced(
            f"{doing}: a newer process has taken over{f' instance {instance}' if instance else ''}; two processes of a"
            " stage need two values of ERRATA_INSTANCE"
        )
    if error.code() in REFUSED:
        return Misconfigured(f"{doing}: this user may not ({_reason(error)}); give it the right by an ACL")
    if error.code() in UNKNOWN_PLACE:
        return Misconfigured(f"{doing}: no such topic or partition ({_reason(error)}); run errata topics apply")
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        return StateDamaged(
            f"offset_out_of_range: {doing}: the group's offset is no longer in the log ({_reason(error)})"
        )
    return Unavailable(f"{doing}: {_reason(error)}")


def _says_fenced(error: KafkaError) -> bool:
    """A consumer's fatal error has one code for all causes; which it is stands in its text alone."""
    return error.code() == KafkaError._FATAL and "fenced" in error.str()


def bad_property(exception: KafkaException, properties: dict[str, Any]) -> Misconfigured:
    """librdkafka refused a property: its name, never its value."""
    text = error_of(exception).str()
    named = [quoted or plain for quoted, plain in _PROPERTY.findall(text)]
    for name in [*(name for name in named if name in properties), *named]:
        what = "librdkafka knows no such property" if "No such" in text else "librdkafka refuses its value"
        return Misconfigured(f"{variable_of(name)}: {what}; see its list of configuration properties")
    return Misconfigured("ERRATA_KAFKA__…: librdkafka refuses the properties together; see its list of them")


def _reason(error: KafkaError) -> str:
    text = _NOISE.sub("", " ".join(error.str().split()))
    return f"{text[:_MAX_REASON]}, {error.name()}"
