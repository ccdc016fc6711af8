"""The registrar's copy of the catalog: folded to the log's end before a partition is written, and known to be current from then on.

A copy not known to have been current for as long as Kafka keeps tombstones has to be folded from the log's start. So it is noted while
a fold goes on, and again and again while partitions are owned: a failure after weeks costs a look at the end, not the whole log.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from aiokafka.errors import KafkaError

from mint_stream.bus.connection import Connection
from mint_stream.bus.replay import replay
from mint_stream.bus.table import LogReader
from mint_stream.bus.topic_facts import topic_facts
from mint_stream.catalog import Catalog
from mint_stream.errors import Retry
from mint_stream.workers.clock import now_ms

log = logging.getLogger(__name__)


class Folding:
    """Brings a catalog to the end of the topic of revisions, one caller at a time."""

    def __init__(self, connection: Connection, topic: str, catalog: Catalog) -> None:
        self._connection = connection
        self._topic = topic
        self._catalog = catalog
        self.turn = asyncio.Lock()
        """Held by whoever folds, and until what he folded for is done."""

    async def fold(self, partitions: Sequence[int]) -> None:
        """From where the copy is, or from the start where it may have missed something. Raises BusUnavailable or a KafkaError."""
        facts = await topic_facts(self._connection, self._topic)
        begun_ms = now_ms()
        start = self._catalog.prepare(facts.topic_id, facts.delete_retention_ms, begun_ms, partitions)
        self._catalog.mark_current(begun_ms, [number for number in partitions if number not in start])
        await replay(self._connection, self._topic, self._catalog.apply_all, start, partitions)
        await self._to_the_end(partitions)

    async def stay_current(self, owned: Callable[[], Collection[int]], every_s: float) -> None:
        """Note from time to time that the copy of what is owned is current. A broker that is away is asked again the next time."""
        while True:
            await asyncio.sleep(every_s)
            try:
                async with self.turn:
                    await self._to_the_end(sorted(owned()))
            except (Retry, KafkaError) as error:
                log.warning("the registrar's copy is not known to be current: %s", error)

    async def _to_the_end(self, partitions: Sequence[int]) -> None:
        if not partitions:
            return
        begun_ms = now_ms()
        reader = LogReader(self._connection, self._topic, self._catalog.apply, self._catalog.positions(), partitions)
        await reader.start()
        try:
            await reader.caught_up()
        finally:
            await reader.stop()
        self._catalog.mark_current(begun_ms, partitions)
