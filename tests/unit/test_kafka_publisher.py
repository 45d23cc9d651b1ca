"""The Kafka publisher without a broker: settings, places, and a host that never notices. With one: integration."""

import ctypes
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from errata.adapters.kafka_publisher import environment_properties, sender_properties
from errata.client import _TOPICS, KafkaPublisher, _place
from errata.contracts import topics
from errata.errors import Misconfigured
from errata.settings import read_service_settings

NOBODY = "127.0.0.1:1"  # a port that nobody listens on: refused at once


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ERRATA_")]:
        monkeypatch.delenv(name)


def test_topics_are_those_of_the_registry() -> None:
    assert list(_TOPICS.values()) == [topics.PREDICTIONS, topics.OUTCOMES, topics.CHANGES]


@pytest.mark.parametrize("tenant", ["default", "acme", "größer"])
def test_key_is_the_model_with_its_tenant_as_the_registry_says(tenant: str) -> None:
    key = topics.model_key(tenant, "fraud/eu")
    model = {"tenant": tenant, "model": {"name": "fraud/eu", "version": "2"}}
    assert _place({"event_id": "1", **model}) == (topics.PREDICTIONS, key)
    assert _place({"outcome_id": "1", **model}) == (topics.OUTCOMES, key)
    assert _place({"change_id": "1", "tenant": tenant, "subject": "fraud/eu"}) == (topics.CHANGES, key)


def test_without_a_tenant_the_key_is_the_model_alone() -> None:
    assert _place({"event_id": "1", "model": {"name": "fraud"}}) == (topics.PREDICTIONS, b"fraud")


@pytest.mark.parametrize(
    "event",
    [{}, {"event_id": "1"}, {"event_id": "1", "model": "fraud"}, {"event_id": "1", "model": {"name": 7}},
     {"event_id": "1", "model": {"name": ""}}, {"event_id": "1", "model": {"name": "m"}, "tenant": 7}],
)  # fmt: skip
def test_event_of_no_model_goes_to_predictions_without_a_key(event: Mapping[str, object]) -> None:
    assert _place(event) == (topics.PREDICTIONS, None)


