"""The suite has teeth: a transport that breaks one promise fails exactly the test of that promise."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from types import MethodType
from typing import Any

import pytest
from tests.conformance.transport import TransportSuite, names_of_the_suite

from errata.adapters.memory import MemoryConsumer, MemoryProducer, MemoryTransport
from errata.contracts.topics import Topic
from errata.ports import Offsets, Outgoing, Record, TopicPartition


class BrokenTransport(MemoryTransport):
    """The in-process transport with one promise broken: ``breakage`` names which."""

    def __init__(self, topics: Mapping[str, Topic], breakage: str) -> None:
        super().__init__(topics)
        self.breakage = breakage

    def consumer(self, group: str, topic: str, **how: Any) -> MemoryConsumer:
        if self.breakage == "callbacks run at once" and how.get("on_assign"):
            how["on_assign"]({(topic, 0)})
        if self.breakage == "side inputs are forgotten":
            how["side_inputs"] = ()
        consumer = super().consumer(group, topic, **how)
        breakage = CONSUMER_BREAKAGES.get(self.breakage)
        if breakage:
            breakage(self, consumer)
        return consumer

    def producer(self, transactional_id: str) -> MemoryProducer:
        if self.breakage == "zombies are not fenced":
            transactional_id += str(next(_NUMBERS))
        producer = super().producer(transactional_id)
        breakage = PRODUCER_BREAKAGES.get(self.breakage)
        if breakage:
            breakage(self, producer)
        return producer

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]:
        if self.breakage == "offsets are ignored when reading":
            offset = 0
        records = list(super().read_from(partition, offset))
        if self.breakage == "record times go back":
            records = [record._replace(timestamp_us=1_000 - record.offset) for record in records]
        if self.breakage == "headers get lost":
            records = [record._replace(headers=()) for record in records]
        return iter(records)

    def end_offsets(self, partitions: Iterable[TopicPartition], *, timeout_s: float | None = None) -> Offsets:
        early = self.breakage == "ends come too early"
        return {place: max(0, end - early) for place, end in super().end_offsets(partitions).items()}

    def read_at(self, partition: TopicPartition, offsets: Sequence[int]) -> list[Record | None]:
        if self.breakage == "places are off by one":
            offsets = [offset + 1 for offset in offsets]
        return super().read_at(partition, offsets)

    def _place(self, record: Outgoing) -> TopicPartition:
        if self.breakage == "keys are placed otherwise" and record.partition is None:
            return record.topic, (record.key or b" ")[-1] % self.partitions(record.topic)
        return super()._place(record)


_NUMBERS = count()


def _override(owner: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, MethodType(function, owner))


def _aborts_commit(_: BrokenTransport, producer: MemoryProducer) -> None:
    def abort(self: MemoryProducer) -> None:
        self._offsets = []
        MemoryProducer.commit(self) if self._records else MemoryProducer.abort(self)

    _override(producer, "abort", abort)


def _output_shows_at_once(transport: BrokenTransport, producer: MemoryProducer) -> None:
    def produce(self: MemoryProducer, record: Outgoing) -> None:
        self._check_open()
        if record.value == b"open":
            transport._commit([(transport._place(record), record)], {})
        else:
            MemoryProducer.produce(self, record)

    _override(producer, "produce", produce)


def _offsets_go_ahead(transport: BrokenTransport, producer: MemoryProducer) -> None:
    def send_offsets(self: MemoryProducer, offsets: Mapping[TopicPartition, int], consumer: MemoryConsumer) -> None:
        MemoryProducer.send_offsets(self, offsets, consumer)
        consumer._group.committed.update(offsets)

    _override(producer, "send_offsets", send_offsets)


def _reading_commits(_: BrokenTransport, consumer: MemoryConsumer) -> None:
    def close(self: MemoryConsumer) -> None:
        for place, position in self._positions.items():
            if place not in self._group.committed:
                self._group.committed[place] = position
        MemoryConsumer.close(self)

    _override(consumer, "close", close)


def _may_always_commit(_: BrokenTransport, consumer: MemoryConsumer) -> None:
    _override(consumer, "_may_commit", lambda self: True)


def _never_fenced(_: BrokenTransport, consumer: MemoryConsumer) -> None:
    def poll(self: MemoryConsumer, most: int, timeout_s: float = 0.0) -> list[Record]:
        if self._group.members.get(self._instance) is not self:
            return []
        return MemoryConsumer.poll(self, most, timeout_s)

    _override(consumer, "poll", poll)


def _keys_out_of_order(_: BrokenTransport, consumer: MemoryConsumer) -> None:
    def poll(self: MemoryConsumer, most: int, timeout_s: float = 0.0) -> list[Record]:
        records = MemoryConsumer.poll(self, most, timeout_s)
        return records[::-1] if len(records) == 60 else records

    _override(consumer, "poll", poll)


def _everybody_has_all(transport: BrokenTransport, consumer: MemoryConsumer) -> None:
    def target(self: MemoryConsumer) -> set[int]:
        for member in self._group.members.values():
            if member is not self:
                member._numbers = set()
        return set(range(transport.partitions(self._topics[0])))

    _override(consumer, "_target", target)


def _leavers_keep(_: BrokenTransport, consumer: MemoryConsumer) -> None:
    _override(consumer, "close", lambda self: self._forget(set()) if len(self._group.members) > 1 else None)


def _restarts_at_the_beginning(_: BrokenTransport, consumer: MemoryConsumer) -> None:
    def rebalance(self: MemoryConsumer) -> None:
        before = set(self._positions)
        MemoryConsumer._rebalance(self)
        for place in set(self._positions) - before:
            self._positions[place] = 0

    _override(consumer, "_rebalance", rebalance)


def _seek_does_nothing(_: BrokenTransport, consumer: MemoryConsumer) -> None:
    _override(consumer, "seek", lambda self, partition, offset: None)


def _pause_does_nothing(_: BrokenTransport, consumer: MemoryConsumer) -> None:
    _override(consumer, "pause", lambda self, partitions: None)


CONSUMER_BREAKAGES: dict[str, Callable[[BrokenTransport, MemoryConsumer], None]] = {
    "reading commits": _reading_commits,
    "replaced members commit": _may_always_commit,
    "replaced members are not fenced": _never_fenced,
    "keys are reordered": _keys_out_of_order,
    "members do not share": _everybody_has_all,
    "leaving members keep their partitions": _leavers_keep,
    "restarts begin anew": _restarts_at_the_beginning,
    "seek does nothing": _seek_does_nothing,
    "pause does nothing": _pause_does_nothing,
}
PRODUCER_BREAKAGES: dict[str, Callable[[BrokenTransport, MemoryProducer], None]] = {
    "aborted output shows": _aborts_commit,
    "open output shows": _output_shows_at_once,
    "offsets go ahead": _offsets_go_ahead,
}

BROKEN_PROMISES: dict[str, set[str]] = {
    "aborted output shows": {"test_aborted_output_stays_invisible"},
    "open output shows": {"test_open_output_is_invisible"},
    "headers get lost": {"test_committed_output_is_visible_in_order"},
    "offsets go ahead": {"test_offsets_move_only_with_the_transaction"},
    "reading commits": {"test_reading_alone_commits_nothing"},
    "zombies are not fenced": {"test_zombie_producer_is_fenced"},
    "replaced members commit": {"test_replaced_member_cannot_commit"},
    "replaced members are not fenced": {"test_replaced_member_is_fenced"},
    "keys are reordered": {"test_order_of_a_key_is_kept"},
    "members do not share": {"test_members_share_the_partitions", "test_each_record_reaches_one_member"},
    "leaving members keep their partitions": {"test_partitions_of_a_member_that_leaves_pass_on"},
    "side inputs are forgotten": {"test_side_input_comes_along"},
    "callbacks run at once": {"test_callbacks_run_in_poll_only"},
    "restarts begin anew": {"test_restart_goes_on_at_the_committed_offset"},
    "seek does nothing": {"test_seek_reads_again"},
    "pause does nothing": {"test_paused_partition_waits"},
    "places are off by one": {"test_records_can_be_read_by_place"},
    "offsets are ignored when reading": {"test_log_can_be_read_from_an_offset"},
    "record times go back": {"test_record_times_never_go_back"},
    "ends come too early": {"test_ends_of_several_partitions_are_at_or_behind_all_that_was_written"},
    "keys are placed otherwise": {"test_key_decides_the_partition_as_in_java"},
}


class Broken(TransportSuite):
    """The suite on a broken transport; not collected, since its name does not begin with Test."""

    def __init__(self, breakage: str) -> None:
        self.breakage = breakage

    def make(self, topics: Mapping[str, Topic]) -> BrokenTransport:
        return BrokenTransport(topics, self.breakage)


def failures(breakage: str, names: Iterable[str]) -> set[str]:
    """The tests of the suite that fail; any error counts, as it would in a run."""
    suite, failed = Broken(breakage), set()
    for name in names:
        try:
            getattr(suite, name)(suite.start())
        except (Exception, pytest.fail.Exception):
            failed.add(name)
    return failed


def test_without_a_breakage_all_pass() -> None:
    assert failures("none", names_of_the_suite()) == set()


@pytest.mark.parametrize("breakage", BROKEN_PROMISES)
def test_breakage_fails_its_test_and_no_other(breakage: str) -> None:
    assert failures(breakage, names_of_the_suite()) == BROKEN_PROMISES[breakage]


def test_every_test_of_the_suite_is_failed_by_some_breakage() -> None:
    assert set().union(*BROKEN_PROMISES.values()) == set(names_of_the_suite())
