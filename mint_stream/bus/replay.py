"""Reads what lies in a topic's partitions to the end it had, many records at a time, for a fold that has far to go.

A consumer makes an object of every record and hands it over through a buffer; here the records of a fetch are folded as the parser gives
them. It is a head start and no more: where anything is out of the ordinary it ends early, and the LogReader that follows goes on from
where `apply` is.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from mint_stream.bus.connection import Connection
from mint_stream.bus.fetching import aborted_in

log = logging.getLogger(__name__)

_PARTITION_BYTES = 2 * 2**20
_FETCH_BYTES = 16 * 2**20
_WAIT_MS = 100
_CLOSE_TO_THE_END = 2000
"""Offsets left in all partitions together that are not worth a second reader."""


class Stored(Protocol):
    """A record as the parser gives it."""

    @property
    def key(self) -> bytes | None: ...

    @property
    def value(self) -> bytes | None: ...

    @property
    def offset(self) -> int: ...


Batch = tuple[int, Sequence[Stored], int]
"""(partition, committed records in order, next offset to read)."""

Fold = Callable[[Sequence[Batch]], None]


async def replay(
    connection: Connection, topic: str, fold: Fold, start: Mapping[int, int], partitions: Collection[int] | None = None
) -> None:
    """Fold these partitions (None: all) from `start`, those it does not name from their first record, to the end of when this was called.

    A failure of Kafka is logged and ends it; what `fold` raises is raised."""
    consumer = AIOKafkaConsumer(group_id=None, enable_auto_commit=False, isolation_level="read_committed", **connection.options())
    try:
        await consumer.start()
        ways = await _ways(consumer, topic, start, partitions)
        if sum(way.left for way in ways) > _CLOSE_TO_THE_END:
            await _run(consumer, topic, ways, fold)
    except (KafkaError, UnicodeDecodeError) as error:
        log.warning("replaying %s in bulk ended early: %r", topic, error)
    finally:
        await consumer.stop()


@dataclass
class _Way:
    """How far a partition is."""

    partition: int
    position: int
    end: int

    @property
    def left(self) -> int:
        return max(0, self.end - self.position)


async def _ways(consumer: Any, topic: str, start: Mapping[int, int], partitions: Collection[int] | None) -> list[_Way]:
    await consumer._client.set_topics([topic])
    known = consumer.partitions_for_topic(topic) or set()
    places = [TopicPartition(topic, number) for number in sorted(known if partitions is None else known & set(partitions))]
    earliest, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    return [_Way(place.partition, max(earliest[place], start.get(place.partition, 0)), ends[place]) for place in places]


async def _run(consumer: Any, topic: str, ways: Sequence[_Way], fold: Fold) -> None:
    """The next fetch is on its way while one is folded."""
    fetching = asyncio.create_task(_fetch(consumer, topic, ways))
    try:
        while batches := await fetching:
            fetching = asyncio.create_task(_fetch(consumer, topic, ways))
            await asyncio.sleep(0)  # it is sent, and others may use the event loop
            fold(batches)
    finally:
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)


async def _fetch(consumer: Any, topic: str, ways: Sequence[_Way]) -> list[Batch]:
    """What every leader gives, most from the partitions that have most left. Empty at the end, or when nothing comes."""
    led: dict[int, list[_Way]] = {}
    for way in sorted((way for way in ways if way.left), key=lambda way: -way.left):
        leader = consumer._client.cluster.leader_for_partition(TopicPartition(topic, way.partition))
        led.setdefault(leader, []).append(way)
    answers = await asyncio.gather(*(_ask(consumer, topic, leader, asked) for leader, asked in led.items()))
    return [batch for answer in answers for batch in answer]


async def _ask(consumer: Any, topic: str, leader: int, ways: Sequence[_Way]) -> list[Batch]:
    # aiokafka offers no public way to the bytes of a fetch: its client, request and record classes are used as its own fetcher uses them.
    wanted = [(topic, [(way.partition, way.position, _PARTITION_BYTES) for way in ways])]
    response = await consumer._client.send(leader, FetchRequest(_WAIT_MS, 1, _FETCH_BYTES, READ_COMMITTED, wanted, rack_id=""))
    by_partition = {way.partition: way for way in ways}
    ((_, answers),) = response.topics
    return [
        batch for number, code, _, *rest in answers if (batch := _parsed(topic, by_partition[number], code, rest, response.API_VERSION))
    ]


def _parsed(topic: str, way: _Way, code: int, rest: Sequence[Any], version: int) -> Batch | None:
    """The records of one partition, whose position moves on; None when there are no bytes of it in the answer."""
    if code:
        raise for_code(code)(topic, way.partition)
    if not rest[-1]:
        return None
    place = TopicPartition(topic, way.partition)
    plain = _Plain(place, MemoryRecords(rest[-1]), aborted_in(rest, version), way.position, None, None, True, READ_COMMITTED)
    records = list(plain)
    way.position = int(plain.next_fetch_offset)
    return way.partition, records, way.position


class _Plain(PartitionRecords):  # type: ignore[misc]  # aiokafka has no stubs
    """Passes over what was aborted and what compaction took as aiokafka does, and leaves records as they are."""

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        return record
