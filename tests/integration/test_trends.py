"""Trends on real Kafka: whatever happens to its processes, its counts are those of a recount of the topic."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import pytest
from tests.integration.conftest import missing
from tests.integration.trend_cases import Key, case, recounted, story

from errata.adapters.kafka import KafkaTransport, apply_topics
from errata.contracts import TaggedCase
from errata.contracts.cloudevents import heartbeat_event
from errata.contracts.heartbeats import Heartbeat
from errata.contracts.strict import instant
from errata.contracts.topics import TAGGED, TRENDS_SERVICE, dead_letter_topic
from errata.ports import Outgoing
from errata_services.dev.processes import free_port
from errata_services.trends import STATE, read_trends

pytestmark = pytest.mark.servers

SECRET = "a key of thirty-two characters and more"
WAIT_S, POLL_S = 120.0, 0.2
BACK_WITHIN_S = 15.0


@dataclass
class Member:
    process: "subprocess.Popen[bytes]"
    log: Path
    port: int
    mended: bool = True  # started again when it ends with 75, as a supervisor would

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(40)


@dataclass
class Group:
    """Members of one group, on topics of their own."""

    folder: Path
    address: str
    prefix: str = field(default_factory=lambda: f"t{uuid4().hex[:10]}.")
    members: list[Member] = field(default_factory=list)
    told: list[TaggedCase] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.properties = {"bootstrap.servers": self.address}
        apply_topics(self.properties, self.prefix)
        self.transport = KafkaTransport(self.properties, topic_prefix=self.prefix)
        self.producer = self.transport.producer(f"teller-{uuid4().hex}")

    @property
    def environment(self) -> dict[str, str]:
        bare = {name: value for name, value in os.environ.items() if not name.startswith("ERRATA_")}
        return bare | {
            "ERRATA_KAFKA__BOOTSTRAP_SERVERS": self.address,
            "ERRATA_TOPIC_PREFIX": self.prefix,
            "ERRATA_KEY": SECRET,
        }

    def start(self, *command: str, **environment: str) -> Member:
        number, port = len(self.members), free_port()
        log = self.folder / f"trends-{number}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *(command or ("-m", "errata_services.cli", "run", "trends"))],
                env=self.environment | {"ERRATA_INSTANCE": str(number), "ERRATA_HTTP_PORT": str(port)} | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.members.append(Member(process, log, port))
        return self.members[-1]

    def living(self) -> list[Member]:
        return [one for one in self.members if one.process.poll() is None]

    def kills(self) -> int:
        return sum(1 for one in self.members if one.process.poll() == -signal.SIGKILL)

    def errata(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "errata_services.cli", *arguments]
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, timeout=60
        ).stdout.decode()

    def tell(self, cases: Sequence[TaggedCase], size: int = 50) -> None:
        for first in range(0, len(cases), size):
            batch = cases[first : first + size]
            self.write([Outgoing(TAGGED, one.episode.id.encode(), one.to_json()) for one in batch])
            self.told += batch

    def write(self, records: Sequence[Outgoing], *, commit: bool = True) -> None:
        self.producer.begin()
        for one in records:
            self.producer.produce(one)
        if commit:
            self.producer.commit()
        else:
            self.producer._client.flush(10)  # they lie in the log before they are taken back
            self.producer.abort()

    def counted(self) -> dict[Key, tuple[int, int]]:
        return {
            (instant(window.start_s * 1_000_000), *window.group): (counts.cases_opened, counts.findings)
            for window, counts in read_trends(self.transport).items()
        }

    def recounted(self) -> dict[Key, tuple[int, int]]:
        """All that was told, in its order; that between partitions is nobody's and does not matter."""
        return recounted(self.told)

    def until(self, done: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> float:
        """Seconds that it took."""
        began_s = time.monotonic()
        while not done():
            for member in list(self.members):
                code = member.process.poll()
                if code == 75 and member.mended:
                    member.mended = False
                    self.start()
                elif code not in (None, 0, -signal.SIGKILL, 75):
                    raise AssertionError(f"ended with {code}: {member.log.read_text()[-3000:]}")
            if time.monotonic() - began_s > timeout_s:
                logs = "\n".join(f"--- {one.log.name}\n{one.log.read_text()[-2500:]}" for one in self.members[-2:])
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{logs}")
            time.sleep(POLL_S)
        return time.monotonic() - began_s

    def until_right(self, timeout_s: float = WAIT_S) -> float:
        wanted = self.recounted()
        return self.until(lambda: self.counted() == wanted, "the counts are those of the topic", timeout_s)

    def letters(self) -> Counter[str]:
        """Dead letters by class; the same record gives the same letter however often it comes."""
        topic = dead_letter_topic(TRENDS_SERVICE)
        found = {}
        for number in range(self.transport.partitions(topic)):
            for record in self.transport.read_from((topic, number)):
                headers = dict(record.headers)
                found[headers["errata.dlq.id"]] = headers["errata.dlq.class"].decode()
        return Counter(found.values())

    def state(self) -> set[str]:
        """The cases that the state knows."""
        known = set()
        for number in range(self.transport.partitions(STATE)):
            for record in self.transport.read_from((STATE, number)):
                kind, _, *name = json.loads(record.key or b"")
                if kind == "case":
                    known.add(name[0])
        return known

    def page(self, path: str, member: int = -1) -> str:
        with urlopen(f"http://127.0.0.1:{self.members[member].port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def shares(self) -> dict[int, list[dict[str, Any]]]:
        """The partitions of each member that lives, as it tells them itself."""
        try:
            return {
                number: json.loads(self.page("/statusz", number))["partitions"]
                for number, one in enumerate(self.members)
                if one.process.poll() is None
            }
        except URLError:  # one of them begins
            return {}

    def close(self) -> None:
        for member in self.members:
            if member.process.poll() is None:
                member.process.kill()
                member.process.wait(10)
        self.producer.close()
        self.transport.close()


@pytest.fixture
def group(tmp_path: Path, kafka_address: str) -> Iterator[Group]:
    try:
        import aiokafka.codec  # type: ignore[import-untyped]
        import faust
    except ImportError:
        missing("errata[trends] is not installed")
    if not aiokafka.codec.has_zstd() or not faust:
        missing("errata[trends] is not installed: cramjam is missing")
    with closing(Group(tmp_path, kafka_address)) as made:
        yield made


@pytest.fixture
def another(tmp_path: Path, kafka_address: str, group: Group) -> Iterator[Group]:
    """A second group, for the control that runs beside."""
    (tmp_path / "another").mkdir()
    with closing(Group(tmp_path / "another", kafka_address)) as made:
        yield made


BROKEN = str(Path(__file__).with_name("broken_trends.py"))
KILLS, AT_ONCE = 10, 2


def _moved(group: Group, before: object) -> bool:
    return group.counted() != before


def test_the_counts_are_those_of_the_topic_after_kills_rebalances_and_a_rebuild(group: Group) -> None:
    """Ten kills, two at a time, while cases come; members that join and leave; then everything counted again."""
    batches = (story(12, seed, hours=1) for seed in count())
    stop = threading.Event()

    def tell() -> None:
        while not stop.is_set():
            group.tell(next(batches), size=36)
            stop.wait(1)

    teller = threading.Thread(target=tell)
    teller.start()
    try:
        group.start(), group.start()
        group.until(lambda: bool(group.counted()), "something is counted")
        while group.kills() < KILLS:
            before = group.counted()
            victims = group.living()[:AT_ONCE]
            for _ in victims:
                group.start()
            group.until(partial(_moved, group, before), "it goes on")
            for victim in victims:
                victim.kill()
    finally:
        stop.set()
        teller.join(30)
    group.until_right()
    # A member leaves, one joins, and the others leave. One that has no share yet may end with 75 before it is asked to.
    for leave in (slice(1), slice(0), slice(-1)):
        group.until(lambda: all(group.shares().values() or [False]), "each member has a share")
        leaving = group.living()[leave]
        assert {one.stop() for one in leaving} <= {0}
        if not leaving:
            group.start()
        group.tell(next(batches))
        group.until_right()
    assert [one.stop() for one in group.living()] == [0]
    # Counted again from nothing.
    wanted = group.counted()
    assert wanted == group.recounted()
    assert "taken back" in group.errata("trends", "rebuild", "--yes")
    assert group.counted() == {}
    group.start()
    group.until_right()
    shown = json.loads(group.errata("trends", "show", "--json", "--newest", "1000"))
    assert (shown["size_s"], shown["step_s"], len(shown["windows"])) == (3_600, 600, len(wanted))


def _state_is_written(group: Group) -> bool:
    return group.state() == {one.episode.id for one in group.told}


def test_a_killed_member_is_back_in_time_and_state_that_is_ahead_is_not_counted_twice(
    group: Group, another: Group
) -> None:
    """A member writes state for everything and is killed before it commits. The control counts what comes again."""
    for one, kind in ((group, "silent"), (another, "silent,additive")):
        one.tell(story(15, 7))
        one.start(BROKEN, kind)
    for one in (group, another):
        one.until(partial(_state_is_written, one), "the state is written")
        assert one.counted() == {}, "nothing is published"
        one.members[0].kill()
    # One that waits takes over in time.
    group.start()
    another.start(BROKEN, "additive")
    group.until_right()
    right = another.recounted()
    findings = sum(n for _, n in right.values())
    another.until(lambda: sum(n for _, n in another.counted().values()) > findings, "the control counts too much")
    assert another.counted().keys() == right.keys()
    # And so does one that waits beside another that is killed.
    group.start()
    group.until(lambda: sorted(map(len, group.shares().values())) == [6, 6], "two members share the partitions")
    killed_at_s = time.monotonic()
    group.members[1].kill()
    group.tell(story(15, 8))
    group.until_right()
    took_s = time.monotonic() - killed_at_s
    print(f"back after {took_s:.1f} s")
    assert took_s <= BACK_WITHIN_S


def test_only_committed_records_count_and_what_is_no_case_is_kept_or_passed_by(group: Group, another: Group) -> None:
    """The control reads with Faust's own driver."""
    beat = Heartbeat(heartbeat_id="b", time=instant(0), partition=3)
    for one in (group, another):
        one.tell(story(5, 1))
        aborted = story(5, 2)
        one.write([Outgoing(TAGGED, each.episode.id.encode(), each.to_json()) for each in aborted], commit=False)
        one.write([Outgoing(TAGGED, b"poison", b"{", partition=3)])
        one.write([Outgoing(TAGGED, None, beat.to_json(), heartbeat_event(beat, "tagger"), 3)])
        one.write([Outgoing(TAGGED, b"x", case("drill", 1, purpose="drill").to_json())])
        one.tell(story(5, 3))
    group.start()
    another.start(BROKEN, "uncommitted")
    group.until_right()
    group.until(lambda: group.letters() == Counter(decode=1), "the poison is a dead letter")
    with_aborted = recounted([*story(5, 1), *story(5, 2), *story(5, 3)])
    another.until(lambda: another.counted() == with_aborted, "the control counts what was taken back")
    assert with_aborted != another.recounted()
    page = group.page("/metrics")
    assert 'errata_events_processed_total{outcome="filtered",stage="trends"} 2.0' in page
    assert 'errata_dead_letters_total{reason="decode",stage="trends"} 1.0' in page
    assert "errata_trend_findings_total{" in page
    assert group.page("/readyz")
    assert group.members[0].stop() == 0


def test_an_error_in_the_body_loses_nothing(group: Group, another: Group) -> None:
    """Once an error of the machine: the process ends with 75, and the next one counts the record. Once a bug: the
    record is a dead letter. In the control, where Faust is left to itself, it is gone and nobody is told."""
    for one, kind in ((group, "machine"), (another, "machine,faust")):
        one.tell(story(5, 1))
        one.tell([case("the-one", 1, model="poison")])
        one.tell(story(5, 2))
        one.start(BROKEN, kind, TRENDS_FAILED=str(one.folder / "failed"))
    group.members[0].mended = False
    group.until(lambda: group.members[0].process.poll() is not None, "the process ends")
    assert group.members[0].process.returncode == 75
    group.start(BROKEN, "bug", TRENDS_FAILED=str(group.folder / "failed"))
    group.until_right()
    another.until(
        lambda: another.counted() == recounted(c for c in another.told if c.model.name != "poison"), "it is gone"
    )
    assert another.members[0].process.poll() is None
    assert another.letters() == Counter()
    group.members[1].kill()
    (group.folder / "failed").unlink()
    group.tell([case("another", 1, model="poison")])
    group.start(BROKEN, "bug", TRENDS_FAILED=str(group.folder / "failed"))
    group.until(lambda: group.letters() == Counter(handler=1), "the bug is told of")
