"""Programs of random steps against the worker and the log in memory, checked by a sequential fold after every step.

Members join, leave, crash at any point of a transaction and come back; newer processes of the same instance take over;
transactions are void; the group rebalances in the middle of one. Whatever the program, the committed outputs, dead
letters, receipts, positions and state are those of a plain fold over the records the group has committed.

150 programs of 30 steps run in the gate; ``ERRATA_MACHINE=2000x50`` runs as many as it says.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.detectors.streams import SECOND_US

from errata.adapters.memory import MemoryConsumer, MemoryProducer, MemoryTransport
from errata.contracts import Receipt
from errata.contracts.topics import (
    DAY_S,
    LEDGER,
    TOPICS,
    Topic,
    dead_letter_topic,
)
from errata.domain.array_codec import pack_json, unpack_json
from errata.domain.ledger import audit
from errata.domain.partitioner import partition_of
from errata.errors import Aborted, Fenced, RefusedSchema, StateDamaged, Unavailable
from errata.ports import DeadInput, OnPartitions, Outgoing, Record, StateChange, StepResult, TopicPartition
from errata.runtime.changelog import TABLE_KEY, read_state
from errata.runtime.crash_points import POINTS, CrashPoint, CrashPoints
from errata.runtime.dead_letters import read_dead_letter
from errata.runtime.worker import Worker

pytestmark = pytest.mark.whole

PROGRAMS, STEPS = map(int, os.environ.get("ERRATA_MACHINE", "150x30").split("x"))
BATCH_SIZES = (1, 2, 3, 7, 50)
MOST_MEMBERS = 3
MOST_ROUNDS = 2_000
INSTANCES = ("0", "1", "2")


# -- a stage whose every output depends on the order of all that came before it ---------------------------------------

TALLY = "tally"
KEYS = (b"a", b"b", b"c", b"d", b"e")


def next_tally(before: Sequence[Any], text: str) -> list[Any]:
    """Count and chained hash of a key's values: a lost, doubled or swapped record changes all that follow."""
    n, chained = before
    return [n + 1, sha256(f"{chained}{text}".encode()).hexdigest()[:16]]


class Tally:
    """Chains the values of each key; puts out the chain as it stands. Some values make it fail in chosen ways."""

    name = TALLY
    input = "in"
    side_inputs: tuple[str, ...] = ("side",)
    state_topic: str | None = "state"

    def __init__(self) -> None:
        self.held: dict[int, dict[str, list[Any]]] = {}
        self._kept: dict[int, dict[str, list[Any]]] = {}
        self.outages = 0

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        self.held[partition] = {key.decode(): unpack_json(value)[1] for key, value in entries.items()}
        self._kept[partition] = dict(self.held[partition])

    def revoke(self, partition: int) -> None:
        del self.held[partition], self._kept[partition]

    def prepare(self, batch: Sequence[Record]) -> Any:
        if self.outages:
            self.outages -= 1
            raise Unavailable("the context is down")

    def step(self, batch: Sequence[Record], prepared: Any) -> StepResult:
        result = StepResult()
        for record in batch:
            text, key = (record.value or b"").decode(), (record.key or b"").decode()
            if text.startswith("refused"):
                result.dead.append(DeadInput(record, RefusedSchema("/x", "no")))
            elif text.startswith("dropped"):
                result.dropped["old"] = result.dropped.get("old", 0) + 1
            elif text.startswith("boom"):
                raise KeyError("a bug")
            else:
                held = self.held[record.partition]
                held[key] = next_tally(held.get(key, (0, "")), text)
                padding = " " * 1_000_001 if text.startswith("huge") else ""
                result.outputs.append(Outgoing("out", record.key, json.dumps([*held[key], text, padding]).encode()))
                result.changes.append(StateChange(record.partition, key.encode(), pack_json(1, held[key])))
                result.max_event_time_us = max(result.max_event_time_us or 0, record.timestamp_us)
        return result

    def commit(self) -> None:
        self._kept = {partition: dict(held) for partition, held in self.held.items()}

    def rollback(self) -> None:
        self.held = {partition: dict(held) for partition, held in self._kept.items()}


