"""From an event to the row of its case: four processes on real Kafka, Redis and PostgreSQL, 1,000 events a second.

One event in a hundred fails, each at a model of its own that was seen before, so that each opens a case. The time runs
from just before ``produce`` in a publisher with the settings of ``errata.client`` until the transaction that wrote the
case's first revision committed, by the clock of the same machine (``pg_xact_commit_timestamp``). The server stamps a
commit before it flushes it; how long a flush takes is measured beside and shown. Before that the same stream runs with
its failures at few models, until the optimising compiler of the broker's JVM rests: it goes on for minutes, takes a
third of a core meanwhile, and a broker that stays is past that. Broker, stores, services and the publisher share the
machine's cores.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psycopg
from confluent_kafka import Producer
from tests.benchmarks.measure import Row, Scale
from tests.benchmarks.stages import Stream, name_of
from tests.integration.chain import Chain, chain_on

from errata.contracts import canonical
from errata.contracts.topics import ANOMALIES, ENRICHED, PREDICTIONS, TAGGED
from errata.domain.detection.anomalies import case_id
from errata.errors import ErrataError
from errata_services.dev import servers
from errata_services.dev.servers import KafkaServer

RATE_PER_S = 1_000
EVERY = 100  # one event of so many fails
MODELS = 50  # with traffic; those that fail come on top
MEASURED_S, QUICK_MEASURED_S = 30, 8
WARM_LAP_S, QUICK_WARM_S = 30, 5
LEAST_WARM_S, MOST_WARM_S = 60, 300
COMPILER = "C2 CompilerThre"  # what Linux keeps of its threads' name
RESTING = 0.1  # of a core
TICK_S = 0.002  # between two looks of the publisher at the clock
ROWS_TIMEOUT_S = 30.0
FLUSHES = 50
AIM_MS = (50, 200)
FAILING_BEFORE = 5  # models that fail before it counts
LINGER_MS = 10  # of errata.client


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the stream; ``case`` is the id of the case that it opens, empty for one without a fault."""

    key: bytes
    value: bytes
    case: str = ""


def rows(scale: Scale) -> list[Row]:
    measured_s = QUICK_MEASURED_S if scale.quick else MEASURED_S
    counted_n = measured_s * RATE_PER_S // EVERY
    stream = Stream(MODELS + FAILING_BEFORE + counted_n)
    with _chain() as (chain, broker):
        chain.apply(*(table for _, contract, reference in stream.tables() for table in (contract, reference)))
        chain.start_all()
        chain.until(lambda: all(_ready(chain)), "the services are ready")
        warmed = _warm_up(chain, broker, stream, scale)
        _publish(chain, [_clean(stream, number) for number in range(MODELS + FAILING_BEFORE, stream.models)])
        events = list(_events(stream, measured_s * RATE_PER_S, lambda at: MODELS + FAILING_BEFORE + at))
        chain.until_drained()
        before = _cpu_s(chain)
        published_s = _publish(chain, events)
        used = _shares(before, _cpu_s(chain), measured_s)
        counted = [one.case for one in events if one.case]
        committed_s = _committed_s(chain, set(counted))
        flush_ms = _flush_ms(chain.database)
        hops = _hops(chain, published_s, committed_s)
    lost = [case for case in counted if case not in committed_s]
    taken_ms = [(committed_s[case] - published_s[case]) * 1_000 for case in counted if case in committed_s]
    return [*_rows(taken_ms, lost, flush_ms, used, warmed), *hops]


def _warm_up(chain: Chain, broker: KafkaServer, stream: Stream, scale: Scale) -> str:
    """Publish with failures at few models until the broker's compiler rests, and say how long that took."""
    # The first failure shows the decoder a field that clean events lack, which makes it compile all models anew.
    lap_s, least_s, most_s = (QUICK_WARM_S,) * 3 if scale.quick else (WARM_LAP_S, LEAST_WARM_S, MOST_WARM_S)
    warm_s, share = 0, 1.0
    while warm_s < least_s or (share > RESTING and warm_s < most_s):
        before_s = _compiled_s(broker)
        _publish(chain, list(_events(stream, lap_s * RATE_PER_S, lambda at: MODELS + at % FAILING_BEFORE)))
        share = (_compiled_s(broker) - before_s) / lap_s
        warm_s += lap_s
    return f"after {warm_s} s, in whose last {lap_s} the broker's compiler took {share:.0%} of a core"


def _compiled_s(broker: KafkaServer) -> float:
    """CPU time of the broker's optimising compiler so far, of threads that live; 0 where the system does not tell."""
    threads = [thread for thread in Path(f"/proc/{broker.pid}/task").glob("*") if COMPILER in _read(thread / "comm")]
    return sum(_used_s(thread / "stat") for thread in threads)


def _rows(taken_ms: list[float], lost: list[str], flush_ms: float, used: str, warmed: str) -> list[Row]:
    p50, p99 = np.percentile(taken_ms, (50, 99)).tolist() if taken_ms else (float("nan"),) * 2
    most = max(taken_ms, default=float("nan"))
    about = f"aim {AIM_MS[0]} / {AIM_MS[1]} ms, {len(taken_ms)} cases, longest {most:.0f} ms; {warmed}"
    return [
        Row("event to committed row, p50 ms", p50, "latency_p50_ms", about),
        Row(
            "event to committed row, p99 ms",
            p99,
            "latency_p99_ms",
            f"{used}; without the commit's flush: {flush_ms:.1f} ms",
        ),
        Row("failures without a row", len(lost), "latency_lost", used),
    ]


