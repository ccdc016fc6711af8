"""Tells all who wait that something moved, so that they look again."""

import asyncio


class Moves:
    """Nobody who began to wait before a `wake` misses it."""

    def __init__(self) -> None:
        self._moved = asyncio.Event()

    def wake(self) -> None:
        """Let all who wait look again."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def moved(self, timeout_s: float) -> None:
        """Return at the next `wake`, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._moved.wait()
        except TimeoutError:
            return
