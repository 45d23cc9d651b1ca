"""Members of the detector come, go, are restarted and take each other's place, while events flow."""

import os
import signal
import time

from tests.faults.judge import judge
from tests.faults.members import EVERY, Counts, instances, share, shared, silences, until_shared
from tests.faults.rig import DETECTOR, DRAIN_S, Rig, Row, attempted, wait
from tests.faults.story import Publisher, Story, publish
from tests.integration.chain import Chain, Service

from errata.contracts.topics import STAGES
from errata.errors import Misconfigured

RATE = 800.0  # events a second
HOLD = 3_000  # events between two changes of members
LEAVES = {"ERRATA_LEAVE": "true"}
STAY = ("0", "1")  # these are restarted without leaving the group
ENDS_S = 60.0
ZOMBIE_S = 15.0  # frozen for longer than a session and a transaction last
CONTROL_EVENTS = 20_000


def rows(rig: Rig) -> list[Row]:
    return [
        *attempted("members that come and go", lambda: _scaled(rig)),
        *attempted("two of one instance", lambda: _taken_over(rig)),
        *attempted("control of members", lambda: [_forgetful(rig)]),
        *attempted("control of instances", lambda: [_two_instances(rig)]),
    ]


def _scaled(rig: Rig) -> list[Row]:
    story, counts = Story(), Counts()
    with rig.chain("scaling", story) as four:
        others = [four.start(stage) for stage in STAGES[1:]]
        members = {"0": four.start(DETECTOR, "0")}
        until_shared(four, members.values())
        publisher = Publisher(four, story, rate=RATE).start()
        publisher.until(HOLD)
        from_us = time.time_ns() // 1_000
        for cycle in range(rig.scale.cycles):
            rig.progress(f"scaling: cycle {cycle + 1} of {rig.scale.cycles}: 1 to 4 to 2 to 3, each restarted, to 1")
            for names in (("0", "1", "2", "3"), ("0", "1"), ("0", "1", "2")):
                _become(four, members, names, counts)
                publisher.until(publisher.published + HOLD)
            _restarted(four, members, counts)
            publisher.until(publisher.published + HOLD)
            _become(four, members, ("0",), counts)
        publisher.until(publisher.published + HOLD)
        to_us = time.time_ns() // 1_000
        published = publisher.stop()
        four.until_drained(DRAIN_S)
        counts.look(members["0"])
        ended = sum(one.process.poll() is not None for one in (*members.values(), *others))
        quiet = silences(four, from_us, to_us)
        found = judge(four, story.tables, four.folder / "oracle", published=published)
        aborts, rebalances = sum(counts.aborts.values()), sum(counts.rebalances.values())
        assert instances(four) == {"0", "1", "2", "3"}, "each member judged something"
    return [
        Row("longest silence of a partition, 1→4→2→3→1 members (s)", max(quiet.values()), "silence_s",
            f"{len(quiet)} partitions; the worst of each {', '.join(f'{s:.1f}' for _, s in sorted(quiet.items()))}"),
        Row("lost while members come and go", found.lost, "lost", found.said),
        Row("doubled while members come and go", found.doubled, "doubled", found.held),
        Row("findings, cases, state not as in the oracle", found.wrong + found.state, "wrong"),
        Row("members that ended by themselves", ended, "ended"),
        Row("aborts for each rebalance and member, at most", counts.worst, "aborts",
            f"{aborts:.0f} aborts, {rebalances:.0f} assignments and revocations"),
    ]  # fmt: skip


def _become(four: Chain, members: dict[str, Service], names: tuple[str, ...], counts: Counts) -> None:
    """Have exactly these members; those that go tell their group, as they do when a service is scaled in."""
    for name in sorted(members.keys() - set(names)):
        _end(members.pop(name), counts)
    for name in names:
        if name not in members:
            members[name] = four.start(DETECTOR, name, **({} if name in STAY else LEAVES))
    until_shared(four, members.values())


def _restarted(four: Chain, members: dict[str, Service], counts: Counts) -> None:
    """One after the other stops and comes back at once. Those that stay keep their partitions meanwhile."""
    for name in sorted(members):
        _end(members[name], counts)
        members[name] = four.start(DETECTOR, name, **({} if name == "0" else LEAVES))
        until_shared(four, members.values())


