"""Answers: results and chunks on their way out. A result is acknowledged by Kafka before its request's offset closes."""

import asyncio
import hashlib
import logging

from pydantic_core import from_json

from mint_stream import contracts
from mint_stream.bus.events import Headers, header
from mint_stream.bus.producer import Producer
from mint_stream.errors import BusUnavailable, MintError, ReplyTopicRefused
from mint_stream.messages.inference import InferenceChunk, InferenceRequest, InferenceResult, ReplyTo
from mint_stream.messages.shared import ErrorBody
from mint_stream.workers.clock import now_ms

log = logging.getLogger(__name__)

COALESCE_S = 0.03
"""Text that arrives within this time travels in one chunk; the first text of a stream does not wait."""


class Answers:
    """Publishes results where requests asked for them."""

    def __init__(self, producer: Producer, reply_partitions: int) -> None:
        self._producer = producer
        self._reply_partitions = reply_partitions

    def check(self, reply_to: ReplyTo | None) -> None:
        """Raises ReplyTopicRefused unless the topic is declared for replies and has the partition."""
        if reply_to is None:
            return
        declared = contracts.INFERENCE_REPLIES.name()
        if reply_to.topic != declared:
            raise ReplyTopicRefused(f"reply_to names topic {reply_to.topic!r}; only {declared!r} is declared for replies")
        if reply_to.partition is not None and reply_to.partition >= self._reply_partitions:
            raise ReplyTopicRefused(f"reply_to names partition {reply_to.partition} of {declared!r}, which has {self._reply_partitions}")

    def allowed(self, reply_to: ReplyTo | None) -> ReplyTo | None:
        """The same, or None where `check` would refuse it: then the result goes to everybody's topic."""
        try:
            self.check(reply_to)
        except ReplyTopicRefused:
            return None
        return reply_to

    async def publish(self, result: InferenceResult, reply_to: ReplyTo | None, trace: Headers = ()) -> None:
        """Send the result and wait until Kafka has it. `trace` is the request's own, see `trace_of`."""
        topic = contracts.INFERENCE_RESULTS if reply_to is None else contracts.INFERENCE_REPLIES
        partition = reply_to.partition if reply_to else None
        await self._producer.publish(topic, result, result.request_id, partition=partition, headers=trace)

    async def publish_chunk(self, chunk: InferenceChunk, reply_to: ReplyTo | None, trace: Headers = ()) -> None:
        """Send one piece of a stream."""
        partition = reply_to.partition if reply_to else None
        await self._producer.publish(contracts.INFERENCE_CHUNKS, chunk, chunk.request_id, partition=partition, headers=trace)


def trace_of(headers: Headers) -> Headers:
    """The trace context that a request's record carries, for what is written because of it."""
    parent = header(headers, "traceparent")
    return (("traceparent", parent),) if parent else ()


class ChunkStream:
    """Coalesces the text of one streamed request into numbered chunks."""

    def __init__(self, answers: Answers, request: InferenceRequest, attempt: int, trace: Headers = ()) -> None:
        self._answers = answers
        self._trace = trace
        self._request = request
        self._attempt = attempt
        self._sequence = 0
        self._waiting: list[str] = []
        self._wake = asyncio.Event()
        self._ended = False
        self._task = asyncio.create_task(self._send())

    def add(self, text: str) -> None:
        """Take more text; called on the event loop."""
        self._waiting.append(text)
        self._wake.set()

    async def finish(self) -> None:
        """Send what is left. The result must follow only after this."""
        self._ended = True
        self._wake.set()
        await self._task

    async def _send(self) -> None:
        while not self._ended:
            await self._wake.wait()
            self._wake.clear()
            if self._sequence and not self._ended:
                await asyncio.sleep(COALESCE_S)
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        text, self._waiting = "".join(self._waiting), []
        if not text:
            return
        tenant, request_id = self._request.name
        chunk = InferenceChunk(request_id=request_id, tenant=tenant, attempt=self._attempt, sequence=self._sequence, text=text)
        self._sequence += 1
        try:
            await self._answers.publish_chunk(chunk, self._request.reply_to, self._trace)
        except BusUnavailable as error:
            log.warning("chunk lost request_id=%s sequence=%d: %s; its result has the whole text", chunk.request_id, chunk.sequence, error)


def refusal(request: InferenceRequest, digest: str, error: MintError, attempt: int) -> InferenceResult:
    """The terminal result of a request that was not completed."""
    return InferenceResult(
        request_id=request.request_id,
        tenant=request.tenant,
        request_digest=digest,
        status="error",
        adapter=request.adapter,
        error=ErrorBody.of(error),
        attempt=attempt,
        completed_at_ms=now_ms(),
    )


def refusal_of_unreadable(value: bytes | None, error: MintError, attempt: int) -> InferenceResult | None:
    """A result for a record that is no valid request but says who asked; None when it does not say even that."""
    try:
        body = from_json(value or b"")  # which bounds its depth and knows no text that could not be answered with
        request_id, tenant = body["request_id"], body.get("tenant", "default")
        return InferenceResult(
            request_id=request_id,
            tenant=tenant,
            request_digest=hashlib.sha256(value or b"").hexdigest(),
            status="error",
            error=ErrorBody.of(error),
            attempt=attempt,
            completed_at_ms=now_ms(),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
