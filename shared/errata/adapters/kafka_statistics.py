"""Consumer lag from the statistics of librdkafka.

Its own ``consumer_lag`` counts from the offset that this client committed itself. Ours are committed by the producer's
transaction or kept in the catalogue's database, so that figure stays at -1 for ever; and counted from the last record
plus one, a partition whose end is a transaction marker would lag by one for ever.
"""

from collections.abc import Mapping
from typing import Any

from errata.ports import TopicPartition


def partition_lags(
    statistics: Mapping[str, Any], positions: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int] | None:
    """The lag of each partition in ``positions`` (the next offset to be committed), in records and markers.

    None when the statistics are those of a producer, which knows no lag. A partition whose end the broker has not told
    yet is left out. One whose end was handed over (``enable.partition.eof``) has no lag: the client passes markers over
    then. Its fetch position tells nothing, since what was fetched may be thrown away again. Statistics are handed over
    between batches, so that nothing is in hand then; behind a batch that failed the client is sought back.
    """
    if statistics.get("type") != "consumer":
        return None
    topics = statistics.get("topics", {})
    lags: dict[TopicPartition, int] = {}
    for (topic, partition), position in positions.items():
        found = topics.get(topic, {}).get("partitions", {}).get(str(partition))
        if found is None:
            continue
        end = int(found.get("ls_offset", -1))
        if end < 0:
            continue
        passed = int(found.get("app_offset", -1)) >= end
        lags[topic, partition] = 0 if passed else max(0, end - position)
    return lags


def topic_lags(lags: Mapping[TopicPartition, int]) -> dict[str, int]:
    """Sums over the partitions of each topic."""
    sums: dict[str, int] = {}
    for (topic, _), records in lags.items():
        sums[topic] = sums.get(topic, 0) + records
    return sums
