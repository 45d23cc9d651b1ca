"""The tables of contracts and references: all is there before anything is judged, and brokers that fall silent later
only delay the news."""

from collections.abc import Iterable, Iterator

import pytest
from structlog.testing import capture_logs

from errata.adapters.memory import MemoryTransport
from errata.contracts import Contract
from errata.contracts.topics import CONTRACTS, TOPICS
from errata.errors import Unavailable
from errata.ports import Offsets, Outgoing, Record, TopicPartition
from errata.runtime.tables import LOOK_TIMEOUT_S, Table


class Silenced(MemoryTransport):
    """Does not answer while ``silent``, or behind the first record of a reading while ``breaks``."""

    silent, breaks = False, False
    asked_s: tuple[float | None, ...] = ()

    def end_offsets(self, partitions: Iterable[TopicPartition], *, timeout_s: float | None = None) -> Offsets:
        self.asked_s += (timeout_s,)
        if self.silent:
            raise Unavailable("no answer")
        return super().end_offsets(partitions, timeout_s=timeout_s)

    def read_from(
        self, partition: TopicPartition, offset: int = 0, *, timeout_s: float | None = None
    ) -> Iterator[Record]:
        for record in super().read_from(partition, offset, timeout_s=timeout_s):
            yield record
            if self.breaks:
                raise Unavailable("no further answer")


@pytest.fixture
def transport() -> Silenced:
    return Silenced({CONTRACTS: TOPICS[CONTRACTS]})


def _apply(transport: Silenced, *models: str) -> None:
    producer = transport.producer("tables-0")
    producer.begin()
    for model in models:
        contract = Contract(model=model, version=1)
        producer.produce(Outgoing(CONTRACTS, model.encode(), contract.to_json(), partition=0))
    producer.commit()
    producer.close()


def _table(transport: Silenced) -> Table[Contract]:
    return Table(transport, CONTRACTS, Contract)


@pytest.mark.parametrize("how", ["silent", "breaks"])
def test_the_first_look_is_whole_or_none(transport: Silenced, how: str) -> None:
    _apply(transport, "a", "b")
    table = _table(transport)
    setattr(transport, how, True)
    with pytest.raises(Unavailable):
        table.refresh()
    with pytest.raises(Unavailable):  # nor is the second one the later look that may fail
        table.refresh()
    setattr(transport, how, False)
    table.refresh()
    assert table.entries.keys() == {("default", "a"), ("default", "b")}


def test_a_later_look_without_an_answer_is_made_again(transport: Silenced) -> None:
    table = _table(transport)
    table.refresh()
    _apply(transport, "a")
    transport.silent = True
    with capture_logs() as logs:
        assert table.refresh() == set()
    assert [(log["event"], log["topic"], log["error"]) for log in logs] == [
        ("table not looked at", CONTRACTS, "no answer")
    ]
    transport.silent = False
    assert table.refresh() == {("default", "a")}
    assert transport.asked_s == (None, LOOK_TIMEOUT_S, LOOK_TIMEOUT_S)


def test_a_look_that_breaks_off_goes_on_where_it_was(transport: Silenced) -> None:
    table = _table(transport)
    table.refresh()
    _apply(transport, "a", "b", "c")
    transport.breaks = True
    with capture_logs():
        assert table.refresh() == {("default", "a")}
        assert table.refresh() == {("default", "b")}
    transport.breaks = False
    assert table.refresh() == {("default", "c")}
    assert table.refresh() == set()
