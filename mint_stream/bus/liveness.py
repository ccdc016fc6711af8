"""Notices a consumer that has stopped fetching although there is something to fetch."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from mint_stream.errors import BusUnavailable


@dataclass(frozen=True)
class Sighting:
    """Where a partition's position stood behind its end, and since when."""

    position: int
    since_s: float


def stuck(seen: Mapping[Any, Sighting], ends: Mapping[Any, int], now_s: float, after_s: float) -> list[Any]:
    """Partitions with records behind their position that has not moved for `after_s`. Pure."""
    return [partition for partition, sight in seen.items() if ends[partition] > sight.position and now_s - sight.since_s >= after_s]


class Liveness:
    """Watches the positions of the partitions that should be moving."""

    def __init__(self, consumer: Any, after_s: float, moving: Callable[[], Collection[TopicPartition]]) -> None:
        self._consumer = consumer
        self._after_s = after_s
        self._moving = moving
        self._seen: dict[TopicPartition, Sighting] = {}

    async def run(self) -> None:
        """Look four times in `after_s`. Raises BusUnavailable when a partition is stuck: the worker has to be restarted."""
        while True:
            await asyncio.sleep(self._after_s / 4)
            await self.look(asyncio.get_running_loop().time())

    async def look(self, now_s: float) -> None:
        """Compare positions with those seen before. What has nothing to fetch is not waited for, nor is a broker that does not answer."""
        partitions = list(self._moving())
        try:
            async with asyncio.timeout(self._after_s):
                positions = {partition: await self._consumer.position(partition) for partition in partitions}
                ends = await self._consumer.end_offsets(partitions) if partitions else {}
        except (KafkaError, TimeoutError):
            self._seen = {}
            return
        behind = {partition: position for partition, position in positions.items() if ends[partition] > position}
        self._seen = {
            partition: self._seen[partition] if _still(self._seen.get(partition), position) else Sighting(position, now_s)
            for partition, position in behind.items()
        }
        if found := stuck(self._seen, ends, now_s, self._after_s):
            raise BusUnavailable(f"{found[0]} has records to fetch and has not moved for {self._after_s:g} s; restart this worker")


def _still(sight: Sighting | None, position: int) -> bool:
    return sight is not None and sight.position == position
