"""Which partition a key belongs to, as the Java client decides it. librdkafka's default is another hash, so strays are forwarded."""

from aiokafka.partitioner import murmur2


def murmur2_partition(key: bytes, partitions: int) -> int:
    """`(murmur2(key) & 0x7fffffff) mod partitions`: the partition of `key` in a topic of so many."""
    if partitions < 1:
        raise ValueError(f"a topic has at least one partition, not {partitions}")
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
