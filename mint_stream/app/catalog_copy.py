"""A process's own copy of the catalog: opened where it was left, continued from the log, kept current."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mint_stream.bus.connection import Connection
from mint_stream.bus.replay import replay
from mint_stream.bus.table import LogReader
from mint_stream.bus.topic_facts import topic_facts
from mint_stream.catalog import Catalog
from mint_stream.contracts import Topic
from mint_stream.errors import BusUnavailable
from mint_stream.workers.clock import now_ms

log = logging.getLogger(__name__)

_MARK_S = 60.0


@asynccontextmanager
async def current_catalog(
    connection: Connection, path: Path, revisions: Topic, make: Callable[[Path, int], Catalog] = Catalog
) -> AsyncIterator[tuple[Catalog, LogReader]]:
    """A catalog that holds everything the log held when this was entered, and follows it from then on. `make` opens it.

    Killed at any point, the next one goes on where this one was."""
    topic = revisions.name()
    facts = await topic_facts(connection, topic)
    with make(path, revisions.partitions) as catalog:
        start = catalog.prepare(facts.topic_id, facts.delete_retention_ms, now_ms())
        begun_ms = now_ms()
        catalog.mark_current(begun_ms, [number for number in range(catalog.partitions) if number not in start])
        await replay(connection, topic, catalog.apply_all, start)
        reader = LogReader(connection, topic, catalog.apply, start=catalog.positions())
        await reader.start()
        noting = asyncio.create_task(marking(catalog, reader, _MARK_S))
        try:
            await reader.caught_up()
            catalog.mark_current(begun_ms)
            yield catalog, reader
        finally:
            noting.cancel()
            await reader.stop()


async def marking(catalog: Catalog, reader: LogReader, every_s: float) -> None:
    """Note again and again that the copy is current, so that the next start need not replay. A broker that is away is asked again later."""
    while True:
        try:
            await reader.caught_up()
            catalog.mark_current(now_ms())
        except BusUnavailable as error:
            log.warning("the catalog's copy is not known to be current: %s", error)
        await asyncio.sleep(every_s)
