"""Reads a topic from start to end and on, without a consumer group: compacted tables, replies, cancellations, events."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from mint_stream.bus.connection import Connection, failure
from mint_stream.bus.events import Headers
from mint_stream.bus.fetching import fetch
from mint_stream.bus.liveness import Liveness
from mint_stream.errors import TopicMismatch

_POLL_MS = 100
_POLL_RECORDS = 2000

STUCK_AFTER_S = 60.0
"""A partition with records to read and no movement for so long fails its reader."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record as it lies in the log."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    offset: int
    timestamp_ms: int


Apply = Callable[[int, Sequence[LogRecord], int], None]
"""(partition, records in order, next offset to read). The records may be empty when only a transaction's markers were passed."""

Start = Mapping[int, int] | Literal["earliest", "latest"]
"""Where to begin: everywhere at one end, or per partition (those not named: earliest)."""


class LogReader:
    """Feeds every record of a topic's partitions to `apply`, on the event loop, in order within a partition.

    A failure of `apply` or of Kafka ends the reader, and so does standing still before records for `stuck_after_s`: better no copy of the
    log than one that silently grows old. `failed` holds what it was, and `caught_up`, `reach` and `run_until_failed` raise it."""

    def __init__(
        self,
        connection: Connection,
        topic: str,
        apply: Apply,
        start: Start = "earliest",
        partitions: Sequence[int] | None = None,
        read_committed: bool = True,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        self.topic = topic
        self.failed: BaseException | None = None
        self._connection = connection
        self._apply = apply
        self._start = start
        self._wanted = partitions
        self._read_committed = read_committed
        self._stuck_after_s = stuck_after_s
        self._consumer: Any = None
        self._positions: dict[int, int] = {}
        self._moved = asyncio.Condition()
        self._going = asyncio.Event()
        self._going.set()
        self._task: asyncio.Task[None] | None = None

    @property
    def positions(self) -> dict[int, int]:
        """The next offset of each partition that `apply` has not seen."""
        return dict(self._positions)

    @property
    def held(self) -> bool:
        """Whether reading rests, by `hold`."""
        return not self._going.is_set()

    def hold(self) -> None:
        """Read nothing more until `go_on`; what was fetched already is still applied. Nothing is lost: the log keeps it."""
        self._going.clear()

    def go_on(self) -> None:
        """Read on."""
        self._going.set()

    async def start(self) -> None:
        """Find the starting offsets and begin to read. Raises BusUnavailable, and TopicMismatch for a partition that does not exist."""
        self._consumer = AIOKafkaConsumer(
            self.topic,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed" if self._read_committed else "read_uncommitted",
            **self._connection.options(),
        )
        try:
            await self._consumer.start()
            await self._seek()
        except KafkaError as error:
            await self._consumer.stop()
            what = f"cannot read topic {self.topic} at {self._connection.bootstrap_servers}"
            raise await failure(self._connection, what, error) from error
        except BaseException:
            await self._consumer.stop()
            raise
        self._task = asyncio.create_task(self._run(), name=f"log-reader {self.topic}")

    async def caught_up(self) -> None:
        """Wait until everything that was in the log when this was called has been applied.

        The end is the last stable offset, and progress is the consumer's position: markers and compacted holes are passed over."""
        await self.reach(await self._ends())

    async def reach(self, ends: Mapping[int, int]) -> None:
        """Wait until everything below these offsets has been applied, in the partitions that are read here."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.failed is not None or self._reached(ends))
        self._raise_failure()

    async def run_until_failed(self) -> None:
        """Wait until the reader ends; returns after `stop`, raises what made it fail."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._task is None or self._task.done() or self.failed is not None)
        self._raise_failure()

    async def stop(self) -> None:
        """End reading."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._consumer.stop()
            await self._announce()

    async def _seek(self) -> None:
        known = self._consumer.partitions_for_topic(self.topic) or set()
        chosen = sorted(known if self._wanted is None else self._wanted)
        if unknown := set(chosen) - known:
            raise TopicMismatch(f"topic {self.topic} has {len(known)} partitions; partition {min(unknown)} does not exist")
        partitions = [TopicPartition(self.topic, number) for number in chosen]
        self._consumer.unsubscribe()
        self._consumer.assign(partitions)
        self._positions = await self._starting_offsets(partitions)
        for partition in partitions:
            self._consumer.seek(partition, self._positions[partition.partition])

    async def _starting_offsets(self, partitions: Sequence[TopicPartition]) -> dict[int, int]:
        if self._start == "latest":
            return _by_number(await self._consumer.end_offsets(partitions))
        earliest = _by_number(await self._consumer.beginning_offsets(partitions))
        if self._start == "earliest":
            return earliest
        return {number: max(offset, self._start.get(number, offset)) for number, offset in earliest.items()}

    async def _ends(self) -> dict[int, int]:
        try:
            return _by_number(await self._consumer.end_offsets([TopicPartition(self.topic, number) for number in self._positions]))
        except KafkaError as error:
            raise await failure(self._connection, f"cannot ask for the end of topic {self.topic}", error) from error

    def _reached(self, ends: Mapping[int, int]) -> bool:
        return all(position >= ends[number] for number, position in self._positions.items())

    def _raise_failure(self) -> None:
        if self.failed is not None:
            raise self.failed

    async def _run(self) -> None:
        watching = asyncio.create_task(Liveness(self._consumer, self._stuck_after_s, self._moving).run())
        reading = asyncio.create_task(self._read())
        try:
            await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
            (reading if reading.done() else watching).result()
        except KafkaError as error:
            self.failed = await failure(self._connection, f"reading topic {self.topic} failed", error)
        except Exception as error:
            self.failed = error
        finally:
            reading.cancel()
            watching.cancel()
            await asyncio.gather(reading, watching, return_exceptions=True)
            await self._announce()

    async def _read(self) -> None:
        while True:
            await self._going.wait()
            fetched = await fetch(self._consumer, self._by_partition, _POLL_MS, _POLL_RECORDS, self._read_committed)
            await self._apply_all({partition.partition: records for partition, records in fetched.items()})

    def _moving(self) -> Collection[TopicPartition]:
        return () if self.held else self._by_partition()

    def _by_partition(self) -> dict[TopicPartition, int]:
        return {TopicPartition(self.topic, number): offset for number, offset in self._positions.items()}

    async def _apply_all(self, fetched: Mapping[int, Sequence[Any]]) -> None:
        for number, before in self._positions.items():
            position = await self._consumer.position(TopicPartition(self.topic, number))
            if position > before or number in fetched:
                self._apply(number, [_log_record(record) for record in fetched.get(number, ())], position)
                self._positions[number] = position
        await self._announce()

    async def _announce(self) -> None:
        async with self._moved:
            self._moved.notify_all()


def _by_number(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {partition.partition: offset for partition, offset in offsets.items()}


def _log_record(record: Any) -> LogRecord:
    return LogRecord(record.key, record.value, tuple(record.headers), record.offset, record.timestamp)
