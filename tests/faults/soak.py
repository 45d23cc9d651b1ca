"""Everything at random for a while, and what the processes grow by: memory, open files."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import combinations
from math import inf
from statistics import median
from typing import Any, NamedTuple

from redis import Redis
from tests.faults.broker import ended
from tests.faults.members import until_shared
from tests.faults.rig import DETECTOR, ENRICHER, Rig, Row, kill, wait
from tests.faults.story import Publisher, Story, chooser
from tests.integration.chain import Chain, Service
from tests.memory import resident_mb

from errata.contracts.topics import STAGES
from errata_services.dev import servers
from errata_services.dev.servers import KafkaServer, Server
from errata_services.processes import AGAIN

RATE = 500.0
SAMPLE_S = 5.0
GLANCE_S = 0.25  # between two looks at memory: what a turn of the allocator gives back may be taken again in a second
WARM = 0.5  # share of the time in which processes grow as they may
PARTS = 10  # of the rest: in 30 min, 90 s each, in which pages go back nine times
CONTROL_S = 40.0
LEAST_RUN = 0.5  # of the time: so long at least one process of each stage stayed
LAST_SAID = 1_500  # characters of a log
LEAK_MB_H = 100.0  # what the control leaks at least
# Kafka's own. A broker that is frozen for longer is no broker of the cluster for a moment, and a transactional client
# that asks for brokers just then finds none for good (librdkafka's issue 5301): its process ends with 75 and comes
# back, which the scenario of frozen brokers looks at.
BROKER_SESSION = {"broker.session.timeout.ms": "9000"}


class Sample(NamedTuple):
    """Of one process from ``s`` on. ``mb``: the least it held until the next sample. ``partitions``: how many it held
    all that time; with fewer it has less to remember."""

    s: float
    mb: float
    files: int
    partitions: int


def rows(rig: Rig) -> list[Row]:
    minutes = rig.scale.soak_min or 1.0
    story, chance = Story(poison_every=200), chooser("soak")
    with ExitStack() as stack:
        broker = stack.enter_context(rig.own_kafka(BROKER_SESSION))
        redis = stack.enter_context(servers.redis(rig.place("redis")))
        database = stack.enter_context(servers.postgres(rig.place("postgres"), durable=True))
        four = stack.enter_context(
            rig.chain("soak", story, kafka=broker.address, redis=redis.url, database=database.url)
        )
        watched = [four.start(stage) for stage in STAGES]
        until_shared(four, watched[:1])
        publisher = Publisher(four, story, rate=RATE).start()
        runs, faults = _soaked(rig, four, (broker, redis, database), watched, chance, minutes * 60)
        gone = [one for one in watched if one.process.poll() is not None]
        if gone:
            publisher.stop()
            said = "; ".join(f"{one.name} with {one.process.poll()}: {one.logged()[-LAST_SAID:]}" for one in gone)
            return [Row("processes that ended by themselves", len(gone), "ended", " ".join(said.split()))]
        found = ended(four, publisher, story, context=False)
    longest = {name: max(each, key=len) for name, each in runs.items()}
    (rig.place("samples") / "longest.json").write_text(json.dumps(longest))
    if min(map(len, longest.values())) < sum(map(len, runs[DETECTOR])) * LEAST_RUN:
        return [Row("processes that ran long enough to be judged", 0, "control", f"of {minutes:g} min")]
    whole = {name: holding_all(each) for name, each in longest.items()}
    slopes = {name: slope_mb_h(each) for name, each in whole.items()}
    files = {name: growth_of_files(each) for name, each in longest.items()}
    shown = ", ".join(
        f"{name} {slopes[name]:+.2f} (from {each[int(len(each) * WARM)].mb:.1f} to {each[-1].mb:.1f} MB)"
        for name, each in whole.items()
    )
    restarts = {name: len(each) - 1 for name, each in runs.items() if len(each) > 1}
    again = ", ".join(f"{name} {n}" for name, n in restarts.items())
    return [
        Row(f"soak of {minutes:g} min: growth of memory after warm-up, at most (MB/h)", max(slopes.values()),
            "slope_mb_h" if minutes >= 30 else None, f"{shown}; {faults} faults"),
        Row("growth of open files, at most", max(files.values()), "descriptors"),
        Row("processes that ended by themselves", sum(restarts.values()), "ended",
            f"with 75, and were started again: {again}" if again else ""),
        Row("lost through the soak", found.lost, "lost", found.said),
        Row("doubled through the soak", found.doubled, "doubled", found.held),
        Row("findings, cases, state wrong through the soak", found.wrong + found.state, "wrong"),
        _leak(rig),
    ]  # fmt: skip


def _soaked(
    rig: Rig,
    four: Chain,
    parts: tuple[KafkaServer, Server, Server],
    watched: list[Service],
    chance: random.Random,
    for_s: float,
) -> tuple[dict[str, list[list[Sample]]], int]:
    """Samples of the processes of each stage, while servers have faults and other members come and are killed.

    One that ends with 75 is started again, as a supervisor does, so that the other figures are told all the same;
    ``watched`` is then the new one.
    """
    broker, redis, database = parts
    faults: tuple[Callable[[], None], ...] = (
        lambda: _frozen(broker, chance.uniform(0.5, 3)),
        lambda: _flushed(redis),
        redis.restart,
        lambda: _frozen(redis, 1),
        database.restart,
        lambda: _killed_member(four, chance),
        lambda: _killed_member(four, chance),
    )
    runs: dict[str, list[list[Sample]]] = {one.name: [[]] for one in watched}
    began_s = told_s = time.monotonic()
    done, next_s = 0, began_s + 10
    while (now_s := time.monotonic()) - began_s < for_s:
        _started_again(rig, four, watched, runs)
        if any(one.process.poll() not in (None, AGAIN) for one in watched):
            break  # the rows say which, and why
        for one, sample in _samples(watched, now_s - began_s):
            runs[one.name][-1].append(sample)
        if now_s > next_s:
            chance.choice(faults)()
            done += 1
            next_s = time.monotonic() + chance.uniform(5, 20)
        if now_s - told_s > 60:
            told_s = now_s
            rig.progress(f"soak: {(now_s - began_s) / 60:.0f} min, {done} faults")
    _started_again(rig, four, watched, runs)
    return runs, done


def _started_again(rig: Rig, four: Chain, watched: list[Service], runs: dict[str, list[list[Sample]]]) -> None:
    for place, one in enumerate(watched):
        if one.process.poll() == AGAIN:
            four.running.remove(one)
            watched[place] = four.start(one.name)
            runs[one.name].append([])
            rig.progress(f"soak: {one.name} is started again: {' '.join(one.logged()[-LAST_SAID:].split())}")


def _frozen(server: Server, seconds: float) -> None:
    server.freeze()
    try:
        wait(seconds)
    finally:
        server.thaw()


def _flushed(redis: Server) -> None:
    with Redis.from_url(redis.url) as client:
        client.flushall()


def _killed_member(four: Chain, chance: random.Random) -> None:
    """A second member of the detector comes, works for a while, and is killed."""
    other = four.start(DETECTOR, "1")
    wait(chance.uniform(3, 12))
    kill(other)
    four.running.remove(other)


def _samples(watched: Sequence[Service], at_s: float, for_s: float = SAMPLE_S) -> Iterator[tuple[Service, Sample]]:
    """One of each that runs, over the next ``for_s`` seconds."""
    least = dict.fromkeys((one.name for one in watched), inf)
    before = {one.name: partitions_of(one) for one in watched}
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        for one in watched:
            with suppress(ProcessLookupError):  # it ended
                least[one.name] = min(least[one.name], resident_mb(one.process.pid))
        wait(GLANCE_S)
    for one in watched:
        if one.process.poll() is None:
            files = len(os.listdir(f"/proc/{one.process.pid}/fd"))
            yield one, Sample(at_s, least[one.name], files, min(before[one.name], partitions_of(one)))


def holding_all(samples: list[Sample]) -> list[Sample]:
    """The samples of a process that are alike: those in which it held as many partitions as it ever did.

    A detector that shares with another gives half of its state away, 40 MB, for as long as the other lives.

    >>> [sample.s for sample in holding_all([Sample(1, 9, 5, 0), Sample(2, 9, 5, 12), Sample(3, 5, 5, 6)])]
    [2]
    """
    most = max(sample.partitions for sample in samples)
    return [sample for sample in samples if sample.partitions == most]


def slope_mb_h(samples: list[Sample]) -> float:
    """The median of the slopes between all pairs of points after the warm-up, each point the least of a part.

    What is kept for ever raises the least as it raises all. What a burst takes does not: it goes back at the next turn
    of `errata.adapters.allocator`, and is 20 MB in a detector, where a leak of 1 MB/h shows as a quarter of a MB.

    >>> leak = [Sample(at, 100 + at / 3_600, 9, 12) for at in range(1_000)]
    >>> round(slope_mb_h(leak), 3)
    1.0
    >>> round(slope_mb_h([it if it.s % 40 < 20 else it._replace(mb=it.mb + it.s % 7 * 3) for it in leak]), 3)
    1.0
    """
    points = [(sample.s, sample.mb) for sample in samples[int(len(samples) * WARM) :]]
    each = max(1, len(points) // PARTS)
    parts = [points[at : at + each] for at in range(0, len(points) - each + 1, each)]  # a few points have no least
    floors = [(median(s for s, _ in part), min(mb for _, mb in part)) for part in parts]
    return median((mb - before) / (s - before_s) * 3_600 for (before_s, before), (s, mb) in combinations(floors, 2))


def growth_of_files(samples: list[Sample]) -> int:
    """By how much the fewest at the end are above the most after the warm-up.

    >>> growth_of_files([Sample(0, 1, files, 12) for files in (5, 5, 9, 9, 9, 9, 9, 8, 9, 10, 9, 9)])
    0
    """
    warm = [sample.files for sample in samples[int(len(samples) * WARM) :]]
    quarter = max(1, len(warm) // 4)
    return max(0, min(warm[-quarter:]) - max(warm[:quarter]))


def partitions_of(service: Service) -> int:
    try:
        held: Any = service.status()["partitions"]
    except OSError:
        return 0
    return len(held)


def _leak(rig: Rig) -> Row:
    rig.progress("soak: control, a process that keeps memory")
    with rig.chain("control", Story()) as four:
        leaky = four.start_broken("leaky", ENRICHER)
        four.until(lambda: bool(partitions_of(leaky)), "the leaking process works")
        samples: list[Sample] = []
        began_s = time.monotonic()
        while (now_s := time.monotonic()) - began_s < CONTROL_S:
            samples += (sample for _, sample in _samples([leaky], now_s - began_s, CONTROL_S / 40))
    found = slope_mb_h(samples)
    return Row("control: a process that leaks", float(found > LEAK_MB_H), "control", f"{found:+,.0f} MB/h")
