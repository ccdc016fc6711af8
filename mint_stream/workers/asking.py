"""Items asked of a revision: ordinary requests of the bulk lane, pinned to it, answered by whichever worker serves its pool."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mint_stream.bus.requests import RequestReply
from mint_stream.contracts import INFERENCE_BATCH
from mint_stream.errors import DeadlineExceeded, MintError, ReplyTimeout, Retry, leaves
from mint_stream.messages.inference import InferenceRequest, InferenceResult, Sampling
from mint_stream.promotion.items import Item
from mint_stream.workers.open_trials import OpenTrial

log = logging.getLogger(__name__)

TENANT = "mint-stream-evaluate"


@dataclass(frozen=True)
class AskingLimits:
    """How much is asked at once, and how patiently."""

    at_once: int = 32
    timeout_s: float = 120.0
    """After this a question without an answer is asked again, for as long as nobody answers in time."""
    tries: int = 3
    """How often a question is asked that was answered by an error which may pass."""


class Asking:
    """Asks for any number of trials, together never more than `at_once` questions of a pool.

    The id of a request says trial, revision and item, so a question asked again by whoever takes the trial over is the same request."""

    def __init__(self, replies: RequestReply, limits: AskingLimits) -> None:
        self._replies = replies
        self._limits = limits
        self._rooms: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(limits.at_once))
        """By pool: one that nobody serves holds up only its own trials."""

    async def answers(self, of: OpenTrial, number: int, items: Sequence[Item], purpose: str) -> tuple[str | None, ...]:
        """What the revision says to each item; None where it answered by an error."""
        requests = [self._request(of, number, place, item, purpose) for place, item in enumerate(items)]
        asked = [asyncio.create_task(self._answer(of, request)) for request in requests]
        try:
            return tuple(await asyncio.gather(*asked))
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def _request(self, of: OpenTrial, number: int, place: int, item: Item, purpose: str) -> InferenceRequest:
        return InferenceRequest(
            request_id=f"{purpose}/{of.name}/{number}/{place}",
            tenant=TENANT,
            adapter=f"{of.adapter_id}@{number}",
            sampling=Sampling(max_tokens=of.gate.max_tokens),
            min_catalog_position=of.position,
            **item.question,
        )

    async def _answer(self, of: OpenTrial, request: InferenceRequest) -> str | None:
        for _ in range(self._limits.tries):
            async with self._rooms[of.pool]:
                result = await self._insisted(of, request)
            if result.error is None:
                return result.text or ""
            log.info("no answer request_id=%s code=%s", request.request_id, result.error.code)
            if not issubclass(leaves().get(result.error.code, MintError), Retry):
                return None
        return None

    async def _insisted(self, of: OpenTrial, request: InferenceRequest) -> InferenceResult:
        """A pool that is away is waited for: its silence says nothing about the candidate, nor does a question it found too late."""
        while True:
            late = round((time.time() + self._limits.timeout_s) * 1000)
            asked = request.model_copy(update={"deadline_at_ms": late})
            try:
                result = await self._replies.ask(of.pool, asked, self._limits.timeout_s, INFERENCE_BATCH)
            except ReplyTimeout as error:
                log.warning("trial %s waits for pool %s: %s", of.trial.trial_id, of.pool, error)
            else:
                if result.error is None or result.error.code != DeadlineExceeded.code:
                    return result
