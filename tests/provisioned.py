"""Topics for tests that use the fleet's own: created once a broker, with few partitions, whoever comes first."""

from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.contracts import load_topics, with_partitions

PARTITIONS = 4


async def ensure_topics(connection: Connection, pool: str) -> None:
    """Create what of topics/ is missing for this pool, dead letter topics too."""
    await provision.apply(connection, with_partitions(load_topics(), PARTITIONS), pool)
