"""Members of the detector that come and go under load: nothing is lost or doubled, and no process ends by itself."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tests.benchmarks.stages import Stream
from tests.integration.chain import REDACTION_KEY, Chain, Service, chain_on
from tests.integration.test_chain import PLACES, differences, timeless
from tests.integration.test_chain_faults import state_of, tables_of, told
from tests.pipeline.chain_builder import batches, cases_of, chain, chain_parts

from errata.contracts import FailureCase, Receipt, canonical
from errata.contracts.topics import ANOMALIES, LEDGER, OUTCOMES, PARTITIONS, PREDICTIONS, STAGES
from errata.ports import Record, TopicPartition, Transport

pytestmark = [pytest.mark.servers, pytest.mark.whole]

DETECTOR = STAGES[0]
MODELS, CARRIED = 20, 3
CLEAN = 8_000  # events until models begin to fail
PACE, PAUSE_S = 40, 0.05  # lines at once, and the pause after them: some 700 a second
WORK = 2_000  # lines that are published while two members share the partitions
SESSION_S, SPARE_S = 10.0, 5.0
SHORT, LONG = ({"ERRATA_KAFKA__SESSION_TIMEOUT_MS": ms} for ms in ("6000", "60000"))
LEFT_S = 10.0  # within this all partitions are back when a member leaves, whatever its session time-out
EVERY = frozenset(range(PARTITIONS))


@dataclass
class Load:
    """Lines published steadily until the end of the block, in the order of each partition."""

    four: Chain
    stream: Stream = field(default_factory=lambda: Stream(MODELS + CARRIED))
    lines: list[bytes] = field(default_factory=list)
    stopping: Event = field(default_factory=Event)

    def paced(self) -> Iterator[bytes]:
        for _, line in told(self.stream, MODELS, CLEAN):
            self.lines.append(line)
            yield line
            if len(self.lines) % PACE == 0 and self.stopping.wait(PAUSE_S):
                return

    def until(self, lines: int) -> None:
        self.four.until(lambda: len(self.lines) >= lines, f"{lines:,} lines are published")


@contextmanager
def loaded(four: Chain) -> Iterator[Load]:
    load = Load(four)
    four.apply(*tables_of(load.stream))
    with ThreadPoolExecutor(1) as pool:
        published = pool.submit(lambda: four.publish(load.paced(), size=PACE))
        try:
            yield load
        finally:
            load.stopping.set()
        assert published.result() == len(load.lines)


@dataclass(frozen=True)
class Found:
    """What a chain came to, without the transport's coordinates and record times."""

    cases: list[dict[str, Any]]
    anomalies: "Counter[bytes]"
    state: dict[str, Any]


def found_by(transport: Transport, cases: list[FailureCase]) -> Found:
    places = [(ANOMALIES, number) for number in range(transport.partitions(ANOMALIES))]
    anomalies = (record for place in places for record in transport.read_from(place))
    return Found(
        sorted(map(timeless, cases), key=lambda case: str(case["case_id"])),
        Counter(canonical(_bare(json.loads(record.value or b"{}"))) for record in anomalies),
        state_of(transport),
    )


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _bare(inner) for name, inner in value.items() if name not in PLACES}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value


def oracle(folder: Path, load: Load) -> Found:
    """What the chain in one process comes to, over all that was published."""
    with chain_parts(folder, *tables_of(load.stream), key=REDACTION_KEY) as parts:
        chain(parts, 5_000).feed(batches(load.lines, 5_000))
        return found_by(parts.transport, cases_of(parts))


@pytest.fixture
def four(tmp_path: Path, kafka_address: str, redis_url: str, postgres_database: str) -> Iterator[Chain]:
    with chain_on(tmp_path, kafka_address, redis_url, postgres_database) as made:
        yield made


def share(member: Service) -> frozenset[int]:
    """The partitions that a member says it has; none while it does not answer."""
    try:
        partitions: Any = member.status()["partitions"]
    except OSError:
        return frozenset()
    return frozenset(one["partition"] for one in partitions if one["topic"] == PREDICTIONS)


def until_all_are_with(four: Chain, first: Service, timeout_s: float) -> None:
    four.until(lambda: share(first) == EVERY, "the first member has all partitions", timeout_s)


def until_both_work(load: Load, first: Service, second: Service) -> None:
    """The second has taken its share, and both have judged events of what was published since then."""
    four = load.four
    four.until(lambda: shared(first, second), "two members share the partitions")
    before = {member.instance: receipt_of(member) for member in (first, second)}
    load.until(len(load.lines) + WORK)
    four.until(lambda: all(receipt_of(m) not in (None, before[m.instance]) for m in (first, second)), "both work")
    assert shared(first, second)


def shared(first: Service, second: Service) -> bool:
    one, other = share(first), share(second)
    return bool(one and other) and one | other == EVERY and not one & other


def receipt_of(member: Service) -> Any:
    return member.status()["last_receipt"]


