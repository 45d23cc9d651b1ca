"""The broker is frozen, restarted, and of three nodes one or two are killed, while events flow."""

import time

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from tests.faults.cluster import Cluster, three_nodes
from tests.faults.judge import Judgement, judge
from tests.faults.members import until_shared
from tests.faults.rig import DETECTOR, DRAIN_S, Rig, Row, attempted, wait
from tests.faults.story import Publisher, Story
from tests.integration.chain import Chain, Service

from errata.contracts.topics import PARTITIONS, PREDICTIONS, STAGES
from errata.errors import ErrataError

RATE = 400.0
HOLD = 2_000  # events before and after each fault
BACK_S = 180.0
LOSES = 20  # records, in the control
SETTLES_S = 2.0  # what was on its way is answered
REFUSED_S = 25.0  # how long a majority is gone: the longest that one attempt takes is less


def rows(rig: Rig) -> list[Row]:
    return [
        *attempted("faults of one broker", lambda: _one_node(rig)),
        *attempted("faults of three nodes", lambda: _three_nodes(rig)),
    ]


def _one_node(rig: Rig) -> list[Row]:
    story, made = Story(), list[Row]()
    with rig.own_kafka() as broker, rig.chain("broker", story, kafka=broker.address) as four:
        began(four)
        publisher = Publisher(four, story, rate=RATE).start()
        publisher.until(HOLD)
        for freeze_s in rig.scale.freezes_s:
            rig.progress(f"broker: frozen for {freeze_s:g} s")
            broker.freeze()
            wait(freeze_s)
            broker.thaw()
            made.append(_caught_up(four, publisher, f"frozen for {freeze_s:g} s"))
        rig.progress("broker: restarted")
        broker.stop()
        broker.restart()
        made.append(_caught_up(four, publisher, "restarted"))
        found = ended(four, publisher, story)
        control = _shortened(rig, four, story)
    return [*made, *judged("through freezes and a restart of the broker", found), control]


def _shortened(rig: Rig, four: Chain, story: Story) -> Row:
    """Control: a broker that has lost the beginning of a partition it had acknowledged is seen."""
    rig.progress("broker: control, records that the broker loses")
    number = next(at for at in range(PARTITIONS) if four.transport.end_offset((PREDICTIONS, at)) > LOSES)
    admin = AdminClient({"bootstrap.servers": four.properties["bootstrap.servers"], "log_level": 0})
    gone = TopicPartition(four.prefix + PREDICTIONS, number, LOSES)
    for future in admin.delete_records([gone]).values():
        future.result(timeout=30)
    found = judge(four, story.tables, four.folder / "control")
    return Row("control: a broker that loses acknowledged records", found.size, "control", found.said)


def began(four: Chain) -> list[Service]:
    """All stages under their supervisors, as they run where they are meant to stay."""
    services = [four.start_supervised(stage) for stage in STAGES]
    until_shared(four, services[:1])
    return services


def _caught_up(four: Chain, publisher: Publisher, what: str) -> Row:
    """From the end of a fault until all that lay there then is through."""
    back_s = time.monotonic()
    ends = ends_of(four, back_s)
    four.until(lambda: past(four, ends), f"{what}: the detector is where the log ended", BACK_S)
    took_s = time.monotonic() - back_s
    publisher.until(publisher.published + HOLD, BACK_S)
    return Row(f"broker {what}: until caught up (s)", took_s, "broker_progress_s")


def ends_of(four: Chain, since_s: float) -> dict[int, int]:
    """Where the input ends, as soon as somebody answers."""
    while True:
        try:
            return {number: four.transport.end_offset((PREDICTIONS, number)) for number in range(PARTITIONS)}
        except ErrataError:
            if time.monotonic() - since_s > BACK_S:
                raise


def past(four: Chain, ends: dict[int, int]) -> bool:
    """Behind the last record there are marks of transactions, so no record must be left before the end."""
    offsets = four.offsets(DETECTOR)
    return not any(_left(four, number, offsets.get((PREDICTIONS, number), 0), end) for number, end in ends.items())


def _left(four: Chain, number: int, offset: int, end: int) -> bool:
    record = next(iter(four.transport.read_from((PREDICTIONS, number), offset)), None) if offset < end else None
    return record is not None and record.offset < end


def ended(four: Chain, publisher: Publisher, story: Story, *, context: bool = True) -> Judgement:
    published = publisher.stop()
    four.until_drained(DRAIN_S)
    return judge(four, story.tables, four.folder / "oracle", published=published, context=context)


def judged(what: str, found: Judgement) -> list[Row]:
    return [
        Row(f"lost {what}", found.lost, "lost", found.said),
        Row(f"doubled {what}", found.doubled, "doubled", found.held),
        Row(f"findings, cases, state wrong {what}", found.wrong + found.state, "wrong"),
    ]


def _three_nodes(rig: Rig) -> list[Row]:
    story, made = Story(), list[Row]()
    with three_nodes(rig.place("cluster")) as cluster, rig.chain("cluster", story, kafka=cluster.address) as four:
        began(four)
        publisher = Publisher(four, story, rate=RATE).start()
        publisher.until(HOLD)
        topic = four.prefix + PREDICTIONS

        rig.progress("broker: one of three nodes is killed")
        leaders = cluster.leaders(topic)
        led = sum(at == 0 for at in leaders.values())
        cluster.nodes[0].kill()
        row = _caught_up(four, publisher, "one node of three killed, which led some partitions,")
        made.append(Row(row.promise, row.measured, row.goal, f"it led {led} of {len(leaders)} partitions"))

        rig.progress("broker: a second node is killed: fewer than min.insync.replicas")
        cluster.nodes[1].kill()
        wait(SETTLES_S)
        before, refused = publisher.published, publisher.failures
        wait(REFUSED_S)
        refused = publisher.failures - refused
        made.append(Row("attempts refused below min.insync.replicas", refused, "refused"))
        made.append(Row("records taken below min.insync.replicas", publisher.published - before, "wrong"))
        rig.progress("broker: both nodes come back")
        _together(cluster)
        made.append(_caught_up(four, publisher, "two nodes back"))
        found = ended(four, publisher, story)
    return [*made, *judged("through the loss of nodes", found)]


def _together(cluster: Cluster) -> None:
    for node in cluster.nodes:
        if not node.running:
            node.start()
