"""A serving worker in a process of its own whose store never answers, to be killed while it loads. Run by test_cold_loads.

python -m tests.workers.loading_process BOOTSTRAP POOL ROOM REVISION    says `loading` when it asks the store for REVISION (JSON)."""

import asyncio
import sys
import threading
from pathlib import Path

from mint_stream.bus.connection import Connection
from mint_stream.cache import DiskTier
from mint_stream.messages.adapters import Manifest, Revision
from mint_stream.store import Store
from tests.serving_desk import Desk
from tests.workers.serving_process import LIMITS, say


class Silent(Store):
    """Takes for ever."""

    def read_revision(self, revision: str | Manifest) -> dict[str, bytes]:
        say("loading")
        threading.Event().wait()
        raise AssertionError("for ever is over")


async def main(bootstrap: str, pool: str, room: str, revision: str) -> None:
    store, disk = Silent(Path(room, "store").as_uri()), DiskTier(Path(room, "disk"), 2**20)
    desk = await Desk.open(Connection(bootstrap), Path(room), pool, limits=LIMITS, store=store, disk=disk)
    desk.write(Revision.decode(revision.encode()))
    await desk.begin()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
