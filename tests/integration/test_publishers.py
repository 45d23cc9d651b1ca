"""Publishers on a real broker: where each puts a model's events, and what ours does when the broker is not there."""

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from uuid import uuid4
from zlib import crc32

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from tests.integration.conftest import missing
from tests.integration.published import make_topics, records, values

from errata.client import KafkaPublisher
from errata.contracts import PredictionEvent
from errata.contracts.topics import CHANGES, OUTCOMES, PARTITIONS, PREDICTIONS
from errata.domain.partitioner import partition_of
from errata.errors import Misconfigured
from errata_services.dev import servers
from errata_services.dev.processes import find_program, free_port

pytestmark = pytest.mark.servers

MODEL = "credit"  # a name that librdkafka's own partitioner puts elsewhere than Java's
CALM_S = 0.005  # half of all calls take less, also on a busy machine; they take some microseconds
BLOCKED_S = 1.0  # a call that waits for a broker takes longer than this, any other less


@pytest.fixture
def prefix(kafka_address: str) -> str:
    return make_topics(kafka_address)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.KafkaServer]:
    """A broker of our own, to be frozen and killed; with SASL, as production has it."""
    with servers.kafka(tmp_path_factory.mktemp("broker"), sasl=True, heap_mb=256) as server:
        yield server


def unblocked(calls: Sequence[Callable[[], object]]) -> bool:
    """Makes the calls one by one; whether none of them waited and most of them took no time to speak of."""
    taken_s = []
    for call in calls:
        started_s = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - started_s)
    return max(taken_s) < BLOCKED_S and median(taken_s) < CALM_S


def predictions(errata: KafkaPublisher, numbers: range) -> list[Callable[[], object]]:
    def publish(number: int) -> Callable[[], object]:
        return lambda: errata.prediction(model=MODEL, prediction=number, event_id=f"e-{number}")

    return [publish(number) for number in numbers]


def test_each_publisher_of_a_model_has_its_own_idea_of_its_place(kafka_address: str, prefix: str) -> None:
    topic, key = prefix + PREDICTIONS, MODEL.encode()
    ours, librdkafkas = partition_of(key, PARTITIONS), crc32(key) % PARTITIONS
    assert ours != librdkafkas
    publish_with_kcat(kafka_address, topic, ["-k", MODEL], ["kcat with a key"])
    publish_with_kcat(kafka_address, topic, [], [f"kcat without a key {number}" for number in range(40)])
    asyncio.run(publish_with_aiokafka(kafka_address, topic, key, "aiokafka"))
    with KafkaPublisher(kafka_address, topic_prefix=prefix) as errata:
        assert errata.publish(event("errata"))
    found = {json.loads(m.value() or b"")["event_id"]: (m.partition(), m.key()) for m in records(kafka_address, topic)}
    assert found["kcat with a key"] == (librdkafkas, key)
    assert found["aiokafka"] == (ours, key)
    assert found["errata"] == (ours, key)
    keyless = {place for name, place in found.items() if "without" in name}
    assert {key for _, key in keyless} == {None}
    assert len({partition for partition, _ in keyless}) > 1


def event(event_id: str) -> dict[str, object]:
    return {"event_id": event_id, "time": "2026-01-05T12:00:00Z", "model": {"name": MODEL}, "prediction": "ok"}


def publish_with_kcat(address: str, topic: str, options: list[str], event_ids: list[str]) -> None:
    try:
        kcat = find_program("kcat", "kcat")
    except Misconfigured as error:
        missing(str(error))
    lines = "".join(json.dumps(event(event_id)) + "\n" for event_id in event_ids)
    # By default librdkafka keeps to one partition for a while when there is no key.
    command = [kcat, "-P", "-b", address, "-t", topic, "-X", "sticky.partitioning.linger.ms=0", *options]
    subprocess.run(command, input=lines.encode(), check=True, timeout=30)


async def publish_with_aiokafka(address: str, topic: str, key: bytes, event_id: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=address) as producer:
        await producer.send_and_wait(topic, json.dumps(event(event_id)).encode(), key=key)


