"""The partition of a key is the one Java's producer picks."""

import pytest

from errata.domain.partitioner import murmur2, partition_of

KAFKA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), KAFKA_VECTORS.items(), ids=lambda value: repr(value)[:20])
def test_hash_is_that_of_kafkas_own_test(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed % 2**32


def test_negative_hash_loses_its_sign_bit() -> None:
    assert partition_of(b"21", 12) == ((-973932308) & 0x7FFFFFFF) % 12
    assert partition_of(b"21", 12) != abs(-973932308) % 12


def test_keys_spread_over_all_partitions() -> None:
    assert {partition_of(f"model-{number}".encode(), 12) for number in range(200)} == set(range(12))