def test_variables_are_properties_of_librdkafka(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    found = environment_properties(
        {
            "ERRATA_KAFKA__BOOTSTRAP_SERVERS": "a:1,b:2",
            "ERRATA_KAFKA__SASL_PASSWORD_FILE": str(secret),
            "ERRATA_KAFKA__LOG_LEVEL": "3",
            "ERRATA_KAFKA__REPLICATION": "auto",
            "ERRATA_INSTANCE": "0",
            "HOME": "/",
        }
    )
    assert found == {"bootstrap.servers": "a:1,b:2", "sasl.password": "s3cret", "log_level": "3"}


def test_variables_mean_to_a_publisher_what_they_mean_to_a_service(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(" s3cret with spaces \r\n")
    environment = {
        "ERRATA_KAFKA__BOOTSTRAP_SERVERS": "a:1,b:2",
        "ERRATA_KAFKA__SSL_CA_LOCATION": "/etc/ca.pem",
        "ERRATA_KAFKA__SASL_PASSWORD_FILE": str(secret),
    }
    assert environment_properties(environment) == read_service_settings(environment).kafka
    twice = {**environment, "ERRATA_KAFKA__SASL_PASSWORD": "another"}
    for read in (environment_properties, read_service_settings):
        with pytest.raises(Misconfigured, match=r"ERRATA_KAFKA__SASL_PASSWORD.*given twice"):
            read(twice)


@pytest.mark.parametrize("prefix", ["with space", "ä", "a" * 101])
def test_prefix_that_no_topic_can_have_is_refused(prefix: str) -> None:
    with pytest.raises(Misconfigured, match=r"^ERRATA_TOPIC_PREFIX: "):
        KafkaPublisher(NOBODY, topic_prefix=prefix)


def test_arguments_win_over_variables_and_nothing_over_the_partitioner() -> None:
    found = sender_properties(
        {"bootstrap.servers": "a:1", "linger.ms": "5"}, {"bootstrap.servers": None}, {"partitioner": "random"}
    )
    assert (found["bootstrap.servers"], found["linger.ms"], found["partitioner"]) == ("a:1", "5", "murmur2_random")
    assert (found["enable.idempotence"], found["compression.type"]) == (True, "zstd")


def test_publisher_without_an_address_is_told_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Misconfigured, match=r"^ERRATA_KAFKA__BOOTSTRAP_SERVERS is not set"):
        KafkaPublisher()
    monkeypatch.setenv("ERRATA_KAFKA__BOOTSTRAP_SERVERS", NOBODY)
    monkeypatch.setenv("ERRATA_TOPIC_PREFIX", "acme.")
    KafkaPublisher().close(0)


@pytest.mark.parametrize(
    ("given", "told"),
    [({"linger.mss": 5}, "linger.mss"), ({"security.protocol": "s3cret"}, "security.protocol"),
     ({"linger.ms": ["s3cret"]}, "configuration property")],
)  # fmt: skip
def test_settings_that_cannot_work_are_named_without_their_value(given: Mapping[str, Any], told: str) -> None:
    with pytest.raises(Misconfigured, match="settings of the Kafka publisher") as caught:
        KafkaPublisher(NOBODY, properties=given)
    assert told in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_file_of_a_secret_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERRATA_KAFKA__SASL_PASSWORD_FILE", str(tmp_path / "absent"))
    with pytest.raises(Misconfigured, match=r"^ERRATA_KAFKA__SASL_PASSWORD_FILE: the file cannot be read"):
        KafkaPublisher(NOBODY)


@pytest.mark.whole
def test_broker_that_is_away_costs_events_after_their_time_and_no_exception(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "errata.client"), KafkaPublisher(NOBODY, timeout_s=0.3) as errata:
        assert all(errata.prediction(model="m", prediction=number) for number in range(20))
        assert errata.flush(10)
        stats = errata.stats
    assert (stats.sent, stats.delivered, stats.waiting) == (20, 0, 0)
    assert stats.dropped == dict.fromkeys(stats.dropped, 0) | {"timed_out": 20}
    messages = [record.getMessage() for record in caplog.records]
    assert sum("could not be delivered in time" in message for message in messages) == 1
    assert sum("Connect" in message for message in messages) <= 2
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(("limits", "most"), [({"buffer": 5}, 5), ({"buffer_bytes": 10_240}, 10)])
def test_full_buffer_drops_and_does_not_wait(limits: dict[str, int], most: int) -> None:
    with KafkaPublisher(NOBODY, **limits) as errata:  # type: ignore[arg-type]
        started_s = time.monotonic()
        taken = [errata.publish({"event_id": "1", "text": "x" * 1_000}) for _ in range(30)]
        assert time.monotonic() - started_s < 1
        assert 0 < sum(taken) <= most
        assert errata.stats.dropped["buffer_full"] == 30 - sum(taken)
        errata.close(0)
    stats = errata.stats
    assert (stats.sent, stats.waiting, stats.dropped["closed"]) == (sum(taken), 0, sum(taken))


def test_close_keeps_its_time_and_comes_twice() -> None:
    before = set(threading.enumerate())
    errata = KafkaPublisher(NOBODY)
    threads = set(threading.enumerate()) - before
    assert threads
    assert errata.prediction(model="m", prediction=1)
    assert not errata.flush(0.05)
    started_s = time.monotonic()
    errata.close(0.1)
    errata.close()
    assert time.monotonic() - started_s < 3
    assert not errata.prediction(model="m", prediction=2)
    assert errata.stats.dropped["closed"] == 2
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("event", [{"x": float("nan")}, {"x": object()}, None, {("a", 1): 2}, {"x": "\ud800"}])
def test_nothing_that_is_handed_in_raises(event: Any) -> None:
    with KafkaPublisher(NOBODY) as errata:
        assert errata.publish(event) in (True, False)
        errata.close(0)
        assert sum(errata.stats.dropped.values()) == 1


@pytest.mark.whole
def test_program_ends_in_time_with_the_broker_away() -> None:
    code = f"""
from errata.client import KafkaPublisher
errata = KafkaPublisher({NOBODY!r})
assert errata.prediction(model="m", prediction=1)
"""
    started_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "")
    assert "could" not in done.stderr
    assert time.monotonic() - started_s < 10


