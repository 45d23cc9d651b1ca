"""The keeper on real servers: who leads when a leader dies or loses its session; fifty errors in a ledger, found."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from tests.integration.chain import KILLED, SECRET, Chain, Service, armed, chain_on

from errata.adapters.sql import PostgresLeaderLock
from errata.contracts import PredictionEvent, Receipt, ReceiptInput
from errata.contracts.topics import ANOMALIES, CHANGES, ENRICHED, OUTCOMES, PREDICTIONS, STAGES, TOPICS
from errata.errors import Misconfigured, Unavailable
from errata.ports import Outgoing
from errata.runtime import crash_points
from errata.runtime.receipts import receipt_record
from errata_services.cli.ledger import read_audit

pytestmark = pytest.mark.servers

DETECTOR, ENRICHER, TAGGER, _ = STAGES
KEEPER = "keeper"
PARTITIONS = TOPICS[PREDICTIONS].partitions
FOUND_WITHIN_S = 60.0
TAKEN_OVER_WITHIN_S = 10.0


@pytest.fixture
def chain(tmp_path: Path, kafka_address: str, redis_url: str, postgres_database: str) -> Iterator[Chain]:
    with chain_on(tmp_path, kafka_address, redis_url, postgres_database) as made:
        made.environment |= {"ERRATA_LOG": "json", "ERRATA_HEARTBEAT_EVERY_S": "1", "ERRATA_TICK_EVERY_S": "2"}
        del made.environment["ERRATA_REDIS_URL"], made.environment["ERRATA_KEY"]  # which it does not need
        yield made


# Who leads.


def leads(service: Service) -> bool:
    return 'errata_keeper_leader{stage="keeper"} 1.0' in service.page("/metrics")


def answered(question: Callable[[], bool]) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            return question()
        except OSError:  # it does not listen yet
            return False

    return ask


def events(chain: Chain) -> list[tuple[int, PredictionEvent]]:
    records = chain.records(PREDICTIONS)
    return [(one.partition, PredictionEvent.model_validate_json(one.value or b"")) for one in records]


def test_one_leads_and_another_takes_over_when_it_is_killed_or_loses_its_session(chain: Chain) -> None:
    first = chain.start(KEEPER, "0")
    chain.until(answered(lambda: leads(first)), "the first leads")
    second = chain.start(KEEPER, "1")
    chain.until(answered(lambda: second.page("/readyz") != ""), "the second is ready")
    assert not leads(second)

    first.process.send_signal(signal.SIGKILL)
    assert first.process.wait(10) == -signal.SIGKILL
    chain.until(lambda: leads(second), "the second has taken over", TAKEN_OVER_WITHIN_S)

    third = chain.start(KEEPER, "0")
    chain.until(answered(lambda: third.page("/readyz") != ""), "the third is ready")
    with psycopg.connect(chain.database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid <> %s",
            (connection.info.backend_pid,),
        )
    chain.until(lambda: "leads no more" in second.logged(), "the second knows that it has lost", TAKEN_OVER_WITHIN_S)
    chain.until(lambda: leads(second) != leads(third), "one of the two leads", TAKEN_OVER_WITHIN_S)

    before = len(events(chain))
    chain.until(lambda: len(events(chain)) > before + 2 * PARTITIONS, "it writes")
    assert [second.end(), third.end()] == [0, 0]
    written = events(chain)
    assert Counter(event.purpose for _, event in written).keys() == {"tick", "heartbeat"}
    assert len({event.event_id for _, event in written}) == len(written)
    for purpose in ("tick", "heartbeat"):
        by_partition = Counter(number for number, event in written if event.purpose == purpose)
        assert set(by_partition) == set(range(PARTITIONS))
        assert len(set(by_partition.values())) == 1, "each is in all partitions or in none"
    by_second = Counter(int(event.time.timestamp()) for _, event in written if event.purpose == "heartbeat")
    assert max(by_second.values()) <= 3 * PARTITIONS, "two leaders at a time"


def metric(service: Service, name: str) -> float:
    """The sum of all series of a metric."""
    lines = [line for line in service.page("/metrics").splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.split()[-1]) for line in lines)


def test_the_books_of_a_chain_whose_detector_dies_in_transactions_are_right_and_heartbeats_go_through_all_of_it(
    chain: Chain, redis_url: str
) -> None:
    keeper = chain.start(KEEPER)
    more = {"ERRATA_REDIS_URL": redis_url, "ERRATA_KEY": SECRET, "ERRATA_BATCH_SIZE": "20"}
    behind = [chain.start(name, "0", **more) for name in STAGES[1:]]
    lines = [
        json.dumps(
            {
                "event_id": f"e-{n}",
                "time": f"2026-01-05T12:{n // 60:02}:{n % 60:02}Z",
                "model": {"name": f"model-{n % 40}"},
                "status": {"code": "timeout"},
            }
        ).encode()
        for n in range(600)
    ]
    chain.publish(lines)
    for point in (crash_points.AFTER_OFFSETS, crash_points.MID_PRODUCE):
        dying = chain.start(DETECTOR, "0", **more, **armed(DETECTOR, point, 3))
        assert dying.process.wait(60) == KILLED, dying.logged()[-2000:]
    detector = chain.start(DETECTOR, "0", **more)
    writer = behind[-1]
    chain.until(answered(lambda: len(chain.cases()) == 40), "all cases are there")
    chain.until(answered(lambda: metric(writer, "errata_heartbeat_delay_seconds_count") > 0), "a heartbeat is through")
    audited = metric(keeper, "errata_ledger_receipts_total")
    chain.until(lambda: metric(keeper, "errata_ledger_receipts_total") > audited, "the audit goes on")
    assert told(keeper) == []
    for service in (detector, *behind):
        assert time.time() - metric(service, "errata_heartbeat_timestamp_seconds") < 60
        assert metric(service, "errata_dead_letters_total") == 0
    found, whole = read_audit(chain.transport)
    assert (found.faults, whole) == ([], True)
    assert keeper.end() == 0


def takes(lock: PostgresLeaderLock) -> bool:
    """What nobody has any more; the server ends a session a moment after its client did."""
    deadline_s = time.monotonic() + 10
    while not lock.acquire():
        assert time.monotonic() < deadline_s, "it is not let go"
    return True


def test_a_lock_is_one_sessions_and_needs_no_right_but_to_connect(postgres_database: str) -> None:
    name = postgres_database.rpartition("/")[2]
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'p'".encode())
        try:
            host = postgres_database.rpartition("@")[2]
            first, second = (PostgresLeaderLock(f"postgresql://{name}:p@{host}") for _ in range(2))
            assert [first.acquire(), second.acquire(), first.acquire()] == [True, False, True]
            assert [first.held(), second.held()] == [True, False]
            first.release()
            assert [first.held(), takes(second), second.held()] == [False, True, True]
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,))
            assert not second.held()
            assert takes(second)  # in a session of its own
            second.close()
            assert takes(first)
            first.close()
            frozen = PostgresLeaderLock(f"postgresql://{name}:p@{host}", idle_limit_s=0.2)
            assert takes(frozen)
            deadline_s = time.monotonic() + 10
            while connection.execute("SELECT 1 FROM pg_stat_activity WHERE usename = %s", (name,)).fetchone():
                assert time.monotonic() < deadline_s, "the session of a frozen holder goes on"
            assert not frozen.held()
            frozen.close()
        finally:
            connection.execute(f"DROP ROLE {name}".encode())
    with pytest.raises(Unavailable):
        PostgresLeaderLock("postgresql://nobody:x@127.0.0.1:1/none").acquire()
    with pytest.raises(Misconfigured):
        PostgresLeaderLock("sqlite://")


# Fifty errors.

Told = tuple[str, str, str, int, int, int]  # kind, stage, topic, partition, offset, records


@dataclass(frozen=True, slots=True)
class Books:
    """The right receipts of one chain, at most one of them changed: ``taken`` offsets a receipt, ``out`` from each."""

    stage: str
    topic: str
    partition: int
    receipts: tuple[Receipt, ...]


def books(stage: str, topic: str, partition: int, *, size: int, n: int, out: int = 0) -> Books:
    """``n`` receipts of ``size`` offsets. Two instances take turns, as after rebalances."""
    made = tuple(
        Receipt(
            stage=stage,
            instance=str((at // 2 + partition) % 2),
            build="1",
            inputs=[
                ReceiptInput(topic=topic, partition=partition, from_=size * at, to=size * (at + 1), delivered=size)
            ],
            out=out,
            dlq=0,
        )
        for at in range(n)
    )
    return Books(stage, topic, partition, made)


def changed(one: Receipt, *, start: int = 0, end: int = 0, delivered: int = 0, dlq: int = 0) -> Receipt:
    part = one.inputs[0]
    part = part.model_copy(
        update={"from_": part.from_ + start, "to": part.to + end, "delivered": part.delivered + delivered}
    )
    return one.model_copy(update={"inputs": [part], "dlq": one.dlq + dlq})


Plant = tuple[list[Receipt], list[Told]]


def plant(kind: str, right: Books, at: int) -> Plant:
    """The books with an error at their ``at``-th receipt, and what has to be said of it."""
    receipts = list(right.receipts)
    victim = receipts[at]
    part = victim.inputs[0]
    size = part.to - part.from_
    place = (right.stage, right.topic, right.partition)
    if kind == "lost":
        return receipts[:at] + receipts[at + 1 :], [("gap", *place, part.from_, size)]
    if kind == "doubled":
        return [*receipts, victim], [("overlap", *place, part.from_, size)]
    if kind == "shifted":
        receipts[at] = changed(victim, start=1, end=1)
        return receipts, [("gap", *place, part.from_, 1), ("overlap", *place, part.to, 1)]
    if kind == "short":
        receipts[at] = changed(victim, end=-1, delivered=-1)
        return receipts, [("gap", *place, part.to - 1, 1)]
    if kind == "long":
        receipts[at] = changed(victim, end=1)
        return receipts, [("overlap", *place, part.to, 1)]
    if kind == "too many delivered":
        receipts[at] = changed(victim, delivered=3)
        return receipts, [("disposition", *place, part.from_, 3)]
    receipts[at] = changed(victim, dlq=part.delivered + 2)
    return receipts, [("disposition", *place, part.from_, 2)]


KINDS = ("lost", "doubled", "shifted", "short", "long", "too many delivered", "too many refused")
KEEPS_DELIVERED = ("shifted", "long", "too many refused")  # so that the flow before it stays right


def planted() -> tuple[list[Plant], list[Books]]:
    """46 errors, one a chain, each kind at the start, in the middle and near the end; and chains without one."""
    free = [
        books(stage, topic, number, size=10, n=8)
        for stage, topic in ((DETECTOR, PREDICTIONS), (DETECTOR, OUTCOMES), (ENRICHER, CHANGES))
        for number in range(PARTITIONS)
    ]
    flowing = [
        books(stage, topic, number, size=2, n=6)
        for stage, topic in ((ENRICHER, ANOMALIES), (TAGGER, ENRICHED))
        for number in range(PARTITIONS)
    ]
    plants = [plant(KINDS[i % len(KINDS)], right, (1, 4, 6)[i // 7 % 3]) for i, right in enumerate(free)]
    plants += [plant(KEEPS_DELIVERED[i % 3], right, (1, 3, 4)[i // 3 % 3]) for i, right in enumerate(flowing[::2][:10])]
    clean = [right for i, right in enumerate(flowing) if i % 2 or i >= 20]
    return plants, clean


class Writer:
    def __init__(self, chain: Chain) -> None:
        self._producer = chain.transport.producer("stages")

    def write(self, records: Sequence[Outgoing]) -> None:
        self._producer.begin()
        for record in records:
            self._producer.produce(record)
        self._producer.commit()


def sources() -> list[Outgoing]:
    """What the readers of the flows take in, twelve records a partition, and receipts of who put it out."""
    records = [
        Outgoing(topic, None, b"{}", partition=number)
        for topic in (ANOMALIES, ENRICHED)
        for number in range(PARTITIONS)
        for _ in range(12)
    ]
    put_out = [
        Receipt(stage=stage, instance="0", build="1", inputs=[], out=12 * PARTITIONS, dlq=0)
        for stage in (DETECTOR, ENRICHER)
    ]
    return [*records, *map(receipt_record, put_out)]


def imbalances() -> list[tuple[list[Outgoing], list[Told]]]:
    """Two for each of the two flows, of both signs; those of a flow cannot be told apart at one time."""

    def said(stage: str, topic: str, start: int, end: int, out: int) -> Outgoing:
        part = ReceiptInput(topic=topic, partition=0, from_=start, to=end, delivered=end - start)
        return receipt_record(Receipt(stage=stage, instance="0", build="1", inputs=[part], out=out, dlq=0))

    first, second = (ENRICHER, ANOMALIES, -1, -1), (TAGGER, ENRICHED, -1, -1)
    doubled = said(ENRICHER, CHANGES, 80, 90, out=1)
    return [
        (
            [said(DETECTOR, PREDICTIONS, 80, 90, out=2), doubled, doubled],
            [("imbalance", *first, 2), ("imbalance", *second, 2), ("overlap", ENRICHER, CHANGES, 0, 80, 10)],
        ),
        (
            [said(ENRICHER, ANOMALIES, 12, 17, out=0), said(TAGGER, ENRICHED, 12, 15, out=0)],
            [("imbalance", *first, -5), ("imbalance", *second, -3)],
        ),
    ]


def told(service: Service) -> list[Told]:
    said = [json.loads(line) for line in service.logged().splitlines() if '"ledger fault"' in line]
    return [
        (one["kind"], one["at_stage"], one["topic"], one["partition"], one["offset"], one["records"]) for one in said
    ]


def test_fifty_planted_errors_are_found_in_time_and_nothing_else_is(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper = chain.start(KEEPER)
    chain.until(answered(lambda: leads(keeper)), "it leads")
    writer, (plants, clean) = Writer(chain), planted()
    writer.write([*sources(), *(receipt_record(one) for right in clean for one in right.receipts)])
    chain.until(lambda: "errata_ledger_audited_timestamp_seconds" in keeper.page("/metrics"), "it audits")
    assert told(keeper) == []

    wanted: Counter[Told] = Counter()
    longest_s, errors = 0.0, 0
    rounds = imbalances()
    for number, (records, expected) in enumerate(rounds):
        if not number:
            receipts = [one for made, _ in plants for one in made]
            lanes = [[one for one in receipts if one.instance == name] for name in ("0", "1")]
            for lane in lanes:  # as two instances write: each in its order, one after the other in the ledger
                for at in range(0, len(lane), 60):
                    writer.write([receipt_record(one) for one in lane[at : at + 60]])
            expected = expected + [fault for _, faults in plants for fault in faults]
            errors += len(plants)
        writer.write(records)
        errors += 2
        now_s = time.monotonic()
        wanted.update(expected)
        chain.until(lambda: not wanted - Counter(told(keeper)), "all errors are found", FOUND_WITHIN_S)
        longest_s = max(longest_s, time.monotonic() - now_s)
    assert errors == 50
    assert Counter(told(keeper)) == wanted, "found and never planted"
    page = keeper.page("/metrics")
    names = {"gap": "gaps", "overlap": "overlaps", "disposition": "dispositions", "imbalance": "imbalance"}
    for kind, name in names.items():
        counted = sum(
            float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"errata_ledger_{name}_")
        )
        assert counted == sum(n for fault, n in wanted.items() if fault[0] == kind)
    assert keeper.end() == 0
    with capsys.disabled():
        print(f"\n{errors} errors, {sum(wanted.values())} faults, the last found after {longest_s:.1f} s")
    assert longest_s <= FOUND_WITHIN_S


def test_a_plant_is_an_error_and_the_books_it_is_in_are_right_without_it() -> None:
    """Negative control of the planting: it neither changes nothing nor more than it says."""
    right = books(DETECTOR, OUTCOMES, 3, size=10, n=8)
    for kind in KINDS:
        receipts, faults = plant(kind, right, 4)
        assert receipts != list(right.receipts)
        assert faults
