"""Request and reply over topics: ask, and get the one answer, or its text as it grows."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.bus.routing import Routing, request_key
from mint_stream.bus.streams import ChunkStream, StreamRestart
from mint_stream.bus.table import Apply, LogReader, LogRecord
from mint_stream.contracts import INFERENCE_BATCH, INFERENCE_CHUNKS, INFERENCE_REPLIES, INFERENCE_REQUESTS, Topic
from mint_stream.errors import BusUnavailable, DeadlineExceeded, InvalidRecord, ReplyTimeout, RequestConflict
from mint_stream.messages.inference import InferenceChunk, InferenceRequest, InferenceResult, ReplyTo, request_digest

__all__ = ["Asked", "RequestReply", "StreamRestart", "request_key"]

T = TypeVar("T")

log = logging.getLogger(__name__)


class Asked:
    """A request that was sent: its digest, and a future of its answer.

    `again`: copies of it with earlier deadlines may lie in the topic. That one of those passed is no answer to this one."""

    def __init__(self, request: InferenceRequest, again: bool = False) -> None:
        self._late_from_ms = (request.deadline_at_ms or 0) if again else 0
        self.tenant, self.request_id = request.name
        self.digest = request_digest(request)
        self.result: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
        self.chunks = ChunkStream(request.request_id, request.tenant)
        self.waiting = 0

    def answer(self, result: InferenceResult) -> None:
        """The first terminal result decides; one for another body is a conflict."""
        if self.result.done() or self._of_an_earlier_copy(result):
            return
        if result.request_digest == self.digest:
            self.result.set_result(result)
        else:
            self.result.set_exception(_conflict(self.request_id))
        self.chunks.finish()

    def _of_an_earlier_copy(self, result: InferenceResult) -> bool:
        """Both times are of the worker's clock, or of a deadline that it holds against it."""
        expired = result.error is not None and result.error.code == DeadlineExceeded.code
        return expired and result.completed_at_ms < self._late_from_ms


def _conflict(request_id: str) -> RequestConflict:
    return RequestConflict(f"request_id {request_id} was used before with another body; choose a new one for each request")


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _with_deadline(request: InferenceRequest, timeout_s: float) -> InferenceRequest:
    if request.deadline_at_ms is not None:
        return request
    return request.model_copy(update={"deadline_at_ms": int((time.time() + timeout_s) * 1000)})


async def _until(until_s: float, awaited: Awaitable[T], request: InferenceRequest) -> T:
    try:
        async with asyncio.timeout_at(until_s):
            return await awaited
    except TimeoutError as error:
        raise ReplyTimeout(f"no answer to request {request.request_id} in the time given") from error