@dataclass
class Expected:
    """What a fold over committed records makes: outputs by key in order, letters by place, drops, state."""

    outputs: dict[bytes, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    dead: list[tuple[str, int, int, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    state: dict[int, dict[bytes, bytes]] = field(default_factory=lambda: defaultdict(dict))


class TallyKit:
    """The stage of these programs: its topics, its inputs and the fold that says what must come of them."""

    group = f"errata.{TALLY}"
    stage_name = TALLY
    inputs = ("in", "side")
    output, state, letters = "out", "state", dead_letter_topic(TALLY)
    kinds = (*["x"] * 15, *["refused", "dropped", "boom"] * 2, "huge")

    def transport(self, kind: type[MemoryTransport]) -> MemoryTransport:
        def topic(name: str, retention_s: int | None = DAY_S) -> Topic:
            return Topic(name, "a test", "key", 3, retention_s, None, ("test",), ("test",))

        named = [topic("in"), topic("side"), topic("out"), topic("state", None), topic(self.letters), TOPICS[LEDGER]]
        return kind({one.name: one for one in named})

    def stage(self, transport: MemoryTransport) -> Any:
        return Tally()

    def input(self, number: int, place: int, lot: int) -> Outgoing:
        text = f"{self.kinds[lot % len(self.kinds)]}-{number}"
        at = place % len(KEYS)
        return Outgoing(self.inputs[lot % 3 == 0], KEYS[at], text.encode(), partition=at % 3)

    def expected(self, records: Sequence[Record]) -> Expected:
        made = Expected()
        held: dict[tuple[int, bytes], list[Any]] = {}
        for record in records:
            text, key = (record.value or b"").decode(), record.key or b""
            place = record.topic, record.partition, record.offset
            kind = text.partition("-")[0]
            if kind == "dropped":
                made.dropped["old"] += 1
            elif kind in ("refused", "boom", "huge"):
                made.dead.append((*place, {"refused": "schema", "boom": "handler", "huge": "oversize"}[kind]))
            else:
                tally = held[record.partition, key] = next_tally(held.get((record.partition, key), (0, "")), text)
                made.outputs[key].append(json.dumps([*tally, text, ""]).encode())
                made.state[record.partition][key] = pack_json(1, tally)
        return made

    def check_memory(self, stage: Any, expected: Expected) -> None:
        for partition, held in stage.held.items():
            assert {key.encode(): pack_json(1, value) for key, value in held.items()} == expected.state[partition]


# -- the members and what may happen to them --------------------------------------------------------------------------


class Trap(CrashPoints):
    """At the next passage of a point: die, or let something happen to others first."""

    def __init__(self) -> None:
        super().__init__()
        self._point = ""
        self._action: Callable[[], None] | None = None

    def arm(self, point: str, action: Callable[[], None] | None = None) -> None:
        self._point, self._action = point, action

    def at(self, stage: str, point: str) -> None:
        if point != self._point:
            return
        self._point = ""
        if self._action is None:
            raise CrashPoint(point)
        self._action()


@dataclass
class Member:
    instance: str
    worker: Worker
    stage: Any
    trap: Trap


class Voids(MemoryTransport):
    """Voids the next ``left`` transactions of stages, as brokers do."""

    left = 0

    def _commit(self, outgoing: Any, commits: Any) -> None:
        if self.left and commits:
            self.left -= 1
            raise Aborted("void")
        super()._commit(outgoing, commits)


class Rig:
    """A log, members of one group over it, and the records it was fed in the order in which they were appended."""

    def __init__(self, kit: Any, worker: type[Worker] = Worker, transport: type[MemoryTransport] = Voids) -> None:
        self.kit = kit
        self._worker_kind = worker
        self.transport = kit.transport(transport)
        self.members: dict[str, Member] = {}
        self.crashed: dict[str, Member] = {}  # in the group still, as a static member is until its session ends
        self.zombies: list[Member] = []
        self.fed: list[Record] = []
        self._made = 0
        self._source = self.transport.producer("source")

    def feed(self, outgoing: Sequence[Outgoing]) -> None:
        ends = {place: self.transport.end_offset(place) for place in self._inputs()}
        self._source.begin()
        for one in outgoing:
            self._source.produce(one)
        self._source.commit()
        fresh = [record for place, end in ends.items() for record in self.transport.read_from(place, end)]
        wanted: dict[tuple[str, int], list[Record]] = defaultdict(list)
        for record in fresh:
            wanted[record.topic, record.partition].append(record)
        for one in outgoing:
            count = self.transport.partitions(one.topic)
            number = partition_of(one.key or b"", count) if one.partition is None else one.partition
            self.fed.append(wanted[one.topic, number].pop(0))

    def produce(self, lots: Sequence[tuple[int, int]]) -> None:
        made = []
        for place, lot in lots:
            made.append(self.kit.input(self._made, place, lot))
            self._made += 1
        self.feed(made)

    def start(self, instance: str, batch_size: int) -> Member:
        """A new process of an instance; one that runs already becomes a zombie."""
        older = self.members.pop(instance, None)
        if older is not None:
            self.zombies.append(older)
        self.crashed.pop(instance, None)
        stage, trap = self.kit.stage(self.transport), Trap()
        worker = self._worker_kind(
            stage, self.transport, instance=instance, build="t", cipher=None, batch_size=batch_size, crash=trap
        )
        self.members[instance] = Member(instance, worker, stage, trap)
        return self.members[instance]

    def run(self, member: Member) -> int:
        """One batch of a member. What may come of it is a batch, a crash, an outage, or that it was replaced."""
        try:
            return member.worker.run_once()
        except CrashPoint:
            self._gone(member)
            if self.members.get(member.instance) is None:
                self.crashed[member.instance] = member
        except Fenced:
            assert self.members.get(member.instance) is not member, "fenced without a newer process of its instance"
            self._gone(member)
        except Unavailable:
            pass
        except RuntimeError as error:
            if member not in self.zombies or "is closed" not in str(error):
                raise
            self._gone(member)  # its newer process has left the group again
        return 0

    def _gone(self, member: Member) -> None:
        if self.members.get(member.instance) is member:
            del self.members[member.instance]
        if member in self.zombies:
            self.zombies.remove(member)

    def leave(self, instance: str) -> None:
        self.members.pop(instance).worker.close()

    def expire(self, instance: str) -> None:
        """The session of a crashed member ends: the group gives its partitions away."""
        self.crashed.pop(instance).worker._consumer.close()

    def settle(self) -> None:
        """Nothing fails any more, and all is read."""
        for instance in list(self.crashed):
            self.expire(instance)
        if isinstance(self.transport, Voids):
            self.transport.left = 0
        if not self.members:
            self.start(INSTANCES[0], 7)
        for member in self.members.values():
            member.stage.outages = 0
            member.trap.arm("")
        idle = 0
        for _ in range(MOST_ROUNDS):
            taken = [self.run(member) for member in list(self.members.values())]
            idle = 0 if any(taken) else idle + 1
            if idle == 3:  # partitions go from hand to hand by polls
                return
        raise AssertionError("the members do not come to rest")

    # What must hold at any time.

    def committed(self) -> dict[TopicPartition, int]:
        group = self.transport._groups.get(self.kit.group)
        return dict(group.committed) if group else {}

    def check(self) -> None:
        committed = self.committed()
        done = [one for one in self.fed if one.offset < committed.get((one.topic, one.partition), 0)]
        expected = self.kit.expected(done)
        self._check_results(expected, self._check_receipts(committed))
        self._check_state(expected, committed)

    def check_whole(self) -> None:
        """All was read, and members hold in memory what the log holds."""
        ends = {place: self.transport.end_offset(place) for place in self._inputs()}
        assert self.committed() == {place: end for place, end in ends.items() if end}
        self.check()
        expected = self.kit.expected(self.fed)
        for member in self.members.values():
            self.kit.check_memory(member.stage, expected)

    def _check_receipts(self, committed: Mapping[TopicPartition, int]) -> list[Receipt]:
        """I2: the receipts of each partition form one chain from 0 to what is committed."""
        receipts = [Receipt.model_validate_json(record.value or b"") for record in self._records(LEDGER)]
        assert audit(receipts).faults == []
        chains: dict[TopicPartition, list[tuple[int, int]]] = defaultdict(list)
        for receipt in receipts:
            for part in receipt.inputs:
                assert part.delivered == part.to - part.from_
                chains[part.topic, part.partition].append((part.from_, part.to))
        assert {place: max(to for _, to in parts) for place, parts in chains.items()} == dict(committed)
        assert all(min(parts)[0] == 0 for parts in chains.values())
        return receipts

    def _check_results(self, expected: Expected, receipts: Sequence[Receipt]) -> None:
        """I1, I5, I6: each record has one disposition, and outputs are the fold's, those of a key in its order."""
        outputs: dict[bytes, list[bytes]] = defaultdict(list)
        for record in self._records(self.kit.output):
            outputs[record.key or b""].append(record.value or b"")
        assert dict(outputs) == dict(expected.outputs)
        letters = [read_dead_letter(record) for record in self._records(self.kit.letters)]
        dead = sorted((one.topic, one.partition, one.offset, one.class_) for one in letters)
        assert dead == sorted(expected.dead)
        dropped: Counter[str] = Counter()
        for receipt in receipts:
            dropped.update(receipt.dropped)
        assert dropped == expected.dropped
        assert sum(receipt.dlq for receipt in receipts) == len(dead)
        assert sum(receipt.out for receipt in receipts) == sum(map(len, outputs.values()))

    def _check_state(self, expected: Expected, committed: Mapping[TopicPartition, int]) -> None:
        """I3, I4: the changelog is whole, holds what the fold holds, and stands where the group stands."""
        for number in range(self.transport.partitions(self.kit.state)):
            entries, position = read_state(self.transport, self.kit.state, number)
            stands = {(name, number): taken.end for name, taken in position.inputs.items()} if position else {}
            assert stands == {place: end for place, end in committed.items() if place[1] == number}
            entries.pop(TABLE_KEY, None)  # says at which offsets of its batch a table took effect
            assert entries == expected.state[number]

    def _inputs(self) -> list[TopicPartition]:
        return [(topic, n) for topic in self.kit.inputs for n in range(self.transport.partitions(topic))]

    def _records(self, topic: str) -> list[Record]:
        return [r for n in range(self.transport.partitions(topic)) for r in self.transport.read_from((topic, n))]


# -- programs ---------------------------------------------------------------------------------------------------------

_LOTS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 47)), min_size=1, max_size=8)
_BATCH_SIZES = st.sampled_from(BATCH_SIZES)
_WHICH = st.integers(0, MOST_MEMBERS - 1)


