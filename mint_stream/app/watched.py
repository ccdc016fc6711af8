"""A role's work beside what it cannot go on without."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def run_watched(work: Coroutine[Any, Any, None], parts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Return when `work` has ended; raise at once what makes it, or any of the parts, fail. Parts that are left are ended."""
    working = asyncio.create_task(work)
    watching = [asyncio.create_task(part) for part in parts]
    done, _ = await asyncio.wait({working, *watching}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    await working
    for task in watching:
        task.cancel()
