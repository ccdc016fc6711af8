"""A line of trainers, each of which kills itself with -9 right after one effect, and a last one that may finish.

Usage: killed_trainers.py EFFECT...   (settings in the environment). Prints {effect: exit code} as JSON; the last one's effect is "".
Each is a fork of this process, so that torch is imported once.
"""

import asyncio
import json
import os
import signal
import sys

from mint_stream.app.train import TrainRole
from mint_stream.app.workplace import Workplace
from mint_stream.client.connect import connection_from
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings

LONGEST_S = 40.0
"""A trainer whose fatal effect does not come ends with an error."""


async def train(fatal: str) -> None:
    """Work until the fatal effect; without one, until a record was closed."""
    settings = Settings.load()
    closed = asyncio.Event()

    def after(effect: str) -> None:
        if effect == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if effect == "record-closed":
            closed.set()

    with Workplace(settings.home, "train") as workplace:
        role = TrainRole(settings, connection_from(settings), Metrics(), workplace, after)
        await role.start()
        working = asyncio.create_task(role.run())
        async with asyncio.timeout(LONGEST_S):
            await closed.wait()
        await role.drain()
        await working


def ended(fatal: str) -> int:
    """The exit code of one trainer."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(train(fatal))
        except TimeoutError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps({fatal: ended(fatal) for fatal in (*sys.argv[1:], "")}) + "\n")
