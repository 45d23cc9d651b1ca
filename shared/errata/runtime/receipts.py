"""The receipt of a transaction: what it took in and what it put out, written with it.

Receipts of a partition form a chain, ``from`` of one being ``to`` of the one before: a gap is a loss, an overlap a
duplicate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from errata.contracts import Receipt, ReceiptInput
from errata.contracts.strict import instant
from errata.contracts.topics import LEDGER
from errata.ports import Outgoing, Record, TopicPartition, columns_of, runs_of


@dataclass(frozen=True, slots=True)
class Taken:
    """What a batch has of one partition: offsets ``start`` up to and without ``end``, ``delivered`` records."""

    start: int
    end: int
    delivered: int


def taken_by_partition(batch: Sequence[Record], expected: Mapping[TopicPartition, int]) -> dict[TopicPartition, Taken]:
    """What ``batch`` has of each of its partitions; ``expected`` is the next offset of the partitions known so far."""
    offsets = columns_of(batch)[2]
    taken: dict[TopicPartition, Taken] = {}
    for place, start, end in runs_of(batch):
        before = taken.get(place)
        first = before.start if before else expected.get(place, offsets[start])
        delivered = end - start + (before.delivered if before else 0)
        taken[place] = Taken(first, offsets[end - 1] + 1, delivered)
    return taken


def receipt(
    *,
    stage: str,
    instance: str,
    build: str,
    taken: Mapping[TopicPartition, Taken],
    out: int,
    dlq: int,
    dropped: Mapping[str, int],
    max_event_time_us: int | None,
) -> Receipt:
    """The receipt of one transaction."""
    return Receipt(
        stage=stage,
        instance=instance,
        build=build,
        inputs=[
            ReceiptInput(topic=topic, partition=partition, from_=part.start, to=part.end, delivered=part.delivered)
            for (topic, partition), part in sorted(taken.items())
        ],
        out=out,
        dlq=dlq,
        dropped=dict(dropped),
        max_event_time=None if max_event_time_us is None else instant(max_event_time_us),
    )


def receipt_record(message: Receipt) -> Outgoing:
    """The receipt as a record of the ledger; those of one instance stand in one partition, in order."""
    return Outgoing(LEDGER, f"{message.stage}/{message.instance}".encode(), message.to_json())
