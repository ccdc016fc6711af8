"""Fetches records even when one of them cannot be parsed the usual way.

aiokafka raises UnicodeDecodeError, for ever, at a record whose header *name* is not UTF-8, and throws away what it had already taken from
other partitions for the same call. Such names are legal bytes on the wire, so one stray record would stop every reader of its partition."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, PartitionRecords
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

log = logging.getLogger(__name__)

_PARTITION_BYTES = 64 * 1024
_FETCH_BYTES = 16 * 1024 * 1024
_NAMES_A_REPLICA = 11
"""The version of a fetch's answer from which on a field more stands before its records."""

Fetched = dict[TopicPartition, list[Any]]

FetchOne = Callable[[TopicPartition, int], Awaitable[tuple[list[Any], int]]]
"""(partition, offset) to the records from there on, and the offset after them."""


async def fetch(
    consumer: Any, positions: Callable[[], Mapping[TopicPartition, int]], timeout_ms: int, max_records: int, read_committed: bool = True
) -> Fetched:
    """`consumer.getmany`, and after a failed parse a careful fetch of every partition from its position in `positions()`."""
    try:
        found: Fetched = await consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)
    except UnicodeDecodeError as error:
        log.warning("a record with an unreadable header name: %s", error)
        isolation = READ_COMMITTED if read_committed else READ_UNCOMMITTED
        return await fetch_each(
            consumer.seek, positions, lambda partition, offset: _fetch_leniently(consumer, partition, offset, isolation)
        )
    return found


async def fetch_each(
    seek: Callable[[TopicPartition, int], None], positions: Callable[[], Mapping[TopicPartition, int]], fetch_one: FetchOne
) -> Fetched:
    """Ask for each partition on its own. Law: a batch is given back only where `positions()` still says what it was asked from.

    A rebalance during the questions may set a partition back: records from further on would make those before them count as read."""
    asked = dict(positions())
    for partition, position in asked.items():
        seek(partition, position)
    answers = {partition: await _answer(partition, position, fetch_one) for partition, position in asked.items()}
    now = positions()  # from here on nothing is waited for
    found: Fetched = {}
    for partition, (records, next_offset) in answers.items():
        if now.get(partition) == asked[partition]:
            seek(partition, next_offset)
            found |= {partition: records} if records else {}
    return found


async def _answer(partition: TopicPartition, position: int, fetch_one: FetchOne) -> tuple[list[Any], int]:
    try:
        return await fetch_one(partition, position)
    except KafkaError as error:
        log.info("%s will be fetched again: %r", partition, error)
        return [], position


async def _fetch_leniently(consumer: Any, partition: TopicPartition, position: int, isolation: int) -> tuple[list[Any], int]:
    # aiokafka offers no public way to the bytes of a fetch: its client, request and record classes are used as its own fetcher uses them.
    leader = consumer._client.cluster.leader_for_partition(partition)
    wanted = [(partition.topic, [(partition.partition, position, _PARTITION_BYTES)])]
    response = await consumer._client.send(leader, FetchRequest(0, 0, _FETCH_BYTES, isolation, wanted, rack_id=""))
    ((_, ((_, code, _, *rest),)),) = response.topics
    if code:
        raise for_code(code)()
    aborted = aborted_in(rest, response.API_VERSION)
    parsed = PartitionRecords(partition, _LenientRecords(rest[-1]), aborted, position, None, None, True, isolation)
    return list(parsed), int(parsed.next_fetch_offset)


def aborted_in(rest: Sequence[Any], version: int) -> Any:
    """The aborted transactions in what a fetch's answer says of a partition behind its high watermark."""
    return rest[2] if version >= _NAMES_A_REPLICA else rest[-2]


class _LenientRecords(_MemoryRecordsPy):  # type: ignore[misc]  # aiokafka has no stubs
    def next_batch(self) -> "_LenientBatch":
        batch = _LenientBatch(self._next_slice)
        self._cache_next()
        return batch


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka has no stubs
    _buffer: Any

    def __iter__(self) -> Self:
        super().__iter__()
        self._buffer = _LenientBytes(self._buffer)
        return self


class _LenientBytes(bytearray):
    """Decodes what is not UTF-8 as `\\xNN`, so that a header name is readable and can be written again."""

    def __getitem__(self, key: Any) -> Any:
        got = super().__getitem__(key)
        return _LenientBytes(got) if isinstance(key, slice) else got

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return bytes(self).decode(encoding, "backslashreplace")
