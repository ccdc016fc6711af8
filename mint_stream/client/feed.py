"""A topic as an async iterator of decoded values."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from mint_stream.bus.table import Apply, LogReader, LogRecord
from mint_stream.client.partitions import Partitions, Since
from mint_stream.errors import InvalidRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

FULL_VALUES = 1000
"""A feed whose reader is slower than the log rests when so many values wait, and reads on at half of it; one fetch may come on top."""

TRANSACTION_S = 10.0
"""Longer than a transaction takes to become visible once its event is, also on a machine that is busy with other things."""


@dataclass(frozen=True)
class Place:
    """Which records of a topic: all of them, or only the partition of one key; from where. `offsets` names partitions and starts itself."""

    topic: str
    key: str | None = None
    since: Since = "earliest"
    offsets: Mapping[int, int] | None = None


class Feed(AsyncIterator[T], Generic[T]):
    """Yields what `decode` makes of each record, in order within a partition, and waits for more; None is left out.

    At most FULL_VALUES and one fetch of them wait in memory, however long the log is and however slow who iterates.

    Reading begins at the first `anext`, or at `async with`, from where on nothing is missed. It ends after the value for which
    `is_last` holds, by `aclose`, or by raising what made the reader fail."""

    def __init__(
        self,
        partitions: Partitions,
        place: Place,
        decode: Callable[[LogRecord], T | None],
        is_last: Callable[[T], bool] = lambda _: False,
    ) -> None:
        self._partitions = partitions
        self._place = place
        self._decode = decode
        self._is_last = is_last
        self._values: asyncio.Queue[T | None] = asyncio.Queue()
        self._reader: LogReader | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closed = False
        self._starting = asyncio.Lock()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    async def start(self) -> None:
        """Find the beginning and read."""
        async with self._starting:
            if self._reader is None and not self._closed:
                self._reader = await open_reader(self._partitions, self._place, self._apply)
                self._watching = asyncio.create_task(self._watch(self._reader))

    async def aclose(self) -> None:
        """End reading; a waiting iteration ends too."""
        self._closed = True
        async with self._starting:
            if self._watching is not None and self._reader is not None:
                self._watching.cancel()
                await self._reader.stop()
                self._reader = self._watching = None
        self._values.put_nowait(None)

    async def __anext__(self) -> T:
        if self._closed:
            raise StopAsyncIteration
        await self.start()
        value = await self._values.get()
        if self._reader is not None and self._values.qsize() <= FULL_VALUES // 2:
            self._reader.go_on()
        if value is None:
            await self._end()
            raise StopAsyncIteration
        if self._is_last(value):
            await self.aclose()
        return value

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _end(self) -> None:
        failure = self._reader.failed if self._reader is not None else None
        await self.aclose()
        if failure is not None:
            raise failure

    async def _watch(self, reader: LogReader) -> None:
        try:
            await reader.run_until_failed()
        finally:
            self._values.put_nowait(None)

    def _apply(self, _: int, records: Sequence[LogRecord], __: int) -> None:
        for record in records:
            value = self._decoded(record)
            if value is not None:
                self._values.put_nowait(value)
        if self._reader is not None and self._values.qsize() >= FULL_VALUES:
            self._reader.hold()

    def _decoded(self, record: LogRecord) -> T | None:
        try:
            return self._decode(record)
        except InvalidRecord as error:
            log.warning("%s: offset %d is passed over: %s", self._place.topic, record.offset, error)
            return None


async def open_reader(partitions: Partitions, place: Place, apply: Apply) -> LogReader:
    """A started reader of that place; the caller stops it."""
    if place.offsets is not None:
        reader = LogReader(partitions.connection, place.topic, apply, place.offsets, sorted(place.offsets))
    else:
        chosen = None if place.key is None else [await partitions.of(place.topic, place.key)]
        start = await partitions.start(place.topic, place.since)
        reader = LogReader(partitions.connection, place.topic, apply, start, chosen)
    await reader.start()
    return reader


async def read_to_end(partitions: Partitions, place: Place, apply: Apply) -> None:
    """Apply everything that was written to that place before this call, so that who has a command's event sees its effect.

    A transaction's records become visible in each partition a moment after one another, so this waits for the end of what was written,
    not only of what is visible; but for a transaction that hangs (its writer died) no longer than TRANSACTION_S. Raises what made the
    reading fail, at whatever point."""
    ends = await partitions.ends(place.topic)
    reader = await open_reader(partitions, place, apply)
    try:
        await reader.caught_up()
        async with asyncio.timeout(TRANSACTION_S):
            await reader.reach(ends)
    except TimeoutError:
        log.warning("%s: a transaction is still open after %g s; what it writes is not seen", place.topic, TRANSACTION_S)
    finally:
        await reader.stop()
