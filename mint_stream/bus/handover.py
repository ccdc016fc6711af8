"""What the last owner of a partition left in its commits."""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata

from mint_stream.bus.commit_metadata import decode_metadata
from mint_stream.bus.offsets import Progress, fresh

log = logging.getLogger(__name__)

_RETRY_S = 0.2


class Handover:
    """Reads a group's commits with their metadata, which aiokafka's consumers cannot."""

    def __init__(self, consumer: Any, admin: AIOKafkaAdminClient, group: str) -> None:
        self._consumer = consumer
        self._admin = admin
        self._group = group

    async def left_behind(self, gained: Collection[TopicPartition]) -> dict[TopicPartition, Progress]:
        """The progress of each partition; where nothing was committed, from its first record on. Asks until Kafka answers."""
        while True:
            try:
                committed = await self._admin.list_consumer_group_offsets(self._group, partitions=list(gained))
                begin = await self._consumer.beginning_offsets(list(gained))
            except KafkaError as error:
                log.info("cannot load the offsets of %s yet: %r", self._group, error)
                await asyncio.sleep(_RETRY_S)
            else:
                return {partition: _left(partition, committed.get(partition), begin[partition]) for partition in gained}


def _left(partition: TopicPartition, committed: OffsetAndMetadata | None, begin: int) -> Progress:
    if committed is None or committed.offset < 0:
        return fresh(begin)
    try:
        return decode_metadata(committed.offset, committed.metadata)
    except ValueError as error:
        log.warning("%s: everything from offset %d on will be done again: %s", partition, committed.offset, error)
        return fresh(committed.offset)
