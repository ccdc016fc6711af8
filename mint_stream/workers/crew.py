"""Records in work, each in a task of its own, beside the loop that takes them; the first task that fails ends both."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Crew:
    """The open tasks of one worker. `on_change` is told how many there are."""

    def __init__(self, on_change: Callable[[int], object] = lambda _count: None) -> None:
        self._on_change = on_change
        self._open: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __len__(self) -> int:
        return len(self._open)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start work on one record."""
        task = asyncio.create_task(work)
        self._open.add(task)
        self._on_change(len(self._open))
        task.add_done_callback(self._ended)
        return task

    async def run(self, take: Coroutine[Any, Any, None]) -> None:
        """Take records until `take` ends, and see the open ones through. Raises what any of it raised: something a person has to see."""
        working = asyncio.create_task(self._take_and_finish(take))
        try:
            await asyncio.wait({working, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                await self._failure
            await working
        finally:
            working.cancel()

    async def finish(self) -> None:
        """Wait until no task is open."""
        if self._open:
            await asyncio.wait(self._open)

    async def _take_and_finish(self, take: Coroutine[Any, Any, None]) -> None:
        await take
        await self.finish()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._on_change(len(self._open))
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failure.done():
            self._failure.set_exception(error)