class Machine(RuleBasedStateMachine):
    """The programs. Subclasses say of which stage, and of which broken worker or log a control is made."""

    kit: ClassVar[Any] = TallyKit()
    worker: ClassVar[type[Worker]] = Worker
    transport: ClassVar[type[MemoryTransport]] = Voids

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(self.kit, self.worker, self.transport)
        self.rig.start(INSTANCES[0], 7)

    def member(self, which: int) -> Member:
        members = sorted(self.rig.members.items())
        return members[which % len(members)][1]

    @rule(lots=_LOTS)
    def produce(self, lots: list[tuple[int, int]]) -> None:
        self.rig.produce(lots)

    @rule(place=st.integers(0, 29), times=st.integers(1, 3))
    def produce_again(self, place: int, times: int) -> None:
        """A publisher's duplicates."""
        if self.rig.fed:
            before = self.rig.fed[place % len(self.rig.fed)]
            again = Outgoing(before.topic, before.key, before.value, before.headers, before.partition)
            self.rig.feed([again] * times)

    @precondition(lambda self: self.rig.members)
    @rule(which=_WHICH, times=st.integers(1, 3))
    def run(self, which: int, times: int) -> None:
        for _ in range(times):
            if self.rig.members:
                self.rig.run(self.member(which))

    @precondition(lambda self: self.rig.members)
    @rule(which=_WHICH, point=st.sampled_from(POINTS), lots=_LOTS)
    def crash(self, which: int, point: str, lots: list[tuple[int, int]]) -> None:
        member = self.member(which)
        self.rig.produce(lots)
        member.trap.arm(point)
        self.rig.run(member)

    @precondition(lambda self: self.rig.crashed)
    @rule(which=_WHICH, batch_size=_BATCH_SIZES)
    def come_back(self, which: int, batch_size: int) -> None:
        instances = sorted(self.rig.crashed)
        self.rig.run(self.rig.start(instances[which % len(instances)], batch_size))

    @precondition(lambda self: self.rig.crashed)
    @rule(which=_WHICH)
    def expire(self, which: int) -> None:
        instances = sorted(self.rig.crashed)
        self.rig.expire(instances[which % len(instances)])

    @rule(batch_size=_BATCH_SIZES)
    def join(self, batch_size: int) -> None:
        free = [one for one in INSTANCES if one not in self.rig.members and one not in self.rig.crashed]
        if free:
            self.rig.run(self.rig.start(free[0], batch_size))

    @precondition(lambda self: self.rig.members)
    @rule(which=_WHICH)
    def leave(self, which: int) -> None:
        self.rig.leave(self.member(which).instance)

    @precondition(lambda self: self.rig.members)
    @rule(which=_WHICH, batch_size=_BATCH_SIZES)
    def take_over(self, which: int, batch_size: int) -> None:
        """A newer process of an instance whose older one does not know of it yet."""
        self.rig.start(self.member(which).instance, batch_size)

    @precondition(lambda self: self.rig.zombies)
    @rule(which=_WHICH)
    def zombie_goes_on(self, which: int) -> None:
        self.rig.run(self.rig.zombies[which % len(self.rig.zombies)])

    @precondition(lambda self: self.rig.members)
    @rule(
        which=_WHICH,
        point=st.sampled_from(POINTS),
        what=st.sampled_from(["join", "take over", "leave", "produce"]),
        lots=_LOTS,
        batch_size=_BATCH_SIZES,
    )
    def meanwhile(self, which: int, point: str, what: str, lots: list[tuple[int, int]], batch_size: int) -> None:
        """Something happens to others in the middle of a member's transaction."""
        member = self.member(which)
        self.rig.produce(lots)

        def happen() -> None:
            if what == "join":
                self.join(batch_size)
            elif what == "produce":
                self.rig.produce(lots)
            elif what == "take over" and self.rig.members.get(member.instance) is member:
                self.rig.run(self.rig.start(member.instance, batch_size))
            elif what == "leave":
                for other in sorted(self.rig.members.keys() - {member.instance})[:1]:
                    self.rig.leave(other)

        member.trap.arm(point, happen)
        self.rig.run(member)
        member.trap.arm("")

    @rule(times=st.integers(1, 6))
    def void(self, times: int) -> None:
        if isinstance(self.rig.transport, Voids):
            self.rig.transport.left = times

    @precondition(lambda self: self.rig.members)
    @rule(which=_WHICH, times=st.integers(1, 2))
    def outage(self, which: int, times: int) -> None:
        self.member(which).stage.outages = times

    @rule(seconds=st.sampled_from([1, 60, 3_600, 90_000]))
    def time_goes_on(self, seconds: int) -> None:
        self.rig.transport.advance_record_time(self.rig.transport.record_time_us + seconds * SECOND_US)

    @invariant()
    def holds(self) -> None:
        self.rig.check()

    def teardown(self) -> None:
        self.rig.settle()
        self.rig.check_whole()


