"""An engine without a model: it answers with the prompt. For tests of everything around an engine, and for bus benchmarks."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from mint_stream.engine.generation import Completion, EngineLoad, Generation, OnText
from mint_stream.errors import Cancelled, DeadlineExceeded


def bytes_text(tokens: Sequence[int]) -> str:
    """Text whose UTF-8 bytes are the tokens: the inverse of `text.encode()`. Tokens from 256 up count modulo 256."""
    return bytes(token % 256 for token in tokens).decode("utf-8", errors="replace")


class EchoEngine:
    """Answers each generation with its own prompt, cut to max_tokens. `pause` holds answers back, `resume` lets them go."""

    def __init__(self, decode: Callable[[Sequence[int]], str] = bytes_text) -> None:
        self._decode = decode
        self._open = asyncio.Event()
        self._open.set()
        self._stopped = asyncio.Event()
        self._waiting: dict[asyncio.Future[str], str] = {}
        self.steps = 0
        self.max_adapters_in_step = 0

    @property
    def load(self) -> EngineLoad:
        """Held generations count as waiting; the rest are answered at once."""
        return EngineLoad(running=0, waiting=len(self._waiting))

    async def start(self) -> None:
        """Nothing to warm up."""

    async def stop(self) -> None:
        """Cancel what is held."""
        self._stopped.set()
        for request_id in set(self._waiting.values()):
            self.cancel(request_id, "the engine was stopped")

    async def watch(self) -> None:
        """Returns when stopped; this engine never crashes."""
        await self._stopped.wait()

    def pause(self) -> None:
        """From now on answers wait for `resume`."""
        self._open.clear()

    def resume(self) -> None:
        """Let held answers go."""
        self._open.set()

    def cancel(self, request_id: str, reason: str) -> bool:
        """End every held generation of this request_id."""
        found = [future for future, name in self._waiting.items() if name == request_id and not future.done()]
        for future in found:
            future.set_result(reason)
        return bool(found)

    async def run(self, generation: Generation, on_text: OnText | None = None) -> Completion:
        """The prompt's text. Raises DeadlineExceeded or Cancelled."""
        begun = time.monotonic()
        if not self._open.is_set() or _past(generation):
            await self._held(generation)
        self.steps += 1
        self.max_adapters_in_step = max(self.max_adapters_in_step, int(generation.adapter is not None))
        tokens = generation.prompt_tokens[: generation.sampling.max_tokens]
        text = self._decode(tokens)
        if on_text is not None and text:
            on_text(text)
        whole = len(tokens) == len(generation.prompt_tokens)
        queued_ms = (time.monotonic() - begun) * 1e3
        return Completion(text, tokens, "stop" if whole else "length", queued_ms, prefill_ms=0.0, decode_ms=0.0)

    async def _held(self, generation: Generation) -> None:
        """Wait until open; raise when the deadline passes or somebody cancels first."""
        cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[cancelled] = generation.request_id
        opened = asyncio.ensure_future(self._open.wait())
        limit_s = None if generation.deadline_at_s is None else max(0.0, generation.deadline_at_s - time.monotonic())
        try:
            either: tuple[asyncio.Future[Any], ...] = (cancelled, opened)
            await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._waiting[cancelled]
            opened.cancel()
        if cancelled.done():
            raise Cancelled(f"request {generation.request_id} was cancelled: {cancelled.result()}")
        if limit_s == 0.0 or not self._open.is_set():
            raise DeadlineExceeded(f"request {generation.request_id} passed its deadline before it was answered")


def _past(generation: Generation) -> bool:
    return generation.deadline_at_s is not None and time.monotonic() >= generation.deadline_at_s