@pytest.mark.whole
@pytest.mark.parametrize("ending", ["sys.exit(0)", "errata.prediction(model='m', prediction=2); sys.exit(0)"])
def test_forked_child_ends_by_itself_whether_it_publishes_or_not(ending: str) -> None:
    code = f"""
import os, sys
from errata.client import KafkaPublisher
errata = KafkaPublisher({NOBODY!r})
assert errata.prediction(model="m", prediction=1)
child = os.fork()
if child == 0:
    {ending}
ended, status = os.waitpid(child, 0)
assert status == 0, status
assert errata.stats.waiting == 1
errata.close(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_kafka_is_loaded_with_a_kafka_publisher_and_neither_pydantic_nor_numpy() -> None:
    code = f"""
import json, sys
import errata.client
before = "confluent_kafka" in sys.modules
errata.client.KafkaPublisher({NOBODY!r}).close(0)
print(json.dumps([before, "confluent_kafka" in sys.modules, [m for m in ("pydantic", "numpy") if m in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert json.loads(done.stdout) == [False, True, []]


class MockBroker:
    """librdkafka's own stand-in for a broker, which can be told to refuse; only for what a real one rarely says."""

    INIT_PRODUCER_ID, NOT_AUTHORIZED = 22, 31  # Kafka's numbers of the request and of the error

    def __init__(self) -> None:
        (library,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka*.so*")
        self._c = ctypes.CDLL(str(library))
        for name in ("conf_new", "new", "mock_cluster_new"):
            self._function(name).restype = ctypes.c_void_p
        self._function("mock_cluster_bootstraps").restype = ctypes.c_char_p
        config = ctypes.c_void_p(self._function("conf_new")())
        self._client = ctypes.c_void_p(self._function("new")(0, config, None, 0))
        self._cluster = ctypes.c_void_p(self._function("mock_cluster_new")(self._client, 1))
        self.address = self._function("mock_cluster_bootstraps")(self._cluster).decode()

    def refuse_next_producer(self) -> None:
        push = self._function("mock_push_request_errors")
        push(self._cluster, ctypes.c_int16(self.INIT_PRODUCER_ID), ctypes.c_size_t(1), self.NOT_AUTHORIZED)

    def stop(self) -> None:
        self._function("mock_cluster_destroy")(self._cluster)
        self._function("destroy")(self._client)

    def _function(self, name: str) -> Any:
        return getattr(self._c, f"rd_kafka_{name}")


@pytest.fixture
def mock_broker() -> Iterator[MockBroker]:
    broker = MockBroker()
    yield broker
    broker.stop()


def test_producer_that_can_never_send_again_is_replaced(mock_broker: MockBroker) -> None:
    mock_broker.refuse_next_producer()
    with KafkaPublisher(mock_broker.address) as errata:
        assert errata.prediction(model="m", prediction=1)
        deadline_s = time.monotonic() + 10
        while not errata.stats.dropped["refused"]:
            assert time.monotonic() < deadline_s
            os.sched_yield()
        while not errata.stats.delivered:
            assert time.monotonic() < deadline_s
            errata.prediction(model="m", prediction=2)
            errata.flush(0.2)
        assert errata.flush(10)
        stats = errata.stats
    assert stats.waiting == 0
    assert stats.delivered < stats.sent
