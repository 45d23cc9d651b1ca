"""``errata dlq`` and the breaker on a real broker: killed, raced, and against nothing but poison."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError
from uuid import uuid4

import pytest
from tests.integration.chain import KILLED, SECRET, Chain, armed
from tests.unit.test_replay import Apart

from errata.adapters.kafka import KafkaTransport, apply_topics
from errata.contracts import Resolution
from errata.contracts.topics import LEDGER, PREDICTIONS, RESOLUTIONS, STAGES, TOPICS, dead_letter_topic
from errata.domain.dead_letters import Selection
from errata.domain.partitioner import partition_of
from errata.errors import RefusedSchema
from errata.ports import DeadInput, Outgoing, Record, Transport
from errata.runtime.crash_points import AFTER_COMMIT, AFTER_PRODUCE, AFTER_STEP, MID_PRODUCE, CrashPoint, CrashPoints
from errata.runtime.dead_letters import dead_letter
from errata.runtime.replay import CRASH_STAGE, Asked, Letters, Pace, settle
from errata_services.bootstrap import dead_letter_cipher

pytestmark = pytest.mark.servers

DETECTOR = STAGES[0]
DLQ = dead_letter_topic(DETECTOR)
CIPHER = dead_letter_cipher(SECRET)
POINTS = (AFTER_STEP, MID_PRODUCE, AFTER_PRODUCE, AFTER_COMMIT)
KILLS = 20
LETTERS = 150
WAIT_S = 60.0


class Box:
    """The topics of dead letters alone, and commands on them."""

    def __init__(self, address: str) -> None:
        self.prefix = f"t{uuid4().hex[:10]}."
        properties = {"bootstrap.servers": address}
        wanted = (PREDICTIONS, DLQ, RESOLUTIONS, LEDGER)
        apply_topics(properties, self.prefix, topics={name: TOPICS[name] for name in wanted}, groups={})
        self.transport = KafkaTransport(properties, topic_prefix=self.prefix)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ERRATA_")},
            "ERRATA_KAFKA__BOOTSTRAP_SERVERS": address,
            "ERRATA_TOPIC_PREFIX": self.prefix,
            "ERRATA_KEY": SECRET,
        }

    def fill(self, letters: int) -> None:
        """Letters of records that stand in the first two partitions of the input."""
        producer = self.transport.producer(f"source-{uuid4().hex}")
        producer.begin()
        for n in range(letters):
            record = Record(PREDICTIONS, n % 2, 10_000 + n, 1_767_571_200_000_000, b"fraud", b'{"n":%d}' % n)
            refusal = RefusedSchema("/model/name", "a text is needed here")
            producer.produce(dead_letter(DETECTOR, "test", DeadInput(record, refusal), CIPHER))
        producer.commit()
        producer.close()

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        """A command with these variables; an empty one is left out."""
        variables = {name: value for name, value in {**self._environment, **environment}.items() if value}
        return subprocess.Popen(
            [sys.executable, "-m", "errata_services.cli", "dlq", *words, "--stage", DETECTOR],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def replay(self, rate: str, **environment: str) -> tuple[int, str]:
        process = self.start("replay", "--rate", rate, "--reason", "mended", **environment)
        out, err = process.communicate(timeout=WAIT_S)
        return process.returncode, out + err

    def codes(self, runs: Sequence[dict[str, str]], said: Path) -> list[int]:
        """The exit codes of replays one after the other, with these variables; what they said goes to a file."""
        words = ["dlq", "replay", "--rate", "50/s", "--reason", "mended", "--stage", DETECTOR]
        script = Path(__file__).with_name("forked_cli.py")
        with said.open("w") as log:
            ended = subprocess.run(
                [sys.executable, str(script)],
                env=self._environment,
                input="".join(json.dumps([words, variables]) + "\n" for variables in runs),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=10 * WAIT_S,
                check=True,
            )
        return [int(line) for line in ended.stdout.split()]

    def sent(self) -> Counter[str]:
        """How often each letter was replayed, as a reader of committed records sees it."""
        records = [record for n in (0, 1) for record in self.transport.read_from((PREDICTIONS, n))]
        return Counter(dict(record.headers)["replay_of"].decode() for record in records)

    def settled(self) -> Counter[str]:
        records = self.transport.read_from((RESOLUTIONS, 0))
        return Counter(Resolution.model_validate_json(record.value or b"").dead_letter_id for record in records)

    def faults(self, letters: int) -> list[str]:
        sent, settled = self.sent(), self.settled()
        found = []
        if sent != settled:
            found.append("replays and resolutions differ")
        if len(sent) != letters or set(sent.values()) != {1}:
            found.append("a letter was sent not at all, or twice")
        return found


@pytest.fixture
def box(kafka_address: str) -> Iterator[Box]:
    made = Box(kafka_address)
    yield made
    made.transport.close()


def until(done: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.1)


def test_killed_twenty_times_each_letter_is_settled_once(box: Box, tmp_path: Path) -> None:
    box.fill(LETTERS)
    kills = [armed(CRASH_STAGE, POINTS[n % len(POINTS)], 1 + n // 8) for n in range(KILLS)]
    assert box.codes(kills, tmp_path / "said") == [KILLED] * KILLS, (tmp_path / "said").read_text()
    before = len(box.settled())
    assert 0 < before < LETTERS
    code, said = box.replay("1000/s")
    assert (code, f"{LETTERS - before:,} letters replayed." in said) == (0, True), said
    assert box.faults(LETTERS) == []


def test_control_resolutions_apart_from_their_replays_double_letters(box: Box) -> None:
    box.fill(20)
    apart: Transport = Apart(box.transport)  # type: ignore[assignment, arg-type]  # a transport all the same
    for point in (AFTER_PRODUCE, ""):
        crash = CrashPoints.raising(CRASH_STAGE, point)
        try:
            settle(
                Letters(apart, CIPHER),
                Selection(stages=frozenset({DETECTOR})),
                Asked("replayed", "maria", "mended"),
                Pace(100),
                lambda: datetime.now(UTC),
                crash=crash,
            )
        except CrashPoint:
            assert point
    assert "a letter was sent not at all, or twice" in box.faults(20)


def test_newer_operator_stops_the_older(box: Box) -> None:
    box.fill(100)
    older = box.start("replay", "--rate", "10/s", "--reason", "slowly")
    until(lambda: len(box.settled()) >= 3, "the older has begun")
    code, said = box.replay("1000/s")
    assert code == 0, said
    _, err = older.communicate(timeout=WAIT_S)
    assert older.returncode == 78
    assert "another errata dlq replay or discard has begun" in err
    assert box.faults(100) == []
    out, _ = box.start("list", "--json", ERRATA_KEY="").communicate(timeout=WAIT_S)
    assert json.loads(out) == {"open": 0, "settled": {"replayed": 100}, "causes": [], "letters": []}


def good(n: int, model: bytes) -> bytes:
    event = {"event_id": f"{model.decode()}-{n}", "time": "2026-01-05T12:00:00Z", "model": {"name": model.decode()}}
    return json.dumps({**event, "prediction": "ok"}).encode()


def publish(chain: Chain, key: bytes, lines: Sequence[bytes]) -> None:
    producer = chain.transport.producer(f"publisher-{uuid4().hex}")
    producer.begin()
    for line in lines:
        producer.produce(Outgoing(PREDICTIONS, key, line))
    producer.commit()
    producer.close()


def test_breaker_stops_a_poisoned_partition_and_no_other(kafka_address: str, tmp_path: Path) -> None:
    prefix, properties = f"t{uuid4().hex[:10]}.", {"bootstrap.servers": kafka_address}
    apply_topics(properties, prefix)
    environment = {
        "ERRATA_KAFKA__BOOTSTRAP_SERVERS": kafka_address, "ERRATA_TOPIC_PREFIX": prefix, "ERRATA_KEY": SECRET,
    }  # fmt: skip
    chain = Chain(tmp_path, environment, properties, prefix, "")
    poisoned = PREDICTIONS, partition_of(b"poisoned", 12)
    healthy = next(b"model-%d" % n for n in range(99) if partition_of(b"model-%d" % n, 12) != poisoned[1])

    def letters() -> int:
        return sum(1 for _ in chain.transport.read_from((DLQ, poisoned[1])))

    try:
        publish(chain, b"poisoned", [b"no json"] * 250)
        publish(chain, healthy, [good(n, healthy) for n in range(250)])
        service = chain.start(DETECTOR)
        chain.until(lambda: letters() > 0 and "stopped_partitions" in service.page("/statusz"), "letters")
        chain.until(lambda: service.status()["stopped_partitions"] != [], "the breaker is open")
        publish(chain, healthy, [good(n, healthy) for n in range(250, 500)])
        end = chain.transport.end_offset((PREDICTIONS, partition_of(healthy, 12)))
        chain.until(
            lambda: chain.offsets(DETECTOR)[PREDICTIONS, partition_of(healthy, 12)] >= end - 2, "the other goes on"
        )
        assert letters() == 100
        assert chain.offsets(DETECTOR)[poisoned] == 100
        with pytest.raises(HTTPError) as unready:
            service.page("/readyz")
        told = unready.value.read().decode()
        assert f"{PREDICTIONS} partition {poisoned[1]} is not read any more: 100 dead letters in a row" in told
        assert f'errata_breaker_open{{stage="{DETECTOR}",topic="{PREDICTIONS}"}} 1.0' in service.page("/metrics")
        service.process.send_signal(signal.SIGUSR1)
        chain.until(lambda: letters() == 200, "it reads on when asked")
        chain.until(lambda: service.status()["stopped_partitions"] != [], "and stops again")
        assert service.end() == 0
        publish(chain, b"poisoned", [b"no json"])
        service = chain.start(DETECTOR)  # a restart closes it as well: 51 are fewer than 100
        chain.until(lambda: letters() == 251, "all of it, each once")
        assert service.end() == 0
    finally:
        chain.stop()
        chain.close()
