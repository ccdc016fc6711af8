"""Writes that become visible together or not at all, by one owner at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, InvalidTxnState, KafkaError, ProducerFenced, UnknownProducerId
from aiokafka.structs import OffsetAndMetadata

from mint_stream.bus.connection import Connection, failure
from mint_stream.bus.partitioner import partition_of
from mint_stream.bus.producer import MAX_REQUEST_BYTES, Outgoing, RecordPosition, close, enqueue, outgoing
from mint_stream.contracts import Topic
from mint_stream.errors import BusUnavailable, OwnershipLost
from mint_stream.messages.record import Record

T = TypeVar("T")

FENCED = (ProducerFenced, InvalidProducerEpoch, InvalidTxnState, UnknownProducerId)


class TransactionalProducer:
    """A producer under one `transactional_id`: one for each partition that is owned. `start` fences whoever used the id before.

    After OwnershipLost or BusUnavailable throw it and all state away: stop it, make another, load the state again."""

    def __init__(self, connection: Connection, transactional_id: str, source: str, timeout_s: float = 60.0) -> None:
        self.transactional_id = transactional_id
        self.source = source
        self._connection = connection
        self._timeout_s = timeout_s
        self._pending: list[asyncio.Future[Any]] = []
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect and take the id over. An older owner's open transaction is aborted. Raises BusUnavailable."""
        self._producer = AIOKafkaProducer(
            transactional_id=self.transactional_id,
            transaction_timeout_ms=int(self._timeout_s * 1000),
            max_request_size=MAX_REQUEST_BYTES,
            partitioner=partition_of,
            **self._connection.options(),
        )
        await self._guard(self._producer.start)

    async def stop(self) -> None:
        """Close; an open transaction is aborted by the next owner's `start` or by its timeout."""
        producer, self._producer = self._producer, None
        self._forget()
        if producer is not None:
            await close(producer)

    async def begin(self) -> None:
        """Open a transaction. Raises OwnershipLost when another owner has started."""
        await self._guard(self._live().begin_transaction)

    async def send(
        self,
        topic: Topic | str,
        record: Record,
        key: bytes | str | None,
        *,
        pool: str | None = None,
        partition: int | None = None,
        headers: Iterable[tuple[str, bytes | None]] = (),
    ) -> asyncio.Future[Any]:
        """Queue a record of the transaction; the future resolves with aiokafka's metadata, whose `offset` is where it will stand."""
        return await self.send_raw(outgoing(topic, record, key, self.source, pool=pool, partition=partition, headers=headers))

    async def send_raw(self, record: Outgoing) -> asyncio.Future[Any]:
        """Queue bytes as they are: tombstones, forwarded strays."""
        try:
            future = await enqueue(self._live(), record)  # which waits no longer than a request may take, and needs no clock of ours
        except (KafkaError, AssertionError) as error:
            raise await self._translated(error) from error
        self._pending.append(future)
        return future

    async def acknowledged(self, sent: asyncio.Future[Any]) -> RecordPosition:
        """Where a record of the open transaction will stand. Raises OwnershipLost or BusUnavailable."""
        written = await self._guard(lambda: sent)
        return RecordPosition(written.topic, written.partition, written.offset)

    async def send_offsets(self, offsets: Mapping[tuple[str, int], int], group: str) -> None:
        """Commit a group's next offsets, by (topic, partition), together with the records."""
        committed = {TopicPartition(*partition): OffsetAndMetadata(offset, "") for partition, offset in offsets.items()}
        await self._guard(lambda: self._live().send_offsets_to_transaction(committed, group))

    async def commit(self) -> tuple[RecordPosition, ...]:
        """Make everything since `begin` visible; returns where the records stand, in the order they were sent.

        Raises OwnershipLost, and then nothing of it is ever visible; after BusUnavailable the outcome is known only from the log."""
        producer = self._live()
        written = await self._guard(lambda: asyncio.gather(*self._pending))
        await self._guard(producer.commit_transaction)
        self._forget()
        return tuple(RecordPosition(one.topic, one.partition, one.offset) for one in written)

    async def abort(self) -> None:
        """Throw everything since `begin` away."""
        self._forget()
        await self._guard(self._live().abort_transaction)

    def _forget(self) -> None:
        for future in self._pending:
            if future.done() and not future.cancelled():
                future.exception()
            future.cancel()
        self._pending = []

    def _live(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise BusUnavailable(f"the producer of {self.transactional_id} is not running")
        return self._producer

    async def _guard(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call()
        except (KafkaError, AssertionError) as error:
            raise await self._translated(error) from error
        except TimeoutError as error:
            raise BusUnavailable(f"the transaction of {self.transactional_id} did not go on in {self._timeout_s:g} s") from error

    async def _translated(self, error: BaseException) -> Exception:
        # aiokafka reports a fenced id by exception, by a dead sender with the exception as cause, or by an assertion on its own state.
        found = await failure(self._connection, f"the transaction of {self.transactional_id} failed", error)
        if isinstance(found, BusUnavailable) and (isinstance(error, FENCED) or isinstance(error.__cause__, FENCED) or self._dead()):
            return OwnershipLost(f"another process owns {self.transactional_id} now")
        return found

    def _dead(self) -> bool:
        manager = self._producer._txn_manager if self._producer is not None else None
        return bool(manager is not None and manager.is_fatal_error())
