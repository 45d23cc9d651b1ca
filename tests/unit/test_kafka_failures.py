"""Which error of librdkafka becomes which of ours: what the worker and the supervisor do hangs on it."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from errata.adapters.kafka.failures import Diagnosis, bad_property, failure
from errata.errors import Aborted, ErrataError, Fenced, Misconfigured, StateDamaged, Unavailable


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (KafkaError(KafkaError.ILLEGAL_GENERATION, "x", txn_requires_abort=True), Aborted),
        (KafkaError(KafkaError.FENCED_INSTANCE_ID, "x", txn_requires_abort=True), Aborted),
        (KafkaError(KafkaError.FENCED_INSTANCE_ID, "x", fatal=True), Fenced),
        (KafkaError(KafkaError._FATAL, "Fatal error: Static consumer fenced by other", fatal=True), Fenced),
        (KafkaError(KafkaError._FENCED, "x", fatal=True), Fenced),
        (KafkaError(KafkaError._FATAL, "Fatal error: something else", fatal=True), Unavailable),
        (KafkaError(KafkaError._AUTO_OFFSET_RESET, "x"), StateDamaged),
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "x"), Misconfigured),
        (KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED, "x", txn_requires_abort=True), Misconfigured),
        (KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, "x"), Misconfigured),
        (KafkaError(KafkaError._TIMED_OUT, "x", retriable=True), Unavailable),
        (KafkaError(KafkaError._STATE, "x"), Unavailable),
    ],
)
def test_errors_say_what_their_catcher_must_do(error: KafkaError, becomes: type[ErrataError]) -> None:
    found = failure(error, "doing", instance="3")
    assert type(found) is becomes
    assert str(found).startswith("doing: ") or becomes is StateDamaged
    assert "\n" not in str(found)


def test_no_answer_is_told_with_the_last_reason() -> None:
    diagnosis = Diagnosis()
    assert "(" not in str(diagnosis.unreachable("topics", "k:1"))
    diagnosis.note(KafkaError(KafkaError._TRANSPORT, "k:1: Connection refused (after 0ms in state CONNECT)"))
    diagnosis.note(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    found = diagnosis.unreachable("topics", "k:1")
    assert isinstance(found, Unavailable)
    assert "k:1: Connection refused, _TRANSPORT" in str(found)


def test_a_property_that_is_refused_is_named_without_its_value() -> None:
    error = KafkaException(KafkaError(KafkaError._INVALID_ARG, 'Invalid value "s3cret" for "security.protocol"'))
    found = bad_property(error, {"security.protocol": "s3cret"})
    assert str(found).startswith("ERRATA_KAFKA__SECURITY_PROTOCOL: librdkafka refuses its value")
    assert "s3cret" not in str(found)
