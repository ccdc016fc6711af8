"""How far each partition has been applied, and who waits for more."""

import asyncio

from mint_stream.messages.shared import CatalogPosition


class Barrier:
    """Law: a waiter wakes exactly when its partition's next offset passes the offset it waits for; positions only move forward."""

    def __init__(self, positions: dict[int, int]) -> None:
        self.positions = positions
        self._waiting: dict[int, list[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return sum(map(len, self._waiting.values()))

    def at(self, partition: int) -> int:
        """The next offset to apply."""
        return self.positions.get(partition, 0)

    def advance(self, partition: int, next_offset: int) -> None:
        """Move forward and wake those who waited for that."""
        self.positions[partition] = next_offset
        still: list[tuple[int, asyncio.Future[None]]] = []
        for offset, waiter in self._waiting.pop(partition, ()):
            if waiter.done():
                continue
            if offset < next_offset:
                waiter.set_result(None)
            else:
                still.append((offset, waiter))
        if still:
            self._waiting[partition] = still

    async def reached(self, position: CatalogPosition) -> None:
        """Return once the record at `position` has been applied."""
        if self.at(position.partition) > position.offset:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (position.offset, waiter)
        self._waiting.setdefault(position.partition, []).append(entry)
        try:
            await waiter
        finally:
            self._give_up(position.partition, entry)

    def _give_up(self, partition: int, entry: tuple[int, asyncio.Future[None]]) -> None:
        """Who stopped waiting leaves nothing behind, also where the partition never moves."""
        left = [other for other in self._waiting.pop(partition, ()) if other is not entry]
        if left:
            self._waiting[partition] = left
