"""A serving worker in a process of its own that holds its answers back until it is told to continue. Run by test_serving_more.

python -m tests.workers.serving_process BOOTSTRAP POOL ROOM COUNT early|late

Says `holding` when COUNT requests are held; to be stopped then. After SIGCONT it lets them go at once (early: it does not know yet that it
lost its partitions) or as soon as it knows (late), says `let go`, and serves on like any other."""

import asyncio
import signal
import sys
from pathlib import Path

from mint_stream.bus.connection import Connection
from mint_stream.bus.intake import IntakeLimits
from tests.serving_desk import Desk

LIMITS = IntakeLimits(session_timeout_s=6.0)
"""The shortest that the broker allows."""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(bootstrap: str, pool: str, room: str, count: str, when: str) -> None:
    desk = await Desk.open(Connection(bootstrap), Path(room), pool, limits=LIMITS)
    continued = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCONT, continued.set if when == "late" else desk.engine.resume)
    desk.engine.pause()
    await desk.begin()
    while desk.engine.load.waiting < int(count):
        await asyncio.sleep(0.01)
    say("holding")
    if when == "late":
        await continued.wait()
        await desk.intake.until(lambda: desk.intake.open_records == 0)
        desk.engine.resume()
    say("let go")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
