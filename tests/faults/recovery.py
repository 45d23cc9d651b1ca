"""Kill to processing again, with much state in one partition.

The state is the detector's own: one model of the partition for each key. A model that is seen once has a slot of about
1 KB, so 50,000 are 50 MB; with all counters of a model with a contract they would be 250 MB, the bound of a partition.
"""

import json
import time
from itertools import count, islice
from statistics import median

from tests.faults.judge import judge, state_entries
from tests.faults.members import EVERY, share, until_shared
from tests.faults.rig import DETECTOR, DRAIN_S, Rig, Row, kill, receipts
from tests.faults.story import PUBLISHED_AT_ONCE, Publisher, Story, chooser, send
from tests.integration.chain import Chain, Service

from errata.contracts.topics import PARTITIONS, PREDICTIONS, STAGES
from errata.domain.partitioner import partition_of
from errata.ports import Outgoing

RATE = 200.0
KEYS_AT = "model-000"  # the partition of this one has them
BACK_S = 180.0
CONTROL_KILLS = 3


def rows(rig: Rig) -> list[Row]:
    story, chance = Story(), chooser("recovery")
    with rig.chain("recovery", story) as four:
        for stage in STAGES[1:]:
            four.start(stage)
        detector = four.start(DETECTOR)
        until_shared(four, [detector])
        published = rig_keys(four, rig.scale.keys)
        rig.progress(f"recovery: {published:,} models are published to one partition")
        four.until(lambda: not four.unread(DETECTOR), "the detector has seen all models", DRAIN_S)
        publisher = Publisher(four, story, rate=RATE).start()
        killed_us = []
        for at in range(rig.scale.restarts):
            publisher.until(publisher.published + chance.randrange(100, 500))
            killed_us.append(time.time_ns() // 1_000)
            detector = _again(four, detector)
            rig.progress(f"recovery: kill {at + 1} of {rig.scale.restarts}")
        published += publisher.stop()
        four.until_drained(DRAIN_S)
        took_s = _recoveries(four, killed_us)
        number = partition_of(KEYS_AT.encode(), PARTITIONS)
        state = [len(value) for (at, _), value in state_entries(four).items() if at == number]
        rig.progress("recovery: the oracle runs")
        found = judge(four, story.tables, four.folder / "oracle", published=published)
    what = f"{len(state):,} keys, {sum(state) / 2**20:.0f} MiB in that partition"
    return [
        Row("kills amid processing", len(took_s), "recovery_kills"),
        Row("kill to processing again, median (s)", median(took_s), None, what),
        Row("kill to processing again, p95 (s)", percentile(took_s, 0.95), "recovery_p95_s", what),
        Row("lost, doubled or wrong after these kills", found.size, "wrong", found.said),
        _slow(rig),
    ]


def percentile(values: list[float], share: float) -> float:
    """The smallest that so many are not above.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def rig_keys(four: Chain, keys: int) -> int:
    """One event for each of many models of one partition."""
    number = partition_of(KEYS_AT.encode(), PARTITIONS)
    names = (name for at in count() if partition_of((name := f"m-{at}").encode(), PARTITIONS) == number)
    producer = four.transport.producer("keys")
    source = islice(names, keys)
    while batch := [_first(name) for name in islice(source, PUBLISHED_AT_ONCE)]:
        send(producer, batch)
    producer.close()
    return keys


def _first(name: str) -> Outgoing:
    event = {"event_id": f"first-{name}", "time": "2026-01-05T00:00:00Z", "model": {"name": name}, "prediction": "ok"}
    return Outgoing(PREDICTIONS, name.encode(), json.dumps(event).encode())


def _again(four: Chain, detector: Service, broken: str = "") -> Service:
    """Kill it, start another at once, as a supervisor does, and wait until that has judged something."""
    kill(detector)
    four.running.remove(detector)
    started = four.start_broken(broken, DETECTOR) if broken else four.start(DETECTOR)
    four.until(lambda: share(started) == EVERY and bool(_receipt(started)), "the detector works again", BACK_S)
    return started


def _receipt(service: Service) -> object:
    try:
        return service.status()["last_receipt"]
    except OSError:
        return None


def _recoveries(four: Chain, killed_us: list[int]) -> list[float]:
    """From each kill to the first receipt after it, by record time, which is the same machine's clock."""
    ours = [at_us for at_us, _ in receipts(four, DETECTOR)]
    return [(next(at_us for at_us in ours if at_us > kill_us) - kill_us) / 1e6 for kill_us in killed_us]


def _slow(rig: Rig) -> Row:
    """Control: a detector that takes its time to restore is seen."""
    rig.progress("recovery: control, a slow restore")
    story = Story()
    with rig.chain("control", story) as four:
        detector = four.start(DETECTOR)
        until_shared(four, [detector])
        publisher = Publisher(four, story, rate=RATE).start()
        killed_us = []
        for _ in range(CONTROL_KILLS):
            publisher.until(publisher.published + 200)
            killed_us.append(time.time_ns() // 1_000)
            detector = _again(four, detector, "slow")
        publisher.stop()
        slowest = percentile(_recoveries(four, killed_us), 0.95)
    return Row(
        "control: a restore that rests for 8 s", float(slowest > 5), "control", f"p95 {slowest:.1f} s, above 5 s"
    )
