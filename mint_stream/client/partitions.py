"""Where in a topic to look: which partition holds a key, and which offset a moment in time."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from mint_stream.bus.connection import Connection, failure
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.errors import TopicMismatch

Since = Literal["earliest", "latest"] | int
"""Where a reader begins: at one end of the log, or at the first record from this moment on (milliseconds since 1970 UTC)."""


class Partitions:
    """Asks the cluster about its topics. Partition counts are remembered: changing one is a migration."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._counts: dict[str, int] = {}
        self._asking = asyncio.Lock()

    async def of(self, topic: str, key: str) -> int:
        """The partition that holds `key`. Raises TopicMismatch when the topic does not exist."""
        return murmur2_partition(key.encode(), await self.count(topic))

    async def count(self, topic: str) -> int:
        """How many partitions a topic has."""
        async with self._asking:
            if topic not in self._counts:
                async with self._consumer(topic) as (_, numbers):
                    self._counts[topic] = len(numbers)
            return self._counts[topic]

    async def end(self, topic: str, partition: int) -> int:
        """The offset that the next record of a partition will have, or a later one."""
        place = TopicPartition(topic, partition)
        async with self._consumer(topic) as (consumer, _):
            ends: dict[TopicPartition, int] = await consumer.end_offsets([place])
            return ends[place]

    async def ends(self, topic: str) -> dict[int, int]:
        """The end of every partition, records of open transactions included."""
        async with self._consumer(topic) as (consumer, numbers):
            found = await consumer.end_offsets([TopicPartition(topic, number) for number in numbers])
            return {place.partition: offset for place, offset in found.items()}

    async def start(self, topic: str, since: Since) -> Mapping[int, int] | Literal["earliest", "latest"]:
        """What a LogReader takes as its start. A partition with nothing since then begins at its end."""
        if not isinstance(since, int):
            return since
        async with self._consumer(topic) as (consumer, numbers):
            places = [TopicPartition(topic, number) for number in numbers]
            ends = await consumer.end_offsets(places)
            found = await consumer.offsets_for_times(dict.fromkeys(places, since))
            return {place.partition: found[place].offset if found[place] else ends[place] for place in places}

    @asynccontextmanager
    async def _consumer(self, topic: str) -> AsyncIterator[tuple[Any, frozenset[int]]]:
        consumer = AIOKafkaConsumer(topic, group_id=None, enable_auto_commit=False, **self.connection.options())
        try:
            await consumer.start()
            numbers = consumer.partitions_for_topic(topic)
            if not numbers:
                raise TopicMismatch(f"topic {topic} does not exist at {self.connection.bootstrap_servers}: run `mint-stream topics apply`")
            yield consumer, frozenset(numbers)
        except KafkaError as error:
            what = f"no Kafka broker answers at {self.connection.bootstrap_servers}"
            raise await failure(self.connection, what, error) from error
        finally:
            await consumer.stop()
