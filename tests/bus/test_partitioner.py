"""Keys go where the Java client sends them."""

import pytest
from aiokafka.partitioner import DefaultPartitioner

from mint_stream.bus.partitioner import murmur2_partition, partition_of


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"abc", 479470107),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_the_hash_is_the_one_of_kafkas_own_unit_tests(key, hashed):
    assert murmur2_partition(key, 2**31 - 1) == (hashed & 0x7FFFFFFF) % (2**31 - 1)
    assert murmur2_partition(key, 32) == (hashed & 0x7FFFFFFF) % 32


@pytest.mark.parametrize("key", [b"", b"a", b"foobar", "é".encode()])
def test_a_producer_that_is_given_our_choice_makes_aiokafkas(key):
    everywhere = [0, 1, 2, 5, 7]
    assert partition_of(key, everywhere, everywhere) == DefaultPartitioner()(key, everywhere, everywhere)
    assert partition_of(None, everywhere, [5]) == 5


def test_a_topic_without_partitions_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        murmur2_partition(b"a", 0)