def program(machine: type[Machine], programs: int = PROGRAMS, steps: int = STEPS, **how: Any) -> None:
    quiet = list(HealthCheck)
    profile = settings(
        max_examples=programs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=quiet,
        **how,
    )
    run_state_machine_as_test(machine, settings=profile)


def test_whatever_happens_the_log_holds_what_a_fold_says() -> None:
    program(Machine)


# -- controls: each guarantee broken on purpose is found --------------------------------------------------------------


class OffsetsFirst(Worker):
    """Commits its offsets in a transaction of their own before the batch's."""

    def _transact(self, judged: Any) -> Any:
        self._producer.begin()
        offsets = {(record.topic, record.partition): record.offset + 1 for record in judged.records}
        try:
            self._producer.send_offsets(offsets, self._consumer)
            self._producer.commit()
        except Aborted:
            self._producer.abort()
            raise
        return super()._transact(judged)


class OffsetsAfter(Worker):
    """Commits results first, and its offsets in a transaction of their own behind them."""

    def _write(self, results: Any, bookkeeping: Any, offsets: Any) -> None:
        for record in [*results, *bookkeeping]:
            self._producer.produce(record)
        self._producer.commit()
        self._crash.at(self._stage.name, "AFTER_PRODUCE")
        self._producer.begin()
        self._producer.send_offsets(offsets, self._consumer)
        self._producer.commit()


