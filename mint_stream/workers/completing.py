"""From an admissible request to its result: lease the adapter, generate, state who answered and where the time went."""

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mint_stream.adapter import AdapterBlock
from mint_stream.bus.intake import Delivery
from mint_stream.catalog import Chosen
from mint_stream.engine.generation import Completion, Generation, GenerationEngine
from mint_stream.errors import AdapterUnloadable, Cancelled, DeadlineExceeded, MintError
from mint_stream.messages.adapters import Revision
from mint_stream.messages.inference import InferenceRequest, InferenceResult, ServedBy, Timings, TokenUsage, request_digest
from mint_stream.workers.admission import Admission, Admitted, within
from mint_stream.workers.answers import Answers, ChunkStream, trace_of
from mint_stream.workers.blaming import culprit
from mint_stream.workers.cancellations import Cancellations
from mint_stream.workers.clock import now_ms
from mint_stream.workers.lanes import Consequences
from mint_stream.workers.leasing import Leasing


@dataclass(frozen=True)
class Identity:
    """Who answers, stated in every result."""

    worker_id: str
    base_digest: str
    bulk_topic: str
    """Requests read from this topic go to the bulk lane."""


class Stopwatch:
    """Splits the life of one request into stages."""

    def __init__(self, timestamp_ms: int) -> None:
        self._arrived = self._last = time.perf_counter()
        self._bus_ms = max(0.0, float(now_ms() - timestamp_ms))
        self._stages: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Everything since the last lap belongs to `stage`."""
        now = time.perf_counter()
        self._stages[stage] = (now - self._last) * 1000
        self._last = now

    def timings(self, completion: Completion) -> Timings:
        """The whole, with what the engine measured itself."""
        return Timings(
            bus_ms=self._bus_ms,
            admit_ms=self._stages["admit_ms"],
            parked_ms=self._stages["parked_ms"],
            queued_ms=completion.queued_ms,
            prefill_ms=completion.prefill_ms,
            decode_ms=completion.decode_ms,
            total_ms=self._bus_ms + (time.perf_counter() - self._arrived) * 1000,
        )


class Completer:
    """Makes the result of one request. Raises a typed error for everything that is not a completion."""

    def __init__(
        self,
        engine: GenerationEngine,
        leasing: Leasing,
        admission: Admission,
        answers: Answers,
        cancellations: Cancellations,
        identity: Identity,
    ) -> None:
        self._engine = engine
        self._leasing = leasing
        self._admission = admission
        self._answers = answers
        self._cancellations = cancellations
        self._identity = identity

    async def complete(self, request: InferenceRequest, delivery: Delivery, consequences: Consequences) -> InferenceResult:
        """The ok result. A revision that proves unservable on the way is reported to the registrar; a canary's requests are counted."""
        watch = Stopwatch(delivery.timestamp_ms)
        deadline_s = self._admission.deadline_s(request, delivery.timestamp_ms)
        self._answers.check(request.reply_to)
        self._refuse_cancelled(request)
        admitted = await self._admission.admit(request, deadline_s)
        watch.lap("admit_ms")
        try:
            completion = await self._serve(request, admitted, deadline_s, delivery, watch)
        except MintError as error:
            if admitted.chosen is not None:
                await consequences.quarantine.report(admitted.chosen.revision, error)
                consequences.tallies.failed(request, admitted.chosen.canary, error)
            raise
        timings = watch.timings(completion)
        if admitted.chosen is not None:
            consequences.tallies.completed(request, admitted.chosen.canary, timings.total_ms - timings.bus_ms)
        return self._result(request, admitted, completion, timings, delivery.attempt)

    async def _serve(
        self, request: InferenceRequest, admitted: Admitted, deadline_s: float, delivery: Delivery, watch: Stopwatch
    ) -> Completion:
        async with self._leased(request, admitted.revision, deadline_s) as block:
            watch.lap("parked_ms")
            self._refuse_cancelled(request)
            generation = Generation(
                request_id=request.request_id,
                prompt_tokens=admitted.prompt_tokens,
                sampling=request.sampling,
                seed=seed_of(request),
                adapter=block,
                tenant=request.tenant,
                lane="bulk" if delivery.topic == self._identity.bulk_topic else "online",
                deadline_at_s=deadline_s,
            )
            try:
                return await self._generated(request, generation, delivery)
            except AdapterUnloadable as error:
                raise await culprit(self._engine, generation, error) from error

    async def _generated(self, request: InferenceRequest, generation: Generation, delivery: Delivery) -> Completion:
        if not request.stream:
            return await self._engine.run(generation)
        stream = ChunkStream(self._answers, request, delivery.attempt, trace_of(delivery.headers))
        try:
            return await self._engine.run(generation, stream.add)
        finally:
            await stream.finish()

    @asynccontextmanager
    async def _leased(self, request: InferenceRequest, revision: Revision | None, deadline_s: float) -> AsyncIterator[AdapterBlock | None]:
        """The revision's block, held while the request runs; None for the bare base."""
        if revision is None:
            yield None
            return
        late = DeadlineExceeded(
            f"request {request.request_id} passed its deadline while {revision.adapter_id}@{revision.number} was loading"
        )
        lease = await within(self._leasing.lease(revision), deadline_s, late)
        try:
            yield lease.block
        finally:
            lease.release()

    def _refuse_cancelled(self, request: InferenceRequest) -> None:
        reason = self._cancellations.reason(request.name)
        if reason is not None:
            raise Cancelled(f"request {request.request_id} was cancelled: {reason}")

    def _result(
        self, request: InferenceRequest, admitted: Admitted, completion: Completion, timings: Timings, attempt: int
    ) -> InferenceResult:
        return InferenceResult(
            request_id=request.request_id,
            tenant=request.tenant,
            request_digest=request_digest(request),
            status="ok",
            adapter=request.adapter,
            text=completion.text,
            tokens=completion.tokens,
            logprobs=completion.logprobs,
            prompt_logprobs=completion.prompt_logprobs,
            finish_reason=completion.finish_reason,
            usage=TokenUsage(
                prompt_tokens=len(admitted.prompt_tokens),
                completion_tokens=len(completion.tokens),
                reused_tokens=completion.reused_tokens,
            ),
            served_by=self._served_by(admitted.chosen),
            timings=timings,
            attempt=attempt,
            completed_at_ms=now_ms(),
        )

    def _served_by(self, chosen: Chosen | None) -> ServedBy:
        base_digest, worker_id = self._identity.base_digest, self._identity.worker_id
        if chosen is None:
            return ServedBy(base_digest=base_digest, worker_id=worker_id)
        revision = chosen.revision
        return ServedBy(
            adapter_id=revision.adapter_id,
            number=revision.number,
            canary=chosen.canary,
            spread=chosen.spread,
            revision_digest=revision.digest,
            base_digest=base_digest,
            worker_id=worker_id,
        )


def seed_of(request: InferenceRequest) -> int:
    """The seed given, or one derived from request_id, so that a replay draws the same numbers. In [0, 2^63)."""
    if request.sampling.seed is not None:
        return request.sampling.seed
    return int.from_bytes(hashlib.sha256(request.request_id.encode()).digest()[:8], "big") >> 1
