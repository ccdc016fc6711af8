"""`mint-stream up`: a local system until a signal or until nothing is left of it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from mint_stream.app.local_system import LocalSystem


async def run(system: LocalSystem, grace_s: float = 30.0) -> bool:
    """Start it, keep it, and on SIGINT or SIGTERM drain it. True when nothing had to be given up."""
    async with _signalled() as stop:
        try:
            if await _before(stop, system.start()) and await _before(stop, system.ready()):
                await system.tell_memory()
                await _before(stop, system.wait())
        finally:
            await system.stop(grace_s)
    return not system.given_up


async def _before(stop: asyncio.Event, work: Awaitable[object]) -> bool:
    """Do the work unless the signal comes first; whether it was done. Raises what the work raises."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in (working, stopping):
        task.cancel()
    await asyncio.wait({working, stopping})
    if working.cancelled():
        return False
    working.result()
    return not stop.is_set()


@asynccontextmanager
async def _signalled() -> AsyncIterator[asyncio.Event]:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
