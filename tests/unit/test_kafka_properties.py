"""What of librdkafka's properties is ours, what is the user's, and what is said when they are wrong."""

import pytest

from errata.adapters.kafka import KafkaTransport
from errata.adapters.kafka.config import OURS, client_properties, variable_of
from errata.errors import Misconfigured
from errata.settings import ServiceSettings

SERVERS = {"bootstrap.servers": "localhost:9092"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_the_guarantees_rest_on_may_not_be_set(name: str) -> None:
    with pytest.raises(Misconfigured, match=rf"^{variable_of(name)}: may not be set"):
        KafkaTransport({**SERVERS, name: "s3cret"})


def test_all_refused_properties_are_named_at_once_and_no_value() -> None:
    with pytest.raises(Misconfigured) as fault:
        KafkaTransport({**SERVERS, "isolation.level": "read_uncommitted", "acks": "1"})
    assert "ISOLATION_LEVEL" in str(fault.value)
    assert "ACKS" in str(fault.value)
    assert "read_uncommitted" not in str(fault.value)


def test_brokers_have_to_be_named() -> None:
    with pytest.raises(Misconfigured, match=r"^ERRATA_KAFKA__BOOTSTRAP_SERVERS: is missing"):
        KafkaTransport({})


def test_user_wins_over_defaults_and_each_client_gets_its_own() -> None:
    given = {**SERVERS, "session.timeout.ms": "6000", "linger.ms": "5", "sasl.password": "p", "replication": "3"}
    consumer, producer = client_properties("consumer", given), client_properties("producer", given)
    assert consumer["session.timeout.ms"] == "6000"
    assert producer["linger.ms"] == "5"
    assert "linger.ms" not in consumer
    assert "session.timeout.ms" not in producer
    assert consumer["sasl.password"] == producer["sasl.password"] == "p"
    assert not any("replication" in properties for properties in (consumer, producer))
    assert (consumer["isolation.level"], consumer["enable.auto.commit"]) == ("read_committed", "false")
    assert (producer["retry.backoff.ms"], producer["partitioner"]) == ("20", "murmur2_random")


def test_a_member_fetches_one_batch_ahead_and_a_reader_all_there_is() -> None:
    batch = ServiceSettings.model_fields["batch_size"].default
    assert int(client_properties("consumer", SERVERS)["queued.min.messages"]) == batch
    assert int(client_properties("reader", SERVERS)["queued.min.messages"]) > 10 * batch


def test_messages_time_out_before_their_transaction() -> None:
    assert client_properties("producer", SERVERS)["message.timeout.ms"] == "8000"
    longer = client_properties("producer", {**SERVERS, "transaction.timeout.ms": "30000"})
    assert longer["message.timeout.ms"] == "24000"
    with pytest.raises(Misconfigured, match="TRANSACTION_TIMEOUT_MS: must be a whole number"):
        client_properties("producer", {**SERVERS, "transaction.timeout.ms": "soon"})
