"""Writes records: acknowledged by all replicas, never reordered or doubled by a retry, and cured when its session with Kafka breaks."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    UnknownTopicOrPartitionError,
)

from mint_stream.bus.connection import Connection, failure
from mint_stream.bus.events import Headers, event_headers, event_type
from mint_stream.contracts import Topic
from mint_stream.errors import BusUnavailable, InvalidRequest
from mint_stream.messages.record import Record

log = logging.getLogger(__name__)

STUCK = (OutOfOrderSequenceNumber, ProducerFenced, InvalidProducerEpoch, InvalidProducerIdMapping, ProducerClosed)
"""A producer that failed like this fails for ever; a new one with a new producer id does not."""

BROKER_LIMIT_BYTES = 1_048_588
"""Kafka's `max.message.bytes` where a topic does not set its own."""

MAX_REQUEST_BYTES = 64 * 1024 * 1024
"""Our side sets no smaller limit than any topic's."""

BATCH_BYTES = 256 * 1024
"""What travels together to one partition, below every topic's limit. A record for which the batch under way has no room waits, and all
that wait are woken for each batch: with aiokafka's 16 KiB a thousand results at once woke each other tens of thousands of times."""

CLOSE_S = 5.0
"""How long a producer that is closed waits for Kafka to take what is pending."""

_CANCEL_S = 0.5
_BATCH_OVERHEAD_BYTES = 61
_RECORD_OVERHEAD_BYTES = 28