def test_events_of_every_kind_and_tenant_lie_where_the_detector_looks(kafka_address: str, prefix: str) -> None:
    with KafkaPublisher(kafka_address, topic_prefix=prefix) as errata:
        assert errata.prediction(model=MODEL, prediction="ok", tenant="acme")
        assert errata.outcome(model=MODEL, value="ok", prediction_id="1", tenant="acme")
        assert errata.change(subject=MODEL, tenant="acme")
    for topic in (PREDICTIONS, OUTCOMES, CHANGES):
        (message,) = records(kafka_address, prefix + topic)
        assert (message.key(), message.partition()) == (b"acme/credit", partition_of(b"acme/credit", PARTITIONS))


def test_example_of_the_docstring_is_true(kafka_address: str, prefix: str) -> None:
    found = re.search(r"::\n\n(.*?close\(\))", KafkaPublisher.__doc__ or "", re.DOTALL)
    assert found
    code = textwrap.dedent(found[1])
    assert "localhost:9092" in code
    code = code.replace("localhost:9092", kafka_address)
    environment = {**os.environ, "ERRATA_TOPIC_PREFIX": prefix}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, check=True, timeout=30)
    (message,) = records(kafka_address, prefix + PREDICTIONS)
    taken = PredictionEvent.model_validate_json(message.value() or b"")
    assert (taken.features, taken.latency_ms) == ({"amount": 12.5}, 7.5)


def test_50_000_events_are_delivered_once_and_counted(kafka_address: str, prefix: str) -> None:
    events, models = 50_000, 5
    with KafkaPublisher(kafka_address, topic_prefix=prefix) as errata:
        for number in range(events):
            assert errata.prediction(model=f"m-{number % models}", prediction=number, event_id=str(number))
        assert errata.flush(60)
        stats = errata.stats
    assert (stats.sent, stats.delivered, stats.waiting, errata.dropped) == (events, events, 0, 0)
    found = records(kafka_address, prefix + PREDICTIONS)
    assert len({json.loads(message.value() or b"")["event_id"] for message in found}) == len(found) == events
    assert Counter(message.key() for message in found) == {f"m-{model}".encode(): 10_000 for model in range(models)}
    for key in {message.key() for message in found}:
        ids = [int(json.loads(m.value() or b"")["event_id"]) for m in found if m.key() == key]
        assert ids == sorted(ids)


def test_what_the_buffer_cannot_hold_is_counted_and_the_rest_arrives(kafka_address: str, prefix: str) -> None:
    events = 5_000
    with KafkaPublisher(kafka_address, topic_prefix=prefix, buffer=200, properties={"linger.ms": 1_000}) as errata:
        taken = [number for number in range(events) if errata.publish(event(str(number)))]
        assert errata.flush(60)
        stats = errata.stats
    assert 0 < stats.dropped["buffer_full"] == events - len(taken)
    assert stats.sent == stats.delivered == len(taken)
    assert [found["event_id"] for found in values(kafka_address, prefix + PREDICTIONS)] == [str(n) for n in taken]


