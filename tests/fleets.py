"""Settings for benchmarks of a whole system: a tiny base, a pool of its own, and the session's broker."""

from pathlib import Path
from uuid import uuid4

from mint_stream.bus.connection import Connection
from mint_stream.settings import Settings
from tests.factories import tiny_base
from tests.provisioned import PARTITIONS, ensure_topics


async def fleet_settings(connection: Connection, room: Path) -> Settings:
    """Processes of these settings share nothing with another test's but the broker and the fleet's topics."""
    pool = f"bench-{uuid4().hex[:8]}"
    await ensure_topics(connection, pool)
    return Settings.load(
        base=str(tiny_base(room / "base")),
        pool=pool,
        home=room / "home",
        partitions=PARTITIONS,
        kafka={"bootstrap_servers": connection.bootstrap_servers},
        serving={"context_tokens": 512},
    )