@dataclass(frozen=True, order=True)
class RecordPosition:
    """Where an acknowledged record stands in the log."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Outgoing:
    """One record on its way: everything a resend needs."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None
    limit_bytes: int = BROKER_LIMIT_BYTES

    @property
    def size_bytes(self) -> int:
        """An upper bound of what the record takes in a batch of its own."""
        headers = sum(len(name.encode()) + len(value or b"") + 10 for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers + _RECORD_OVERHEAD_BYTES + _BATCH_OVERHEAD_BYTES

    def check(self) -> None:
        """Raises InvalidRequest when the topic would refuse the record for its size."""
        if self.size_bytes > self.limit_bytes:
            raise InvalidRequest(
                f"a record of {self.size_bytes} bytes is over the {self.limit_bytes} bytes that topic {self.topic} takes; "
                "put large content into the object store and send its uri"
            )


def outgoing(
    topic: Topic | str,
    record: Record,
    key: bytes | str | None,
    source: str,
    *,
    pool: str | None = None,
    partition: int | None = None,
    headers: Iterable[tuple[str, bytes | None]] = (),
) -> Outgoing:
    """The bytes of `record` with its CloudEvents headers, checked against the topic's size limit."""
    name = topic if isinstance(topic, str) else topic.name(pool)
    config = {} if isinstance(topic, str) else topic.config
    ready = Outgoing(
        topic=name,
        key=key.encode() if isinstance(key, str) else key,
        value=record.encode(),
        headers=event_headers(source, event_type(record), headers),
        partition=partition,
        limit_bytes=int(config.get("max.message.bytes", BROKER_LIMIT_BYTES)),
    )
    ready.check()
    return ready


class Producer:
    """An idempotent producer that replaces itself when Kafka no longer accepts its sequence, and sends again what was not acknowledged.

    A resend after such a break may double a record or let a later one overtake it; readers keep the first terminal record of an id.
    """

    def __init__(self, connection: Connection, source: str, client_id: str | None = None, delivery_timeout_s: float = 120.0) -> None:
        self.source = source
        self._connection = connection
        self._client_id = client_id
        self._timeout_s = delivery_timeout_s
        self._current: AIOKafkaProducer | None = None
        self._rebuilding = asyncio.Lock()
        self._retired: set[asyncio.Task[None]] = set()
        self.rebuilds = 0

    async def start(self) -> None:
        """Connect. Raises BusUnavailable when no broker answers."""
        if self._current is None:
            self._current = await self._connect()

    async def stop(self) -> None:
        """Send what is pending, if Kafka takes it in a while, and close."""
        current, self._current = self._current, None
        if current is not None:
            await close(current)
        await asyncio.gather(*self._retired)

    async def publish(
        self,
        topic: Topic | str,
        record: Record,
        key: bytes | str | None,
        *,
        pool: str | None = None,
        partition: int | None = None,
        headers: Iterable[tuple[str, bytes | None]] = (),
    ) -> RecordPosition:
        """Write one record and wait until every in-sync replica has it.

        Raises InvalidRequest for a record over the topic's limit and BusUnavailable when no acknowledgement came in time."""
        future = await self.send(topic, record, key, pool=pool, partition=partition, headers=headers)
        return await future

    async def send(
        self,
        topic: Topic | str,
        record: Record,
        key: bytes | str | None,
        *,
        pool: str | None = None,
        partition: int | None = None,
        headers: Iterable[tuple[str, bytes | None]] = (),
    ) -> asyncio.Task[RecordPosition]:
        """Queue one record, in call order within its partition; the task's result is its acknowledged position."""
        return await self.send_raw(outgoing(topic, record, key, self.source, pool=pool, partition=partition, headers=headers))

    async def publish_raw(self, record: Outgoing) -> RecordPosition:
        """Write bytes as they are, without adding headers, and wait for the acknowledgement."""
        return await (await self.send_raw(record))

    async def send_raw(self, record: Outgoing) -> asyncio.Task[RecordPosition]:
        """Queue bytes as they are; the task's result is the acknowledged position."""
        producer = self._live()
        first = await _queued(producer, record)
        return asyncio.create_task(self._acknowledge(producer, first, record))

    async def partitions(self, topic: Topic | str, pool: str | None = None) -> int:
        """How many partitions a topic has on the cluster. Raises BusUnavailable."""
        name = topic if isinstance(topic, str) else topic.name(pool)
        try:
            return len(await self._live().partitions_for(name))
        except UnknownTopicOrPartitionError as error:
            raise BusUnavailable(f"topic {name} does not exist; run `mint-stream topics apply`") from error
        except KafkaError as error:
            raise await failure(self._connection, f"Kafka does not say how many partitions {name} has", error) from error

    async def _acknowledge(self, producer: AIOKafkaProducer, first: asyncio.Future[Any], record: Outgoing) -> RecordPosition:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._until_acknowledged(producer, first, record)
        except TimeoutError as error:
            raise BusUnavailable(
                f"Kafka did not acknowledge a record for {record.topic} in {self._timeout_s:g} s; it may still arrive"
            ) from error

    async def _until_acknowledged(self, producer: AIOKafkaProducer, future: asyncio.Future[Any], record: Outgoing) -> RecordPosition:
        while True:
            try:
                done = await future
            except MessageSizeTooLargeError as error:
                raise InvalidRequest(f"topic {record.topic} refused a record of {record.size_bytes} bytes as too large") from error
            except UnknownTopicOrPartitionError as error:
                raise BusUnavailable(f"topic {record.topic} does not exist; run `mint-stream topics apply`") from error
            except KafkaError as error:
                if not is_stuck(error):
                    raise await failure(self._connection, f"Kafka refused a record for {record.topic}", error) from error
                producer = await self._replace(producer, error)
                future = await _queued(producer, record)
            else:
                return RecordPosition(done.topic, done.partition, done.offset)

    async def _replace(self, failed: AIOKafkaProducer, error: KafkaError) -> AIOKafkaProducer:
        async with self._rebuilding:
            if self._current is failed:
                log.warning("producer of %s is stuck (%r); making a new one", self.source, error)
                self._current = await self._connect()
                self.rebuilds += 1
                self._retire(failed)
            return self._live()

    def _retire(self, producer: AIOKafkaProducer) -> None:
        task = asyncio.create_task(close(producer))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _connect(self) -> AIOKafkaProducer:
        options = self._connection.options() | ({"client_id": self._client_id} if self._client_id else {})
        producer = AIOKafkaProducer(
            acks="all", enable_idempotence=True, linger_ms=0, max_batch_size=BATCH_BYTES, max_request_size=MAX_REQUEST_BYTES, **options
        )
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            what = f"no Kafka broker answers at {self._connection.bootstrap_servers}"
            raise await failure(self._connection, what, error) from error
        return producer

    def _live(self) -> AIOKafkaProducer:
        if self._current is None:
            raise BusUnavailable(f"the producer of {self.source} is not running: call start() first, and nothing after stop()")
        return self._current


async def close(producer: AIOKafkaProducer, patience_s: float = CLOSE_S) -> None:
    """Stop; what Kafka has not taken after `patience_s` is given up. aiokafka's own `stop` would wait for a lost broker for ever."""
    try:
        async with asyncio.timeout(patience_s):
            await producer.flush()
    except TimeoutError:
        log.warning("Kafka did not take what was pending in %g s; it is given up", patience_s)
        await _abandon(producer)
    await producer.stop()


async def _abandon(producer: AIOKafkaProducer) -> None:
    """End the sender and its requests, which try again for ever and are reachable only as tasks, then fail what they held."""
    sender = producer._sender
    running = {task for task in asyncio.all_tasks() if _is_of(task.get_coro(), sender)}
    for task in running:
        task.cancel()
    while running:
        _, running = await asyncio.wait(running, timeout=_CANCEL_S)
        for task in running:  # the first cancellation only made it wait for the others
            task.cancel()
    held = producer._message_accumulator
    batches = [*held._pending_batches, *chain.from_iterable(held._batches.values())]
    held.fail_all(ProducerClosed())
    for batch in batches:
        batch._drain_waiter.exception()  # nobody else will read it


def _is_of(coroutine: Any, owner: object) -> bool:
    frame = getattr(coroutine, "cr_frame", None)
    return frame is not None and frame.f_locals.get("self") is owner


def is_stuck(error: BaseException) -> bool:
    """Whether only a new producer helps. A dead sender task reports its cause as `__cause__`."""
    return isinstance(error, STUCK) or isinstance(error.__cause__, STUCK)


async def enqueue(producer: AIOKafkaProducer, record: Outgoing) -> asyncio.Future[Any]:
    """Hand a record to an aiokafka producer; resolves with its metadata. Allows a null key together with a null value."""
    if record.key is None and record.value is None:
        return await _enqueue_empty(producer, record)
    await _check_partition(producer, record)
    future: asyncio.Future[Any] = await producer.send(
        record.topic, value=record.value, key=record.key, partition=record.partition, headers=list(record.headers)
    )
    return future


async def _queued(producer: AIOKafkaProducer, record: Outgoing) -> asyncio.Future[Any]:
    """`enqueue` whose failure, too, is the future's."""
    try:
        return await enqueue(producer, record)
    except KafkaError as error:
        failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed


async def _check_partition(producer: AIOKafkaProducer, record: Outgoing) -> None:
    if record.partition is not None and record.partition not in await producer.partitions_for(record.topic):
        raise InvalidRequest(f"topic {record.topic} has no partition {record.partition}")


async def _enqueue_empty(producer: AIOKafkaProducer, record: Outgoing) -> asyncio.Future[Any]:
    batch = producer.create_batch()
    batch.append(timestamp=None, key=None, value=None, headers=list(record.headers))
    partition = record.partition if record.partition is not None else min(await producer.partitions_for(record.topic))
    future: asyncio.Future[Any] = await producer.send_batch(batch, record.topic, partition=partition)
    return future
