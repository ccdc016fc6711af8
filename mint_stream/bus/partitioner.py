"""Which partition a key belongs to, as the Java client decides it. librdkafka's default is another hash, so strays are forwarded."""

from collections.abc import Sequence
from functools import lru_cache

from aiokafka.partitioner import DefaultPartitioner, murmur2

_REMEMBERED_KEYS = 4096
"""The hash is computed in Python, a µs a byte, and whoever writes about a key does so several times."""


def murmur2_partition(key: bytes, partitions: int) -> int:
    """`(murmur2(key) & 0x7fffffff) mod partitions`: the partition of `key` in a topic of so many."""
    if partitions < 1:
        raise ValueError(f"a topic has at least one partition, not {partitions}")
    return _hash(key) % partitions


def partition_of(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    """aiokafka's own choice, which is the same hash; it takes one of these functions as its `partitioner`."""
    return partitions[_hash(key) % len(partitions)] if key is not None else int(DefaultPartitioner()(key, partitions, available))


@lru_cache(_REMEMBERED_KEYS)
def _hash(key: bytes) -> int:
    return int(murmur2(key) & 0x7FFFFFFF)
