"""The seam between the event loop and the threads beside it: the one that makes passes, and those that prepare and save jobs."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

from mint_stream.errors import EngineFailed, StoreUnavailable

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0

Pause = Callable[[float], Awaitable[None]]
"""Waits so many seconds; raises what ends the waiting for good."""


class TorchThread:
    """Runs functions off the event loop, which goes on meanwhile."""

    def __init__(self, executor: Executor) -> None:
        """`executor` has a single thread where the functions own something together, as passes do."""
        self._executor = executor

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function gives or raises. What torch itself raises (out of memory, a bad shape) becomes EngineFailed."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))
        except (RuntimeError, MemoryError, ValueError, TypeError, LookupError) as error:
            log.exception("torch failed")
            raise EngineFailed(f"training failed in torch: {type(error).__name__}: {error}") from error

    async def patiently(self, pause: Pause, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, and again after a pause for as long as the store does not answer: an outage is no fault of the job."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return await self.run(function, *args, **kwargs)
            except StoreUnavailable as error:
                log.warning("the store did not answer, again in %g s: %s", wait_s, error)
            await pause(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


async def attended(work: Coroutine[Any, Any, T], pause: Pause) -> T:
    """What `work` gives or raises, or what `pause` raises meanwhile, which ends it."""
    working, watching = asyncio.create_task(work), asyncio.ensure_future(pause(math.inf))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await watching
        return await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
