"""What the last owner of a partition left in its commits."""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from mint_stream.bus.commit_metadata import decode_metadata
from mint_stream.bus.offsets import Progress, fresh

log = logging.getLogger(__name__)

_RETRY_S = 0.2


class Handover:
    """Reads a group's commits with their metadata, which aiokafka's consumers cannot."""

    def __init__(self, consumer: Any, admin: Any, group: str) -> None:
        self._consumer = consumer
        self._admin = admin
        self._group = group

    async def left_behind(self, gained: Collection[TopicPartition]) -> dict[TopicPartition, Progress]:
        """The progress of each partition; where nothing was committed, from its first record on. Asks until Kafka answers."""
        while True:
            try:
                committed = await committed_offsets(self._admin, self._group, gained)
                begin = await self._consumer.beginning_offsets(list(gained))
            except KafkaError as error:
                log.info("cannot load the offsets of %s yet: %r", self._group, error)
                await asyncio.sleep(_RETRY_S)
            else:
                return {partition: _left(partition, committed[partition], begin[partition]) for partition in gained}


async def committed_offsets(admin: Any, group: str, partitions: Collection[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
    """What the group committed of each partition; offset -1 where it never did. Raises KafkaError, retriable when nobody could say.

    aiokafka ignores the error a broker gives for the whole answer (the coordinator moved, or still loads). Such an answer names no
    partition, which must not read as "never committed": that one is named."""
    found: dict[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(group, partitions=list(partitions))
    if unsaid := set(partitions) - found.keys():
        raise GroupCoordinatorNotAvailableError(f"the coordinator of {group} does not say what was committed of {min(unsaid)}")
    return found


def _left(partition: TopicPartition, committed: OffsetAndMetadata, begin: int) -> Progress:
    if committed.offset < 0:
        return fresh(begin)
    try:
        return decode_metadata(committed.offset, committed.metadata)
    except ValueError as error:
        log.warning("%s: everything from offset %d on will be done again: %s", partition, committed.offset, error)
        return fresh(committed.offset)
