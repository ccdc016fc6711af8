"""A partition of `adapter-commands` that the group gave this registrar, from assignment to revocation."""

import asyncio
import time
from collections.abc import Iterator, Sequence

from mint_stream.bus.table import LogRecord
from mint_stream.workers.catalog_writer import CatalogWriter

_FIRST_S, _LONGEST_S = 0.2, 10.0


class Holding:
    """Its writer while commands are carried out; none before it is taken over and after a failure, until it is due again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.writer: CatalogWriter | None = None
        self.next_offset = 0
        """Commands below were carried out already."""
        self.taking = False
        self.busy = asyncio.Lock()
        """Held while a transaction is open."""
        self.faults: dict[int, Exception] = {}
        """Offsets of commands that failed alone by a fault of their own, and how: to be set aside."""
        self._careful_below = 0
        self._starting: CatalogWriter | None = None
        self._retry_at_s = 0.0
        self._wait_s = _FIRST_S

    @property
    def due(self) -> bool:
        """Whether it should be taken over now."""
        return self.writer is None and not self.taking and time.monotonic() >= self._retry_at_s

    async def begin(self, writer: CatalogWriter) -> None:
        """Start taking over with this writer. Raises BusUnavailable."""
        self._starting = writer
        await writer.take()

    def open(self, next_offset: int) -> None:
        """The log is folded: commands from `next_offset` on may be carried out."""
        self.writer, self._starting = self._starting, None
        self.next_offset = next_offset

    def cut(self, records: Sequence[LogRecord]) -> Iterator[Sequence[LogRecord]]:
        """What goes into one transaction each: everything, or one by one while it is looked for which of them fails."""
        careful = [record for record in records if record.offset < self._careful_below]
        yield from ([record] for record in careful)
        if rest := records[len(careful) :]:
            yield rest

    def blame(self, together: Sequence[LogRecord], error: Exception) -> None:
        """Carrying these out failed by a fault of theirs. One alone is to be set aside, several are to be tried one by one."""
        if len(together) == 1:
            self.faults[together[0].offset] = error
        self._careful_below = together[-1].offset + 1

    def advance(self, next_offset: int) -> None:
        """A transaction went through."""
        self.next_offset = next_offset
        self._wait_s = _FIRST_S
        self.faults = {offset: fault for offset, fault in self.faults.items() if offset >= next_offset}

    async def put_off(self) -> None:
        """Throw the writer away and try again later, each time twice as much later."""
        self._retry_at_s = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, _LONGEST_S)
        await self.clear()

    async def clear(self) -> None:
        """Throw the writer away."""
        for writer in (self.writer, self._starting):
            if writer is not None:
                await writer.stop()
        self.writer = self._starting = None