def _hops(chain: Chain, published_s: dict[str, float], committed_s: dict[str, float]) -> list[Row]:
    """Where the time goes: the median of each stage, by the record times of the first record of each case."""
    before_s, made = {case: published_s[case] for case in committed_s}, []
    for topic in (ANOMALIES, ENRICHED, TAGGED):
        after_s: dict[str, float] = {}
        for record in chain.records(topic):
            case, at_s = (record.key or b"").decode(), record.timestamp_us / 1e6
            if case in committed_s:
                after_s[case] = min(after_s.get(case, at_s), at_s)
        made.append(_hop(topic, before_s, after_s))
        before_s = after_s
    return [*made, _hop("row", before_s, committed_s)]


def _hop(name: str, before_s: dict[str, float], after_s: dict[str, float]) -> Row:
    took_ms = [(at_s - before_s[case]) * 1_000 for case, at_s in after_s.items() if case in before_s]
    p50, p99 = np.percentile(took_ms, (50, 99)).tolist() if took_ms else (float("nan"),) * 2
    return Row(f"of it until {name}, p50 ms", p50, None, f"p99 {p99:.0f} ms")


def _clean(stream: Stream, number: int) -> Event:
    record = stream.record(number)
    return Event(record.key or b"", record.value or b"")


def _events(stream: Stream, n: int, failing: Callable[[int], int]) -> Iterator[Event]:
    """Models with traffic in turn; each hundredth event has failed, at a model by the number of the failure."""
    for at in range(n):
        if at % EVERY != EVERY - 1:
            yield _clean(stream, at % MODELS)
            continue
        number = failing(at // EVERY)
        record = stream.record(number)
        raw = (record.value or b"").replace(b',"prediction":', b',"status":{"code":"error"},"prediction":', 1)
        yield Event(record.key or b"", raw, _case_of(name_of(number), raw))


def _case_of(model: str, raw: bytes) -> str:
    name = raw.split(b'"', 4)[3].decode()  # the event's id comes first
    key = canonical(["default", model, "errata.prediction.v1", name]).decode()
    return case_id("default", model, "", key)


@contextmanager
def _chain() -> Iterator[tuple[Chain, KafkaServer]]:
    """The servers and the topics and tables of a chain; its database syncs each commit, as it does for users."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="errata-bench-")))
        try:
            kafka = stack.enter_context(servers.kafka(folder / "kafka", quick=False))
            redis = stack.enter_context(servers.redis(folder / "redis"))
            settings = {"track_commit_timestamp": "on", "fsync": "on"}
            postgres = stack.enter_context(servers.postgres(folder / "postgres", settings=settings))
        except ErrataError as error:
            raise SystemExit(f"{error}\nbash tools/servers.sh installs what the benchmarks on Kafka need") from None
        logs = folder / "logs"
        logs.mkdir()
        yield stack.enter_context(chain_on(logs, kafka.address, redis.url, postgres.url)), kafka


def _ready(chain: Chain) -> Iterator[bool]:
    for service in chain.running:
        try:
            service.page("/readyz")
            yield True
        except OSError:
            yield False


def _cpu_s(chain: Chain) -> dict[str, float]:
    """CPU time of each service so far, and of ours; 0 where the system does not tell."""
    pids = {"publisher": os.getpid()} | {service.name: service.process.pid for service in chain.running}
    return {name: _used_s(Path(f"/proc/{pid}/stat")) for name, pid in pids.items()}


def _used_s(stat: Path) -> float:
    both = _read(stat).rpartition(")")[2].split()[11:13]
    return sum(map(int, both)) / os.sysconf("SC_CLK_TCK")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system, or a thread that ended
        return ""


def _shares(before_s: dict[str, float], after_s: dict[str, float], wall_s: float) -> str:
    """CPU while events came, in parts of a core."""
    return ", ".join(f"{name} {(after_s[name] - before_s[name]) / wall_s:.0%}" for name in before_s) + " of a core"


def _publish(chain: Chain, events: list[Event]) -> dict[str, float]:
    """Publish at the rate; when each failing event was handed over, in seconds since 1970."""
    producer = Producer(
        {**chain.properties, "linger.ms": LINGER_MS, "partitioner": "murmur2_random", "enable.idempotence": True}
    )
    topic, at_s = f"{chain.prefix}{PREDICTIONS}", {}
    start_s, done = time.perf_counter(), 0
    while done < len(events):
        due = min(int((time.perf_counter() - start_s) * RATE_PER_S), len(events))
        for event in events[done:due]:
            if event.case:
                at_s[event.case] = time.time()
            producer.produce(topic, event.value, event.key)
        done = due
        producer.poll(0)
        time.sleep(TICK_S)
    producer.flush()
    return at_s


def _committed_s(chain: Chain, cases: set[str]) -> dict[str, float]:
    """When each case became a row, in seconds since 1970; those that are no row after a while are left out."""
    deadline_s = time.monotonic() + ROWS_TIMEOUT_S
    query = "SELECT case_id, extract(epoch FROM min(pg_xact_commit_timestamp(xmin))) FROM case_revision GROUP BY 1"
    with closing(psycopg.connect(chain.database, autocommit=True)) as connection:
        while True:
            found = {case: float(at_s) for case, at_s in connection.execute(query).fetchall() if case in cases}
            if len(found) == len(cases) or time.monotonic() > deadline_s:
                return found
            time.sleep(0.2)


def _flush_ms(database: str) -> float:
    """How long a small commit takes in this database, median."""
    took_ms = []
    with closing(psycopg.connect(database, autocommit=True)) as connection:
        connection.execute("CREATE TABLE bench_flush (n int)")
        for number in range(FLUSHES):
            start_s = time.perf_counter()
            connection.execute("INSERT INTO bench_flush VALUES (%s)", (number,))
            took_ms.append((time.perf_counter() - start_s) * 1_000)
    return median(took_ms)