class RequestReply:
    """Sends requests whose answers come to one partition of `inference-replies`, which only this reader follows.

    Chunks of streams come to the same partition number of `inference-chunks`. Any number of requests may be under way."""

    def __init__(self, connection: Connection, producer: Producer, partition: int | None = None, routing: Routing | None = None) -> None:
        self._connection = connection
        self._routing = routing or Routing()
        self._producer = producer
        self._partition = partition
        self._asked: dict[str, dict[str, Asked]] = {}
        """By request_id, then by tenant: tenants may choose the same id."""
        self._replies: LogReader | None = None
        self._chunks: LogReader | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._chunks_lock = asyncio.Lock()

    @property
    def reply_partition(self) -> int:
        """The partition of replies that is ours. Known after `start`."""
        if self._partition is None:
            raise BusUnavailable("the reader of replies is not running: call start() first")
        return self._partition

    @property
    def failed(self) -> BaseException | None:
        """What ended the reading of replies, if something did: nothing is answered here any more, make another."""
        return self._replies.failed if self._replies is not None else None

    @property
    def reply_to(self) -> ReplyTo:
        """What a request carries so that its answer comes here."""
        return ReplyTo(topic=INFERENCE_REPLIES.name(), partition=self.reply_partition)

    async def start(self) -> None:
        """Stand at the end of the replies before anything is asked. Raises TopicMismatch when the partition does not exist."""
        if self._partition is None:
            self._partition = random.randrange(await self._producer.partitions(INFERENCE_REPLIES))
        self._replies = self._reader(INFERENCE_REPLIES, self._partition, self._on_replies)
        await self._replies.start()
        self._watches.append(asyncio.create_task(self._surface(self._replies), name="replies"))

    async def run_until_failed(self) -> None:
        """Return after `stop`, raise what ended the reading of replies."""
        assert self._replies is not None
        await self._replies.run_until_failed()

    async def stop(self) -> None:
        """End; whoever still waits gets ReplyTimeout."""
        for reader in (self._replies, self._chunks):
            if reader is not None:
                await reader.stop()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._fail(ReplyTimeout("the reader of replies was stopped"))

    async def submit(
        self, pool: str, request: InferenceRequest, topic: Topic = INFERENCE_REQUESTS, key: str | None = None
    ) -> asyncio.Future[InferenceResult]:
        """Send, without a key to a home of the adapter; the future is the answer.

        A request_id that is under way with the same body is not sent again: both wait for one answer.
        Raises RequestConflict at once for another body under a request_id that is under way."""
        asked = await self._send(pool, request, topic, key)
        asked.waiting += 1
        return asked.result

    async def ask(
        self,
        pool: str,
        request: InferenceRequest,
        timeout_s: float,
        topic: Topic = INFERENCE_REQUESTS,
        key: str | None = None,
        again: bool = False,
    ) -> InferenceResult:
        """Send and wait. A result of status `error` is returned like any other. `again`: see Asked.

        Raises ReplyTimeout and RequestConflict."""
        until_s = _now_s() + timeout_s
        asked = await _until(until_s, self._send(pool, _with_deadline(request, timeout_s), topic, key, again), request)
        with self._awaiting(asked):
            return await _until(until_s, asyncio.shield(asked.result), request)

    async def stream(
        self, pool: str, request: InferenceRequest, timeout_s: float
    ) -> AsyncIterator[InferenceChunk | StreamRestart | InferenceResult]:
        """Send and yield the text piece by piece, then the result.

        After a StreamRestart the text begins anew: another worker took over. The texts since the last restart add up to the result's."""
        until_s = _now_s() + timeout_s
        streamed = _with_deadline(request.model_copy(update={"stream": True}), timeout_s)
        await self._follow_chunks()
        asked = await _until(until_s, self._send(pool, streamed, INFERENCE_REQUESTS, None), request)
        with self._awaiting(asked):
            while (piece := await _until(until_s, asked.chunks.next(), request)) is not None:
                yield piece
            answer = await asked.result
            for piece in asked.chunks.remainder(answer):
                yield piece
            yield answer

    async def _send(self, pool: str, request: InferenceRequest, topic: Topic, key: str | None, again: bool = False) -> Asked:
        if self.failed is not None:
            raise self.failed
        if (under_way := self._asked.get(request.request_id, {}).get(request.tenant)) is not None:
            if under_way.digest != request_digest(request):
                raise _conflict(request.request_id)
            return under_way
        asked = self._enlist(request, again)
        ready = request if request.reply_to is not None else request.model_copy(update={"reply_to": self.reply_to})
        try:
            own, partition = await self._place(pool, request, topic) if key is None else (key, None)
            await self._producer.publish(topic, ready, own, pool=pool, partition=partition)
        except BaseException:
            asked.result.cancel()
            self._forget(asked)  # at once: whoever asks again now must not be given what was cancelled
            raise
        return asked

    async def _place(self, pool: str, request: InferenceRequest, topic: Topic) -> tuple[str, int]:
        partitions = await self._producer.partitions(topic, pool)
        if topic is INFERENCE_BATCH:
            return self._routing.bulk(request, partitions)
        return request_key(request), self._routing.online(request, partitions)

    def _enlist(self, request: InferenceRequest, again: bool) -> Asked:
        asked = Asked(request, again)
        self._asked.setdefault(request.request_id, {})[request.tenant] = asked
        asked.result.add_done_callback(lambda _: self._forget(asked))
        return asked

    def _forget(self, asked: Asked) -> None:
        namesakes = self._asked.get(asked.request_id, {})
        if namesakes.get(asked.tenant) is asked:
            del namesakes[asked.tenant]
            if not namesakes:
                del self._asked[asked.request_id]

    @contextmanager
    def _awaiting(self, asked: Asked) -> Iterator[None]:
        """Somebody waits inside; when the last one leaves without an answer the request is forgotten."""
        asked.waiting += 1
        try:
            yield
        finally:
            asked.waiting -= 1
            if asked.waiting == 0:
                asked.result.cancel()
                self._forget(asked)

    def _reader(self, topic: Topic, partition: int, apply: Apply) -> LogReader:
        return LogReader(self._connection, topic.name(), apply, "latest", [partition])

    async def _follow_chunks(self) -> None:
        async with self._chunks_lock:
            if self._chunks is not None and self._chunks.failed is not None:
                await self._chunks.stop()
                self._chunks = None
            if self._chunks is None:
                count = await self._producer.partitions(INFERENCE_CHUNKS)
                reader = self._reader(INFERENCE_CHUNKS, self.reply_partition % count, self._on_chunks)
                await reader.start()
                self._chunks = reader
                self._watches.append(asyncio.create_task(_complain(reader), name="chunks"))

    def _on_replies(self, partition: int, records: Sequence[LogRecord], next_offset: int) -> None:
        for record in records:
            if namesakes := self._namesakes(record):
                self._answer(namesakes, record)

    def _namesakes(self, record: LogRecord) -> dict[str, Asked]:
        """By tenant, the requests under way whose id is the record's key."""
        return self._asked.get((record.key or b"").decode(errors="replace"), {})

    def _answer(self, namesakes: Mapping[str, Asked], record: LogRecord) -> None:
        try:
            result = InferenceResult.decode(record.value)
        except InvalidRecord as error:
            for asked in namesakes.values():
                if not asked.result.done():
                    asked.result.set_exception(error)
        else:
            self._routing.learn(result)
            if (mine := namesakes.get(result.tenant)) is not None:
                mine.answer(result)

    def _on_chunks(self, partition: int, records: Sequence[LogRecord], next_offset: int) -> None:
        for record in records:
            if namesakes := self._namesakes(record):
                self._add(namesakes, record)

    def _add(self, namesakes: Mapping[str, Asked], record: LogRecord) -> None:
        try:
            chunk = InferenceChunk.decode(record.value)
        except InvalidRecord as error:
            log.warning("a chunk under key %r is unreadable: %s", record.key, error)
        else:
            if (mine := namesakes.get(chunk.tenant)) is not None:
                mine.chunks.add(chunk)

    async def _surface(self, reader: LogReader) -> None:
        try:
            await reader.run_until_failed()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        for asked in [asked for namesakes in self._asked.values() for asked in namesakes.values()]:
            if not asked.result.done():
                asked.result.set_exception(error)
                asked.result.exception()
                asked.chunks.finish()


async def _complain(reader: LogReader) -> None:
    """Streams lose nothing by a failed reader of chunks, for the result has the whole text; the next one opens another."""
    try:
        await reader.run_until_failed()
    except Exception as error:
        log.warning("running streams wait for their results: %s", error)
