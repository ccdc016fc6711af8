"""Which partitions of a topic are this process's to work on, where everybody reads the log itself: a consumer group for that alone.

Nothing is fetched and nothing is committed. Two members may believe for a moment that a partition is theirs (one was silent and does not
know it yet), so what is done under a share has to be refused to the late one where it counts.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from mint_stream.bus.connection import Connection, failure

log = logging.getLogger(__name__)

_POLL_MS = 1000


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no stubs
    """A member of `group`. `changed` is called whenever `owned` is another set of partitions."""

    def __init__(
        self,
        connection: Connection,
        group: str,
        topic: str,
        changed: Callable[[], None],
        instance_id: str | None = None,
        session_timeout_s: float = 10.0,
    ) -> None:
        self._connection = connection
        self._group = group
        self._topic = topic
        self._changed = changed
        self._instance_id = instance_id
        self._session_timeout_s = session_timeout_s
        self._consumer: Any = None
        self._polling: asyncio.Task[None] | None = None
        self.owned: frozenset[int] = frozenset()
        """Partitions that are ours now."""

    async def start(self) -> None:
        """Join the group. Raises BusUnavailable."""
        self._consumer = AIOKafkaConsumer(
            group_id=self._group,
            group_instance_id=self._instance_id,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            session_timeout_ms=int(self._session_timeout_s * 1000),
            **self._connection.options(),
        )
        self._consumer.subscribe([self._topic], listener=self)
        try:
            await self._consumer.start()
        except KafkaError as error:
            await self._consumer.stop()
            raise await failure(self._connection, f"cannot join group {self._group}", error) from error
        self._polling = asyncio.create_task(self._poll(), name=f"membership {self._group}")

    async def stop(self) -> None:
        """Leave the group."""
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
            await self._consumer.stop()

    async def run_until_failed(self) -> None:
        """Return after `stop`, raise what ended the membership."""
        if self._polling is None:
            return
        try:
            await asyncio.shield(self._polling)
        except asyncio.CancelledError:
            if self._polling is not None:
                raise
        except KafkaError as error:
            raise await failure(self._connection, f"the membership of group {self._group} ended", error) from error

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """A rebalance begins: what is ours afterwards is said afterwards, and meanwhile nobody else has it."""

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """A rebalance is over."""
        self._consumer.pause(*assigned)
        self.owned = frozenset(partition.partition for partition in assigned)
        log.info("group %s gives us %d partitions of %s", self._group, len(self.owned), self._topic)
        self._changed()

    async def _poll(self) -> None:
        """The group drops who does not ask for records; all partitions are paused, so none come."""
        while True:
            await self._consumer.getmany(timeout_ms=_POLL_MS)