class WithoutState(Worker):
    """Writes where its state stands, but not the state."""

    def _changelog_records(self, result: StepResult, taken: Any, message: Receipt) -> list[Outgoing]:
        return super()._changelog_records(StepResult(), taken, message)


class WithoutPosition(Worker):
    """Writes its state but not where it stands."""

    def _changelog_records(self, result: StepResult, taken: Any, message: Receipt) -> list[Outgoing]:
        return [record for record in super()._changelog_records(result, taken, message) if record.key != b"\x00pos"]


class NeverBack(Worker):
    """Goes on behind a batch whose transaction was void."""

    def _seek_back(self, batch: Sequence[Record]) -> None:
        pass


class KeepsStep(Worker):
    """Keeps what a step changed though its transaction was void."""

    def _drop_step(self) -> None:
        self._stage.commit()


class LettersApart(Worker):
    """Writes dead letters in a transaction of their own."""

    def _write(self, results: Any, bookkeeping: Any, offsets: Any) -> None:
        letters = [record for record in results if record.topic == dead_letter_topic(TALLY)]
        for record in letters:
            self._producer.produce(record)
        self._producer.commit()
        self._producer.begin()
        super()._write([record for record in results if record not in letters], bookkeeping, offsets)


class UnfencedProducer(MemoryProducer):
    def _check_epoch(self) -> None:
        pass