def test_members_from_one_to_two_to_one_twice_lose_and_double_nothing(four: Chain, tmp_path: Path) -> None:
    with loaded(four) as load:
        first, *others = four.start_all()
        until_all_are_with(four, first, 60)
        load.until(CLEAN // 2)

        # One that is stopped might come back: its partitions wait for it as long as a session lasts.
        second = four.start(DETECTOR, "1")
        until_both_work(load, first, second)
        stops(load, second, first, SESSION_S + SPARE_S)

        # One that leaves does not, so nobody waits for it.
        second = four.start(DETECTOR, "1", "--leave", **LONG)
        until_both_work(load, first, second)
        stops(load, second, first, LEFT_S)
        load.until(len(load.lines) + WORK)
    four.until_drained()
    assert [service.process.poll() for service in (first, *others)] == [None] * len(STAGES)
    wanted, found = oracle(tmp_path / "embedded", load), found_by(four.transport, four.cases())
    assert len({case["model"]["name"] for case in wanted.cases}) == MODELS + CARRIED
    assert not differences(found.cases, wanted.cases)
    assert found.anomalies == wanted.anomalies
    assert not differences(found.state, wanted.state)
    assert_receipts_tile(four, found.anomalies.total())
    assert [service.end() for service in (first, *others)] == [0] * len(STAGES)


@pytest.mark.parametrize(("options", "variables"), [(("--supervise", "--leave"), {}), ((), {"ERRATA_LEAVE": "true"})])
def test_a_member_can_be_told_to_leave_in_each_way(
    four: Chain, options: tuple[str, ...], variables: dict[str, str]
) -> None:
    first = four.start(DETECTOR)
    until_all_are_with(four, first, 60)
    second = four.start(DETECTOR, "1", *options, **LONG, **variables)
    four.until(lambda: shared(first, second), "two members share the partitions")
    assert second.end() == 0
    until_all_are_with(four, first, LEFT_S)


def test_a_member_that_is_only_stopped_keeps_its_partitions_for_a_restart(four: Chain) -> None:
    """Negative control of leaving: for its session nobody else gets them, and it has the same again."""
    first = four.start(DETECTOR)
    until_all_are_with(four, first, 60)
    second = four.start(DETECTOR, "1", **LONG)
    four.until(lambda: shared(first, second), "two members share the partitions")
    kept = share(second), share(first)
    assert second.end() == 0
    again = four.start(DETECTOR, "1", **LONG)
    four.until(lambda: shared(first, again), "the restarted member works")
    assert (share(again), share(first)) == kept


def stops(load: Load, second: Service, first: Service, limit_s: float) -> None:
    """SIGTERM ends the second in good order; the first has all partitions back in time; publishing goes on."""
    before = len(load.lines)
    assert second.end() == 0, second.logged()[-2000:]
    until_all_are_with(load.four, first, limit_s)
    assert len(load.lines) > before


def assert_receipts_tile(four: Chain, anomalies: int) -> None:
    """Each record of the input is in the receipt of one transaction, whichever member wrote it."""
    receipts = [Receipt.model_validate_json(record.value or b"") for record in four.records(LEDGER)]
    receipts = [receipt for receipt in receipts if receipt.stage == DETECTOR]
    assert {receipt.instance for receipt in receipts} == {"0", "1"}
    assert sum(receipt.out for receipt in receipts) == anomalies
    parts: dict[TopicPartition, list[tuple[int, int]]] = {}
    for receipt in receipts:
        for part in receipt.inputs:
            parts.setdefault((part.topic, part.partition), []).append((part.from_, part.to))
    offsets = four.offsets(DETECTOR)
    for place, pieces in parts.items():
        starts, ends = zip(*sorted(pieces), strict=True)
        assert (0, *ends) == (*starts, offsets[place]), place
    published: list[Record] = [*four.records(PREDICTIONS), *four.records(OUTCOMES)]
    assert sum(part.delivered for receipt in receipts for part in receipt.inputs) == len(published)


def test_state_that_a_member_did_not_write_down_is_refused_by_the_next(four: Chain) -> None:
    """Negative control: the second member forgets, so what it took cannot be taken back."""
    with loaded(four) as load:
        first = four.start(DETECTOR)
        until_all_are_with(four, first, 60)
        second = forgetful(four, "1")
        until_both_work(load, first, second)
        assert second.end() == 0
        assert first.process.wait(60) == 70
    assert "state_behind" in first.logged()


def test_the_comparison_sees_members_that_forget(four: Chain, tmp_path: Path) -> None:
    """Negative control: where neither writes down, none refuses, and the findings are others."""
    with loaded(four) as load:
        first = forgetful(four, "0")
        for stage in STAGES[1:]:
            four.start(stage)
        until_all_are_with(four, first, 60)
        load.until(CLEAN)
        second = forgetful(four, "1")
        until_both_work(load, first, second)
        stops(load, second, first, 6 + SPARE_S)
        load.until(len(load.lines) + CLEAN)
    four.until_drained()
    wanted, found = oracle(tmp_path / "embedded", load), found_by(four.transport, four.cases())
    assert wanted.cases
    assert differences(found.cases, wanted.cases)
    assert found.anomalies != wanted.anomalies


def forgetful(four: Chain, instance: str) -> Service:
    service = four.start_broken("forgetful", DETECTOR, ERRATA_INSTANCE=instance, **SHORT)
    service.instance = instance
    return service
