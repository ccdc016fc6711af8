"""Requests of the bulk lane that are asked again when nobody answers, or an error answers that may pass."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from mint_stream.bus.requests import RequestReply
from mint_stream.contracts import INFERENCE_BATCH
from mint_stream.errors import DeadlineExceeded, MintError, ReplyTimeout, Retry, leaves
from mint_stream.messages.inference import InferenceRequest, InferenceResult
from mint_stream.messages.shared import ErrorBody

log = logging.getLogger(__name__)

Answered = InferenceResult | ErrorBody
"""A completion, or why there is none."""


@dataclass(frozen=True)
class AskingLimits:
    """How much is asked at once, and how patiently."""

    at_once: int = 32
    timeout_s: float = 120.0
    """After this a question without an answer is asked again."""
    tries: int = 3
    """How often a question is asked that was answered by an error which may pass."""
    silences: int | None = None
    """How often a question may be asked without an answer in time. None: for as long as nobody answers in time."""


class Insisting:
    """Asks for any number of askers, together never more than `at_once` questions of a pool."""

    def __init__(self, replies: RequestReply, limits: AskingLimits) -> None:
        self._replies = replies
        self._limits = limits
        self._rooms: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(limits.at_once))
        """By pool: one that nobody serves holds up only its own askers."""

    async def answers(self, pool: str, requests: Iterable[InferenceRequest]) -> tuple[Answered, ...]:
        """In the order of the requests. Raises RequestConflict, and what ended the reading of replies."""
        asked = [asyncio.create_task(self._answer(pool, request)) for request in requests]
        try:
            return tuple(await asyncio.gather(*asked))
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _answer(self, pool: str, request: InferenceRequest) -> Answered:
        error: ErrorBody | None = None
        for _ in range(self._limits.tries):
            result = await self._insisted(pool, request)
            error = result if isinstance(result, ErrorBody) else result.error
            if error is None:
                return result
            log.info("no answer request_id=%s code=%s", request.request_id, error.code)
            if not issubclass(leaves().get(error.code, MintError), Retry) or isinstance(result, ErrorBody):
                break
        assert error is not None
        return error

    async def _insisted(self, pool: str, request: InferenceRequest) -> Answered:
        """A pool that is away is waited for: its silence says nothing about what is asked. Others have their turn between two askings."""
        silences = 0
        while True:
            async with self._rooms[pool]:
                answer = await self._timely(pool, request)
            if isinstance(answer, InferenceResult):
                return answer
            silences += 1
            if silences == self._limits.silences:
                return answer

    async def _timely(self, pool: str, request: InferenceRequest) -> Answered:
        """The result, or that there was none in time."""
        late = round((time.time() + self._limits.timeout_s) * 1000)
        timely = request.model_copy(update={"deadline_at_ms": late})
        try:
            result = await self._replies.ask(pool, timely, self._limits.timeout_s, INFERENCE_BATCH, again=True)
        except ReplyTimeout as error:
            log.warning("pool %s does not answer: %s", pool, error)
            return ErrorBody.of(error)
        return result if result.error is None or result.error.code != DeadlineExceeded.code else result.error
