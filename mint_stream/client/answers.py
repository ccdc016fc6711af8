"""Requests whose answers come back to this client alone."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from mint_stream import contracts
from mint_stream.bus.producer import Producer
from mint_stream.bus.requests import RequestReply
from mint_stream.bus.routing import Routing
from mint_stream.bus.streams import StreamRestart
from mint_stream.client.partitions import Partitions
from mint_stream.errors import ReplyTimeout
from mint_stream.messages.inference import InferenceChunk, InferenceRequest, InferenceResult

Part = InferenceChunk | StreamRestart | InferenceResult
"""A piece of a stream. After a StreamRestart the text begins anew; the result comes last and has all of it."""


class Answers:
    """Asks over one partition of `inference-replies`, chosen at random when the first request is made.

    When reading it fails, whoever waits gets the failure and the next request opens another."""

    def __init__(self, producer: Producer, partitions: Partitions, pool: str, routing: Routing) -> None:
        self._routing = routing
        self._producer = producer
        self._partitions = partitions
        self._pool = pool
        self._starting = asyncio.Lock()
        self._replies: RequestReply | None = None

    async def ask(self, request: InferenceRequest, timeout_s: float) -> InferenceResult:
        """The one answer. Raises ReplyTimeout, RequestConflict."""
        replies = await self._started()
        with self._hinting():
            return await replies.ask(self._pool, request, timeout_s)

    async def stream(self, request: InferenceRequest, timeout_s: float) -> AsyncIterator[Part]:
        """The answer as it is made."""
        replies = await self._started()
        with self._hinting():
            async for part in replies.stream(self._pool, request, timeout_s):
                yield part

    async def stop(self) -> None:
        """End; whoever still waits gets ReplyTimeout."""
        if self._replies is not None:
            await self._replies.stop()

    async def _started(self) -> RequestReply:
        async with self._starting:
            if self._replies is not None and self._replies.failed is not None:
                await self._replies.stop()
                self._replies = None
            if self._replies is None:
                partition = random.randrange(await self._partitions.count(contracts.INFERENCE_REPLIES.name()))
                replies = RequestReply(self._partitions.connection, self._producer, partition, self._routing)
                await replies.start()
                self._replies = replies
            return self._replies

    @contextmanager
    def _hinting(self) -> Iterator[None]:
        try:
            yield
        except ReplyTimeout as error:
            raise ReplyTimeout(f"{error}: is a serving worker of pool {self._pool} running (`mint-stream serve`)?") from error