class StaleConsumer(MemoryConsumer):
    def _may_commit(self) -> bool:
        return True


class Unfenced(Voids):
    """Fences no producer."""

    def producer(self, transactional_id: str) -> MemoryProducer:
        return UnfencedProducer(self, transactional_id, 1)


class Lax(Unfenced):
    """Lets members of an old generation commit, too. That alone does no harm here: partitions go from hand to hand."""

    def consumer(
        self,
        group: str,
        topic: str,
        *,
        instance: str,
        side_inputs: Sequence[str] = (),
        on_assign: OnPartitions | None = None,
        on_revoke: OnPartitions | None = None,
    ) -> MemoryConsumer:
        how: dict[str, Any] = {"instance": instance, "side_inputs": side_inputs}
        made = super().consumer(group, topic, **how, on_assign=on_assign, on_revoke=on_revoke)
        made.__class__ = StaleConsumer
        return made


CONTROLS: dict[str, dict[str, Any]] = {
    **{
        kind.__name__: {"worker": kind}
        for kind in (OffsetsFirst, OffsetsAfter, WithoutState, WithoutPosition, NeverBack, KeepsStep, LettersApart)
    },
    Lax.__name__: {"transport": Lax},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_control_what_is_broken_is_found(name: str) -> None:
    broken: type[Machine] = type(name, (Machine,), CONTROLS[name])
    with pytest.raises((AssertionError, StateDamaged)):
        program(broken, programs=150, steps=30, phases=[Phase.generate], report_multiple_bugs=False)
