"""The serving worker: every record of its partitions becomes one terminal result, and only then its offset closes.

intake ─► decode ─► complete ─► result acked ─► offset closed
             │          └ refused: error result acked ─► offset closed
             ├ its tenant holds its share: to the bulk lane, acked ─► offset closed
             └ bad record: told (if it says who asked) ─► dead letter acked ─► offset closed
"""

import logging

from mint_stream import contracts
from mint_stream.bus.intake import Delivery, Intake
from mint_stream.errors import InvalidRecord, InvalidRequest, MintError, Stop
from mint_stream.messages.inference import InferenceRequest, InferenceResult, request_digest
from mint_stream.metrics import Metrics
from mint_stream.workers.answers import Answers, refusal, refusal_of_unreadable, trace_of
from mint_stream.workers.completing import Completer
from mint_stream.workers.crew import Crew
from mint_stream.workers.interruptions import Interruptions
from mint_stream.workers.lanes import Consequences

LIMIT_BYTES = int(contracts.INFERENCE_REQUESTS.config["max.message.bytes"])
"""Larger records come in only where somebody raised the topic's limit; memory bounds are made for this one."""

log = logging.getLogger(__name__)


class ServingWorker:
    """Takes records from the intake and answers each in a task of its own; the engine does the batching."""

    def __init__(
        self,
        intake: Intake,
        completer: Completer,
        answers: Answers,
        consequences: Consequences,
        metrics: Metrics,
        interruptions: Interruptions,
    ) -> None:
        self._intake = intake
        self._completer = completer
        self._answers = answers
        self._consequences, self._lanes = consequences, consequences.lanes
        self._metrics = metrics
        self._interruptions = interruptions
        self._crew = Crew(metrics.open_requests.set)
        intake.on_condemned = self._condemned

    @property
    def open_requests(self) -> int:
        """Requests taken and not yet closed."""
        return len(self._crew)

    async def run(self) -> None:
        """Serve until the intake ends. Raises what a person has to see: a dead engine, a lost Kafka."""
        await self._crew.run(self._take())

    async def _take(self) -> None:
        async for delivery in self._intake:
            self._crew.spawn(self._handle(delivery))

    async def _handle(self, delivery: Delivery) -> None:
        """One record, from bytes to a closed offset. What escapes from here stops the worker."""
        try:
            request = read_request(delivery)
        except InvalidRecord as error:
            await self._set_aside(delivery, error)
            return
        if not self._lanes.enter(request, delivery):
            await self._move(request, delivery)
            return
        try:
            await self._serve(request, delivery)
        finally:
            self._lanes.leave(request, delivery)

    async def _serve(self, request: InferenceRequest, delivery: Delivery) -> None:
        result = await self._answer(request, delivery)
        if delivery.stale:
            return
        await self._publish(request, result, delivery)
        self._count(result)
        await delivery.close()

    async def _publish(self, request: InferenceRequest, result: InferenceResult, delivery: Delivery) -> None:
        """The result, or where it is larger than a record may be, a refusal that says so."""
        reply_to, trace = self._answers.allowed(request.reply_to), trace_of(delivery.headers)
        try:
            await self._answers.publish(result, reply_to, trace)
        except InvalidRequest as error:
            log.info("too large an answer request_id=%s %s", request.request_id, error)
            await self._answers.publish(refusal(request, request_digest(request), error, delivery.attempt), reply_to, trace)

    async def _move(self, request: InferenceRequest, delivery: Delivery) -> None:
        """A tenant beyond its share: the request waits in the bulk lane instead of in everybody's way."""
        if not delivery.stale:
            await self._lanes.move(request, delivery)
            self._metrics.moved_requests_total.inc()
            await delivery.close()

    async def _answer(self, request: InferenceRequest, delivery: Delivery) -> InferenceResult:
        """The terminal result, whatever becomes of the request. A Stop is raised: the worker is broken, not the request."""
        try:
            with self._interruptions.interruptible(request.name):
                return await self._completer.complete(request, delivery, self._consequences)
        except Stop:
            raise
        except MintError as error:
            log.info("refused request_id=%s adapter=%s code=%s %s", request.request_id, request.adapter, error.code, error)
            return refusal(request, request_digest(request), error, delivery.attempt)

    async def _set_aside(self, delivery: Delivery, error: InvalidRecord) -> None:
        if delivery.stale:
            return
        await self._condemned(delivery, error)
        log.warning("dead letter topic=%s partition=%d offset=%d %s", delivery.topic, delivery.partition, delivery.offset, error)
        self._metrics.dead_letters_total.labels(error.code).inc()
        await delivery.dead_letter(error)

    async def _condemned(self, delivery: Delivery, error: MintError) -> None:
        """Whoever waits for this record is told, if it says who that is, before it goes to the dead letters."""
        try:
            request = InferenceRequest.decode(delivery.value)
        except InvalidRecord:
            result, reply_to = refusal_of_unreadable(delivery.value, error, delivery.attempt), None
        else:
            result, reply_to = refusal(request, request_digest(request), error, delivery.attempt), self._answers.allowed(request.reply_to)
        if result is not None:
            await self._answers.publish(result, reply_to, trace_of(delivery.headers))

    def _count(self, result: InferenceResult) -> None:
        self._metrics.requests_total.labels(result.error.code if result.error else "ok").inc()
        if result.usage:
            self._metrics.tokens_total.labels("prompt").inc(result.usage.prompt_tokens)
            self._metrics.tokens_total.labels("completion").inc(result.usage.completion_tokens)
        for stage, value_ms in (result.timings.model_dump() if result.timings else {}).items():
            self._metrics.request_seconds.labels(stage.removesuffix("_ms")).observe(value_ms / 1000)


def read_request(delivery: Delivery) -> InferenceRequest:
    """The request in a record. Raises InvalidRecord, also for one over the size that the topic is declared with."""
    if delivery.size_bytes > LIMIT_BYTES:
        raise InvalidRecord(
            f"a record of {delivery.size_bytes} bytes is over the {LIMIT_BYTES} bytes of {contracts.INFERENCE_REQUESTS.name_pattern}"
        )
    return InferenceRequest.decode(delivery.value)
