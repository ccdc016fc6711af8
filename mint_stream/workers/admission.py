"""Admission: what a request must pass before it may wait for the engine. Everything it refuses, it refuses by a typed error."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mint_stream.catalog import Catalog, Chosen
from mint_stream.errors import BaseMismatch, DeadlineExceeded, InvalidRequest, MintError, PositionNotReached, PromptTooLong
from mint_stream.messages.adapters import Revision
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.inference import InferenceRequest
from mint_stream.messages.shared import CatalogPosition

T = TypeVar("T")


class PromptEncoder(Protocol):
    """Turns the prompt of a request into token ids."""

    def encode(self, request: InferenceRequest) -> tuple[int, ...]:
        """Token ids of `messages`, `prompt` or `prompt_tokens`. Raises InvalidRequest."""
        ...


@dataclass(frozen=True)
class AdmissionLimits:
    """What a worker accepts."""

    context_tokens: int
    default_deadline_s: float
    max_deadline_s: float


@dataclass(frozen=True)
class Admitted:
    """A request that may be served: what it will be served by (None: the bare base), and its prompt."""

    chosen: Chosen | None
    prompt_tokens: tuple[int, ...]

    @property
    def revision(self) -> Revision | None:
        """The revision chosen."""
        return self.chosen.revision if self.chosen is not None else None


class Admission:
    """Checks requests against the local catalog and this worker's base."""

    def __init__(self, catalog: Catalog, prompts: PromptEncoder, base: PoolBase, limits: AdmissionLimits) -> None:
        self._catalog = catalog
        self._prompts = prompts
        self._base = base
        self._limits = limits

    def deadline_s(self, request: InferenceRequest, timestamp_ms: int) -> float:
        """The monotonic time by which the request must be answered; never further away than the worker's maximum.

        `timestamp_ms` is the producer's: a clock that is ahead buys no time."""
        now_ms = time.time() * 1000
        sent_ms = min(timestamp_ms, now_ms)
        latest_ms = sent_ms + self._limits.max_deadline_s * 1000
        asked_ms = request.deadline_at_ms if request.deadline_at_ms is not None else sent_ms + self._limits.default_deadline_s * 1000
        return time.monotonic() + (min(asked_ms, latest_ms) - now_ms) / 1000

    async def admit(self, request: InferenceRequest, deadline_s: float) -> Admitted:
        """Resolve the revision and encode the prompt. Raises a Reject that says why not."""
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded(f"request {request.request_id} was past its deadline when it arrived")
        await self._await_position(request, deadline_s)
        chosen = self._chosen(request)
        given = request.prompt_tokens  # no thread for what is tokens already
        tokens = given if given is not None else await asyncio.to_thread(self._prompts.encode, request)
        self._check_length(tokens, request.sampling.max_tokens)
        return Admitted(chosen, tokens)

    async def _await_position(self, request: InferenceRequest, deadline_s: float) -> None:
        position = request.min_catalog_position
        if position is None:
            return
        if position.partition >= self._catalog.partitions:
            raise InvalidRequest(f"catalog position {position.partition}:{position.offset} names a partition that does not exist")
        await within(self._catalog.reached(position), deadline_s, PositionNotReached(_not_reached(request, position)))

    def _chosen(self, request: InferenceRequest) -> Chosen | None:
        if request.adapter is None:
            return None
        chosen = self._catalog.choose(request.adapter, request.name)
        revision = chosen.revision
        if revision.base_digest != self._base.base_digest:
            raise BaseMismatch(
                f"{revision.adapter_id}@{revision.number} was trained for base {str(revision.base_digest)[:12]} of pool {revision.pool}; "
                f"pool {self._base.pool} runs {self._base.base_digest[:12]}: send the request to pool {revision.pool}"
            )
        return chosen

    def _check_length(self, tokens: tuple[int, ...], max_tokens: int) -> None:
        largest = max(tokens, default=0)
        if largest >= self._base.vocabulary_tokens or min(tokens, default=0) < 0:
            raise InvalidRequest(f"token id {largest} is outside the base's vocabulary of {self._base.vocabulary_tokens}")
        if len(tokens) + max_tokens > self._limits.context_tokens:
            raise PromptTooLong(
                f"{len(tokens)} prompt tokens and {max_tokens} new ones exceed the context of {self._limits.context_tokens}: "
                "shorten the prompt or lower sampling.max_tokens"
            )


async def within(work: Awaitable[T], deadline_s: float, late: MintError) -> T:
    """What `work` gives by the monotonic `deadline_s`; raises `late` when that passes first."""
    try:
        async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
            return await work
    except TimeoutError:
        raise late from None


def _not_reached(request: InferenceRequest, position: CatalogPosition) -> str:
    return (
        f"request {request.request_id} asked for catalog position {position.partition}:{position.offset}, "
        "which this worker had not applied by the request's deadline"
    )
