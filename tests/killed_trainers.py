"""A line of trainers, each of which kills itself with -9 at one moment, and a last one that may finish.

Usage: killed_trainers.py JOBS MOMENT...   (settings in the environment). A moment is an effect, or `effect:n` for its n-th time in that
trainer's life. The last trainer's moment is "": it ends when JOBS records have been closed by all of them together; with 0 there is none.
Prints {moment: exit code} as JSON. Each is a fork of this process, so that torch is imported once.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from mint_stream.app.train import TrainRole
from mint_stream.app.workplace import Workplace
from mint_stream.client.connect import connection_from
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings

LONGEST_S = 40.0
"""A trainer whose fatal moment does not come ends with an error."""


class Deaths:
    """Counts effects and dies at one of them. Closed records are counted over all lives, in a file."""

    def __init__(self, moment: str, jobs: int, home: Path) -> None:
        self._effect, _, times = moment.partition(":")
        self._times = int(times or 1)
        self._jobs = jobs
        self._closed = home / "closed-records"
        self._seen: Counter[str] = Counter()
        self.over = asyncio.Event()

    def after(self, effect: str) -> None:
        """One effect of the worker."""
        self._seen[effect] += 1
        if effect == "record-closed":
            with self._closed.open("a") as file:
                file.write("x")
            if 0 < self._jobs <= self._closed.stat().st_size:
                self.over.set()
        if effect == self._effect and self._seen[effect] == self._times:
            os.kill(os.getpid(), signal.SIGKILL)


async def train(moment: str, jobs: int) -> None:
    """Work until the fatal moment; without one, until all records are closed."""
    settings = Settings.load()
    deaths = Deaths(moment, jobs, settings.home)
    with Workplace(settings.home, "train") as workplace:
        role = TrainRole(settings, connection_from(settings), Metrics(), workplace, deaths.after)
        await role.start()
        working = asyncio.create_task(role.run())
        async with asyncio.timeout(LONGEST_S):
            await deaths.over.wait()
        await role.drain()
        await working


def ended(moment: str, jobs: int) -> int:
    """The exit code of one trainer."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(train(moment, jobs))
        except TimeoutError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    count, moments = int(sys.argv[1]), sys.argv[2:]
    sys.stdout.write(json.dumps({moment: ended(moment, count) for moment in ([*moments, ""] if count else moments)}) + "\n")