def test_topic_that_is_not_there_costs_events_and_is_named(
    kafka_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    properties = {"topic.metadata.propagation.max.ms": 200}
    with KafkaPublisher(kafka_address, topic_prefix=f"absent-{uuid4().hex}.", properties=properties) as errata:
        assert errata.publish(event("1"))
        assert errata.flush(20)
        assert errata.stats.dropped["refused"] == 1
    assert "UNKNOWN_TOPIC" in caplog.text


def test_forked_children_and_their_parent_all_publish(kafka_address: str, prefix: str) -> None:
    code = f"""
import os
from errata.client import KafkaPublisher
errata = KafkaPublisher({kafka_address!r}, topic_prefix={prefix!r})
def publish(who, start):
    for number in range(start, start + 100):
        assert errata.prediction(model={MODEL!r}, prediction=number, event_id=f"{{who}}-{{number}}")
publish("parent", 0)
children = []
for who in ("one", "two"):
    child = os.fork()
    if child == 0:
        publish(who, 0)
        assert errata.flush(20)
        assert errata.stats.delivered == 100, errata.stats
        errata.close()
        os._exit(0)
    children.append(child)
publish("parent", 100)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
assert errata.flush(20)
assert errata.stats.delivered == 200, errata.stats
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
    found = Counter(value["event_id"].split("-")[0] for value in values(kafka_address, prefix + PREDICTIONS))
    assert found == {"parent": 200, "one": 100, "two": 100}


def test_program_that_ends_without_closing_has_sent_its_events(kafka_address: str, prefix: str) -> None:
    code = (
        "from errata.client import KafkaPublisher\n"
        f"errata = KafkaPublisher({kafka_address!r}, topic_prefix={prefix!r})\n"
        "for number in range(1000): assert errata.prediction(model='m', prediction=number)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)
    assert len(records(kafka_address, prefix + PREDICTIONS)) == 1_000


def test_broker_that_starts_later_gets_everything(tmp_path: Path) -> None:
    port, prefix = free_port(), "later."
    errata = KafkaPublisher(f"127.0.0.1:{port}", topic_prefix=prefix, timeout_s=120)
    assert unblocked(predictions(errata, range(500)))
    assert errata.stats.waiting == 500
    with servers.kafka(tmp_path, heap_mb=256, port=port) as server:
        admin = AdminClient({"bootstrap.servers": server.address, "log_level": 0})
        admin.create_topics([NewTopic(prefix + PREDICTIONS, PARTITIONS, 1)])[prefix + PREDICTIONS].result(timeout=20)
        assert errata.flush(60)
        errata.close()
        assert (errata.stats.delivered, errata.dropped) == (500, 0)
        assert [value["prediction"] for value in values(server.address, prefix + PREDICTIONS)] == list(range(500))


def test_broker_that_is_killed_and_comes_back_gets_everything_once(broker: servers.KafkaServer) -> None:
    prefix = make_topics(broker.address)
    with KafkaPublisher(broker.address, topic_prefix=prefix, timeout_s=120) as errata:
        assert unblocked(predictions(errata, range(200)))
        assert errata.flush(20)
        broker.kill()
        assert unblocked(predictions(errata, range(200, 400)))
        assert errata.stats.waiting == 200
        broker.restart()
        assert unblocked(predictions(errata, range(400, 600)))
        assert errata.flush(60)
        assert (errata.stats.delivered, errata.dropped) == (600, 0)
    assert [value["prediction"] for value in values(broker.address, prefix + PREDICTIONS)] == list(range(600))


def test_frozen_broker_holds_nobody_and_gets_what_is_still_in_time(broker: servers.KafkaServer) -> None:
    prefix = make_topics(broker.address)
    patient = KafkaPublisher(broker.address, topic_prefix=prefix, timeout_s=120)
    hasty = KafkaPublisher(broker.address, topic_prefix=prefix, timeout_s=1)
    assert unblocked(predictions(patient, range(100)))
    assert patient.flush(20)
    broker.freeze()
    try:
        assert unblocked(predictions(patient, range(100, 300)))
        assert unblocked(predictions(hasty, range(1_000, 1_100)))
        # Control: whoever waits for this broker is caught by the measure.
        assert not unblocked([lambda: patient.flush(1.5 * BLOCKED_S)])
        assert hasty.flush(20)
        assert (hasty.stats.delivered, hasty.stats.dropped["timed_out"]) == (0, 100)
    finally:
        broker.thaw()
    predictions(hasty, range(1_100, 1_101))[0]()
    for errata in (patient, hasty):
        assert errata.flush(60)
        errata.close()
    assert (patient.stats.delivered, patient.dropped) == (300, 0)
    assert (hasty.stats.delivered, hasty.dropped) == (1, 100)
    found = [value["prediction"] for value in values(broker.address, prefix + PREDICTIONS)]
    assert sorted(found) == [*range(300), 1_100]


def test_publisher_signs_in_by_variables_and_a_stranger_is_only_counted(
    broker: servers.KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = make_topics(broker.address)
    password = tmp_path / "password"
    password.write_text(broker.password + "\n")
    variables = {
        "BOOTSTRAP_SERVERS": broker.sasl_address,
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISM": "SCRAM-SHA-512",
        "SASL_USERNAME": broker.username,
        "SASL_PASSWORD_FILE": str(password),
        "SSL_CA_LOCATION": str(broker.ca_file),
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"ERRATA_KAFKA__{name}", value)
    with KafkaPublisher(topic_prefix=prefix) as errata:
        assert errata.publish(event("1"))
        assert errata.flush(20)
        assert errata.stats.delivered == 1
    password.write_text("s3cret-guess")
    with KafkaPublisher(topic_prefix=prefix, timeout_s=1) as stranger:
        assert stranger.publish(event("2"))
        assert stranger.flush(20)
        assert stranger.stats.dropped["timed_out"] == 1
    assert "uthentication" in caplog.text
    assert "s3cret" not in caplog.text
    assert [value["event_id"] for value in values(broker.address, prefix + PREDICTIONS)] == ["1"]
