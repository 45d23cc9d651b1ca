"""Which partition a key belongs to: murmur2 as Java's producer computes it, so that all publishers agree."""

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995
_SEED = 0x9747B28C


def murmur2(key: bytes) -> int:
    """The unsigned 32-bit murmur2 hash of ``key`` with Kafka's seed.

    Source: Austin Appleby, MurmurHash2; the seed and the use are those of Kafka's default partitioner.

    >>> murmur2(b"21") - 2**32
    -973932308
    """
    digest = _SEED ^ len(key)
    whole = len(key) & ~3
    for start in range(0, whole, 4):
        word = (int.from_bytes(key[start : start + 4], "little") * _M) & _MASK
        word = ((word ^ (word >> 24)) * _M) & _MASK
        digest = ((digest * _M) & _MASK) ^ word
    if whole < len(key):
        digest = ((digest ^ int.from_bytes(key[whole:], "little")) * _M) & _MASK
    digest = ((digest ^ (digest >> 13)) * _M) & _MASK
    return digest ^ (digest >> 15)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of ``key``; the hash loses its sign bit first, as in Java.

    >>> partition_of(b"fraud", 12) == partition_of(b"fraud", 12)
    True
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions
