"""A trainer that works until it has closed a record. Settings in the environment; the worker id is the argument.

Whoever started it may stop it with SIGSTOP and let it go on with SIGCONT; it prints its process id first and "closed" last.
"""

import asyncio
import os
import sys

from mint_stream.app.train import TrainRole
from mint_stream.app.workplace import Workplace
from mint_stream.client.connect import connection_from
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings


async def train(worker_id: str) -> None:
    """Until the first record is closed here."""
    settings, closed = Settings.load(), asyncio.Event()
    with Workplace(settings.home, "train", worker_id) as workplace:

        def after(effect: str) -> None:
            if effect == "record-closed":
                closed.set()

        role = TrainRole(settings, connection_from(settings), Metrics(), workplace, after)
        await role.start()
        sys.stdout.write(f"{os.getpid()}\n")
        sys.stdout.flush()
        working = asyncio.create_task(role.run())
        await closed.wait()
        await role.drain()
        await working
    sys.stdout.write("closed\n")


if __name__ == "__main__":
    asyncio.run(train(sys.argv[1]))
