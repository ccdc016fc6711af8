"""A process's own copy of the catalog: opened where it was left, continued from the log, kept current."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.table import LogReader
from mint_stream.bus.topic_facts import topic_facts
from mint_stream.catalog import Catalog
from mint_stream.contracts import Topic
from mint_stream.workers.clock import now_ms

_MARK_S = 60.0


@asynccontextmanager
async def current_catalog(connection: Connection, path: Path, revisions: Topic) -> AsyncIterator[tuple[Catalog, LogReader]]:
    """A catalog that holds everything the log held when this was entered, and follows it from then on."""
    facts = await topic_facts(connection, contracts.ADAPTER_REVISIONS.name())
    with Catalog(path, revisions.partitions) as catalog:
        start = catalog.prepare(facts.topic_id, facts.delete_retention_ms, now_ms())
        reader = LogReader(connection, contracts.ADAPTER_REVISIONS.name(), catalog.apply, start=start)
        await reader.start()
        marking = asyncio.create_task(_mark(catalog, reader))
        try:
            await reader.caught_up()
            yield catalog, reader
        finally:
            marking.cancel()
            await reader.stop()


async def _mark(catalog: Catalog, reader: LogReader) -> None:
    """Note every minute that the copy is current, so that the next start need not replay."""
    while True:
        await reader.caught_up()
        catalog.mark_current(now_ms())
        await asyncio.sleep(_MARK_S)