def _end(member: Service, counts: Counts) -> None:
    counts.look(member)
    code = member.end(ENDS_S)
    assert code == 0, f"{member.name} {member.instance}: ended with {code}: {member.logged()[-1500:]}"


def _taken_over(rig: Rig) -> list[Row]:
    """Two processes with one instance; then one that was frozen, and wakes when another has its place."""
    story = Story()
    rounds = 1 if rig.scale.quick else 3
    named = zombies = 0
    with rig.chain("instances", story) as four:
        for stage in STAGES[1:]:
            four.start(stage)
        older = four.start(DETECTOR)
        until_shared(four, [older])
        publisher = Publisher(four, story, rate=RATE).start()
        publisher.until(HOLD)
        for _ in range(rounds):
            rig.progress("scaling: two processes with one instance")
            older, fenced = _newer(four, older, frozen=False)
            named += fenced
            publisher.until(publisher.published + HOLD)
            rig.progress("scaling: one that was frozen wakes")
            older, fenced = _newer(four, older, frozen=True)
            zombies += fenced
            publisher.until(publisher.published + HOLD)
        published = publisher.stop()
        four.until_drained(DRAIN_S)
        found = judge(four, story.tables, four.folder / "oracle", published=published)
    return [
        Row("of two with one instance the older stops with 78, naming it", named / rounds, "fenced", f"{rounds} times"),
        Row("one frozen meanwhile ends when it wakes", zombies / rounds, "fenced", f"{rounds} times, {ZOMBIE_S:g} s"),
        Row("lost, doubled or wrong through them", found.size, "wrong", found.said),
    ]


def _newer(four: Chain, older: Service, *, frozen: bool) -> tuple[Service, bool]:
    """Start another process of the same instance; it, and whether the older one ended as it should."""
    if frozen:
        os.kill(older.process.pid, signal.SIGSTOP)
    four.running.remove(older)
    newer = four.start(DETECTOR, older.instance)
    if frozen:
        wait(ZOMBIE_S)
        until_shared(four, [newer])
        os.kill(older.process.pid, signal.SIGCONT)
    try:
        code = older.process.wait(ENDS_S)
    finally:
        if older.process.poll() is None:
            older.process.kill()
    until_shared(four, [newer])
    if frozen:  # its own transaction has outlived its time: it may take its end for that
        return newer, code in (75, Misconfigured.exit_code)
    said = f"has taken over instance {older.instance}" in older.logged()
    return newer, code == Misconfigured.exit_code and said


def _forgetful(rig: Rig) -> Row:
    """Control: members that do not write their state down hand over nothing."""
    rig.progress("scaling: control, members that forget")
    story = Story()
    session = {"ERRATA_KAFKA__SESSION_TIMEOUT_MS": "6000"}
    with rig.chain("control", story) as four:
        for stage in STAGES[1:]:
            four.start(stage)
        first = four.start_broken("forgetful", DETECTOR, **session)
        until_shared(four, [first])
        published = publish(four, story, CONTROL_EVENTS)
        second = four.start_broken("forgetful", DETECTOR, ERRATA_INSTANCE="1", **session)
        until_shared(four, [first, second])
        published += publish(four, story, CONTROL_EVENTS)
        assert second.end() == 0, second.logged()[-1500:]
        four.until(lambda: share(first) == EVERY, "the first has all again", ENDS_S)
        four.until_drained(DRAIN_S)
        found = judge(four, story.tables, four.folder / "oracle", published=published)
    return Row("control: members that forget", found.size, "control", found.said)


def _two_instances(rig: Rig) -> Row:
    """Control: with an instance of its own nobody is fenced, so the check above does see who is not."""
    rig.progress("scaling: control, two instances")
    story = Story()
    with rig.chain("control", story) as four:
        older = four.start(DETECTOR, "0")
        until_shared(four, [older])
        newer = four.start(DETECTOR, "1")
        until_shared(four, [older, newer])
        stays = older.process.poll() is None and shared([older, newer])
    return Row("control: two with two instances both stay", float(stays), "control", "the older one did not end")
