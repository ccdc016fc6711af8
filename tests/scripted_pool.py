"""Serving without a model, for tests of what judges revisions: what each revision says, how fast and with what errors, is a script.

async with ScriptedPool(connection, pool, room, script) as serving: ...
`script(number, prompt)` gives Said(text, latency_ms) or raises a MintError. Requests for production fall to a canary as in a real worker,
are counted by the real tallies, and after each one the worker's status is told."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mint_stream import contracts
from mint_stream.app.catalog_copy import current_catalog
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Delivery, Intake
from mint_stream.bus.producer import Producer
from mint_stream.catalog import Chosen
from mint_stream.errors import MintError
from mint_stream.messages.fleet import WorkerStatus
from mint_stream.messages.inference import InferenceRequest, InferenceResult, ServedBy, request_digest
from mint_stream.workers.answers import refusal
from mint_stream.workers.canary_tallies import CanaryTallies
from mint_stream.workers.clock import now_ms
from tests.provisioned import PARTITIONS

BASE_DIGEST = "b" * 64


@dataclass(frozen=True)
class Said:
    """What a revision says to a prompt."""

    text: str
    latency_ms: float = 100.0


Script = Callable[[int, str], Said]


class ScriptedPool:
    """See the module."""

    def __init__(self, connection: Connection, pool: str, room: Path, script: Script) -> None:
        self._connection = connection
        self._pool = pool
        self._room = room
        self.script = script
        self.pinned: list[InferenceRequest] = []
        """Requests of the bulk lane."""
        self._parts = AsyncExitStack()
        self._started_at_ms = now_ms()

    async def __aenter__(self) -> Self:
        self._producer = Producer(self._connection, source="scripted")
        await self._producer.start()
        self._parts.push_async_callback(self._producer.stop)
        revisions = contracts.ADAPTER_REVISIONS.model_copy(update={"partitions": PARTITIONS})
        copy = current_catalog(self._connection, self._room / "scripted", revisions)
        self._catalog, _ = await self._parts.enter_async_context(copy)
        self.tallies = CanaryTallies(self._catalog)
        lanes = [contracts.INFERENCE_REQUESTS.name(self._pool), contracts.INFERENCE_BATCH.name(self._pool)]
        self._intake = Intake(self._connection, lanes, f"scripted-{self._pool}", DeadLetters(self._producer))
        await self._intake.start()
        self._loop = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._intake.stop()
        await self._loop
        await self._parts.aclose()

    async def _serve(self) -> None:
        async for delivery in self._intake:
            await self._answer(delivery)
            await delivery.close()

    async def _answer(self, delivery: Delivery) -> None:
        request = InferenceRequest.decode(delivery.value)
        if request.min_catalog_position is not None:
            await self._catalog.reached(request.min_catalog_position)
        if delivery.topic.startswith("inference-batch"):
            self.pinned.append(request)
        result = self._result(request)
        partition = request.reply_to.partition if request.reply_to else None
        topic = contracts.INFERENCE_REPLIES if request.reply_to else contracts.INFERENCE_RESULTS
        await self._tell()
        await self._producer.publish(topic, result, request.request_id, partition=partition)

    def _result(self, request: InferenceRequest) -> InferenceResult:
        chosen = self._catalog.choose(request.adapter or "", request.name)
        try:
            said = self.script(chosen.revision.number, request.prompt or "")
        except MintError as error:
            self.tallies.failed(request, chosen.canary, error)
            return refusal(request, request_digest(request), error, 0)
        self.tallies.completed(request, chosen.canary, said.latency_ms)
        return _completion(request, chosen, said)

    async def _tell(self) -> None:
        status = WorkerStatus(
            worker_id=f"scripted-{self._pool}",
            role="serve",
            pool=self._pool,
            state="ready",
            canaries=self.tallies.told(),
            started_at_ms=self._started_at_ms,
            at_ms=now_ms(),
        )
        await self._producer.publish(contracts.WORKER_STATUS, status, status.worker_id)


def _completion(request: InferenceRequest, chosen: Chosen, said: Said) -> InferenceResult:
    revision = chosen.revision
    served = ServedBy(
        adapter_id=revision.adapter_id,
        number=revision.number,
        canary=chosen.canary,
        revision_digest=revision.digest,
        base_digest=BASE_DIGEST,
        worker_id="scripted",
    )
    return InferenceResult(
        request_id=request.request_id,
        tenant=request.tenant,
        request_digest=request_digest(request),
        status="ok",
        adapter=request.adapter,
        text=said.text,
        finish_reason="stop",
        served_by=served,
        completed_at_ms=now_ms(),
    )
