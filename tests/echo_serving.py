"""A serving loop without a model, built from the bus parts: it answers a prompt with the prompt, backwards."""

import asyncio
from typing import Self

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Delivery, Intake
from mint_stream.bus.producer import Producer
from mint_stream.errors import UnknownAdapter
from mint_stream.messages.inference import InferenceChunk, InferenceRequest, InferenceResult, ServedBy, TokenUsage, request_digest
from mint_stream.messages.shared import ErrorBody

POOL = "tiny"
BASE_DIGEST = "b" * 64
WIDE, WIDTH = "wide", 4
"""An adapter spread over so many partitions."""


class EchoServing:
    """Answers every request of the pool. Adapter `unknown` is refused; a stream comes letter by letter."""

    def __init__(self, connection: Connection, group: str) -> None:
        self._producer = Producer(connection, source="echo")
        topic = contracts.INFERENCE_REQUESTS.name(POOL)
        self._intake = Intake(connection, [topic], group, DeadLetters(self._producer))
        self.requests: list[InferenceRequest] = []
        self.keys: list[bytes | None] = []
        self.partitions: list[int] = []

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._intake.start()
        self._loop = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._intake.stop()
        await self._loop
        await self._producer.stop()

    async def _serve(self) -> None:
        async for delivery in self._intake:
            await self._answer(delivery)
            await delivery.close()

    async def _answer(self, delivery: Delivery) -> None:
        request = InferenceRequest.decode(delivery.value)
        self.requests.append(request)
        self.keys.append(delivery.key)
        self.partitions.append(delivery.partition)
        partition = request.reply_to.partition if request.reply_to else None
        result = answer_to(request)
        if request.stream:
            for sequence, letter in enumerate(result.text or ""):
                chunk = InferenceChunk(request_id=request.request_id, tenant=request.tenant, attempt=0, sequence=sequence, text=letter)
                await self._producer.publish(contracts.INFERENCE_CHUNKS, chunk, request.request_id, partition=partition)
        topic = contracts.INFERENCE_REPLIES if request.reply_to else contracts.INFERENCE_RESULTS
        await self._producer.publish(topic, result, request.request_id, partition=partition)


def answer_to(request: InferenceRequest) -> InferenceResult:
    """What the echo says to a request."""
    about = {"request_id": request.request_id, "tenant": request.tenant, "request_digest": request_digest(request), "completed_at_ms": 1}
    if request.adapter == "unknown":
        error = ErrorBody(code=UnknownAdapter.code, message="no adapter unknown")
        return InferenceResult(**about, status="error", adapter=request.adapter, error=error)
    text = (request.prompt or (request.messages[-1].content if request.messages else ""))[::-1]
    name, _, number = (request.adapter or "").partition("@")
    served = ServedBy(
        adapter_id=name or None,
        number=int(number or 1) if name else None,
        revision_digest="a" * 64 if name else None,
        spread=WIDTH if name == WIDE else 1,
        base_digest=BASE_DIGEST,
        worker_id="echo",
    )
    usage = TokenUsage(prompt_tokens=len(text), completion_tokens=len(text))
    return InferenceResult(**about, status="ok", adapter=request.adapter, text=text, finish_reason="stop", usage=usage, served_by=served)
