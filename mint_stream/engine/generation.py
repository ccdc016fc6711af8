"""What an engine is asked and what it answers. Nothing here needs torch, so the null engine and its users run without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mint_stream.messages.inference import FinishReason, Sampling, TokenLogprob

if TYPE_CHECKING:
    from mint_stream.adapter import AdapterBlock

Lane = Literal["online", "bulk"]
OnText = Callable[[str], None]


@dataclass(frozen=True)
class Generation:
    """One completion to make: everything is resolved, the adapter (None: the bare base) is resident and leased by the caller."""

    request_id: str
    prompt_tokens: tuple[int, ...]
    sampling: Sampling
    seed: int
    """Draws depend on (seed, position) alone, so a replay draws the same numbers whoever shares the batch."""
    adapter: AdapterBlock | None = None
    tenant: str = "default"
    lane: Lane = "online"
    deadline_at_s: float | None = None
    """On the clock of `time.monotonic`; None: no deadline."""


@dataclass(frozen=True)
class Completion:
    """A finished generation. `tokens` are all tokens drawn; `text` ends before the stop string or the end-of-sequence token."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    queued_ms: float
    prefill_ms: float
    decode_ms: float
    reused_tokens: int = 0
    """Of the prompt, read from the cache instead of computed."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of `tokens`, where they were asked for."""
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    """Of the prompt's tokens but the first, likewise."""


@dataclass(frozen=True)
class EngineLoad:
    """How many generations hold a slot, and how many wait for one."""

    running: int
    waiting: int


class GenerationEngine(Protocol):
    """The seam between serving worker and model. All methods are called on the event loop's thread."""

    @property
    def load(self) -> EngineLoad: ...

    @property
    def steps(self) -> int: ...

    @property
    def max_adapters_in_step(self) -> int: ...

    async def start(self) -> None:
        """Warm up and become ready. Raises EngineFailed."""

    async def stop(self) -> None:
        """End; generations still running raise Cancelled."""

    async def run(self, generation: Generation, on_text: OnText | None = None) -> Completion:
        """Generate. `on_text` receives pieces of the text, in order, on the event loop's thread; joined they are the completion's text.

        Raises DeadlineExceeded, Cancelled, PromptTooLong, InvalidRequest, AdapterUnloadable (the adapter computes non-finite numbers)
        or EngineFailed. Cancelling the awaiting task cancels the generation.
        """

    def cancel(self, request_id: str, reason: str) -> bool:
        """End every generation of this request_id with Cancelled(reason). False when there is none."""

    async def watch(self) -> None:
        """Return when the engine was stopped; raise EngineFailed when it crashed. For whoever supervises it."""
